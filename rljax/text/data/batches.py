"""Batches: of rows as a pure function of the iteration, of prompts by padding, of lengths in buckets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rljax.math.shuffle import permutation
from rljax.types import Array, Key, PyTree

DISTINCT = 1024  # lengths that `buckets` tells apart


def batch(key: Key, iteration: Array | int, rows: PyTree, batch_size: int) -> PyTree:
    """The rows of one iteration: leaves (N, ...) to (batch_size, ...), as `batch_indices` chooses them."""
    size = jax.tree.leaves(rows)[0].shape[0]
    chosen = batch_indices(key, iteration, size, batch_size)
    return jax.tree.map(lambda leaf: leaf[chosen], rows)


def batch_indices(key: Key, iteration: Array | int, size: int, batch_size: int) -> Array:
    """Which of `size` rows the batch of an iteration holds: (batch_size,) int32.

    A pure function of (key, iteration), also inside a jit: with the key of the run, not of the iteration, a
    resumed run goes on where it stopped without remembering anything. Each epoch is a keyed permutation, one
    after the other, so every row comes once per epoch and a batch may hold the end of one and the beginning
    of the next. Computes two permutations: O(size).

    Raises: ValueError where batch_size is not in 1 .. size, or the two are too large for 32 bits.
    """
    if not 1 <= batch_size <= size:
        raise ValueError(
            f"batch_size = {batch_size}: must be at least 1 and at most the {size} rows there are"
        )
    _, cycle, step = _cycle(size, batch_size)
    if cycle * step >= 2**32:
        raise ValueError(
            f"{size} rows in batches of {batch_size}: take a batch size that has more factors in common with "
            "the number of rows, or a stream"
        )
    return _indices(key, jnp.asarray(iteration, jnp.uint32), size, batch_size)


@partial(jax.jit, static_argnums=(2, 3))
def _indices(key: Key, iteration: Array, size: int, batch_size: int) -> Array:
    # iteration · batch_size = epoch · size + start, without a product that overflows
    common, cycle, step = _cycle(size, batch_size)
    within = (iteration % cycle) * jnp.uint32(step)
    epoch = (iteration // cycle) * jnp.uint32(step) + within // cycle
    start = (within % cycle) * jnp.uint32(common)
    order = [permutation(jax.random.fold_in(key, epoch + number), size) for number in range(2)]
    return jax.lax.dynamic_slice(jnp.concatenate(order), (start.astype(jnp.int32),), (batch_size,))


def _cycle(size: int, batch_size: int) -> tuple[int, int, int]:
    """(c, size / c, batch_size / c), c their greatest common divisor: after size / c batches, batch_size / c
    epochs are over.
    """
    common = math.gcd(size, batch_size)
    return common, size // common, batch_size // common


def pad_prompts(
    prompts: Sequence[Sequence[int]],
    length: int | None = None,
    side: Literal["left", "right"] = "left",
    pad_id: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of any length as (tokens (B, P) int32, valid (B, P) bool), P = `length` or the longest.

    Padded on the left for models that continue them, on the right (side="right") for encoders and for
    completions.

    Raises: ValueError naming a prompt that is empty or longer than `length`, or where there is none.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side = {side!r}: must be 'left' or 'right'")
    lengths = [len(prompt) for prompt in prompts]
    if not lengths:
        raise ValueError("no prompts")
    if 0 in lengths:
        raise ValueError(
            f"prompt {lengths.index(0)} is empty: begin it with the tokenizer's bos_id or eos_id"
        )
    width = max(lengths) if length is None else length
    if max(lengths) > width:
        number = next(number for number, size in enumerate(lengths) if size > width)
        raise ValueError(
            f"prompt {number} has {lengths[number]} tokens, more than the {width} there is room for"
        )
    columns = np.arange(width)[None, :]
    sizes = np.array(lengths)[:, None]
    valid = columns >= width - sizes if side == "left" else columns < sizes
    tokens = np.full((len(lengths), width), pad_id, np.int32)
    tokens[valid] = np.concatenate([np.asarray(prompt, np.int32) for prompt in prompts])
    return tokens, valid


def buckets(lengths: Sequence[int] | np.ndarray, count: int) -> list[tuple[int, np.ndarray]]:
    """At most `count` groups of similar length: (length to pad to, indices into `lengths`), short to long.

    Of all ways to cut the sorted lengths, the one with the fewest padded tokens Σ length · members (dynamic
    programming over the distinct lengths; more than 1,024 of them are first rounded up to as many).

    Raises: ValueError where there are no lengths, one is below 1, or `count` is.
    """
    sizes = np.asarray(lengths, np.int64)
    if sizes.ndim != 1 or sizes.size == 0 or sizes.min() < 1 or count < 1:
        raise ValueError(
            f"buckets of {sizes.size} lengths, count = {count}: needs lengths and count of 1 and more"
        )
    grain = -(-int(sizes.max()) // DISTINCT) if len(np.unique(sizes)) > DISTINCT else 1
    distinct, members = np.unique(-(-sizes // grain) * grain, return_counts=True)
    total = np.concatenate([[0], np.cumsum(members)])
    # cost[j] of the j smallest distinct lengths in as many groups as rounds so far, the last from best[j]
    cost = np.where(total > 0, np.inf, 0.0)
    choices = []
    for _ in range(min(count, len(distinct))):
        added = distinct[None, :] * (total[None, 1:] - total[:-1, None])  # from i (row) to j (column)
        reachable = np.arange(len(distinct))[:, None] <= np.arange(len(distinct))[None, :]
        candidates = np.where(reachable, cost[:-1, None] + added, np.inf)
        choices.append(candidates.argmin(0))
        cost = np.concatenate([[np.inf], candidates.min(0)])
    groups, end = [], len(distinct)
    for choice in reversed(choices):
        start = choice[end - 1]
        upper = distinct[end - 1]
        lower = distinct[start - 1] if start else 0
        inside = np.flatnonzero((sizes > lower) & (sizes <= upper))
        groups.append((int(sizes[inside].max()), inside))
        end = start
    return groups[::-1]
