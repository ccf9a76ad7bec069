"""What a reward says of texts: prompts and completions as strings, outside a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rljax.text.data.examples import encoder_pair, pair, two_sequences
from rljax.text.tokenizer import Tokenizer
from rljax.types import Array, Reward

ROWS = 16  # that are scored at a time


def score_texts(
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    tokenizer: Tokenizer | None = None,
    records: Sequence[Mapping[str, Any]] | None = None,
) -> np.ndarray:
    """The rewards of N completions of N prompts, (N,) float32, NaN where one could not be scored.

    Args:
        tokenizer: writes the texts for a reward of tokens; None: that of the reward, which one that
            `rljax.load_reward` gives has. A completion ends with the tokenizer's end token.
        records: what a reward of strings reads beside the two, such as its answer.

    Raises: ValueError in one line where the numbers differ or there is no tokenizer.
    """
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts and {len(completions)} completions: give as many of both")
    if not len(prompts):
        return np.zeros(0, np.float32)
    if reward.host:
        told = [{} for _ in prompts] if records is None else list(records)
        return np.asarray(reward.apply(list(prompts), list(completions), told)[0], np.float32)
    writer = tokenizer or reward.vocabulary
    if not isinstance(writer, Tokenizer):
        raise ValueError(f"reward {reward.name} is of tokens, and has no tokenizer: give tokenizer=")
    encode = encoder_pair if two_sequences(writer) else pair
    texts = zip(prompts, completions, strict=True)
    rows = [encode({"prompt": prompt, "completion": written}, writer) for prompt, written in texts]
    prompt = _padded([row[0] for row in rows], before=True)
    completion = _padded([row[1] for row in rows], before=False)

    def score(row: tuple[Array, Array]) -> Array:
        return reward.apply(reward.params, row[0][None], row[1][None], None)[0]

    scores = jax.jit(lambda *rows: jax.lax.map(score, rows, batch_size=min(ROWS, len(prompts))))
    return np.asarray(scores(prompt, completion), np.float32)


def _padded(rows: Sequence[Sequence[int]], before: bool) -> np.ndarray:
    """Lists of tokens as one array (N, T) int32, −1 before or after each."""
    width = max(map(len, rows))
    gaps = [[-1] * (width - len(row)) for row in rows]
    padded = [[*gap, *row] if before else [*row, *gap] for gap, row in zip(gaps, rows, strict=True)]
    return np.array(padded, np.int32)
