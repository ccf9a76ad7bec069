"""Noise that makes a policy explore, as pure functions; σ is in units of the action.

    noise = NOISES[kind](scale, reversion)      "gaussian" or "ornstein-uhlenbeck"
    state = noise.init((N, D))
    x, state = noise.sample(key, state)         the next x of a running episode
    x = noise.draw(key, (N, D))                 one x at any time of an episode, far from its start

Both kinds are N(0, σ²) at any one time; they differ in how long an excursion lasts. White noise cancels out
where an action must be held to get anywhere: uniform actions reached MountainCarContinuous's goal in 0.1 % of
2,000 episodes, Ornstein-Uhlenbeck noise of about their deviation (σ = 0.63, θ = 0.05) in 87 %.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Number = int | float | Float[Array, ""]


class Noise(NamedTuple):
    """One kind of noise. A state of zeros is that at the start of an episode."""

    init: Callable[[tuple[int, ...]], Array]  # (shape of x) -> state
    sample: Callable[[Any, Array], tuple[Array, Array]]  # (key, state) -> (x, state)
    draw: Callable[[Any, tuple[int, ...]], Array]  # (key, shape of x) -> x of the stationary distribution


def gaussian(scale: Number) -> Noise:
    """x_t ~ N(0, σ²), independent at each step, with σ = scale."""

    def draw(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        return scale * jax.random.normal(key, shape, jnp.float32)

    return Noise(_zeros, lambda key, state: (draw(key, state.shape), state), draw)


def ornstein_uhlenbeck(scale: Number, reversion: Number) -> Noise:
    """dx = −θ x dt + σ √(2θ) dW from x = 0, seen at t = 1, 2, … (Uhlenbeck & Ornstein 1930), with σ = scale
    and θ = reversion > 0: noise that keeps its direction for about 1/θ steps.

    Steps are exact, x' = e^{−θ} x + σ √(1 − e^{−2θ}) N(0, 1): the correlation of x_t and x_{t+k} is e^{−θk},
    and the deviation that x approaches σ. DDPG (Lillicrap et al. 2016, sec. 7) has θ = 0.15, and 0.2 for what
    is σ √(2θ) here, so that σ = 0.37.
    """
    decay = jnp.exp(-jnp.asarray(reversion, jnp.float32))

    def sample(
        key: Key[Array, ""], state: Float[Array, "*S"]
    ) -> tuple[Float[Array, "*S"], Float[Array, "*S"]]:
        x = decay * state + jnp.sqrt(1 - jnp.square(decay)) * gaussian(scale).draw(key, state.shape)
        return x, x

    return Noise(_zeros, sample, gaussian(scale).draw)


def clipped_gaussian(
    key: Key[Array, ""], shape: tuple[int, ...], scale: Number, clip: Number
) -> Float[Array, "..."]:
    """clip(N(0, σ²), ±c) with σ = scale and c = clip: what TD3 adds to the target policy's actions (Fujimoto
    et al. 2018, eq. 14).
    """
    return jnp.clip(scale * jax.random.normal(key, shape, jnp.float32), -clip, clip)


def _zeros(shape: tuple[int, ...]) -> Float[Array, "..."]:
    return jnp.zeros(shape, jnp.float32)


NOISES: dict[str, Callable[[Number, Number], Noise]] = {
    "gaussian": lambda scale, reversion: gaussian(scale),
    "ornstein-uhlenbeck": ornstein_uhlenbeck,
}
