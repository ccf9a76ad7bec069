"""rljax.math.noise: moments and correlations against their closed forms, within 5 standard errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.math import noise

STEPS, PATHS = 60, 20_000


def paths(kind: noise.Noise, steps: int = STEPS) -> np.ndarray:
    """(T, N) of N independent episodes."""

    def step(state: Any, key: Any) -> tuple[Any, Any]:
        x, state = kind.sample(key, state)
        return state, x

    keys = jax.random.split(jax.random.key(3), steps)
    return np.asarray(jax.lax.scan(step, kind.init((PATHS,)), keys)[1], np.float64)


def close(found: float, expected: float, deviation: float) -> None:
    """Within 5 standard errors of a mean of PATHS values."""
    assert abs(found - expected) < 5 * deviation / PATHS**0.5, (found, expected)


def test_gaussian_noise_is_independent_with_the_given_deviation() -> None:
    x = paths(noise.gaussian(0.3), 4)
    for t in range(4):
        close(x[t].mean(), 0, 0.3)
        close((x[t] ** 2).mean(), 0.09, 0.09 * 2**0.5)
    close((x[0] * x[1]).mean(), 0, 0.09)
    close((x[0] * x[3]).mean(), 0, 0.09)


@pytest.mark.parametrize("reversion", [0.05, 0.15, 1.0])
def test_ornstein_uhlenbeck_has_its_variance_and_autocorrelation(reversion: float) -> None:
    scale = 0.2
    x = paths(noise.ornstein_uhlenbeck(scale, reversion))
    variance = lambda t: scale**2 * (1 - np.exp(-2 * reversion * (t + 1)))  # from x = 0
    for t in (0, 3, 20, STEPS - 1):
        close(x[t].mean(), 0, variance(t) ** 0.5)
        close((x[t] ** 2).mean(), variance(t), variance(t) * 2**0.5)
    for lag in (1, 4, 15):
        close((x[40] * x[40 + lag]).mean(), variance(40) * np.exp(-reversion * lag), scale**2 * 2**0.5)


def test_it_is_the_solution_of_the_differential_equation() -> None:
    """100 Euler steps of dt = 0.01 against one exact step, given x."""
    start, scale, reversion, parts = 0.7, 0.2, 0.4, 100
    kind = noise.ornstein_uhlenbeck(scale, reversion)
    exact = np.asarray(kind.sample(jax.random.key(0), jnp.full((PATHS,), start))[0], np.float64)
    x, generator = np.full(PATHS, start), np.random.default_rng(0)
    for _ in range(parts):
        x += -reversion * x / parts + scale * (2 * reversion / parts) ** 0.5 * generator.normal(size=PATHS)
    close(exact.mean(), x.mean(), 1.5 * x.std() + 0.2)  # Euler's own error: 0.1 % of x
    close(exact.var(), x.var(), 3 * x.var())


@pytest.mark.parametrize("kind", noise.NOISES)
def test_a_draw_is_of_the_stationary_distribution(kind: str) -> None:
    x = np.asarray(noise.NOISES[kind](0.3, 0.15).draw(jax.random.key(1), (PATHS, 1)), np.float64)
    assert x.shape == (PATHS, 1)
    close(x.mean(), 0, 0.3)
    close((x**2).mean(), 0.09, 0.09 * 2**0.5)


def test_an_episode_starts_at_rest_and_forgets_it() -> None:
    kind = noise.ornstein_uhlenbeck(jnp.float32(0.0), jnp.float32(0.15))
    np.testing.assert_array_equal(kind.init((2, 3)), np.zeros((2, 3)))
    x, state = kind.sample(jax.random.key(0), jnp.ones((2, 3)))
    np.testing.assert_allclose(x, np.full((2, 3), np.exp(-0.15)), rtol=1e-6)
    np.testing.assert_array_equal(x, state)


def test_gaussian_noise_keeps_its_state() -> None:
    kind = noise.gaussian(1.0)
    state = kind.init((4, 2))
    x, after = kind.sample(jax.random.key(0), state)
    assert x.shape == (4, 2)
    np.testing.assert_array_equal(after, state)


def test_smoothing_noise_is_clipped_not_scaled() -> None:
    key, clip = jax.random.key(0), 0.5
    x = np.asarray(noise.clipped_gaussian(key, (PATHS, 2), 0.4, clip))
    plain = 0.4 * np.asarray(jax.random.normal(key, (PATHS, 2)))
    np.testing.assert_allclose(x, np.clip(plain, -clip, clip), rtol=1e-6)
    assert (np.abs(plain) > clip).mean() > 0.1
