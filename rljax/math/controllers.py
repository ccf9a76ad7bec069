"""Coefficients that a run adapts to what it measures; their value is part of the run's state."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def adaptive_coefficient(
    coefficient: float | Float[Array, ""],
    kl: Float[Array, ""],
    target: float | Float[Array, ""],
    horizon: float | Float[Array, ""],
    n: int | float | Float[Array, ""],
) -> Float[Array, ""]:
    """β (1 + e n / horizon) with e = clip(kl / target − 1, −0.2, 0.2), β = coefficient.

    The controller of Ziegler et al. (2019, section 2.2): β grows where the policy is further from the
    reference than `target`, both in nats per completion. `n` is the number of completions since the last
    update and `horizon` is counted in them; β stays positive while n < 5 horizon.
    """
    error = jnp.clip(kl / target - 1, -0.2, 0.2)
    return coefficient * (1 + error * (n / horizon))
