"""The log-probability of given completions under the distribution that `rljax.text.generate` draws from."""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from rljax.math import sampling
from rljax.text.decoding import Processor, Sampling, bare, numbers, settings_are_right, shaped
from rljax.types import Array, LanguageModel, PyTree

TOKENS = 512  # of which the logits are in memory at once


def score(
    model: LanguageModel,
    params: PyTree,
    prompt: Array,
    valid: Array,
    completion: Array,
    settings: Sampling,
    mask: Array | None = None,
    adapters: PyTree = None,
    processors: tuple[Processor, ...] = (),
    outside: Literal["impossible", "kept"] = "impossible",
) -> Array:
    """(B · G, T) log-probabilities of completions (B · G, T) of prompts (B, P), 0 where `mask` is false.

    One forward pass, and the head at completion positions alone, in pieces of about 512 tokens along the
    sequence that the backward pass computes again: (B, T, V) is never in memory. Equals what `generate`
    returned for its own tokens to about 1e-5 in float32, temperature, truncation and penalty included.

    A token that truncation excludes has −∞. With `outside` "kept" the given token counts as one of the kept
    ones, whatever the truncation: rounding may exclude a token that stood at the edge when it was drawn, and
    so may a changed policy; for training, where one −∞ is too many.

    Raises: ValueError for a setting out of its range, and for completions that are no multiple of prompts.
    """
    settings_are_right(settings)
    if prompt.shape[0] == 0 or completion.shape[0] % prompt.shape[0]:
        raise ValueError(
            f"score: completions {completion.shape} of prompts {prompt.shape}: as many for each prompt"
        )
    if outside not in ("impossible", "kept"):
        raise ValueError(f"score: outside = {outside!r}: must be 'impossible' or 'kept'")
    mask = jnp.ones(completion.shape, bool) if mask is None else mask
    return _score(
        *(bare(model), params, prompt, valid, completion, mask, numbers(settings)),
        *(adapters, processors, outside == "kept"),
    )


@partial(jax.jit, static_argnames=("model", "processors", "keep"))
def _score(
    model: LanguageModel,
    params: PyTree,
    prompt: Array,
    valid: Array,
    completion: Array,
    mask: Array,
    settings: Sampling,
    adapters: PyTree,
    processors: tuple[Processor, ...],
    keep: bool,
) -> Array:
    rows, length = completion.shape
    repeat = partial(jnp.repeat, repeats=rows // prompt.shape[0], axis=0)
    prompt, valid = repeat(prompt), repeat(valid)
    hidden = model.completion(params, prompt, valid, completion, adapters)
    context = jnp.concatenate([jnp.where(valid, prompt, -1), completion], axis=1)
    columns = jnp.arange(context.shape[1])
    first = None
    if settings.repetition_penalty is not None:  # the step at which a row has its first of each token
        size = jax.eval_shape(model.logits, params, hidden[:, :1]).shape[-1]
        every = jnp.arange(rows)[:, None]
        first = jnp.full((rows, size), length).at[every, prompt].min(jnp.where(valid, -1, length))
        first = first.at[every, completion].min(jnp.broadcast_to(jnp.arange(length), completion.shape))

    def one(logits: Array, token: Array, step: Array, first: Array | None, context: Array) -> Array:
        context = jnp.where(columns < prompt.shape[1] + step, context, -1)
        seen = None if first is None else first < step
        kept, whole = shaped(settings, processors, logits, seen, context, step)
        if keep:
            kept = jnp.where(jnp.arange(kept.size) == token, whole, kept)
        return sampling.log_prob(kept, token)

    @jax.checkpoint
    def piece(inputs: tuple[Array, Array, Array]) -> Array:
        hidden, token, step = inputs  # (B, C, D), (B, C), (C,)
        each = jax.vmap(jax.vmap(one, (0, 0, 0, None, None)), (0, 0, None, 0, 0))
        return each(model.logits(params, hidden), token, step, first, context)

    size = max(1, min(length, TOKENS // rows))
    spare = -length % size
    cut = lambda x: jnp.pad(x, [(0, 0), (0, spare)] + [(0, 0)] * (x.ndim - 2)).reshape(
        rows, -1, size, *x.shape[2:]
    )
    pieces = [cut(x).swapaxes(0, 1) for x in (hidden, completion)]
    steps = jnp.arange(length + spare).reshape(-1, size)
    log_prob = jax.lax.map(piece, (*pieces, steps))  # (T / C, B, C)
    log_prob = log_prob.swapaxes(0, 1).reshape(rows, -1)[:, :length]
    return jnp.where(mask, log_prob, 0.0)
