"""Matrix products in the number formats that processors are fast in.

Kernels are (in, out). On a CPU only bfloat16 × bfloat16 → float32 is a fast product, so all accumulate in
float32 and round afterwards, forwards and backwards; and it is fast only of operands that lie in memory as
they are multiplied, so those that the backward pass transposes are copied first (one core of an AMD EPYC: 85
to 100 GFLOP/s without, 150 to 175 with the copy; float32 gains nothing).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from rljax.types import Array


def product(x: Array, kernel: Array, dtype: Any, result: Any = None) -> Array:
    """x (..., in) · kernel (in, out), of inputs rounded to `dtype`, accumulated in float32, as `result`
    (None: as `dtype`).
    """
    return _product(x, kernel, dtype, result)


def matmul(x: Array, y: Array, dtype: Any) -> Array:
    """x (..., M, K) · y (..., K, N), with the same leading axes, of inputs rounded to `dtype`, in float32."""
    return _matmul(x, y, dtype)


def along(vector: Array, y: Array) -> Array:
    """A vector (D,) in the shape of y (..., D). On a CPU its gradient is a product too, which sums rows
    several times as fast as a sum does.
    """
    return _along(vector, y.shape)


def swapped(x: Array) -> Array:
    """x (..., M, N) as (..., N, M), in memory too where a product is only then fast."""
    x = x.swapaxes(-1, -2)
    return _rows(x, x.dtype)


def _rows(x: Array, dtype: Any) -> Array:
    """x itself, made to lie in memory row by row where a product of inputs of `dtype` needs that."""
    if dtype != jnp.bfloat16 or jax.default_backend() != "cpu":
        return x
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def _dot(x: Array, y: Array, dtype: Any) -> Array:
    x, y = _rows(x.astype(dtype), dtype), _rows(y.astype(dtype), dtype)
    return _rows(jnp.matmul(x, y, preferred_element_type=jnp.float32), dtype)


def _product_value(x: Array, kernel: Array, dtype: Any, result: Any) -> Array:
    return _dot(x, kernel, dtype).astype(result or dtype)


def _product_forward(x: Array, kernel: Array, dtype: Any, result: Any) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel, dtype, result), (x, kernel)


def _product_backward(dtype: Any, result: Any, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    del result
    x, kernel = saved
    g = g.astype(dtype)
    flat = lambda y: y.reshape(-1, y.shape[-1])
    to_x = _dot(g, swapped(kernel.astype(dtype)), dtype)
    to_kernel = _dot(swapped(flat(x).astype(dtype)), flat(g), dtype)
    return to_x.astype(x.dtype), to_kernel.astype(kernel.dtype)


_product: Any = jax.custom_vjp(_product_value, nondiff_argnums=(2, 3))
_product.defvjp(_product_forward, _product_backward)


def _matmul_backward(dtype: Any, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, y = saved
    g = g.astype(dtype)
    to_x, to_y = _dot(g, swapped(y.astype(dtype)), dtype), _dot(swapped(x.astype(dtype)), g, dtype)
    return to_x.astype(x.dtype), to_y.astype(y.dtype)


def _along_backward(shape: tuple[int, ...], saved: None, g: Array) -> tuple[Array]:
    del shape, saved
    rows = g.reshape(-1, g.shape[-1])
    if jax.default_backend() != "cpu":
        return (rows.sum(axis=0),)
    return (jnp.matmul(jnp.ones((1, len(rows)), jnp.float32), rows.astype(jnp.float32))[0].astype(g.dtype),)


_along: Any = jax.custom_vjp(jnp.broadcast_to, nondiff_argnums=(1,))
_along.defvjp(lambda vector, shape: (_along(vector, shape), None), _along_backward)
_matmul: Any = jax.custom_vjp(_dot, nondiff_argnums=(2,))
_matmul.defvjp(lambda x, y, dtype: (_dot(x, y, dtype), (x, y)), _matmul_backward)
