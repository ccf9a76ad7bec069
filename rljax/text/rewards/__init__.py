"""What completions are worth: functions of their tokens, of their text, or a reward model, all `Reward`s."""

from rljax.text.rewards.tokens import exact_match, length, of_tokens

__all__ = ["exact_match", "length", "of_tokens"]
