"""Masked moments against numpy's masked arrays, and what they promise about empty masks and NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rljax.math.masked import centred, masked_mean, masked_variance, whiten

rng = np.random.default_rng(0)
VALUES = rng.normal(3.0, 2.0, size=(4, 5, 6))
MASK = rng.random((4, 5, 6)) < 0.6
X, M = jnp.asarray(VALUES, jnp.float32), jnp.asarray(MASK)
AXES = pytest.mark.parametrize("axis", [None, 0, -1, (0, 2)])


@AXES
def test_moments_are_those_of_numpys_masked_arrays(axis: int | tuple[int, ...] | None) -> None:
    kept = np.ma.array(VALUES, mask=~MASK)
    np.testing.assert_allclose(masked_mean(X, M, axis), kept.mean(axis), rtol=1e-5)
    np.testing.assert_allclose(masked_variance(X, M, axis), kept.var(axis), rtol=1e-5)
    difference = kept - kept.mean(axis, keepdims=True)
    np.testing.assert_allclose(centred(X, M, axis), difference.filled(0), rtol=1e-4, atol=1e-5)
    expected = difference / np.sqrt(kept.var(axis, keepdims=True) + 1e-8)
    np.testing.assert_allclose(whiten(X, M, axis=axis), expected.filled(0), rtol=1e-4, atol=1e-5)


@AXES
def test_without_a_mask_they_are_numpys(axis: int | tuple[int, ...] | None) -> None:
    np.testing.assert_allclose(masked_mean(X, axis=axis), VALUES.mean(axis), rtol=1e-5)
    np.testing.assert_allclose(masked_variance(X, axis=axis), VALUES.var(axis), rtol=1e-5)
    full = jnp.ones(X.shape, bool)
    np.testing.assert_allclose(whiten(X, full, axis=axis), whiten(X, axis=axis), rtol=1e-6)


def test_an_empty_mask_gives_zero_and_no_gradient() -> None:
    empty = jnp.zeros(X.shape, bool)
    assert masked_mean(X, empty) == 0
    assert masked_variance(X, empty) == 0
    np.testing.assert_array_equal(whiten(X, empty), np.zeros(X.shape))
    np.testing.assert_array_equal(centred(X, empty), np.zeros(X.shape))
    for function in (masked_mean, masked_variance, lambda x, m: whiten(x, m).sum()):
        np.testing.assert_array_equal(jax.grad(function)(X, empty), np.zeros(X.shape))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_masked_out_cannot_be_seen(poison: float) -> None:
    poisoned = jnp.where(M, X, poison)
    for function in (masked_mean, masked_variance, lambda x, m: jnp.square(whiten(x, m))[0, 0, 0]):
        value, gradient = jax.value_and_grad(function)(poisoned, M)
        clean, clean_gradient = jax.value_and_grad(function)(X, M)
        assert value == clean
        np.testing.assert_array_equal(gradient, clean_gradient)
        np.testing.assert_array_equal(gradient[~MASK], np.zeros((~MASK).sum()))


arrays = hnp.arrays(
    np.float32, st.sampled_from([2, 9, 40]), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
)


@settings(deadline=None, max_examples=30)
@given(arrays)
def test_whitened_values_have_mean_zero_and_variance_one(values: np.ndarray) -> None:
    x = jnp.asarray(values)
    result = whiten(x)
    assert abs(float(masked_mean(result))) < 1e-3
    if values.std() > 0.1:
        assert float(masked_variance(result)) == pytest.approx(1, rel=1e-2)
        kept = whiten(x, shift_mean=False)
        assert float(masked_mean(kept)) == pytest.approx(float(values.mean(dtype=np.float64)), abs=2e-3)
        assert float(masked_variance(kept)) == pytest.approx(1, rel=1e-2)
        assert np.all(np.diff(np.asarray(result)[np.argsort(values)]) >= 0)


def test_equal_values_whiten_to_zero() -> None:
    for value in (5.0, 1.87416, 1000.1, -1e6 / 3):  # rounding of the mean is not a signal
        np.testing.assert_array_equal(whiten(jnp.full(9, value)), np.zeros(9))
    np.testing.assert_array_equal(whiten(jnp.full(1, 5.0)), np.zeros(1))
    np.testing.assert_array_equal(whiten(jnp.full(7, 5.0), shift_mean=False), np.full(7, 5.0))
