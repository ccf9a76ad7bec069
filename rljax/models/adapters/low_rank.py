"""Low-rank adapters of linear layers (Hu et al. 2021, arXiv:2106.09685):  y = x W + (α / r) (x A) B.

An adapter is a nested dict like the parameters, with {"a": (in, r), "b": (r, out)} at each chosen layer, or
(L, in, r) and (L, r, out) where the layers are stacked. What is trained, saved and merged is not scaled; a
model takes `scaled(adapters, alpha)`. So α is a number like the learning rate, and a sweep maps over it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rljax.models.adapters.subsets import flatten, matches, require, unflatten
from rljax.types import Array, Key, PyTree

Start = Literal["uniform", "normal"]
STARTS: dict[str, Callable[..., Array]] = {
    # U(−1/√in, 1/√in), a linear layer of torch, as PEFT has it
    "uniform": lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -1, 1) / math.sqrt(shape[-2]),
    # N(0, 1/r²), PEFT's "gaussian"
    "normal": lambda key, shape, dtype: jax.random.normal(key, shape, dtype) / shape[-1],
}


def linear_layers(params: PyTree) -> dict[str, tuple[int, ...]]:
    """{path: shape of the kernel (in, out) or (L, in, out)} of every linear layer."""
    return {
        path.removesuffix("/kernel"): leaf.shape
        for path, leaf in flatten(params).items()
        if path.endswith("/kernel") and leaf.ndim in (2, 3)
    }


def init(
    key: Key,
    params: PyTree,
    patterns: Sequence[str],
    rank: int,
    start: Start = "uniform",
    dtype: Any = jnp.float32,
) -> PyTree:
    """Adapters of the linear layers that a pattern holds of, with B = 0, so that the model is unchanged.

    Args:
        key: for A.
        params: of the model, or their shapes.
        patterns: as in `subsets`: ("attention/query", "attention/value") or ("*",).
        rank: r.
        start: the distribution of A.
        dtype: of both.

    Raises: ValueError where the rank is below 1 or a pattern holds of no linear layer.
    """
    if rank < 1:
        raise ValueError(f"adapters.init: rank = {rank}: must be at least 1")
    layers = linear_layers(params)
    require("adapters.init", patterns, layers)
    chosen = sorted(path for path in layers if matches(path, patterns))
    adapters = {}
    for path, layer_key in zip(chosen, jax.random.split(key, len(chosen)), strict=True):
        *stack, rows, columns = layers[path]
        adapters[f"{path}/a"] = STARTS[start](layer_key, (*stack, rows, rank), dtype)
        adapters[f"{path}/b"] = jnp.zeros((*stack, rank, columns), dtype)
    return unflatten(adapters)


def scaled(adapters: PyTree, alpha: float | Array) -> PyTree:
    """Adapters as a model takes them, with B · α / r. Leaves that are not of LoRA stay what they are."""
    flat = flatten(adapters)
    factor = lambda path: alpha / flat[path.removesuffix("b") + "a"].shape[-1]
    scale = lambda path, x: (x * factor(path)).astype(x.dtype) if path.endswith("/b") else x
    return unflatten({path: scale(path, x) for path, x in flat.items()})


def merge(params: PyTree, adapters: PyTree, alpha: float | Array) -> PyTree:
    """params with W + (α / r) A B in place of W at each adapted layer, added in float32.

    Raises: ValueError naming a layer that params lack or that has another shape.
    """
    return add(params, scaled(adapters, alpha))


def unmerge(params: PyTree, adapters: PyTree, alpha: float | Array) -> PyTree:
    """The inverse of `merge`, up to one rounding of W; of half-precision parameters, keep the base instead.

    Raises: as `merge`.
    """
    return add(params, scaled(adapters, -alpha))


def add(params: PyTree, adapters: PyTree) -> PyTree:
    """`merge` of adapters that are scaled already.

    Raises: as `merge`.
    """
    flat = dict(flatten(params))
    for path, (a, b) in pairs(adapters).items():
        name, shape = f"{path}/kernel", (*a.shape[:-1], b.shape[-1])
        if name not in flat or flat[name].shape != shape:
            there = f"has shape {flat[name].shape}" if name in flat else "does not exist"
            raise ValueError(f"adapters.merge: an adapter of a kernel {shape} at {path}: {name} {there}")
        wide = lambda x: x.astype(jnp.float32)
        change = jnp.matmul(wide(a), wide(b), precision="highest")
        flat[name] = (wide(flat[name]) + change).astype(flat[name].dtype)
    return unflatten(flat)


def pairs(adapters: PyTree) -> dict[str, tuple[Array, Array]]:
    """{path of a layer: (A, B)}."""
    flat = flatten(adapters)
    layers = [path.removesuffix("/a") for path in flat if path.endswith("/a")]
    return {path: (flat[f"{path}/a"], flat[f"{path}/b"]) for path in layers}
