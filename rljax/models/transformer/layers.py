"""The parts of a transformer: linear layers, norms, rotary embeddings, MLPs, and how they are a layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax.models.transformer.attention import attend
from rljax.models.transformer.config import TransformerConfig
from rljax.models.transformer.products import along, product
from rljax.types import Array, Dropout

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
KeysValues = tuple[Array, Array]  # (B, KV, D, S), (B, KV, S, D)


class Linear(nn.Module):
    """x W + b, plus the low-rank x A B of an adapter where the collection "adapters" has one here."""

    features: int
    bias: bool
    config: TransformerConfig
    deviation: float = 0.02  # of the kernel at the start

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(self.deviation), shape, config.param_dtype)
        y = product(x, kernel, config.dtype)
        if self.has_variable("adapters", "a"):
            a, b = self.get_variable("adapters", "a"), self.get_variable("adapters", "b")
            y = y + product(product(x, a, config.dtype), b, config.dtype)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), config.param_dtype)
            y = y + along(bias.astype(config.dtype), y)
        return y


def residual(config: TransformerConfig) -> float:
    """Deviation at the start of kernels that add to the residual stream (Radford et al. 2019): the sum over
    the layers keeps its size.
    """
    return 0.02 / (2 * config.num_layers) ** 0.5


class Norm(nn.Module):
    """RMS norm (Zhang & Sennrich 2019) or layer norm over the last axis, in float32."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, size = self.config, x.shape[-1]
        start = nn.initializers.zeros if config.norm == "rms_offset" else nn.initializers.ones
        weight = self.param("scale", start, (size,), config.param_dtype).astype(jnp.float32)
        y = x.astype(jnp.float32)
        if config.norm == "layer":
            y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + config.norm_epsilon)
        if config.norm == "rms_offset":
            return (y * along(1.0 + weight, y)).astype(config.dtype)
        if config.norm == "rms":  # rounded before the weight, as Llama does
            return y.astype(config.dtype) * along(weight.astype(config.dtype), y)
        bias = self.param("bias", nn.initializers.zeros, (size,), config.param_dtype)
        return (y * along(weight, y) + along(bias.astype(jnp.float32), y)).astype(config.dtype)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """The first 2 · F dimensions of x (B, T, H, D) turned by the angles whose cos and sin are (B, T, F).
    Angles are not differentiated.
    """
    return _rotate(x, cos, sin)


@jax.custom_vjp
def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    half = cos.shape[-1]
    if half == 0:
        return x
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


# A gradient is turned back: autodiff would turn each half by itself, pad both and add.
_rotate.defvjp(
    lambda x, cos, sin: (_rotate(x, cos, sin), (cos, sin)),
    lambda angle, g: (_rotate(g, angle[0], -angle[1]), None, None),
)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023); returns the keys and values, old ones included."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        angles: tuple[Array, Array],
        mask: Array | None,
        cache: KeysValues | None,
        index: Array | None,
    ) -> tuple[Array, KeysValues]:
        config = self.config
        batch, length, _ = x.shape
        heads, kv_heads, size = config.num_heads, config.kv_heads, config.head_size
        linear = lambda name, features: Linear(features, "qkv" in config.biases, config, name=name)(x)
        query = linear("query", heads * size).reshape(batch, length, heads, size)
        key = linear("key", kv_heads * size).reshape(batch, length, kv_heads, size)
        value = linear("value", kv_heads * size).reshape(batch, length, kv_heads, size)
        if config.head_norm == "query_key":
            query, key = Norm(config, name="query_norm")(query), Norm(config, name="key_norm")(key)
        query, key = rotate(query, *angles), rotate(key, *angles)
        key, value = key.transpose(0, 2, 3, 1), value.swapaxes(1, 2)
        if cache is not None:
            key, value = put(cache[0], key, index, 3), put(cache[1], value, index, 2)
        kept = key, value
        if self.has_variable("adapters", "prefix_key"):  # trained columns that every query sees
            first, second = (self.get_variable("adapters", name) for name in ("prefix_key", "prefix_value"))
            key, value = before(first.swapaxes(1, 2), key, 3), before(second, value, 2)
            if mask is not None:
                mask = jnp.pad(mask, [(0, 0), (0, 0), (first.shape[1], 0)], constant_values=True)
        shape = {"scale": config.scale, "softcap": config.attention_softcap, "form": config.attention}
        mixed = attend(query, key, value, mask, dtype=config.dtype, **shape)
        bias, deviation = "output" in config.biases, residual(config)
        output = Linear(config.hidden_size, bias, config, deviation, name="output")
        return output(mixed), kept


