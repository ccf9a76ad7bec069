"""Losses and log-probabilities of tokens without ever holding the logits (B, T, V) of a whole batch.

The head is applied to `chunk` positions at a time and computed again in the backward pass (Chen et al. 2016,
arXiv:1604.06174), so that both passes hold logits of (B, chunk, V) only. Chunks run along the sequence, not
over flattened tokens, so that a batch axis spread over devices stays spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from rljax.math import losses
from rljax.types import Array, LanguageModel, PyTree

CHUNK = 128  # positions whose logits exist at one time


def per_token(
    model: LanguageModel,
    function: Callable[..., PyTree],
    params: PyTree,
    hidden: Array,
    *inputs: PyTree,
    chunk: int = CHUNK,
) -> PyTree:
    """function(logits (B, c, V) float32, *inputs (B, c, ...)) of c ≤ chunk positions at a time, joined to T.

    For whatever is a function of each token's logits alone: its log-probability, the entropy, a divergence.

    Args:
        model: whose head gives the logits.
        function: of the logits and of inputs at the same positions, to a pytree of arrays (B, c, ...).
        params: of the model.
        hidden: (B, T, D), the states that predict each token.
        inputs: pytrees of arrays (B, T, ...), such as target tokens.
        chunk: static; the memory is that of (B, chunk, V) numbers. The chunks are of equal length.

    Raises: ValueError where chunk is below 1 or an input does not begin with (B, T).
    """
    if chunk < 1:
        raise ValueError(f"token_losses.per_token: chunk = {chunk}: must be at least 1")
    batch, length = hidden.shape[:2]
    for leaf in jax.tree.leaves(inputs):
        if leaf.shape[:2] != (batch, length):
            raise ValueError(
                f"token_losses.per_token: an input of shape {leaf.shape} with hidden states of shape "
                f"{hidden.shape}: must begin with (B, T) = {batch, length}"
            )
    number = max(1, math.ceil(length / chunk))
    size = math.ceil(length / number)

    def apply(params: PyTree, hidden: Array, inputs: PyTree) -> PyTree:
        return function(model.logits(params, hidden), *inputs)

    if number == 1:
        return jax.checkpoint(apply)(params, hidden, inputs)

    def cut(x: Array) -> Array:
        """(B, T, ...) to (number, B, size, ...), with zeros at the end."""
        x = jnp.pad(x, [(0, 0), (0, number * size - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, number, size, *x.shape[2:]), 1, 0)

    def whole(y: Array) -> Array:
        return jnp.moveaxis(y, 0, 1).reshape(batch, number * size, *y.shape[3:])[:, :length]

    # a loop's body is never merged with another, which is all that prevent_cse would prevent
    step = jax.checkpoint(lambda part: apply(params, *part), prevent_cse=False)
    return jax.tree.map(whole, jax.lax.map(step, jax.tree.map(cut, (hidden, inputs))))


def cross_entropy(
    model: LanguageModel,
    params: PyTree,
    hidden: Array,
    targets: Array,
    chunk: int = CHUNK,
    smoothing: float | Array = 0.0,
    z_loss: float | Array = 0.0,
) -> Array:
    """−log p(target) of each token in nats, (B, T) float32, from hidden (B, T, D) and targets (B, T) int32.

    `smoothing` and `z_loss` are those of `rljax.math.losses.cross_entropy`. Which mean is taken, over which
    tokens, is the caller's.

    Raises: as `per_token`.
    """
    function = partial(losses.cross_entropy, smoothing=smoothing, z_loss=z_loss)
    return per_token(model, function, params, hidden, targets, chunk=chunk)
