"""Points between bounds: real ones, and integers that share an interval equally."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def between(
    fraction: Float[Array, "..."], low: Float[Array, "..."], high: Float[Array, "..."]
) -> Float[Array, "..."]:
    """(1 − f) low + f high: both ends exact, and no difference of bounds that could overflow."""
    return (1 - fraction) * low + fraction * high


def cell(
    fraction: Float[Array, "..."], low: Float[Array, "..."], high: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The integer of low, low + 1, …, high in whose part of [0, 1] the fraction is; all parts are equal.

    Fractions outside get the nearest bound. Exact where |low| and |high| are below 2²³ in float32.
    """
    return jnp.clip(jnp.floor(between(fraction, low - 0.5, high + 0.5) + 0.5), low, high)
