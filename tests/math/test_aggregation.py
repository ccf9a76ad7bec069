"""Aggregations against loops, and the promise they exist for: pieces add up to the batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.math.aggregation import AGGREGATIONS, constant, sequence_mean, token_mean

EACH = pytest.mark.parametrize("name", list(AGGREGATIONS))
rng = np.random.default_rng(0)
LENGTHS = np.array([7, 1, 0, 4, 3, 0])
MASK = np.arange(7) < LENGTHS[:, None]
LOSS = rng.normal(size=MASK.shape)


def by_loop(name: str, loss: np.ndarray, mask: np.ndarray) -> float:
    rows = [loss[i][mask[i]] for i in range(len(mask))]
    present = [row for row in rows if len(row)]
    if name == "token_mean":
        return float(np.concatenate(rows).mean())
    if name == "sequence_mean":
        return float(np.mean([row.mean() for row in present]))
    return sum(float(row.sum()) for row in rows) / (mask.shape[0] * mask.shape[1])


@EACH
@pytest.mark.parametrize("scattered", [False, True])
def test_the_weights_give_the_mean_they_name(name: str, scattered: bool) -> None:
    mask = rng.random(MASK.shape) < 0.6 if scattered else MASK
    weight = AGGREGATIONS[name](jnp.asarray(mask))
    assert weight.dtype == jnp.float32
    np.testing.assert_array_equal(weight[~mask], np.zeros((~mask).sum()))
    assert np.sum(weight * LOSS) == pytest.approx(by_loop(name, LOSS, mask), rel=1e-5)


@EACH
def test_a_full_mask_is_the_mean(name: str) -> None:
    weight = AGGREGATIONS[name](jnp.ones((3, 4), bool))
    np.testing.assert_allclose(weight, np.full((3, 4), 1 / 12), rtol=1e-6)


@EACH
def test_an_empty_batch_weighs_nothing(name: str) -> None:
    np.testing.assert_array_equal(AGGREGATIONS[name](jnp.zeros((3, 4), bool)), np.zeros((3, 4)))


@EACH
def test_accumulated_gradients_are_those_of_the_single_batch(name: str) -> None:
    parameter = jnp.asarray(rng.normal(size=7), jnp.float32)
    features = jnp.asarray(LOSS, jnp.float32)
    weight = AGGREGATIONS[name](jnp.asarray(MASK))

    def loss(parameter: jax.Array, features: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.sum(weight * jnp.square(features - jnp.broadcast_to(parameter, features.shape)))

    whole = jax.grad(loss)(parameter, features, weight)
    for pieces in (2, 3, 6):
        parts = [
            jax.grad(loss)(parameter, x, w)
            for x, w in zip(jnp.split(features, pieces), jnp.split(weight, pieces), strict=True)
        ]
        np.testing.assert_allclose(sum(parts), whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("aggregation", [token_mean, sequence_mean])
def test_an_empty_row_is_absent(aggregation: Callable[[jax.Array], jax.Array]) -> None:
    present = jnp.asarray(MASK[LENGTHS > 0])
    np.testing.assert_allclose(aggregation(jnp.asarray(MASK))[LENGTHS > 0], aggregation(present), rtol=1e-6)


def test_they_differ_in_what_length_costs() -> None:
    """Two completions of lengths 1 and 3: the share of the first."""
    mask = jnp.array([[True, False, False], [True, True, True]])
    first = [float(aggregation(mask)[0].sum()) for aggregation in (token_mean, sequence_mean, constant)]
    total = [float(aggregation(mask).sum()) for aggregation in (token_mean, sequence_mean, constant)]
    np.testing.assert_allclose(first, [1 / 4, 1 / 2, 1 / 6], rtol=1e-6)
    np.testing.assert_allclose(total, [1, 1, 4 / 6], rtol=1e-6)


def test_every_function_is_found_under_its_name() -> None:
    assert {name: function.__name__ for name, function in AGGREGATIONS.items()} == {
        name: name for name in ("token_mean", "sequence_mean", "constant")
    }
