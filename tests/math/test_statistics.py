"""Running statistics against one float64 pass over everything seen, however it was split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rljax.math import statistics
from rljax.math.statistics import RunningStatistics


def check(stats: RunningStatistics, data: np.ndarray, tolerance: float = 1e-5) -> None:
    wide = np.asarray(data, np.float64)
    np.testing.assert_allclose(stats.mean, wide.mean(0), rtol=tolerance, atol=tolerance * wide.std())
    np.testing.assert_allclose(stats.variance, wide.var(0), rtol=10 * tolerance, atol=1e-9)
    assert stats.count == len(data)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.lists(st.sampled_from([1, 2, 16]), min_size=1, max_size=6))
def test_batches_equal_one_pass(seed: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    batches = [rng.normal(rng.normal() * 5, rng.random() + 0.1, size=(n, 3)) for n in lengths]
    stats = statistics.init(jnp.zeros(3))
    for batch in batches:
        stats = statistics.update(stats, jnp.asarray(batch, jnp.float32))
    check(stats, np.concatenate(batches).astype(np.float32), 1e-4)


def test_merging_in_any_tree_equals_one_pass() -> None:
    rng = np.random.default_rng(1)
    data = rng.normal(size=(60, 2)) * [1.0, 100.0] + [0.0, -50.0]
    empty = statistics.init(jnp.zeros(2))
    a, b, c = (statistics.update(empty, jnp.asarray(part, jnp.float32)) for part in np.split(data, [5, 25]))
    check(statistics.merge(statistics.merge(a, b), c), data)
    check(statistics.merge(a, statistics.merge(b, c)), data)
    check(statistics.merge(statistics.merge(c, empty), statistics.merge(b, a)), data)


def test_merging_with_nothing_changes_nothing() -> None:
    empty = statistics.init(jnp.zeros(2))
    some = statistics.update(empty, jnp.array([[1.0, 2.0], [3.0, 7.0]]))
    for merged, expected in (
        (statistics.merge(some, empty), some),
        (statistics.merge(empty, some), some),
        (statistics.merge(empty, empty), empty),
    ):
        jax.tree.map(np.testing.assert_array_equal, merged, expected)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
def test_float32_survives_far_from_zero(offset: float) -> None:
    """100 000 values a million standard deviations from 0; a sum of squares would return noise."""
    rng = np.random.default_rng(2)
    data = (rng.normal(size=(10, 10_000, 1)) + offset).astype(np.float32)
    stats = statistics.init(jnp.zeros(1))
    for batch in data:
        stats = statistics.update(stats, jnp.asarray(batch))
    wide = data.astype(np.float64)
    np.testing.assert_allclose(stats.mean, wide.mean((0, 1)), atol=max(1e-4, abs(offset) * 2e-7))
    np.testing.assert_allclose(stats.variance, wide.var((0, 1)), rtol=0.02)


def test_the_mean_of_one_large_batch_is_rounded_once() -> None:
    data = (np.random.default_rng(5).normal(size=300_000) + 3e4).astype(np.float32)
    stats = statistics.update(statistics.init(jnp.float32(0)), jnp.asarray(data))
    np.testing.assert_allclose(stats.mean, data.mean(dtype=np.float64), rtol=4e-8)
    np.testing.assert_allclose(stats.variance, data.var(dtype=np.float64), rtol=1e-4)


def test_long_runs_neither_overflow_nor_freeze() -> None:
    """After 2²⁶ examples, more than float32 can count by ones, a batch of 4096 still moves the mean."""
    stats = RunningStatistics(jnp.zeros(()), jnp.ones(()), jnp.float32(2**26))
    moved = statistics.update(stats, jnp.full(4096, 100.0))
    assert moved.count == 2**26 + 4096
    np.testing.assert_allclose(moved.mean, 100 * 4096 / (2**26 + 4096), rtol=1e-5)


def test_trees_with_any_leading_axes() -> None:
    rng = np.random.default_rng(3)
    example = {"image": jnp.zeros((2, 2), jnp.uint8), "speed": jnp.float32(0)}
    image = rng.integers(0, 255, size=(4, 6, 2, 2)).astype(np.uint8)
    speed = rng.normal(size=(4, 6)).astype(np.float32)
    batch = {"image": jnp.asarray(image), "speed": jnp.asarray(speed)}
    stats = statistics.update(statistics.init(example), batch)
    np.testing.assert_allclose(stats.mean["image"], image.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(stats.variance["speed"], speed.var(), rtol=1e-4)
    assert stats.count == 24
    result = statistics.normalise(stats, batch)
    expected = (image - image.mean((0, 1))) / np.sqrt(image.var((0, 1)) + 1e-8)
    np.testing.assert_allclose(result["image"], expected, rtol=1e-3, atol=1e-4)
    assert result["image"].dtype == jnp.float32
    one = statistics.normalise(stats, jax.tree.map(lambda leaf: leaf[0, 0], batch))
    np.testing.assert_allclose(one["image"], result["image"][0, 0], rtol=1e-6)
    single = statistics.update(statistics.init(example), jax.tree.map(lambda leaf: leaf[0, 0], batch))
    np.testing.assert_array_equal(single.mean["image"], image[0, 0])


def test_normalise_clips_and_starts_as_the_identity() -> None:
    stats = statistics.init(jnp.zeros(3))
    x = jnp.array([-2.5, 0.0, 30.0])
    np.testing.assert_allclose(statistics.normalise(stats, x), [-2.5, 0.0, 10.0], rtol=1e-6)
    np.testing.assert_allclose(statistics.normalise(stats, x, clip=2.0), [-2.0, 0.0, 2.0], rtol=1e-6)
    constant = statistics.update(stats, jnp.full((50, 3), 4.0))
    np.testing.assert_array_equal(statistics.normalise(constant, jnp.full(3, 4.0)), np.zeros(3))


def test_vmap_and_scan() -> None:
    rng = np.random.default_rng(4)
    data = jnp.asarray(rng.normal(size=(3, 7, 5, 2)), jnp.float32)  # seeds, iterations, batch, features

    def run(rows: jax.Array) -> RunningStatistics:
        start = statistics.init(jnp.zeros(2))
        return jax.lax.scan(lambda stats, row: (statistics.update(stats, row), None), start, rows)[0]

    stats = jax.jit(jax.vmap(run))(data)
    for seed in range(3):
        check(jax.tree.map(lambda leaf, i=seed: leaf[i], stats), np.asarray(data[seed]).reshape(35, 2))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"a": jnp.zeros((4, 3)), "b": jnp.zeros(4)}, "must end in"),
        ({"a": jnp.zeros((4, 2)), "b": jnp.zeros(5)}, "same leading axes"),
        ({"a": jnp.zeros((0, 2)), "b": jnp.zeros(0)}, "none of length 0"),
        ({"a": jnp.zeros(()), "b": jnp.zeros(())}, "must end in"),
        ({"a": jnp.zeros((4, 2))}, "b"),
    ],
)
def test_a_wrong_batch_is_refused(batch: dict[str, jax.Array], message: str) -> None:
    stats = statistics.init({"a": jnp.zeros(2), "b": jnp.zeros(())})
    with pytest.raises(ValueError, match=message):
        statistics.update(stats, batch)
