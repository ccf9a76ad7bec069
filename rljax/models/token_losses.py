"""Losses and log-probabilities of tokens without ever holding the logits (B, T, V) of a whole batch.

The head is applied to `chunk` positions at a time, so that logits of (B, chunk, V) only are in memory. Chunks
run along the sequence, not over flattened tokens, so that a batch axis spread over devices stays spread.
`per_token` gives one value per token, and computes the logits again in the backward pass (Chen et al. 2016,
arXiv:1604.06174): four products with the head. `weighted_sum` gives one number, whose gradient it computes
with it, while the logits are there (Hsu et al. 2024, arXiv:2410.10989): three.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rljax.math.optimization import reads
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
    _check(hidden, chunk, inputs)
    batch, length = hidden.shape[:2]
    cut, whole, number = _chunks(batch, length, chunk)

    def apply(params: PyTree, hidden: Array, inputs: PyTree) -> PyTree:
        return function(model.logits(params, hidden), *inputs)

    if number == 1:
        return jax.checkpoint(apply)(params, hidden, inputs)
    # a loop's body is never merged with another, which is all that prevent_cse would prevent
    step = jax.checkpoint(lambda part: apply(params, *part), prevent_cse=False)
    return jax.tree.map(whole, jax.lax.map(step, jax.tree.map(cut, (hidden, inputs))))


def weighted_sum(
    model: LanguageModel,
    function: Callable[..., tuple[Array, PyTree]],
    params: PyTree,
    hidden: Array,
    weights: Array,
    *inputs: PyTree,
    chunk: int = CHUNK,
) -> tuple[Array, PyTree]:
    """Σ weights · loss over all tokens, (), and what else `function` gives of each, with the arguments of
    `per_token`.

    `function` gives (loss (B, c), others (B, c, ...)); weights are (B, T) float32. Only params and hidden are
    differentiated: weights, inputs and the others (B, T, ...) count as constants. The gradient is computed
    together with the sum, so where only the sum is wanted `per_token` is cheaper.

    Raises: as `per_token`.
    """
    _check(hidden, chunk, (weights, inputs))
    batch, length = hidden.shape[:2]
    cut, whole, _ = _chunks(batch, length, chunk)
    leaves, structure = jax.tree.flatten(params)
    one = lambda params: model.logits(params, jnp.zeros((1, 1, hidden.shape[-1]), hidden.dtype))
    read = jax.tree.leaves(reads(one, params))
    rest = [None if mine else jax.lax.stop_gradient(leaf) for leaf, mine in zip(leaves, read, strict=True)]

    def losses(
        head: list[Array], rest: list[Array | None], hidden: Array, inputs: PyTree
    ) -> tuple[Array, PyTree]:
        own = iter(head)
        full = structure.unflatten([next(own) if mine else x for mine, x in zip(read, rest, strict=True)])
        return function(model.logits(full, hidden), *inputs)

    def forward(
        head: list[Array], hidden: Array, rest: list[Array | None], weights: Array, inputs: PyTree
    ) -> tuple[tuple[Array, PyTree], tuple[list[Array], Array]]:
        def step(sums: tuple, part: tuple) -> tuple[tuple, tuple[Array, PyTree]]:
            hidden, weights, inputs = part
            of = lambda head, hidden: losses(head, rest, hidden, inputs)
            loss, pull, others = jax.vjp(of, head, hidden, has_aux=True)
            to_head, to_hidden = pull(weights.astype(loss.dtype))
            add = lambda total, x: total + x.astype(jnp.float32)
            sums = sums[0] + jnp.sum(weights * loss), jax.tree.map(add, sums[1], to_head)
            # float32, because a CPU converts all that a loop collects in each turn
            return sums, (to_hidden.astype(jnp.float32), others)

        wide = [jnp.zeros(leaf.shape, jnp.float32) for leaf in head]
        parts = jax.tree.map(cut, (hidden, weights, inputs))
        (total, to_head), (to_hidden, others) = jax.lax.scan(step, (jnp.float32(0), wide), parts)
        return (total, jax.tree.map(whole, others)), (to_head, whole(to_hidden))

    def value(head: list[Array], hidden: Array, *more: PyTree) -> tuple[Array, PyTree]:
        return forward(head, hidden, *more)[0]

    def backward(saved: tuple[list[Array], Array], g: tuple[Array, PyTree]) -> tuple:
        scale = lambda x, like: (x.astype(jnp.float32) * g[0]).astype(like.dtype)
        head = [leaf for leaf, mine in zip(leaves, read, strict=True) if mine]
        return jax.tree.map(scale, saved[0], head), scale(saved[1], hidden), None, None, None

    fused: Any = jax.custom_vjp(value)
    fused.defvjp(forward, backward)
    head = [leaf for leaf, mine in zip(leaves, read, strict=True) if mine]
    return fused(head, hidden, rest, jax.lax.stop_gradient(weights), jax.lax.stop_gradient(inputs))


def _check(hidden: Array, chunk: int, inputs: PyTree) -> None:
    batch, length = hidden.shape[:2]
    if chunk < 1:
        raise ValueError(f"token_losses: chunk = {chunk}: must be at least 1")
    for leaf in jax.tree.leaves(inputs):
        if leaf.shape[:2] != (batch, length):
            raise ValueError(
                f"token_losses: an input of shape {leaf.shape} with hidden states of shape "
                f"{hidden.shape}: must begin with (B, T) = {batch, length}"
            )


def _chunks(
    batch: int, length: int, chunk: int
) -> tuple[Callable[[Array], Array], Callable[[Array], Array], int]:
    """What cuts (B, T, ...) into (number, B, size, ...), zeros at the end; its inverse; the number."""
    number = max(1, math.ceil(length / chunk))
    size = math.ceil(length / number)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, number * size - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, number, size, *x.shape[2:]), 1, 0)

    def whole(y: Array) -> Array:
        return jnp.moveaxis(y, 0, 1).reshape(batch, number * size, *y.shape[3:])[:, :length]

    return cut, whole, number
