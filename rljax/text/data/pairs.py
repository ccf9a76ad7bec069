"""Prompts and completions as two arrays, for encoder-decoders and for sampling from prompts."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rljax.text.data.batches import pad_prompts
from rljax.text.data.examples import encoder_pair, pair
from rljax.text.data.read import Report, collect
from rljax.text.tokenizer import Tokenizer


class Pairs(NamedTuple):
    """N prompts with a completion each."""

    prompt: Any  # (N, P) int32
    valid: Any  # (N, P) bool: where the prompt has a token
    completion: Any  # (N, T) int32, the end token included
    mask: Any  # (N, T) bool: where the completion has a token


class LoadedPairs(NamedTuple):
    """Pairs on the device, and what is not among them."""

    rows: Pairs
    report: Report  # entries that could not be used
    dropped: int  # pairs that were too long


def load_pairs(
    source: Any,
    tokenizer: Tokenizer,
    prompt_length: int,
    completion_length: int,
    *,
    side: Literal["left", "right"] = "left",
    strict: bool = False,
) -> LoadedPairs:
    """All records {"prompt", "completion"} of `source` (see `read`) as arrays on the device.

    side="left": prompts padded on the left, for a model that continues them. "right": for an encoder, with
    the end token that its tokenizer adds. A pair of which one part is longer than its length is left out,
    counted, and told in a warning.

    Raises: FileNotFoundError; ValueError, also where no pair is short enough.
    """
    understand = partial(encoder_pair if side == "right" else pair, tokenizer=tokenizer)
    found, report = collect(source, understand, "line", strict)
    kept = [
        (prompt, completion)
        for prompt, completion in found
        if len(prompt) <= prompt_length and len(completion) <= completion_length
    ]
    dropped = len(found) - len(kept)
    told = f"{dropped} of {len(found)} pairs longer than {prompt_length} + {completion_length} tokens"
    if not kept:
        raise ValueError(f"{told}: none is left")
    if dropped:
        warnings.warn(f"{told}: dropped", stacklevel=2)
    prompts, completions = zip(*kept, strict=True)
    rows = Pairs(
        *pad_prompts(prompts, prompt_length, side, tokenizer.pad_id),
        *pad_prompts(completions, completion_length, "right", tokenizer.pad_id),
    )
    return LoadedPairs(jax.tree.map(jnp.asarray, rows), report, dropped)
