"""The layers of small control networks, in the layout that is fastest where most of them are trained.

`Dense` computes with features as rows, (D, B), and kernels of shape (out, in): XLA's CPU backend contracts
weight gradients over a minor batch axis faster than over a major one, 23.0 against 28.8 ms for the sixteen
minibatches of 2,048 steps of a PPO update on one core. With few columns it is the other way round, so a stack
of layers then works on rows from its first product to its last: 70 against 84 µs for a whole DQN update of
100 transitions, and 154 µs where each layer transposed for itself. GPU libraries take either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax.types import Array, Key

FEW = 128  # columns, below which rows are faster

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
}


@jax.custom_batching.sequential_vmap
def _orthonormal(normal: Array) -> Array:
    """Q of a QR decomposition with the signs that make it uniform (Haar), for a tall matrix.

    Never a batched QR: several LAPACK calls of one program, each holding a thread of XLA's CPU pool while it
    waits for the pool, can wait for each other for ever. Under `vmap` over seeds this runs one after the
    other instead.
    """
    q, r = jnp.linalg.qr(normal)
    return q * jnp.sign(jnp.diagonal(r))[None, :]


def orthogonal(scale: float = 1.0) -> Callable[..., Array]:
    """Orthogonal initialisation (Saxe et al. 2014) of a kernel: all axes but the last are the rows of a
    matrix.
    """

    def init(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        tall = jax.random.normal(key, (max(rows, columns), min(rows, columns)), jnp.float32)
        q = _orthonormal(tall)
        return (scale * (q if rows >= columns else q.T)).reshape(shape).astype(dtype)

    return init


class Dense(nn.Module):
    """y = W x + b on columns, (in, B) -> (out, B), or on rows, (B, in) -> (B, out); the kernel is (out, in).

    The bias is added as a product with ones, so that its gradient is a matrix-vector product too.
    """

    features: int
    kernel_init: Callable[..., Array] = orthogonal(2**0.5)
    rows: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, batch = x.shape[::-1] if self.rows else x.shape
        kernel = self.param("kernel", self.kernel_init, (self.features, size))
        bias = self.param("bias", nn.initializers.zeros, (self.features, 1))
        if self.rows:
            return x @ kernel.T + jnp.ones((batch, 1), x.dtype) @ bias.T
        if batch < FEW:
            return (x.T @ kernel.T + bias.T).T
        return kernel @ x + bias @ jnp.ones((1, batch), x.dtype)


class MLP(nn.Module):
    """Hidden layers on columns, (in, B) -> (hidden_sizes[-1], B): each a Dense layer, a layer norm over its
    features where `normalization` is "layer", and the activation.
    """

    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    kernel_init: Callable[..., Array] = orthogonal(2**0.5)
    normalization: str = "none"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rows = x.shape[1] < FEW
        axis = -1 if rows else 0
        x = x.T if rows else x
        for size in self.hidden_sizes:
            x = Dense(size, self.kernel_init, rows)(x)
            if self.normalization == "layer":
                x = nn.LayerNorm(reduction_axes=axis, feature_axes=axis)(x)
            x = ACTIVATIONS[self.activation](x)
        return x.T if rows else x


class CNN(nn.Module):
    """MinAtar's network (Young & Tian 2019): one 3 × 3 convolution, then dense layers. (B, H, W, C) -> (D,
    B).
    """

    hidden_sizes: tuple[int, ...] = (128,)
    activation: str = "relu"
    channels: int = 16

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Conv(self.channels, (3, 3), padding="VALID", kernel_init=orthogonal(2**0.5))(x)
        x = ACTIVATIONS[self.activation](x)
        return MLP(self.hidden_sizes, self.activation)(x.reshape(x.shape[0], -1).T)
