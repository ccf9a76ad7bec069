"""Text from a language model, inside one compiled program: prefill once, then decode token by token.

    completion = generate(model, params, key, prompt, valid, Sampling(temperature=0.7, top_p=0.9), stop_ids)

`generate` is jitted by itself, and may stand in a jit, vmap or scan of the caller's. Numbers of `Sampling`
are leaves: another temperature, or a vmap over several, runs the same program. A processor whose number is
None (the default) is not in the program.

Which loop runs when. "while" ends as soon as every row has met a stop token, and costs nothing over a fixed
length where none does (one core, a 4.5M Llama, batch 64: 484 against 487 ms for 64 tokens). Under vmap over
members, which runs name `rljax.types.SIDE_BY_SIDE`, it ends when every row of every member has: one condition
for all. Under a vmap without that name the condition differs between members, so that JAX selects between old
and new for the whole cache in every step. There "scan" is right: always `max_new_tokens` steps, no selects.
So: vmap(..., axis_name=SIDE_BY_SIDE), or "scan". `decode_many` (rljax.text.batched_generation) runs "while"
in pieces, which is how rows that finish early make room for others; in one batch pieces would gain nothing.

Measured on that model, one core of a shared machine, torch transformers beside it: 3.4, 2.8 and 2.2 times its
tokens/s at batch 1, 16 and 64. Of a step of 7.6 ms at batch 64 the layers take 5.3, the head 1.4, drawing 0.4
(`jax.random.categorical` alone would take 9.7). The compiled loop copies no cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rljax.text.decoding import (
    Decoding,
    Observe,
    Processor,
    Sampling,
    advance,
    bare,
    begin,
    numbers,
    settings_are_right,
)
from rljax.types import Array, Key, LanguageModel, PyTree

SHORTEST = 16  # columns of a streamed prompt, at least; then powers of two, so that few lengths compile


class Completion(NamedTuple):
    """What B · G rows of T tokens were drawn; row b · G + g is sample g of prompt b."""

    tokens: Array  # (B · G, T) int32, `pad_id` after the stop token
    mask: Array  # (B · G, T) bool, true up to the stop token and there
    log_prob: Array  # (B · G, T) of the distribution drawn from, 0 outside the mask
    drawn: Array  # (B · G, T) bool, the mask without what `observe` wrote, whose log_prob is 0


def generate(
    model: LanguageModel,
    params: PyTree,
    key: Key,
    prompt: Array,
    valid: Array,
    settings: Sampling,
    stop_ids: Sequence[int] | Array = (),
    group: int = 1,
    adapters: PyTree = None,
    processors: tuple[Processor, ...] = (),
    pad_id: int = 0,
    observe: Observe | None = None,
    reference: PyTree = None,
) -> Completion:
    """`group` completions of T = settings.max_new_tokens tokens of each prompt (B, P), padded on the left.

    The G samples of a prompt share its prefill. `key` is one key, or one per prompt (B,): then a row's
    tokens depend on its own prompt and key alone, whatever batch it is in. One key stands for those of
    `fold_in(key, b)`. `stop_ids` (K,), several or none, may be traced. `observe` makes of a completion a
    conversation with a world that knows `reference` (B, ...), of each prompt.

    Raises: ValueError, outside a trace, for a setting out of its range, an empty or wrongly padded prompt,
    and a prompt that with T − 1 new tokens is longer than the model's `max_positions`: the last is not read.
    """
    check(model, key, prompt, valid, settings, group)
    return _generate(
        *(bare(model), params, key, jnp.asarray(prompt), jnp.asarray(valid), numbers(settings)),
        *(jnp.asarray(stop_ids, jnp.int32), adapters, pad_id, reference, group, processors, observe),
    )


def stream(
    model: LanguageModel,
    params: PyTree,
    key: Key,
    prompt: Sequence[int],
    settings: Sampling,
    stop_ids: Sequence[int] | Array = (),
    adapters: PyTree = None,
    processors: tuple[Processor, ...] = (),
) -> Iterator[int]:
    """The tokens that `generate` would draw for this one prompt, each as soon as it is there, the stop token
    included. One program for the prompt (per power of two of its length) and one for each token after it.

    Raises: ValueError as `generate`, when called.
    """
    settings_are_right(settings)
    length = len(prompt)
    room = (getattr(model.config, "max_positions", None) or 2**30) - settings.max_new_tokens + 1
    width = max(length, min(room, max(SHORTEST, 1 << max(length - 1, 0).bit_length())))
    tokens = np.zeros((1, width), np.int32)
    tokens[0, width - length :] = prompt
    valid = np.arange(width)[None] >= width - length
    check(model, key, tokens if length else tokens[:, :0], valid, settings, 1)
    settings, stops = numbers(settings), jnp.asarray(stop_ids, jnp.int32)
    state = begin(bare(model), params, key, tokens, valid, settings, stops, adapters, 1, processors)

    def tokens_of(state: Decoding) -> Iterator[int]:
        for number in range(settings.max_new_tokens):
            if number:
                state = advance(bare(model), params, state, settings, stops, adapters, 1, processors)
            token, alive = jax.device_get((state.token, state.alive))
            yield int(token[0])
            if not alive[0]:
                return

    return tokens_of(state)


def check(
    model: LanguageModel, key: Key, prompt: Any, valid: Any, settings: Sampling, group: int = 1
) -> None:
    """Raises: ValueError in one line; what is traced is not looked at."""
    settings_are_right(settings)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"generate: a key of dtype {key.dtype}: make it with jax.random.key(seed)")
    if prompt.ndim != 2 or 0 in prompt.shape:
        raise ValueError(f"generate: prompts of shape {prompt.shape}: (B, P) with at least one token each")
    if valid.shape != prompt.shape:
        raise ValueError(f"generate: valid {valid.shape} beside prompts {prompt.shape}: the same shape")
    if key.shape not in ((), prompt.shape[:1]):
        raise ValueError(
            f"generate: keys of shape {key.shape}: one key, or one per prompt {prompt.shape[:1]}"
        )
    if group < 1:
        raise ValueError(f"generate: group = {group}: at least one sample per prompt")
    if not isinstance(valid, Tracer):
        real = np.asarray(valid, bool)
        lengths = real.sum(axis=1)
        if not lengths.all():
            raise ValueError(f"generate: prompt {int(lengths.argmin())} has no valid token: give it one")
        if wrong := np.flatnonzero((np.diff(real.astype(np.int8), axis=1) < 0).any(axis=1)).tolist():
            raise ValueError(f"generate: prompt {wrong[0]} has padding after a token: pad on the left")
        longest, limit = int(lengths.max()), getattr(model.config, "max_positions", None)
        if limit is not None and longest + settings.max_new_tokens - 1 > limit:
            raise ValueError(
                f"generate: a prompt of {longest} tokens and {settings.max_new_tokens} new ones, for a model "
                f"of {limit} positions: shorten the prompt or max_new_tokens"
            )
        size = getattr(model.config, "vocab_size", None)
        if size is not None and not isinstance(prompt, Tracer):
            tokens = np.asarray(prompt)[real]
            if tokens.min() < 0 or tokens.max() >= size:
                raise ValueError(
                    f"generate: a prompt with tokens {tokens.min()} to {tokens.max()}, for a model of "
                    f"vocab_size {size}: use the model's own tokenizer"
                )


@partial(jax.jit, static_argnames=("model", "group", "processors", "observe"))
def _generate(
    model: LanguageModel,
    params: PyTree,
    key: Key,
    prompt: Array,
    valid: Array,
    settings: Sampling,
    stop_ids: Array,
    adapters: PyTree,
    pad_id: Array,
    reference: PyTree,
    group: int,
    processors: tuple[Processor, ...],
    observe: Observe | None,
) -> Completion:
    fixed = settings, stop_ids, adapters
    state = begin(model, params, key, prompt, valid, *fixed, group, processors, observe, reference)
    count = settings.max_new_tokens - 1
    if count:
        state = advance(model, params, state, *fixed, count, processors, observe)
    tokens = state.context[:, prompt.shape[1] :]
    mask = tokens >= 0
    drawn = mask if state.observed is None else mask & ~state.observed
    return Completion(jnp.where(mask, tokens, pad_id), mask, state.log_prob, drawn)
