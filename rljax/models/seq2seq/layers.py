"""The stacks of an encoder-decoder: relative position biases, attention within and across, feed-forward.

Attention is softmax(q kᵀ + b) with no 1/√d, which the initialisation of the query kernels carries instead. b
depends on the distance of two tokens alone, through buckets that widen with it, and is shared by all layers
of a stack; attention across from decoder to encoder has none. Distances are those of columns, so that a
prompt padded on the left gives what it gives padded on the right, as the checkpoints were trained.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from rljax.models.seq2seq.config import Seq2SeqConfig
from rljax.models.transformer.attention import attend
from rljax.models.transformer.layers import ACTIVATIONS, Linear, Norm, dropped, put
from rljax.models.transformer.model import POLICIES
from rljax.types import Array, Dropout, PyTree


def linear(config: Any, features: int, name: str, scale: float) -> Linear:
    """A linear layer without bias, whose kernel starts with standard deviation `scale`."""
    return Linear(features, False, config, scale, name=name)


def norm(config: Any, name: str) -> Norm:
    return Norm(config, name=name)


def distance_buckets(buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance from 0 to `max_distance`, int32: the first half of the buckets hold one
    distance each, the others a logarithmically growing range.
    """
    exact = buckets // 2
    # In float32 and in this order, as the checkpoints were trained: some distances lie just on a boundary.
    far = np.arange(exact, max_distance + 1, dtype=np.float32) / np.float32(exact)
    large = np.log(far) / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    large = np.minimum(exact + large.astype(np.int32), buckets - 1)
    return np.concatenate([np.arange(exact, dtype=np.int32), large])


def relative_bias(config: Seq2SeqConfig, kind: str, weights: Array, distance: Array) -> Array:
    """b (H, T, S) of scores, from weights (buckets, H) and distance (T, S) from query to key.

    An encoder tells before from behind; to a decoder all that lies ahead is at distance 0.
    """
    if kind == "encoder":
        half = config.buckets // 2
        near = jnp.minimum(jnp.abs(distance), config.max_distance)
        bucket = jnp.asarray(distance_buckets(half, config.max_distance))[near]
        bucket = bucket + jnp.where(distance > 0, half, 0)
    else:
        near = jnp.clip(-distance, 0, config.max_distance)
        bucket = jnp.asarray(distance_buckets(config.buckets, config.max_distance))[near]
    return weights.astype(jnp.float32)[bucket].transpose(2, 0, 1)


class Attention(nn.Module):
    """softmax(q kᵀ + bias) v of x (B, T, D), with keys and values made of `source` (B, S, D).

    With a cache (key (B, H, D, S), value (B, H, S, D)), they are written into it at column `index`; without
    a source it holds them already. `bias` is (H, T, S) or None, `allowed` (1 or B, 1 or T, S) bool.
    """

    config: Seq2SeqConfig
    causal: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        source: Array | None,
        bias: Array | None,
        allowed: Array,
        cache: tuple | None,
        index: Array | None,
    ) -> tuple[Array, tuple[Array, Array]]:
        config = self.config
        heads, size = config.num_heads, config.head_dim
        split = lambda y: y.reshape(*y.shape[:2], heads, size)
        deviation = config.hidden_size**-0.5
        query = split(linear(config, heads * size, "query", deviation * size**-0.5)(x))
        if source is not None:
            key = split(linear(config, heads * size, "key", deviation)(source)).transpose(0, 2, 3, 1)
            value = split(linear(config, heads * size, "value", deviation)(source)).swapaxes(1, 2)
            if cache is not None:
                key, value = put(cache[0], key, index, 3), put(cache[1], value, index, 2)
        else:
            assert cache is not None
            key, value = cache
        mask = jnp.broadcast_to(allowed, (*x.shape[:2], key.shape[3]))
        shape = {"scale": 1.0, "bias": bias, "causal": self.causal}
        mixed = attend(query, key, value, mask, dtype=config.dtype, **shape)
        return linear(config, config.hidden_size, "output", (heads * size) ** -0.5)(mixed), (key, value)


