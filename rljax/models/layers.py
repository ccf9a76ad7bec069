"""The layers of small control networks, in the layout that is fastest where most of them are trained.

`Dense` computes with features as rows, (D, B), and kernels of shape (out, in), on processors where XLA's CPU
backend contracts weight gradients over a minor batch axis faster than over a major one: `backend.layout` says
which. With few columns it is the other way round everywhere, so a stack of layers then works on rows from its
first product to its last: 70 against 84 µs for a whole DQN update of 100 transitions, and 154 µs where each
layer transposed for itself. GPU libraries take either.

Products have gradients of their own, as what XLA makes of a transposed one takes up to twice as long. One SAC
update (batch 256, width 64, one core of an Intel Xeon) took 1.22 times as long without them, `_once` and
`silu`, and 1.07 times with critics of their own instead of a batched product of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax import backend, checks
from rljax.types import Array, Key

FEW = 128  # columns, below which rows are faster
NARROW = 8  # features of a layer


def few(batch: Any) -> bool:
    """Whether a batch of this size is one of few rows. A symbolic size, of `jax.export`, cannot be compared
    with a number: its program is that of few rows, which is right for all.
    """
    return not isinstance(batch, int) or batch < FEW


def by_rows(batch: Any) -> bool:
    """Whether layers work on rows, (B, D), for a batch of this size."""
    return few(batch) or backend.layout() == "rows"


def sigmoid(x: Array) -> Array:
    """1 / (1 + e⁻ˣ) as (1 + tanh(x/2)) / 2, which takes XLA's CPU backend three quarters of the time."""
    return 0.5 + 0.5 * jnp.tanh(0.5 * x)


def silu(x: Array) -> Array:
    """x · sigmoid(x) (Hendrycks & Gimpel 2016)."""
    return x * sigmoid(x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "silu": silu,
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


def lecun(scale: float = 1.0, in_axis: int = -1, out_axis: int = -2) -> Callable[..., Array]:
    """LeCun's normal initialisation, Flax's default: a normal cut at two deviations, of variance scale² /
    inputs. The default axes are those of `Dense`, whose kernels are (out, in).
    """
    normal = nn.initializers.lecun_normal(in_axis, out_axis)
    return lambda key, shape, dtype=jnp.float32: scale * normal(key, shape, dtype)


class Initialization(NamedTuple):
    """How the kernels of a network start; its biases start at 0."""

    dense: Callable[[float], Callable[..., Array]]  # gain -> initialiser of a kernel (out, in)
    convolution: Callable[[float], Callable[..., Array]]  # gain -> that of a kernel (height, width, in, out)
    hidden_gain: float
    policy_gain: float  # of a policy's last layer, where a Config gives none; that of values is 1


INITIALIZATIONS = {
    "orthogonal": Initialization(orthogonal, orthogonal, hidden_gain=2**0.5, policy_gain=0.01),
    "lecun": Initialization(lecun, lambda gain: lecun(gain, -2, -1), hidden_gain=1.0, policy_gain=1.0),
}


def policy_gain(config: Any) -> float:
    """The gain of a policy's last layer: the Config's, or that of its initialisation.

    Raises: ValueError naming the field `initialization` or `policy_gain` where it is wrong.
    """
    checks.choice(config, "initialization", INITIALIZATIONS)
    if config.policy_gain is None:
        return INITIALIZATIONS[config.initialization].policy_gain
    checks.number(config, "policy_gain", low=0, open_low=True)
    return config.policy_gain


@jax.custom_vjp
def on_columns(kernel: Array, x: Array) -> Array:
    """kernel (out, in) times x (in, B). Its gradient for x transposes the kernel first: XLA's CPU backend
    contracts over two major axes at half the speed.
    """
    return kernel @ x


def _once(slope: Array, kernel: Array) -> Array:
    """The slopes of a layer with few outputs, divided by 1: exactly what they are.

    XLA's CPU backend fuses cheap operations into each that follows, so a whole loss would be computed again
    for every feature of the layer. It takes a division for dear, and computes it once.
    """
    if min(kernel.shape) > NARROW:
        return slope
    return slope / (1.0 + jnp.minimum(jnp.abs(slope), 0.0))  # XLA does not see that this is 1


def _columns_back(saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    kernel, x = saved
    slope = _once(slope, kernel)
    return slope @ x.T, jax.lax.optimization_barrier(kernel.T) @ slope


@jax.custom_vjp
def on_rows(kernel: Array, x: Array) -> Array:
    """x (B, in) times the transpose of kernel (out, in). Its gradient for the kernel transposes the slopes
    first.
    """
    return x @ kernel.T


def _rows_back(saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    kernel, x = saved
    slope = _once(slope, kernel)
    return jax.lax.optimization_barrier(slope.T) @ x, slope @ kernel


on_columns.defvjp(lambda kernel, x: (kernel @ x, (kernel, x)), _columns_back)
on_rows.defvjp(lambda kernel, x: (x @ kernel.T, (kernel, x)), _rows_back)


def _product(kernel: Array, x: Array) -> Array:
    """x (B, in) times the transpose of kernel (out, in), with gradients of its own from FEW rows on."""
    return x @ kernel.T if few(x.shape[0]) else on_rows(kernel, x)


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
        kernel = self.param("kernel", self.kernel_init, (self.features, size), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features, 1), jnp.float32)
        if self.rows:
            return _product(kernel, x) + jnp.ones((batch, 1), x.dtype) @ bias.T
        if by_rows(batch):
            return (_product(kernel, x.T) + bias.T).T
        return on_columns(kernel, x) + bias @ jnp.ones((1, batch), x.dtype)


class MLP(nn.Module):
    """Hidden layers on columns, (in, B) -> (hidden_sizes[-1], B): each a Dense layer, a layer norm over its
    features where `normalization` is "layer", and the activation.
    """

    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    initialization: str = "orthogonal"
    normalization: str = "none"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        start = INITIALIZATIONS[self.initialization]
        rows = by_rows(x.shape[1])
        axis = -1 if rows else 0
        x = x.T if rows else x
        for size in self.hidden_sizes:
            x = Dense(size, start.dense(start.hidden_gain), rows)(x)
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
    initialization: str = "orthogonal"
    channels: int = 16

    @nn.compact
    def __call__(self, x: Array) -> Array:
        start = INITIALIZATIONS[self.initialization]
        kernel_init = start.convolution(start.hidden_gain)
        x = nn.Conv(self.channels, (3, 3), padding="VALID", kernel_init=kernel_init)(x)
        x = ACTIVATIONS[self.activation](x)
        return MLP(self.hidden_sizes, self.activation, self.initialization)(x.reshape(x.shape[0], -1).T)
