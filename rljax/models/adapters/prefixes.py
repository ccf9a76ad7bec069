"""Prefix tuning (Li & Liang 2021, arXiv:2101.00190): keys and values of P positions before every sequence.

A prefix is a nested dict with {"prefix_key": (KV, P, D), "prefix_value": (KV, P, D)} at each layer's
attention, with a leading axis L where the layers are stacked. All queries see all of it, also those of layers
with a window; it has no positions, and keys are as they are after their rotation. It is trained as it is, not
through the paper's MLP, which is for a start from random numbers: `from_tokens` gives a better one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rljax.models.transformer import TransformerConfig
from rljax.types import Array, Key, LanguageModel, PyTree


def init(key: Key, config: Any, length: int, scale: float = 0.02) -> PyTree:
    """A prefix of `length` positions with normal entries, for a transformer of this config.

    Raises: ValueError where the length is below 1 or the model is not a decoder-only transformer.
    """
    _check(config)
    if length < 1:
        raise ValueError(f"adapters.prefix: length = {length}: must be at least 1")
    shape = config.kv_heads, length, config.head_size
    draw = lambda key: scale * jax.random.normal(key, (config.num_layers, 2, *shape), jnp.float32)
    return _layers(config, draw(key))


def from_tokens(model: LanguageModel, params: PyTree, tokens: Array) -> PyTree:
    """The prefix that acts as the tokens (P,) before every sequence would, if its positions began with P.

    A start for training: the text of an instruction.

    Raises: ValueError where the model is not a decoder-only transformer.
    """
    _check(model.config)
    _, cache = model.prefill(params, tokens[None], jnp.ones((1, tokens.size), bool), tokens.size)
    rows = lambda pair: (pair[0].swapaxes(-1, -2), pair[1])  # a cache has the columns of keys last
    if model.config.loop == "scanned":
        whole = jnp.stack(rows(cache.layers), axis=1)
    else:
        whole = jnp.stack([jnp.stack(rows(layer)) for layer in cache.layers])
    return _layers(model.config, whole[:, :, 0].astype(jnp.float32))


def _check(config: Any) -> None:
    if not isinstance(config, TransformerConfig):
        kind = type(config).__name__
        raise ValueError(f"adapters.prefix: {kind}: only decoder-only transformers have prefixes; use lora")


def _layers(config: Any, stacked: Array) -> PyTree:
    """Keys and values (L, 2, KV, P, D) where the layers look for them."""
    at = lambda pair: {"attention": {"prefix_key": pair[0], "prefix_value": pair[1]}}
    if config.loop == "scanned":
        return {"layers": at(jnp.moveaxis(stacked, 1, 0))}
    return {f"layer_{number}": at(stacked[number]) for number in range(config.num_layers)}
