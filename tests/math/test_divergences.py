"""The estimators' biases and gradients, taken exactly: expectations over a small categorical are sums."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.math.distributions import categorical
from rljax.math.divergences import k1, k2, k3

rng = np.random.default_rng(0)
P, Q = (jnp.asarray(rng.normal(size=6), jnp.float32) for _ in range(2))
ESTIMATORS = pytest.mark.parametrize("estimator", [k1, k2, k3], ids=["k1", "k2", "k3"])


def log_softmax(logits: jax.Array) -> np.ndarray:
    wide = np.asarray(logits, np.float64)
    return wide - np.log(np.sum(np.exp(wide)))


def kl(p: jax.Array, q: jax.Array) -> float:
    return float(np.sum(np.exp(log_softmax(p)) * (log_softmax(p) - log_softmax(q))))


@ESTIMATORS
def test_values_are_the_definitions(estimator: Any) -> None:
    a, b = log_softmax(P), log_softmax(Q)
    ratio = np.exp(b) / np.exp(a)
    expected = {k1: -np.log(ratio), k2: np.log(ratio) ** 2 / 2, k3: ratio - 1 - np.log(ratio)}[estimator]
    actual = estimator(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    same = estimator(jax.nn.log_softmax(P), jax.nn.log_softmax(P))
    np.testing.assert_array_equal(same, np.zeros(6))


def test_which_is_unbiased() -> None:
    p = np.exp(log_softmax(P))
    a, b = jax.nn.log_softmax(P), jax.nn.log_softmax(Q)
    assert np.sum(p * k1(a, b)) == pytest.approx(kl(P, Q), rel=1e-5)
    assert np.sum(p * k3(a, b)) == pytest.approx(kl(P, Q), rel=1e-5)
    assert abs(np.sum(p * k2(a, b)) / kl(P, Q) - 1) > 0.02
    assert np.min(k1(a, b)) < 0 <= np.min(k3(a, b))


def test_k2_is_nearly_unbiased_for_neighbours() -> None:
    p = np.exp(log_softmax(P))
    near = P + 0.01 * Q
    estimate = np.sum(p * k2(jax.nn.log_softmax(P), jax.nn.log_softmax(near)))
    assert estimate == pytest.approx(kl(P, near), rel=0.02)


def test_which_has_the_right_gradient() -> None:
    """Samples from p are fixed: the weights of the expectation carry no gradient."""
    weight, reference = jax.nn.softmax(P), jax.nn.log_softmax(Q)

    def gradient(estimator: Any) -> jax.Array:
        return jax.grad(lambda logits: jnp.sum(weight * estimator(jax.nn.log_softmax(logits), reference)))(P)

    np.testing.assert_allclose(gradient(k1), np.zeros(6), atol=1e-6)
    np.testing.assert_allclose(gradient(k2), jax.grad(categorical.kl)(P, Q), atol=1e-5)
    np.testing.assert_allclose(gradient(k3), jax.grad(categorical.kl, argnums=1)(Q, P), atol=1e-5)
    assert np.max(np.abs(gradient(k3) - gradient(k2))) > 0.05


def test_k3_keeps_its_precision_near_zero() -> None:
    d = np.array([1e-4, -1e-4, 1e-3])
    actual = k3(jnp.asarray(d, jnp.float32), jnp.zeros(3))
    np.testing.assert_allclose(actual, np.expm1(-d) + d, rtol=5e-2)
