"""Exact solutions of MDPs: properties of the operators, and answers of enumeration, NumPy and sampling."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rljax.math import tabular

STATES, ACTIONS = 6, 3
SEEDS = st.integers(0, 10_000)
DISCOUNTS = st.sampled_from([0.0, 0.5, 0.9, 0.99])


def problem(seed: int, states: int = STATES, actions: int = ACTIONS, ends: float = 0.1) -> Any:
    """transition, reward and a policy in float64; every row of P lacks up to twice `ends`."""
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(states, 0.3), (states, actions))
    transition *= 1 - 2 * ends * rng.random((states, actions, 1))
    return transition, rng.normal(size=(states, actions)), rng.dirichlet(np.ones(actions), states)


def f32(*arrays: Any) -> Any:
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def exact_value(transition: Any, reward: Any, discount: float, policy: Any) -> Any:
    moves = np.einsum("sa,sat->st", policy, transition)
    return np.linalg.solve(np.eye(len(reward)) - discount * moves, (policy * reward).sum(1))


def best_of_all_policies(transition: Any, reward: Any, discount: float) -> Any:
    """v* as the maximum over every deterministic policy: nothing that iterates or improves."""
    states, actions = reward.shape
    values = [
        exact_value(transition, reward, discount, np.eye(actions)[list(chosen)])
        for chosen in itertools.product(range(actions), repeat=states)
    ]
    return np.max(values, axis=0)


def test_the_operators_are_their_definitions() -> None:
    transition, reward, policy = problem(0)
    value, discount = np.random.default_rng(1).normal(size=STATES), 0.9
    q = np.zeros((STATES, ACTIONS))
    for s, a in np.ndindex(STATES, ACTIONS):
        q[s, a] = reward[s, a] + discount * sum(transition[s, a, t] * value[t] for t in range(STATES))
    P, r, pi, v = f32(transition, reward, policy, value)
    np.testing.assert_allclose(tabular.action_values(P, r, discount, v), q, atol=1e-6)
    np.testing.assert_allclose(tabular.optimality_backup(P, r, discount, v), q.max(1), atol=1e-6)
    expected = (policy * q).sum(1)
    np.testing.assert_allclose(tabular.expectation_backup(P, r, discount, pi, v), expected, atol=1e-6)


@given(SEEDS, DISCOUNTS, st.floats(0.01, 100.0))
@settings(max_examples=50, deadline=None)
def test_both_operators_contract_and_keep_order(seed: int, discount: float, scale: float) -> None:
    P, r, pi = f32(*problem(seed))
    rng = np.random.default_rng(seed)
    one, two = f32(scale * rng.normal(size=STATES), scale * rng.normal(size=STATES))
    higher = one + jnp.abs(two)
    for backup in (
        lambda v: tabular.optimality_backup(P, r, discount, v),
        lambda v: tabular.expectation_backup(P, r, discount, pi, v),
    ):
        apart = float(jnp.abs(one - two).max())
        assert float(jnp.abs(backup(one) - backup(two)).max()) <= discount * apart + 1e-5 * (1 + scale)
        assert (backup(higher) >= backup(one) - 1e-5 * (1 + scale)).all()
        assert (backup(one) >= tabular.expectation_backup(P, r, discount, pi, one) - 1e-5).all()


@given(SEEDS, DISCOUNTS)
@settings(max_examples=25, deadline=None)
def test_the_value_of_a_policy(seed: int, discount: float) -> None:
    transition, reward, policy = problem(seed)
    P, r, pi = f32(transition, reward, policy)
    value = tabular.policy_value(P, r, discount, pi)
    np.testing.assert_allclose(value, exact_value(transition, reward, discount, policy), rtol=1e-4, atol=1e-4)
    again = tabular.expectation_backup(P, r, discount, pi, value)
    np.testing.assert_allclose(again, value, rtol=1e-5, atol=1e-5)


def test_the_value_of_a_policy_is_the_mean_return_of_sampled_episodes() -> None:
    transition, reward, policy = problem(3, ends=0.2)
    discount, episodes = 0.9, 20_000
    P, r, pi = f32(transition, reward, policy)
    expected = np.asarray(tabular.policy_value(P, r, discount, pi))
    rng = np.random.default_rng(0)
    state, alive, total = np.full(episodes, 2), np.ones(episodes, bool), np.zeros(episodes)
    for t in range(200):
        action = (rng.random((episodes, 1)) > policy[state].cumsum(1)).sum(1).clip(max=ACTIONS - 1)
        total += alive * discount**t * reward[state, action]
        following = (rng.random((episodes, 1)) > transition[state, action].cumsum(1)).sum(1)
        alive &= following < STATES
        state = np.where(alive, following, 0)
    error = total.std() / np.sqrt(episodes)
    assert abs(total.mean() - expected[2]) < 4 * error
    assert error < 0.02


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("solve", [tabular.value_iteration, tabular.policy_iteration])
def test_solutions_are_the_best_of_all_policies(solve: Callable, discount: float) -> None:
    """Against 3⁵ policies on each of four problems, their policy's true value as well as the value."""
    for seed in range(4):
        transition, reward, _ = problem(seed, states=5)
        best = best_of_all_policies(transition, reward, discount)
        found = solve(*f32(transition, reward), discount)
        assert bool(found.converged)
        np.testing.assert_allclose(found.value, best, rtol=2e-4, atol=1e-5)
        reached = exact_value(transition, reward, discount, np.asarray(found.policy, np.float64))
        np.testing.assert_allclose(reached, best, rtol=2e-4, atol=1e-5)


