"""Returns and advantages against their definitions, their limits, and both kinds of episode end."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rljax.math import returns
from rljax.math.returns import (
    bridge,
    discounted_returns,
    gae,
    lambda_returns,
    masked_gae,
    n_step_returns,
    vtrace,
)
from tests.math import references as ref

GAMMA, LAMBDA = 0.97, 0.9
CASES = [(0, 1, 0.15), (1, 2, 0.5), (2, 7, 0.0), (3, 8, 0.15), (4, 9, 0.9), (5, 33, 0.15), (6, 40, 0.05)]


@pytest.fixture(params=CASES, ids=str)
def steps(request: pytest.FixtureRequest) -> ref.Trajectory:
    return ref.trajectory(*request.param)


def f32(*arrays: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(array, jnp.float32) for array in arrays]


def close(actual: jax.Array, expected: object, tolerance: float = 2e-5) -> None:
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, np.asarray(expected), rtol=tolerance, atol=tolerance)


def test_discounted_returns_is_the_sum() -> None:
    rng = np.random.default_rng(0)
    reward, discount, bootstrap = rng.normal(size=21), rng.random(21), rng.normal()
    expected = []
    for start in range(21):
        total = sum(reward[t] * np.prod(discount[start:t]) for t in range(start, 21))
        expected.append(total + np.prod(discount[start:]) * bootstrap)
    close(discounted_returns(*f32(reward, discount), float(bootstrap)), expected)


def test_lambda_returns_is_the_mixture_of_n_step_returns(steps: ref.Trajectory) -> None:
    expected = [ref.lambda_return(steps, t, GAMMA, LAMBDA) for t in range(len(steps.reward))]
    actual = lambda_returns(*f32(steps.reward, steps.discount(GAMMA), steps.next_value, steps.trace(LAMBDA)))
    close(actual, expected)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 100])
def test_n_step_returns_is_the_sum_of_n_rewards(steps: ref.Trajectory, n: int) -> None:
    expected = [ref.episode_return(steps, t, n, GAMMA) for t in range(len(steps.reward))]
    actual = n_step_returns(*f32(steps.reward, steps.discount(GAMMA), steps.next_value, steps.trace(1.0)), n)
    close(actual, expected)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95, 1.0])
def test_gae_is_the_lambda_return_minus_the_value(steps: ref.Trajectory, decay: float) -> None:
    expected = [ref.lambda_return(steps, t, GAMMA, decay) - steps.value[t] for t in range(len(steps.reward))]
    inputs = f32(steps.reward, steps.discount(GAMMA), steps.value, steps.next_value, steps.trace(decay))
    close(gae(*inputs), expected)


def test_gae_limits() -> None:
    """λ = 1 is Monte Carlo minus the value, λ = 0 is the TD error."""
    steps = ref.trajectory(3, 30, ends=0.0)
    reward, discount, value, next_value = f32(
        steps.reward, steps.discount(GAMMA), steps.value, steps.next_value
    )
    monte_carlo = discounted_returns(reward, discount, next_value[-1])
    close(gae(reward, discount, value, next_value, jnp.ones(30)), monte_carlo - value)
    td_error = reward + discount * next_value - value
    close(gae(reward, discount, value, next_value, jnp.zeros(30)), td_error, 1e-6)


def test_n_step_limits() -> None:
    steps = ref.trajectory(4, 25, ends=0.0)
    reward, discount, next_value = f32(steps.reward, steps.discount(GAMMA), steps.next_value)
    ones, decaying = jnp.ones(25), jnp.full(25, 0.8)
    whole = n_step_returns(reward, discount, next_value, ones, 25)
    close(whole, discounted_returns(reward, discount, next_value[-1]))
    one_step = n_step_returns(reward, discount, next_value, ones, 1)
    close(one_step, lambda_returns(reward, discount, next_value, jnp.zeros(25)), 1e-6)
    truncated = n_step_returns(reward, discount, next_value, decaying, 25)
    close(truncated, lambda_returns(reward, discount, next_value, decaying))
    with pytest.raises(ValueError, match="n = 0"):
        n_step_returns(reward, discount, next_value, ones, 0)


@pytest.mark.parametrize(("clip_rho", "clip_c"), [(1.0, 1.0), (2.0, 0.7), (100.0, 100.0)])
def test_vtrace_is_the_sum_of_the_paper(steps: ref.Trajectory, clip_rho: float, clip_c: float) -> None:
    length = len(steps.reward)
    target = np.array([ref.vtrace_target(steps, t, GAMMA, LAMBDA, clip_rho, clip_c) for t in range(length)])
    inputs = (steps.reward, steps.discount(GAMMA), steps.value, steps.next_value, steps.trace(LAMBDA))
    actual = vtrace(*f32(*inputs, steps.ratio), clip_rho, clip_c)
    close(actual.target, target, 1e-4)
    advantage = []
    for t in range(length):
        cut = steps.terminated[t] or steps.truncated[t] or t == length - 1
        mixed = steps.next_value[t] if cut else (1 - LAMBDA) * steps.next_value[t] + LAMBDA * target[t + 1]
        bootstrap = 0.0 if steps.terminated[t] else GAMMA * mixed
        advantage.append(min(clip_rho, steps.ratio[t]) * (steps.reward[t] + bootstrap - steps.value[t]))
    close(actual.advantage, advantage, 1e-4)


@pytest.mark.parametrize("clip", [1.0, 5.0])
def test_vtrace_on_policy_is_the_lambda_return(steps: ref.Trajectory, clip: float) -> None:
    reward, discount, value, next_value, trace, ratio = f32(
        steps.reward,
        steps.discount(GAMMA),
        steps.value,
        steps.next_value,
        steps.trace(LAMBDA),
        steps.ratio**0,
    )
    actual = vtrace(reward, discount, value, next_value, trace, ratio, clip, clip)
    close(actual.target, lambda_returns(reward, discount, next_value, trace))
    close(actual.advantage, gae(reward, discount, value, next_value, trace), 1e-6)


def test_vtrace_of_an_impossible_action_changes_nothing() -> None:
    """Where π never takes the action, ρ = 0: the target is the value and the advantage is 0."""
    one = jnp.ones(5)
    actual = vtrace(one, 0.9 * one, 2 * one, 2 * one, one, 0 * one)
    close(actual.target, np.full(5, 2.0))
    close(actual.advantage, np.zeros(5))


def test_truncation_bootstraps_and_termination_does_not() -> None:
    """Three steps, the second ends an episode of final value 10; by hand with γ = ½ and λ = 1."""
    reward, value = jnp.array([1.0, 1.0, 1.0]), jnp.array([0.0, 0.0, 100.0])
    next_value, trace = jnp.array([0.0, 10.0, 4.0]), jnp.array([1.0, 0.0, 1.0])
    truncated = jnp.array([0.5, 0.5, 0.5])
    terminated = jnp.array([0.5, 0.0, 0.5])
    close(lambda_returns(reward, truncated, next_value, trace), [4.0, 6.0, 3.0])
    close(lambda_returns(reward, terminated, next_value, trace), [1.5, 1.0, 3.0])
    close(n_step_returns(reward, truncated, next_value, trace, 3), [4.0, 6.0, 3.0])
    close(n_step_returns(reward, terminated, next_value, trace, 3), [1.5, 1.0, 3.0])
    close(gae(reward, truncated, value, next_value, trace), [4.0, 6.0, -97.0])
    close(gae(reward, terminated, value, next_value, trace), [1.5, 1.0, -97.0])
    close(vtrace(reward, truncated, value, next_value, trace, jnp.ones(3)).target, [4.0, 6.0, 3.0])
    close(vtrace(reward, terminated, value, next_value, trace, jnp.ones(3)).target, [1.5, 1.0, 3.0])


LENGTH = 12
rewards = st.lists(st.floats(-10, 10, width=32, allow_subnormal=False), min_size=LENGTH, max_size=LENGTH)


@settings(deadline=None, max_examples=25)
@given(
    rewards,
    st.integers(0, 2**31),
    st.floats(0, 1, width=32, allow_subnormal=False),
    st.integers(1, LENGTH - 1),
)
def test_nothing_crosses_the_end_of_an_episode(later: list[float], seed: int, decay: float, cut: int) -> None:
    """What happens after a truncation cannot change an advantage before it."""
    steps = ref.trajectory(seed, LENGTH, ends=0.0)
    steps.truncated[cut - 1] = True
    other = np.where(np.arange(LENGTH) < cut, steps.reward, later)
    rest = f32(steps.discount(GAMMA), steps.value, steps.next_value, steps.trace(decay))
    before, after = (gae(*f32(reward), *rest) for reward in (steps.reward, other))
    np.testing.assert_array_equal(before[:cut], after[:cut])


@settings(deadline=None, max_examples=25)
@given(
    rewards,
    st.floats(0, 1, width=32, allow_subnormal=False),
    st.floats(0, 1, width=32, allow_subnormal=False),
)
def test_true_values_have_no_advantage(reward: list[float], gamma: float, decay: float) -> None:
    """On a deterministic chain with its exact values, every advantage is 0 for every λ."""
    values = np.zeros(LENGTH + 1)
    for t in reversed(range(LENGTH)):
        values[t] = reward[t] + gamma * values[t + 1]
    discount, trace = np.full(LENGTH, gamma), np.full(LENGTH, decay)
    actual = gae(*f32(np.array(reward), discount, values[:-1], values[1:], trace))
    np.testing.assert_allclose(actual, np.zeros(LENGTH), atol=1e-3)


def test_vmap_and_jit_agree_with_a_loop() -> None:
    batch = [ref.trajectory(seed, 20) for seed in range(3)]
    rows = [
        f32(steps.reward, steps.discount(GAMMA), steps.value, steps.next_value, steps.trace(LAMBDA))
        for steps in batch
    ]
    columns = [jnp.stack(column, axis=1) for column in zip(*rows, strict=True)]  # (T, B)
    mapped = jax.jit(jax.vmap(gae, in_axes=1, out_axes=1))(*columns)
    close(mapped, jnp.stack([gae(*row) for row in rows], axis=1), 1e-6)


def conversation(seed: int, length: int = 23) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    mask = rng.random(length) < (0.5, 0.1, 0.9)[seed % 3]
    return rng.normal(size=length), rng.normal(size=length), mask


def compacted_gae(
    reward: np.ndarray, value: np.ndarray, mask: np.ndarray, gamma: float, decay: float
) -> np.ndarray:
    """The actions alone, one after the other, as the sum Σ (γλ)ᵏ δ; then back to their places."""
    places = np.flatnonzero(mask)
    r, v = reward[places], np.append(value[places], 0.0)
    delta = r + gamma * v[1:] - v[:-1]
    result = np.zeros(len(mask))
    for i, place in enumerate(places):
        result[place] = sum((gamma * decay) ** (j - i) * delta[j] for j in range(i, len(places)))
    return result


@pytest.mark.parametrize("seed", range(6))
def test_bridge_holds_the_value_of_the_next_action(seed: int) -> None:
    _, value, mask = conversation(seed)
    following = []
    for t in range(len(mask)):
        later = np.flatnonzero(mask[t + 1 :])
        following.append(value[t + 1 + later[0]] if later.size else 0.0)
    held, next_value = bridge(*f32(value), jnp.asarray(mask))
    close(next_value, following, 1e-6)
    close(held, np.where(mask, value, following), 1e-6)


@pytest.mark.parametrize(("gamma", "decay"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.9, 0.0)])
@pytest.mark.parametrize("seed", range(6))
def test_gae_passes_over_what_is_no_action(seed: int, gamma: float, decay: float) -> None:
    reward, value, mask = conversation(seed)
    expected = compacted_gae(reward, value, mask, gamma, decay)
    close(masked_gae(*f32(reward, value), jnp.asarray(mask), gamma, decay), expected)
    held, next_value = bridge(*f32(value), jnp.asarray(mask))
    steps = f32(np.where(mask, reward, 0), np.where(mask, gamma, 1), np.where(mask, decay, 1))
    plain = gae(steps[0], steps[1], held, next_value, steps[2])
    close(plain[mask], expected[mask])


def test_gae_of_actions_alone_is_gae() -> None:
    reward, value, _ = conversation(0)
    r, v = f32(reward, value)
    full = jnp.ones(23, bool)
    expected = gae(r, jnp.full(23, GAMMA), v, jnp.append(v[1:], 0.0), jnp.full(23, LAMBDA))
    close(masked_gae(r, v, full, GAMMA, LAMBDA), expected, 1e-6)
    np.testing.assert_array_equal(masked_gae(r, v, ~full, GAMMA, LAMBDA), np.zeros(23))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_gae_cannot_see_outside_its_mask(poison: float) -> None:
    reward, value, mask = conversation(0)
    hidden = jnp.asarray(mask)
    weight = jnp.arange(23, dtype=jnp.float32)

    def total(reward: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.sum(weight * masked_gae(reward, value, hidden, GAMMA, LAMBDA))

    clean = f32(reward, value)
    poisoned = [jnp.where(hidden, array, poison) for array in clean]
    for actual, expected in zip(
        jax.tree.leaves(jax.value_and_grad(total, (0, 1))(*poisoned)),
        jax.tree.leaves(jax.value_and_grad(total, (0, 1))(*clean)),
        strict=True,
    ):
        np.testing.assert_array_equal(actual, expected)


def test_conversations_are_mapped_with_traced_numbers() -> None:
    batch = [conversation(seed) for seed in range(3)]
    reward, value = (jnp.stack(f32(*column)) for column in list(zip(*batch, strict=True))[:2])
    mask = jnp.stack([jnp.asarray(row[2]) for row in batch])
    mapped = jax.jit(jax.vmap(masked_gae, (0, 0, 0, None, None)))
    actual = mapped(reward, value, mask, jnp.float32(GAMMA), jnp.float32(LAMBDA))
    close(actual, np.stack([compacted_gae(*row, GAMMA, LAMBDA) for row in batch]))


def test_examples_in_docstrings() -> None:
    results = doctest.testmod(returns)
    assert results.attempted >= 2
    assert results.failed == 0