class FeedForward(nn.Module):
    """down(f(gate x) · up x), or down(f(up x))."""

    config: Seq2SeqConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        activation, size = ACTIVATIONS[config.activation], config.intermediate_size
        inner = linear(config, size, "up", config.hidden_size**-0.5)(x)
        if config.mlp == "gated":
            inner = activation(linear(config, size, "gate", config.hidden_size**-0.5)(x)) * inner
        else:
            inner = activation(inner)
        return linear(config, config.hidden_size, "down", size**-0.5)(inner)


class Block(nn.Module):
    """One layer: attention within, across to the prompt where that is `valid`, feed-forward.

    Gives the cache with what it wrote, where it has got one.
    """

    config: Seq2SeqConfig
    causal: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        number: int | Array,  # of the layer
        cache: tuple | None,
        bias: Array,
        allowed: Array,
        source: Array | None,
        valid: Array | None,
        index: Array | None,
        dropout: Dropout | None,
    ) -> tuple[Array, PyTree]:
        config = self.config
        drop = lambda y, place: dropped(y, dropout, place + 3 * number)
        own, across = (None, None) if cache is None else cache
        y = norm(config, "attention_norm")(x)
        mixed, own = Attention(config, self.causal, name="attention")(y, y, bias, allowed, own, index)
        x = x + drop(mixed, 1)
        if valid is not None:
            y, seen = norm(config, "cross_norm")(x), valid[:, None, :]
            attention = Attention(config, False, name="cross_attention")
            mixed, across = attention(y, source, None, seen, across, None)
            x = x + drop(mixed, 2)
        x = x + drop(FeedForward(config, name="mlp")(norm(config, "mlp_norm")(x)), 3)
        return x, None if cache is None else (own, across)


def rematerialized(config: Seq2SeqConfig) -> Any:
    """A layer, with what its backward pass computes again."""
    if config.remat == "none":
        return Block
    return nn.remat(Block, policy=POLICIES[config.remat], prevent_cse=config.loop == "unrolled")


class Stack(nn.Module):
    """The encoder or the decoder: embedded tokens (B, T, D) to hidden states after the last norm, and the
    caches with what was written.

    distance (T, S) is from query to key; `allowed`, (1 or B, 1 or T, S), says which keys a query sees.
    """

    config: Seq2SeqConfig
    num_layers: int
    kind: Literal["encoder", "decoder"]

    @nn.compact
    def __call__(
        self,
        x: Array,
        distance: Array,
        allowed: Array,
        source: Array | None,
        valid: Array | None,
        caches: PyTree,
        index: Array | None,
        dropout: Dropout | None,
    ) -> tuple[Array, PyTree]:
        config = self.config
        x = dropped(x, dropout, 0)
        start = nn.initializers.normal(config.hidden_size**-0.5)
        shape = config.buckets, config.num_heads
        weights = self.param("relative_bias", start, shape, config.param_dtype)
        bias = relative_bias(config, self.kind, weights, distance)
        block, causal = rematerialized(config), self.kind == "decoder"
        shared = bias, allowed, source, valid, index, dropout
        if config.loop == "scanned":
            loop = nn.scan(
                block,
                variable_axes={"params": 0, "adapters": 0},
                split_rngs={"params": True},
                in_axes=(0, 0, *(nn.broadcast,) * len(shared)),  # pyright: ignore[reportArgumentType]
                length=self.num_layers,
            )
            x, caches = loop(config, causal, name="layers")(x, jnp.arange(self.num_layers), caches, *shared)
        else:
            written = []
            for number in range(self.num_layers):
                cache = None if caches is None else caches[number]
                x, cache = block(config, causal, name=f"layer_{number}")(x, number, cache, *shared)
                written.append(cache)
            caches = tuple(written)
        return norm(config, "final_norm")(x), caches
