"""The result is a permutation and each is equally likely: tests at fixed keys, rejecting below 1e-3."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rljax.math.shuffle import SORTED_LIMIT, permutation

SIZES = [0, 1, 2, 3, 4, 5, 31, 32, 33, 1000, SORTED_LIMIT, SORTED_LIMIT + 1, 4096, 5000, 8192, 8193, 70_000]


def draws(seed: int, count: int, n: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(permutation, (0, None)), static_argnums=1)(keys, n))


def uniform(counts: np.ndarray) -> bool:
    return stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("n", SIZES)
def test_it_is_a_permutation(n: int) -> None:
    result = permutation(jax.random.key(n), n)
    assert result.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(result), np.arange(n))


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="n = -1"):
        permutation(jax.random.key(0), -1)


@pytest.mark.parametrize("seed", [0, 1])
def test_all_orders_of_four_are_equally_likely(seed: int) -> None:
    orders = {order: i for i, order in enumerate(itertools.permutations(range(4)))}
    seen = [orders[tuple(row)] for row in draws(seed, 24_000, 4).tolist()]
    assert uniform(np.bincount(seen, minlength=24))


def test_every_position_of_64_gets_every_index() -> None:
    rows = draws(2, 6_400, 64)
    counts = np.zeros((64, 64))
    np.add.at(counts, (np.broadcast_to(np.arange(64), rows.shape), rows), 1)
    # Rows and columns both sum to the number of draws, so (63)² degrees of freedom remain.
    statistic = ((counts - 100) ** 2 / 100).sum() * 63 / 64
    assert 1e-3 < stats.chi2.sf(statistic, 63**2) < 1 - 1e-3


@pytest.mark.parametrize("n", [SORTED_LIMIT, SORTED_LIMIT + 1, 5000, 8192, 16_385])
def test_neighbours_come_in_either_order(n: int) -> None:
    """The packed index must not decide: i before i + 1 half the time, as i and a far j."""
    rows = draws(3, 64, n)
    position = np.argsort(rows, axis=1)
    for distance in (1, n // 2):
        ordered = (position[:, :-distance] < position[:, distance:])[:, :: distance + 1]
        assert stats.binomtest(int(ordered.sum()), ordered.size).pvalue > 1e-3
    assert abs(np.corrcoef(np.arange(n), rows[0])[0, 1]) < 4 / np.sqrt(n)
    ascents = (np.diff(rows, axis=1) > 0).mean(axis=1)  # sees equal random bits that fall back on the index
    assert stats.ttest_1samp(ascents, 0.5).pvalue > 1e-3


def test_another_key_gives_another_order_and_vmap_changes_none() -> None:
    rows = draws(4, 5, 100)
    assert len({tuple(row) for row in rows.tolist()}) == 5
    keys = jax.random.split(jax.random.key(4), 5)
    np.testing.assert_array_equal(rows, np.stack([permutation(key, 100) for key in keys]))


@pytest.mark.parametrize("n", [257, 300, 512, 1025, 2048, 3000, 8192])
def test_what_a_uniform_permutation_does(n: int) -> None:
    """Fixed points, cycles, coarse cells and pairs, each against its known distribution."""
    rows = draws(5, 512, n)
    fixed = (rows == np.arange(n)).sum(axis=1)  # Poisson(1)
    counts = np.bincount(np.minimum(fixed, 4), minlength=5)
    expected = np.append(stats.poisson.pmf(range(4), 1), stats.poisson.sf(3, 1)) * len(rows)
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    order = rows[:, 0]  # the index that comes first is uniform
    assert stats.kstest(order / n, stats.uniform.cdf).pvalue > 1e-3
    gap = np.abs(np.argmax(rows == 0, axis=1) - np.argmax(rows == 1, axis=1))  # of two neighbours: triangular
    assert stats.kstest(gap, stats.randint(1, n).cdf).pvalue < 1e-3  # the test can tell another distribution
    assert stats.kstest(gap / n, stats.triang(0).cdf).pvalue > 1e-3
    cells = np.zeros((16, 16))
    np.add.at(cells, (np.broadcast_to(np.arange(n) * 16 // n, rows.shape), rows * 16 // n), 1)
    mean = np.outer(np.bincount(np.arange(n) * 16 // n), np.bincount(np.arange(n) * 16 // n)) * len(rows) / n
    # All margins of a table of a permutation are fixed: 15² degrees of freedom, with this factor for drawing
    # without replacement.
    assert 1e-3 < stats.chi2.sf(((cells - mean) ** 2 / mean).sum() * (n - 1) / n, 15**2) < 1 - 1e-3