def put(cache: Array, columns: Array, index: Array | None, axis: int) -> Array:
    """The cache with these columns from `index` of an axis on."""
    columns = columns.astype(cache.dtype)
    return jax.lax.dynamic_update_slice_in_dim(cache, columns, jnp.asarray(index), axis=axis)


def before(prefix: Array, columns: Array, axis: int) -> Array:
    """The same prefix put before the columns (B, ...) of every row, along an axis."""
    prefix = jnp.broadcast_to(prefix.astype(columns.dtype), (columns.shape[0], *prefix.shape))
    return jnp.concatenate([prefix, columns], axis=axis)


def dropped(x: Array, dropout: Dropout | None, place: int | Array) -> Array:
    """x (B, ...) with the noise of this place in the model, None for none."""
    if dropout is None:
        return x
    bits = lambda key: jax.random.bits(jax.random.fold_in(key, place), x.shape[1:], jnp.uint16)
    kept = jax.vmap(bits)(dropout.keys).astype(jnp.float32) >= 65536 * jnp.asarray(dropout.rate, jnp.float32)
    return jnp.where(kept, x / jnp.asarray(1 - dropout.rate, x.dtype), jnp.zeros_like(x))


class FeedForward(nn.Module):
    """down(f(gate x) · up x), or down(f(up x))."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, bias = self.config, "mlp" in self.config.biases
        activation = ACTIVATIONS[config.activation]
        up = Linear(config.intermediate_size, bias, config, name="up")(x)
        if config.mlp == "gated":
            gate = Linear(config.intermediate_size, bias, config, name="gate")(x)
            inner = activation(gate) * up
        else:
            inner = activation(up)
        return Linear(config.hidden_size, bias, config, residual(config), name="down")(inner)


class Block(nn.Module):
    """One layer, in one of three arrangements; returns its keys and values where `keep` says so."""

    config: TransformerConfig
    keep: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        number: int | Array,  # of the layer
        kind: int | Array,  # which of the `angles` (R, B, T, F) is this layer's
        window: int | Array | None,
        cache: KeysValues | None,
        angles: tuple[Array, Array],
        allowed: Array | None,  # (B, T, S); None: all that is not ahead
        distance: Array,
        index: Array | None,
        dropout: Dropout | None,
    ) -> tuple[Array, KeysValues | None]:
        config = self.config
        angles = angles[0][kind], angles[1][kind]
        mask = allowed
        if window is not None:
            near = distance < window
            mask = near & (distance >= 0) if allowed is None else near & allowed
        attention, feed_forward = Attention(config, name="attention"), FeedForward(config, name="mlp")
        norm = lambda name: Norm(config, name=name)
        mixed, kept = attention(norm("attention_norm")(x), angles, mask, cache, index)
        first, second = (lambda y, place=2 * number + i: dropped(y, dropout, place) for i in (1, 2))
        if config.block == "parallel":
            x = x + first(mixed) + second(feed_forward(norm("mlp_norm")(x)))
        elif config.block == "sandwich":
            x = x + first(norm("attention_post_norm")(mixed))
            x = x + second(norm("mlp_post_norm")(feed_forward(norm("mlp_norm")(x))))
        else:
            x = x + first(mixed)
            x = x + second(feed_forward(norm("mlp_norm")(x)))
        return x, kept if self.keep else None
