"""Attention, in the form that the hardware is fast in; all forms compute the same function.

    softmax(scale · q kᵀ + bias) v      over the columns that `mask` allows, softmax in float32

A CPU is fast as long as what it works on stays in its caches: there a batch goes through in groups of rows,
each in blocks of queries that leave out the columns ahead of them, and the backward pass computes the weights
again (8 rows of 256 tokens, 8 heads, one core: forwards and backwards 27 ms, as one product 65). An
accelerator takes all at once, through cuDNN's fused kernel where that is exact: half precision, no cap of the
scores, no bias.

Keys are (B, KV, D, S), one column per place, as the product with a query wants them: a single query, of
decoding, on keys (S, D) takes a CPU six times as long. A cache of theirs is `stored` wider than half
precision where a CPU writes into it, and a single query's products are then as wide: the numbers are the
rounded ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rljax.models.transformer.products import matmul
from rljax.types import Array

NEVER = -1e30  # a score that no softmax sees, finite so that a row without any column has no NaN
QUERIES = 64  # of a block on a CPU
SCORES = 1 << 19  # of a group of rows on a CPU: 2 MB in float32

Form = Literal["auto", "whole", "blocks", "cudnn"]


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    *,
    scale: float,
    dtype: Any,
    softcap: float | None = None,
    bias: Array | None = None,
    causal: bool = True,
    form: Form = "auto",
) -> Array:
    """Queries (B, T, H, D) on keys (B, KV, D, S) and values (B, KV, S, D) -> (B, T, H · D).

    Args:
        mask: (B, T, S) bool, the columns that each query sees; None: all that are not ahead of it.
        scale: of the scores.
        dtype: to which the inputs of products are rounded.
        softcap: c tanh(scores / c) takes the place of the scores (Gemma 2), None for none.
        bias: (H, T, S), added to the scores after the cap.
        causal: that query t sees none of the last T − 1 − t columns, which are ahead of it; as a mask says
            too.
        form: "auto" chooses by the backend.
    """
    if form == "auto":
        form = choose(query, softcap, bias)
    if query.shape[1] == 1:
        dtype = jnp.promote_types(dtype, key.dtype)
    inner = partial(FORMS[form], scale=scale, dtype=dtype, softcap=softcap, bias=bias, causal=causal)
    return inner(query, key, value, mask)


def choose(query: Array, softcap: float | None, bias: Array | None) -> Form:
    """The form for these queries on this backend."""
    length, size = query.shape[1], query.shape[3]
    backend = jax.default_backend()
    if length == 1 or backend not in ("cpu", "gpu"):
        return "whole"
    if backend == "cpu":
        return "blocks"
    fused = query.dtype in (jnp.bfloat16, jnp.float16) and size % 8 == 0 and size <= 128
    return "cudnn" if fused and softcap is None and bias is None else "whole"


def stored(dtype: Any) -> Any:
    """What a cache of numbers of this dtype is held in. A CPU converts the whole of an array in half
    precision for each column that a loop writes into it: 4 of the 10 ms of a step of decoding 64 rows by four
    layers of 4 heads x 32 x 78 columns.
    """
    return jnp.promote_types(dtype, jnp.float32) if jax.default_backend() == "cpu" else dtype


def whole(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    *,
    scale: float,
    dtype: Any,
    softcap: float | None,
    bias: Array | None,
    causal: bool,
) -> Array:
    """All scores at once. Each group of H / KV queries shares a key: with their times they are the rows of
    one product.
    """
    batch, length, heads, size = query.shape
    kv_heads, _, columns = key.shape[1:]
    grouped = kv_heads, heads // kv_heads
    query = query.reshape(batch, length, *grouped, size).transpose(0, 2, 3, 1, 4)
    rows = query.reshape(batch, kv_heads, -1, size)
    scores = matmul(rows, key, dtype) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = scores.reshape(batch, *grouped, length, -1)
    if bias is not None:
        scores = scores + bias.reshape(1, *grouped, *bias.shape[1:])
    if mask is None and causal:
        mask = behind(length, columns)[None]
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, NEVER)
    scores = scores.reshape(batch, kv_heads, rows.shape[2], -1)
    # Divided by their sum only after the product with the values: D numbers of each query instead of S.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = (matmul(weights, value, dtype) / weights.sum(axis=-1, keepdims=True)).astype(dtype)
    mixed = mixed.reshape(batch, *grouped, length, size).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(batch, length, heads * size)


def behind(length: int, columns: int) -> Array:
    """Which of S columns are not ahead of each of T queries, the last of which sees all: (T, S) bool."""
    places = jax.lax.broadcasted_iota(jnp.int32, (length, columns), 1)
    return places <= jax.lax.broadcasted_iota(jnp.int32, (length, columns), 0) + (columns - length)


def blocks(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    *,
    bias: Array | None,
    causal: bool,
    **rest: Any,
) -> Array:
    """A group of batch rows after the other, each in blocks of queries."""
    batch, length, heads, _ = query.shape
    columns = key.shape[3]
    ahead = columns - length  # columns that the first query sees beyond its own place

    def rows(query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None) -> Array:
        parts = []
        for start in range(0, length, QUERIES):
            some = slice(start, min(start + QUERIES, length))
            seen = slice(0, ahead + some.stop if causal else columns)
            own = None if bias is None else bias[:, some, seen]
            inputs = query[:, some], key[..., seen], value[:, :, seen]
            allowed = None if mask is None else mask[:, some, seen]
            parts.append(whole(*inputs, allowed, bias=own, causal=causal, **rest))
        return jnp.concatenate(parts, axis=1)

    group = min(batch, max(1, SCORES // (heads * min(length, QUERIES) * columns)))
    group = next(size for size in range(group, 0, -1) if batch % size == 0)
    inner: Callable[..., Array] = jax.checkpoint(rows, prevent_cse=group == batch)
    if group == batch:
        return inner(query, key, value, mask, bias)
    # what a loop on a CPU collects in half precision it converts whole in each turn: float32 in and out
    wide = lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x
    cut = lambda x: wide(x).reshape(batch // group, group, *x.shape[1:])
    parts = jax.tree.map(cut, (query, key, value, mask))
    mixed = jax.lax.map(lambda part: wide(inner(*part, bias)), parts)
    return mixed.reshape(batch, length, -1).astype(rest["dtype"])


def cudnn(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    *,
    scale: float,
    dtype: Any,
    softcap: float | None,
    bias: Array | None,
    causal: bool,
) -> Array:
    """One fused kernel of cuDNN, which holds no scores in memory."""
    assert softcap is None
    assert bias is None
    length, columns = query.shape[1], key.shape[3]
    fused = causal and mask is None and length == columns
    if mask is None and causal and not fused:
        mask = behind(length, columns)[None]
    if mask is not None and (odd := (length % 2, columns % 2)) != (0, 0):  # which the kernel refuses
        query = jnp.pad(query, [(0, 0), (0, odd[0]), (0, 0), (0, 0)])
        key = jnp.pad(key, [(0, 0), (0, 0), (0, 0), (0, odd[1])])
        value = jnp.pad(value, [(0, 0), (0, 0), (0, odd[1]), (0, 0)])
        mask = jnp.pad(mask, [(0, 0), (0, odd[0]), (0, 0)], constant_values=True)
        mask = jnp.pad(mask, [(0, 0), (0, 0), (0, odd[1])])
    mixed = jax.nn.dot_product_attention(
        *(query.astype(dtype), key.transpose(0, 3, 1, 2).astype(dtype), value.swapaxes(1, 2).astype(dtype)),
        mask=None if mask is None else mask[:, None],
        is_causal=fused,
        scale=scale,
        implementation="cudnn",
    )
    return mixed[:, :length].reshape(*mixed.shape[:1], length, -1)


FORMS: dict[str, Callable[..., Array]] = {"whole": whole, "blocks": blocks, "cudnn": cudnn}