@given(SEEDS, DISCOUNTS)
@settings(max_examples=25, deadline=None)
def test_value_iteration_and_policy_iteration_agree(seed: int, discount: float) -> None:
    P, r, _ = f32(*problem(seed, states=12, actions=4))
    one, two = tabular.value_iteration(P, r, discount), tabular.policy_iteration(P, r, discount)
    assert bool(one.converged)
    assert bool(two.converged)
    np.testing.assert_allclose(one.value, two.value, rtol=3e-4, atol=1e-4)
    np.testing.assert_allclose(
        tabular.optimality_backup(P, r, discount, two.value), two.value, rtol=1e-4, atol=1e-4
    )
    assert int(two.iterations) < 20


def three_states() -> Any:
    """The example of the RLHF article, written out again here."""
    transition, reward = np.zeros((3, 2, 3)), np.zeros((3, 2))
    transition[0, 0, 1] = transition[0, 1, 2] = 0.5
    reward[1, 1] = 1
    return f32(transition, reward)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9, 1.0])
def test_the_three_states_are_exact(discount: float) -> None:
    P, r = three_states()
    ones = f32(np.tile([0.0, 1.0], (3, 1)))[0]
    np.testing.assert_array_equal(tabular.policy_value(P, r, discount, ones), [0, 1, 0])
    for solve in (tabular.value_iteration, tabular.policy_iteration):
        found = solve(P, r, discount)
        np.testing.assert_array_equal(found.value, np.float32([0.5 * discount, 1, 0]))
        assert bool(found.converged)
    if discount > 0:
        chosen = tabular.value_iteration(P, r, discount).policy
        np.testing.assert_array_equal(chosen, [[1, 0], [0, 1], [1, 0]])


def corridor(length: int) -> Any:
    """Left or right along states 0 … n − 1; right of the last is the end and a reward of 1, all else 0."""
    transition, reward = np.zeros((length, 2, length)), np.zeros((length, 2))
    for state in range(length):
        transition[state, 0, max(state - 1, 0)] = 1
        if state + 1 < length:
            transition[state, 1, state + 1] = 1
    reward[-1, 1] = 1
    return f32(transition, reward)


def test_undiscounted_policy_iteration_does_not_walk_in_circles() -> None:
    """With γ = 1 every direction is greedy for v = 1, and a policy of circles has no value at all."""
    P, r = corridor(5)
    found = tabular.policy_iteration(P, r, 1.0)
    np.testing.assert_allclose(found.value, np.ones(5), atol=1e-6)
    steps = tabular.occupancy(P, f32(np.eye(5)[0])[0], 1.0, found.policy)
    assert np.isfinite(steps).all()
    circles = tabular.greedy_policy(tabular.action_values(P, r, 1.0, jnp.ones(5)))
    assert not np.isfinite(tabular.policy_value(P, r, 1.0, circles)).all()


