"""Conjugate gradient against direct solution, the line search against its closed form, and what a function
reads.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rljax.math import losses
from rljax.math.optimization import backtracking, conjugate_gradient, inner, move, reads


def positive_definite(seed: int, size: int, condition: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return (q * np.geomspace(1, condition, size)) @ q.T


def product(matrix: np.ndarray):
    return lambda v: jnp.sum(jnp.asarray(matrix, jnp.float32) * v[None], axis=1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 12), condition=st.floats(1.0, 30.0))
def test_conjugate_gradient_solves(seed: int, size: int, condition: float) -> None:
    matrix = positive_definite(seed, size, condition)
    b = np.random.default_rng(seed + 1).normal(size=size)
    x = conjugate_gradient(product(matrix), jnp.asarray(b, jnp.float32), 2 * size)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-3, atol=1e-4)


def test_it_minimises_over_the_krylov_space() -> None:
    """After k products the error is the least in the A-norm over span(b, A b, …, Aᵏ⁻¹ b)."""
    matrix = positive_definite(0, 8, 20.0)
    b = np.random.default_rng(1).normal(size=8)
    exact = np.linalg.solve(matrix, b)
    for k in range(1, 6):
        basis = np.stack([np.linalg.matrix_power(matrix, i) @ b for i in range(k)], axis=1)
        best = basis @ np.linalg.solve(basis.T @ matrix @ basis, basis.T @ b)
        x = conjugate_gradient(product(matrix), jnp.asarray(b, jnp.float32), k)
        np.testing.assert_allclose(x, best, atol=2e-4)
        assert (np.abs(best - exact) > 1e-2).any()  # not yet the solution


def test_trees_go_through() -> None:
    tree = {"a": jnp.arange(1.0, 4.0), "b": (jnp.full((2, 2), 6.0),)}
    found = conjugate_gradient(lambda v: jax.tree.map(lambda x: 2 * x, v), tree, 3)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y / 2, rtol=1e-6), found, tree)
    assert float(inner(tree, tree)) == 14 + 4 * 36


def test_it_freezes_when_it_is_there() -> None:
    """Two distinct eigenvalues: done after two products, and no rounding is divided by rounding later."""
    diagonal = jnp.array([1.0, 1.0, 4.0])
    b = jnp.array([1.0, 2.0, 3.0])
    few, many = (conjugate_gradient(lambda v: diagonal * v, b, n) for n in (2, 200))
    np.testing.assert_allclose(few, b / diagonal, rtol=1e-6)
    np.testing.assert_array_equal(few, many)
    one = conjugate_gradient(lambda v: diagonal * v, b, 200, tolerance=2.0)
    np.testing.assert_array_equal(one, jnp.zeros(3))  # ‖b − A 0‖ ≤ 2 ‖b‖ already


def test_zero_stays_zero_and_nan_stays_nan() -> None:
    np.testing.assert_array_equal(conjugate_gradient(lambda v: v, jnp.zeros(3), 5), jnp.zeros(3))
    assert np.isnan(conjugate_gradient(lambda v: v, jnp.array([1.0, jnp.nan]), 5)).all()
    assert np.isnan(conjugate_gradient(lambda v: v * jnp.nan, jnp.ones(2), 5)).all()
    # A direction without curvature is not followed to infinity.
    np.testing.assert_array_equal(conjugate_gradient(lambda v: 0 * v, jnp.ones(2), 5), jnp.zeros(2))


def test_it_maps() -> None:
    matrices = [positive_definite(seed, 5, 10.0) for seed in range(3)]
    b = np.random.default_rng(0).normal(size=(3, 5))
    solve = lambda matrix, b: conjugate_gradient(product(matrix), b, 10)
    found = jax.jit(jax.vmap(solve))(jnp.asarray(matrices, jnp.float32), jnp.asarray(b, jnp.float32))
    for matrix, rhs, x in zip(matrices, b, found, strict=True):
        np.testing.assert_allclose(x, np.linalg.solve(matrix, rhs), atol=1e-4)


@pytest.mark.parametrize("limit", [2.0, 1.0, 0.99, 0.3, 0.1])
def test_the_longest_step_within_a_limit_is_taken(limit: float) -> None:
    """From 0 along 1 with x ≤ limit: k = max(0, ⌈log limit / log ½⌉) halvings."""
    accept = lambda x: x["x"][0] <= limit
    zero, one = {"x": jnp.zeros(1)}, {"x": jnp.ones(1)}
    point, accepted, tried = jax.jit(lambda: backtracking(accept, zero, one, 0.5, 10))()
    halvings = max(0, int(np.ceil(np.log(limit) / np.log(0.5))))
    assert accepted
    assert int(tried) == halvings + 1
    np.testing.assert_array_equal(point["x"], [0.5**halvings])


def test_without_an_accepted_step_the_start_is_returned_bit_for_bit() -> None:
    start = jax.random.normal(jax.random.key(0), (100,))
    seen = lambda x: jnp.isnan(x).all()  # what is not accepted may be anything
    for direction in (jnp.ones(100), jnp.full(100, jnp.inf), -start):
        point, accepted, tried = backtracking(seen, start, direction, 0.8, 7)
        np.testing.assert_array_equal(point, start)
        assert not accepted
        assert int(tried) == 7
    point, accepted, _ = backtracking(lambda x: jnp.sum(x) > 0, start, jnp.full(100, jnp.nan), 0.8, 7)
    np.testing.assert_array_equal(point, start)
    assert not accepted


def test_searches_under_vmap_are_single_ones() -> None:
    limits = jnp.array([2.0, 0.6, 0.2, -1.0])
    search = lambda limit: backtracking(lambda x: x <= limit, jnp.float32(0), jnp.float32(1), 0.5, 5)
    point, accepted, tried = jax.vmap(search)(limits)
    np.testing.assert_array_equal(point, [1.0, 0.5, 0.125, 0.0])
    np.testing.assert_array_equal(accepted, [True, True, True, False])
    np.testing.assert_array_equal(tried, [1, 2, 4, 5])


def test_move_and_surrogate() -> None:
    moved = move((jnp.ones(2), jnp.float32(3)), -2.0, (jnp.arange(2.0), jnp.float32(1)))
    np.testing.assert_array_equal(moved[0], [1.0, -1.0])
    assert moved[1] == 1
    new, old, advantage = np.log([0.6, 0.3]), np.log([0.3, 0.4]), np.array([2.0, -1.0])
    values = losses.surrogate(*(jnp.asarray(x, jnp.float32) for x in (new, old, advantage)))
    np.testing.assert_allclose(values, [-4.0, 0.75], rtol=1e-6)


def test_what_a_function_reads_is_read_off_its_program() -> None:
    tree = {name: jnp.zeros(2) for name in ("used", "held", "dead", "unused", "jitted", "looped")}

    @jax.jit
    def both(a, b):
        return a * 2, b * 3

    def function(tree: dict) -> tuple:
        first, _ = both(tree["jitted"], tree["unused"])
        fixed = jax.lax.stop_gradient(tree["held"])
        saturated = jax.nn.relu(tree["dead"] - 1e9)
        looped = jax.lax.fori_loop(0, 3, lambda _, c: (c[0] + c[1], c[1]), (tree["used"], tree["looped"]))
        return first + fixed, saturated, looped[0]

    expected = {name: name != "unused" for name in tree}
    assert reads(function, tree) == expected
    assert reads(lambda tree: {"nothing": 1.0}, tree) == dict.fromkeys(tree, False)
    inside = jax.jit(lambda scale: jnp.float32(reads(lambda t: t["used"] * scale, tree)["used"]))
    assert inside(2.0) == 1.0


def test_a_functions_own_errors_are_not_taken_for_a_dependence() -> None:
    def wrong(tree: tuple) -> None:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        reads(wrong, (jnp.zeros(1),))
