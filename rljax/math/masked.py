"""Moments over the places where a boolean mask holds; None means everywhere.

Values outside the mask may be anything, NaN included: neither the results nor their gradients see them. Where
nothing is kept, mean and variance are 0, not NaN, so that an empty minibatch contributes nothing; ask the
mask if the difference matters. `axis` is that of `numpy.mean`: None reduces everything to a scalar.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Axis = int | tuple[int, ...] | None


def _mean(values: Array, mask: Array | None, axis: Axis, keepdims: bool) -> Array:
    if mask is None:
        mask = jnp.ones(values.shape, bool)
    count = jnp.sum(mask, axis=axis, keepdims=keepdims, dtype=jnp.int32)
    total = jnp.sum(jnp.where(mask, values, 0), axis=axis, keepdims=keepdims)
    return total / jnp.maximum(count, 1).astype(values.dtype)


def _variance(values: Array, mask: Array | None, axis: Axis, keepdims: bool) -> Array:
    return _mean(jnp.square(centred(values, mask, axis)), mask, axis, keepdims)


def centred(
    values: Float[Array, "*S"], mask: Bool[Array, "*S"] | None = None, axis: Axis = None
) -> Float[Array, "*S"]:
    """x − mean, in units of x, and 0 outside the mask. Equal values become 0."""
    if mask is not None:
        values = jnp.where(mask, values, 0)  # before the square, whose gradient would carry a NaN
    for _ in range(2):  # the second time removes the rounding of the first, which `whiten` would magnify
        values = values - jnp.broadcast_to(_mean(values, mask, axis, keepdims=True), values.shape)
    return values if mask is None else jnp.where(mask, values, 0)


def masked_mean(
    values: Float[Array, "*S"], mask: Bool[Array, "*S"] | None = None, axis: Axis = None
) -> Float[Array, "..."]:
    """Σ mask · x / Σ mask, in units of x; `jnp.mean` where the mask is None or all true."""
    return _mean(values, mask, axis, keepdims=False)


def masked_variance(
    values: Float[Array, "*S"], mask: Bool[Array, "*S"] | None = None, axis: Axis = None
) -> Float[Array, "..."]:
    """Σ mask · (x − mean)² / Σ mask, the population variance in squared units of x; `jnp.var` if unmasked."""
    return _variance(values, mask, axis, keepdims=False)


def whiten(
    values: Float[Array, "*S"],
    mask: Bool[Array, "*S"] | None = None,
    epsilon: float = 1e-8,
    shift_mean: bool = True,
    axis: Axis = None,
) -> Float[Array, "*S"]:
    """(x − mean) / √(variance + epsilon), and 0 outside the mask: mean 0 and variance 1 over the mask.

    With the static `shift_mean` False the mean is put back after scaling, as for rewards whose sign matters.
    Equal values, a single one included, become 0 (or stay, without the shift). `epsilon` is in squared units
    of x. This is the normalisation of advantages (Huang et al. 2022, detail 7).
    """
    scale = jax.lax.rsqrt(_variance(values, mask, axis, keepdims=True) + epsilon)
    result = centred(values, mask, axis) * jnp.broadcast_to(scale, values.shape)
    if not shift_mean:
        result = result + jnp.broadcast_to(_mean(values, mask, axis, keepdims=True), values.shape)
    return result if mask is None else jnp.where(mask, result, 0)