def test_what_did_not_converge_says_so() -> None:
    P, r = corridor(5)
    assert not bool(tabular.value_iteration(P, r, 1.0, max_iterations=3).converged)
    assert bool(tabular.value_iteration(P, r, 1.0, max_iterations=6).converged)
    assert not bool(tabular.policy_iteration(P, r, 0.9, max_iterations=1).converged)


def test_a_greedy_policy_takes_the_lowest_of_equals() -> None:
    q = jnp.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(tabular.greedy_policy(q), [[0, 1, 0], [1, 0, 0]])


def test_epsilon_greedy_shares_among_equals() -> None:
    q = jnp.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [3.0, 1.0, 1.0]])
    third = 0.3 / 3
    expected = [[third, 0.35 + third, 0.35 + third], [1 / 3] * 3, [0.7 + third, third, third]]
    np.testing.assert_allclose(tabular.epsilon_greedy_policy(q, 0.3), expected, rtol=1e-6)
    np.testing.assert_array_equal(tabular.epsilon_greedy_policy(q, 0.0)[2], [1, 0, 0])
    np.testing.assert_allclose(tabular.epsilon_greedy_policy(q, 1.0), np.full((3, 3), 1 / 3), rtol=1e-6)


@given(SEEDS, DISCOUNTS)
@settings(max_examples=25, deadline=None)
def test_occupancy_weighs_rewards_as_the_value_does(seed: int, discount: float) -> None:
    transition, reward, policy = problem(seed)
    start = np.random.default_rng(seed).dirichlet(np.ones(STATES))
    P, r, pi, d0 = f32(transition, reward, policy, start)
    visits = tabular.occupancy(P, d0, discount, pi)
    gained = float((visits * (pi * r).sum(1)).sum())
    np.testing.assert_allclose(
        gained, float(start @ exact_value(transition, reward, discount, policy)), 1e-3, 1e-4
    )
    whole = tabular.occupancy(P / P.sum(-1, keepdims=True), d0, discount, pi)
    np.testing.assert_allclose(whole.sum(), 1 / (1 - discount), rtol=1e-4)


def test_the_gradient_of_a_value_is_the_policy_gradient_theorem() -> None:
    """∂(start · v_π)/∂π(a|s) = d(s) q_π(s, a) (Sutton et al. 1999), through the linear solve."""
    transition, reward, policy = problem(5)
    P, r, pi, d0 = f32(transition, reward, policy, np.full(STATES, 1 / STATES))
    gradient = jax.grad(lambda pi: (d0 * tabular.policy_value(P, r, 0.9, pi)).sum())(pi)
    q = tabular.action_values(P, r, 0.9, tabular.policy_value(P, r, 0.9, pi))
    visits = tabular.occupancy(P, d0, 0.9, pi)
    np.testing.assert_allclose(gradient, visits[:, None] * q, rtol=1e-4, atol=1e-4)


def operands(jaxpr: Any, primitive: str) -> Iterator[Any]:
    """Of every use of a primitive in a program, its inner ones included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            yield from (variable.aval for variable in equation.invars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from operands(inner, primitive)


def test_many_problems_at_once_are_each_alone_and_never_a_batched_lapack_call() -> None:
    problems = [problem(seed) for seed in range(5)]
    P, r, pi = (jnp.stack([f32(each)[0] for each in part]) for part in zip(*problems, strict=True))
    for solve, batch in (
        (lambda P, r, pi: tabular.policy_value(P, r, 0.95, pi), (P, r, pi)),
        (lambda P, r: tabular.value_iteration(P, r, 0.95), (P, r)),
        (lambda P, r: tabular.policy_iteration(P, r, 0.95), (P, r)),
    ):
        together = jax.jit(jax.vmap(solve))(*batch)
        alone = [jax.jit(solve)(*(x[i] for x in batch)) for i in range(5)]
        for whole, *each in zip(*map(jax.tree.leaves, (together, *alone)), strict=True):
            np.testing.assert_allclose(whole, np.stack(each), rtol=1e-5, atol=1e-5)
    program = jax.make_jaxpr(jax.vmap(lambda P, r: tabular.policy_iteration(P, r, 0.95)))(P, r)
    found = list(operands(program.jaxpr, "lu"))
    assert found
    assert all(each.ndim == 2 for each in found)
