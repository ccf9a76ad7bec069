"""Group advantages against numpy over the scored rewards, and what they promise about the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rljax.math.groups import centred, has_variance, leave_one_out, standardised

ADVANTAGES = pytest.mark.parametrize("advantage", [centred, standardised, leave_one_out])
rng = np.random.default_rng(0)


def reference(reward: np.ndarray, scored: np.ndarray) -> dict[object, np.ndarray]:
    """The three formulas in float64 over a list of the scored rewards alone; TRL 1.16 computes the second and
    third (`_generate_and_score_completions` of grpo_trainer.py and rloo_trainer.py).
    """
    kept = np.flatnonzero(scored)
    result = {function: np.zeros(len(reward)) for function in (centred, standardised, leave_one_out)}
    if len(kept) < 2:
        return result
    values = reward[kept].astype(np.float64)
    for i, value in zip(kept, values, strict=True):
        others = [reward[j] for j in kept if j != i]
        result[centred][i] = value - values.mean()
        result[standardised][i] = (value - values.mean()) / (values.std(ddof=1) + 1e-4)
        result[leave_one_out][i] = value - np.mean(others)
    return result


@ADVANTAGES
@pytest.mark.parametrize("keep", [0, 1, 2, 3, 8])
def test_advantages_are_their_definitions_over_the_scored(advantage, keep: int) -> None:
    reward = rng.normal(2.0, 3.0, size=8)
    scored = rng.permutation(np.arange(8) < keep)
    actual = advantage(jnp.asarray(reward, jnp.float32), jnp.asarray(scored))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, reference(reward, scored)[advantage], rtol=1e-4, atol=1e-5)


@ADVANTAGES
def test_one_completion_has_no_advantage(advantage) -> None:
    np.testing.assert_array_equal(advantage(jnp.array([3.7]), jnp.array([True])), [0.0])


@ADVANTAGES
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_scored_cannot_be_seen(advantage, poison: float) -> None:
    scored = jnp.array([True, False, True, True, False])
    clean = jnp.array([1.0, 0.0, -0.5, 0.25, 0.0])
    poisoned = jnp.where(scored, clean, poison)
    weight = jnp.array([1.0, 2.0, -1.0, 0.5, 3.0])

    def total(reward: jax.Array) -> jax.Array:
        return jnp.sum(weight * advantage(reward, scored))

    np.testing.assert_array_equal(advantage(poisoned, scored), advantage(clean, scored))
    gradient, expected = jax.grad(total)(poisoned), jax.grad(total)(clean)
    np.testing.assert_array_equal(gradient, expected)
    np.testing.assert_array_equal(gradient[~scored], np.zeros(2))
    assert np.any(np.asarray(gradient) != 0)
    assert bool(has_variance(poisoned, scored))


@ADVANTAGES
@pytest.mark.parametrize("value", [0.0, 0.1, 5.0, 1000.1, -1e6 / 3])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_equal_rewards_have_no_advantage_at_all(advantage, value: float, size: int) -> None:
    """Not even one of rounding, which 1/ε would magnify; and finite gradients."""
    reward, scored = jnp.full(size, value), jnp.ones(size, bool)
    np.testing.assert_array_equal(advantage(reward, scored), np.zeros(size))
    gradient = jax.grad(lambda x: advantage(x, scored)[0])(reward)
    assert np.all(np.isfinite(gradient))
    assert not has_variance(reward, scored)


def test_has_variance() -> None:
    reward = jnp.array([1.0, 1.0, 2.0, jnp.nan])
    for scored, expected in (
        ([True, True, True, False], True),
        ([True, True, False, False], False),
        ([False, True, True, False], True),
        ([True, False, False, False], False),
        ([False, False, False, False], False),
    ):
        result = has_variance(reward, jnp.array(scored))
        assert result.shape == ()
        assert result.dtype == bool
        assert bool(result) is expected


def test_fractional_and_negative_rewards_keep_their_fractions() -> None:
    reward, scored = jnp.array([0.25, -0.5, 0.75, 0.1]), jnp.ones(4, bool)
    np.testing.assert_allclose(centred(reward, scored), [0.1, -0.65, 0.6, -0.05], atol=1e-6)
    np.testing.assert_allclose(leave_one_out(reward[:2], scored[:2]), [0.75, -0.75], atol=1e-6)


numbers = st.lists(st.floats(-100, 100, width=32, allow_subnormal=False), min_size=8, max_size=8)


@settings(deadline=None, max_examples=50)
@given(numbers, st.lists(st.booleans(), min_size=8, max_size=8))
def test_what_holds_for_any_group(rewards: list[float], keep: list[bool]) -> None:
    reward, scored = jnp.array(rewards, jnp.float32), jnp.array(keep)
    expected = reference(np.array(rewards), np.array(keep))
    values = np.array(rewards)[np.array(keep)]
    differ = len(values) > 1 and float(values.max() - values.min()) > 0
    assert bool(has_variance(reward, scored)) is differ
    for advantage in (centred, leave_one_out):
        actual = np.asarray(advantage(reward, scored))
        np.testing.assert_allclose(actual, expected[advantage], rtol=1e-4, atol=1e-3)
        assert abs(actual.sum()) < 1e-3
    if not differ or values.std() > 1e-2:
        actual = standardised(reward, scored)
        np.testing.assert_allclose(actual, expected[standardised], rtol=1e-2, atol=1e-2)
    count = sum(keep)
    if count > 1:
        ratio = count / (count - 1)
        np.testing.assert_allclose(
            leave_one_out(reward, scored), ratio * centred(reward, scored), rtol=1e-5, atol=1e-6
        )


def test_the_leave_one_out_baseline_is_blind_to_its_own_reward() -> None:
    reward, scored = jnp.asarray(rng.normal(size=6), jnp.float32), jnp.ones(6, bool)
    jacobian = jax.jacobian(leave_one_out)(reward, scored)
    np.testing.assert_allclose(np.diag(jacobian), np.ones(6), rtol=1e-6)  # d(Rᵢ − baselineᵢ)/dRᵢ = 1
    np.testing.assert_allclose(jacobian[0, 1:], np.full(5, -1 / 5), rtol=1e-5)


@ADVANTAGES
def test_prompts_are_mapped(advantage) -> None:
    reward = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    scored = jnp.asarray(rng.random((3, 5)) < 0.7)
    mapped = jax.jit(jax.vmap(advantage))(reward, scored)
    for row, one, kept in zip(mapped, reward, scored, strict=True):
        np.testing.assert_allclose(row, advantage(one, kept), rtol=1e-5, atol=1e-6)
    traced = jax.jit(standardised)(reward[0], scored[0], jnp.float32(1e-4))
    np.testing.assert_allclose(traced, standardised(reward[0], scored[0]), rtol=1e-6)
