"""The adaptive KL coefficient against its formula, and that it steers towards its target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.math.controllers import adaptive_coefficient


@pytest.mark.parametrize(
    ("kl", "error"), [(0.0, -0.2), (4.7, -0.2), (5.4, -0.1), (6.0, 0.0), (6.6, 0.1), (7.3, 0.2), (60.0, 0.2)]
)
def test_the_formula(kl: float, error: float) -> None:
    """Ziegler et al.'s numbers: β₀ = 0.15, target 6, horizon 10,000, batches of 512."""
    actual = adaptive_coefficient(0.15, jnp.float32(kl), 6.0, 10_000.0, 512)
    assert actual.dtype == jnp.float32
    assert actual == pytest.approx(0.15 * (1 + error * 512 / 10_000), rel=1e-5)


def test_it_steers_to_the_target() -> None:
    """A policy whose KL is 1/β: the coefficient must settle where that is the target."""

    def update(coefficient: jax.Array, _: None) -> tuple[jax.Array, None]:
        return adaptive_coefficient(coefficient, 1 / coefficient, 4.0, 1000.0, 100), None

    for start in (0.01, 5.0):
        last, _ = jax.lax.scan(update, jnp.float32(start), None, length=2000)
        assert last == pytest.approx(0.25, rel=1e-3)


def test_all_numbers_may_be_traced_and_mapped() -> None:
    columns = jnp.array([[0.1, 0.2], [3.0, 9.0], [6.0, 6.0], [1e4, 2e4], [64.0, 128.0]])
    mapped = jax.jit(jax.vmap(adaptive_coefficient))(*columns)
    expected = [0.1 * (1 - 0.2 * 0.0064), 0.2 * (1 + 0.2 * 0.0064)]
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)
