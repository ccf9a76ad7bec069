"""What completions are worth: functions of their tokens, of their text, or a reward model, all `Reward`s."""

from rljax.text.rewards.check import check
from rljax.text.rewards.combine import Normalisation, combine
from rljax.text.rewards.host import decoded, of_code, of_text, on_host, tried
from rljax.text.rewards.model import normalised, of_model
from rljax.text.rewards.strings import exact_match, number, numeric_answer, pattern
from rljax.text.rewards.texts import score_texts
from rljax.text.rewards.tokens import length, of_tokens, one_stop
from rljax.text.rewards.translation import bleu, chrf

__all__ = [
    "Normalisation",
    "bleu",
    "check",
    "chrf",
    "combine",
    "decoded",
    "exact_match",
    "length",
    "normalised",
    "number",
    "numeric_answer",
    "of_code",
    "of_model",
    "of_text",
    "of_tokens",
    "on_host",
    "one_stop",
    "pattern",
    "score_texts",
    "tried",
]
