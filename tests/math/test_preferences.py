"""Preference losses against their formulas in float64, their limits, and where a naive form breaks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rljax.math.preferences import bradley_terry, centring, choice, dpo, hinge, ipo, kto, orpo, simpo

rng = np.random.default_rng(0)
CHOSEN, REJECTED = rng.normal(size=(2, 3, 7)) * 2
MEAN_CHOSEN, MEAN_REJECTED = -rng.exponential(size=(2, 40))
DESIRABLE = rng.random((3, 7)) < 0.5


def f32(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array, jnp.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def close(actual: jax.Array, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert actual.dtype == jnp.float32
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_losses_of_scores_are_their_definitions() -> None:
    c, r = f32(CHOSEN), f32(REJECTED)
    close(bradley_terry(c, r), -np.log(sigmoid(CHOSEN - REJECTED)))
    close(bradley_terry(c, r, 0.7), -np.log(sigmoid(CHOSEN - REJECTED - 0.7)))
    margins = rng.random((3, 7))
    close(bradley_terry(c, r, f32(margins)), -np.log(sigmoid(CHOSEN - REJECTED - margins)))
    scores = rng.normal(size=(5, 4)) * 3
    expected = [-np.log(np.exp(row[0]) / np.exp(row).sum()) for row in scores]
    close(choice(f32(scores)), np.array(expected))
    close(centring(f32(scores)), np.array([sum(row) ** 2 for row in scores]), 1e-4)
    close(centring(jnp.stack([c, r], axis=-1)), (CHOSEN + REJECTED) ** 2, 1e-4)


def test_losses_of_log_probabilities_are_their_definitions() -> None:
    delta, beta = CHOSEN - REJECTED, 0.3
    d = f32(delta)
    close(dpo(d, beta), -np.log(sigmoid(beta * delta)))
    smoothed = -0.9 * np.log(sigmoid(beta * delta)) - 0.1 * np.log(sigmoid(-beta * delta))
    close(dpo(d, beta, 0.1), smoothed)
    close(hinge(d, beta), np.maximum(0, 1 - beta * delta))
    close(ipo(d, beta), (delta - 1 / (2 * beta)) ** 2)
    close(simpo(d, beta, 0.5), -np.log(sigmoid(beta * delta - 0.5)))
    odds_chosen, odds_rejected = (np.exp(mean) / (1 - np.exp(mean)) for mean in (MEAN_CHOSEN, MEAN_REJECTED))
    expected = -np.log(sigmoid(np.log(odds_chosen / odds_rejected)))
    close(orpo(f32(MEAN_CHOSEN), f32(MEAN_REJECTED)), expected)
    expected = np.where(
        DESIRABLE, 1.5 * (1 - sigmoid(beta * (delta - 0.2))), 0.8 * (1 - sigmoid(beta * (0.2 - delta)))
    )
    close(kto(d, jnp.asarray(DESIRABLE), 0.2, beta, 1.5, 0.8), expected)


def test_two_choices_are_a_comparison() -> None:
    c, r = f32(CHOSEN), f32(REJECTED)
    close(choice(jnp.stack([c, r], axis=-1)), np.asarray(bradley_terry(c, r)))
    assert choice(jnp.full(5, 3.0)) == pytest.approx(np.log(5))


def test_a_completion_that_was_not_shown_is_absent() -> None:
    scores = jnp.array([0.5, -0.3, -jnp.inf, 1.0])
    value, gradient = jax.value_and_grad(choice)(scores)
    fewer, fewer_gradient = jax.value_and_grad(choice)(scores[jnp.array([0, 1, 3])])
    assert value == pytest.approx(float(fewer), rel=1e-6)
    np.testing.assert_allclose(gradient[jnp.array([0, 1, 3])], fewer_gradient, rtol=1e-6)
    assert gradient[2] == 0


def test_relatives_of_dpo_meet_in_their_limits() -> None:
    d = f32(CHOSEN - REJECTED)
    zero = jnp.zeros_like(d)
    close(dpo(d, 0.3), np.asarray(bradley_terry(0.3 * d, zero)))
    close(simpo(d, 0.3, 0.0), np.asarray(dpo(d, 0.3)))
    close(dpo(d, 0.3, 1.0), np.asarray(dpo(-d, 0.3)))  # every label the wrong way round
    close(dpo(d, 0.3, 0.5), np.asarray(dpo(-d, 0.3, 0.5)))  # labels that say nothing
    assert ipo(jnp.float32(1 / 0.6), 0.3) == pytest.approx(0, abs=1e-10)
    assert hinge(jnp.float32(1 / 0.3), 0.3) == pytest.approx(0, abs=1e-6)


def test_the_minimum_of_a_smoothed_label_is_its_log_odds() -> None:
    """With a label wrong one time in five, the best βΔ is log 4, not infinity."""
    slope = jax.grad(dpo)
    best = jnp.log(jnp.float32(4)) / 0.3
    assert slope(best, 0.3, 0.2) == pytest.approx(0, abs=1e-6)
    assert slope(best - 1, 0.3, 0.2) < 0 < slope(best + 1, 0.3, 0.2)


def test_kto_is_symmetric_about_its_reference_point() -> None:
    ratio, yes, no = f32(CHOSEN), jnp.ones((3, 7), bool), jnp.zeros((3, 7), bool)
    close(kto(0.4 + ratio, yes, 0.4, 0.3), np.asarray(kto(0.4 - ratio, no, 0.4, 0.3)))
    close(kto(jnp.full((3, 7), 0.4), yes, 0.4, 0.3), np.full((3, 7), 0.5))
    gradient = jax.grad(lambda x: kto(x, jnp.asarray(DESIRABLE), 0.4, 0.3).sum())(ratio)
    assert np.all(np.where(DESIRABLE, gradient < 0, gradient > 0))


EXTREME = pytest.mark.parametrize("value", [-1e4, -200.0, 200.0, 1e4])


@EXTREME
def test_nothing_overflows_far_from_zero(value: float) -> None:
    x, zero, yes = jnp.float32(value), jnp.float32(0), jnp.bool_(True)
    functions: dict[str, Callable[..., Any]] = {
        "bradley_terry": lambda x: bradley_terry(x, zero),
        "choice": lambda x: choice(jnp.stack([x, zero, zero])),
        "dpo": lambda x: dpo(x, 1.0, 0.1),
        "simpo": lambda x: simpo(x, 1.0, 0.5),
        "kto": lambda x: kto(x, yes, 0.1, 1.0),
    }
    for name, function in functions.items():
        loss, slope = jax.value_and_grad(function)(x)
        assert np.isfinite(loss), name
        assert np.isfinite(slope), name
    assert bradley_terry(x, zero) == pytest.approx(max(-value, 0))


@pytest.mark.parametrize("log_prob", [-1e-3, -1e-6, -1e-9])
def test_orpo_near_certainty(log_prob: float) -> None:
    """1 − p is nothing but rounding in float32 there; −expm1(log p) is exact."""
    sure, even = jnp.float32(log_prob), jnp.log(jnp.float32(0.5))
    odds = np.log(np.exp(log_prob) / -np.expm1(log_prob))
    assert orpo(sure, even) == pytest.approx(np.log1p(np.exp(-odds)), rel=1e-4)
    assert orpo(even, sure) == pytest.approx(np.log1p(np.exp(odds)), rel=1e-5)
    # d log odds / d log p = 1 / (1 − p)
    expected = sigmoid(odds) / -np.expm1(log_prob)
    assert jax.grad(orpo, argnums=1)(even, sure) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("other", [0.0, -0.5, -100.0])
def test_orpo_is_finite_at_certainty(other: float) -> None:
    sure, other_one = jnp.float32(0), jnp.float32(other)
    for pair in ((sure, other_one), (other_one, sure)):
        loss, slopes = jax.value_and_grad(orpo, argnums=(0, 1))(*pair)
        assert np.isfinite(loss)
        assert np.all(np.isfinite(slopes))


finite = st.floats(-20, 20, width=32, allow_subnormal=False)


@settings(deadline=None, max_examples=50)
@given(finite, finite, finite)
def test_only_differences_matter(a: float, b: float, shift: float) -> None:
    x, y, s = (jnp.float32(number) for number in (a, b, shift))
    assert bradley_terry(x + s, y + s) == pytest.approx(float(bradley_terry(x, y)), abs=1e-4)
    moved, still = jnp.stack([x + s, y + s, s]), jnp.stack([x, y, jnp.float32(0)])
    assert choice(moved) == pytest.approx(float(choice(still)), abs=1e-4)
    # the two outcomes of a comparison exhaust it
    total = jnp.exp(-bradley_terry(x, y)) + jnp.exp(-bradley_terry(y, x))
    assert total == pytest.approx(1, abs=1e-5)


def test_numbers_may_be_traced_and_mapped() -> None:
    d, desirable = f32(CHOSEN), jnp.asarray(DESIRABLE)
    betas = jnp.array([0.1, 0.5])
    cases: list[tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...]]] = [
        (dpo, (d,), (0.1,)),
        (hinge, (d,), ()),
        (ipo, (d,), ()),
        (simpo, (d,), (0.5,)),
    ]
    for function, before, after in cases:
        mapped = jax.jit(jax.vmap(lambda beta, f=function, b=before, a=after: f(*b, beta, *a)))(betas)
        for row, beta in zip(mapped, (0.1, 0.5), strict=True):
            close(row, np.asarray(function(*before, beta, *after)))
    mapped = jax.jit(jax.vmap(lambda z, beta, w: kto(d, desirable, z, beta, w, w)))(betas, betas, betas)
    for row, number in zip(mapped, (0.1, 0.5), strict=True):
        close(row, np.asarray(kto(d, desirable, number, number, number, number)))
    close(jax.jit(bradley_terry)(d, -d, jnp.float32(0.3)), np.asarray(bradley_terry(d, -d, 0.3)))
