"""The probes do what their docstrings promise, and the promised values solve their Bellman equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import envs
from rljax.envs import probes
from rljax.types import Discrete

KEYS = jax.random.split(jax.random.key(0), 32)
GAMMA = 0.9


def transitions(env, action):
    """One step from 32 starts: observation (32,), next observation, reward, terminated, truncated."""
    observation, state = jax.vmap(env.reset)(KEYS)
    following, _, *rest = jax.vmap(env.step, (0, 0, None))(KEYS, state, action)
    return tuple(np.asarray(each) for each in (observation[:, 0], following[:, 0], *rest))


@pytest.mark.parametrize("name", probes.PROBES)
def test_a_probe_is_an_environment_of_its_name(name):
    env = envs.make(name)
    assert env.name == name
    action = jnp.zeros(env.action_space.shape, env.action_space.dtype)
    start = jax.eval_shape(env.reset, KEYS[0])
    following = jax.eval_shape(env.step, KEYS[0], start[1], action)
    assert jax.tree.leaves(following[:2]) == jax.tree.leaves(start)
    assert (start[0].shape, start[0].dtype) == (env.observation_space.shape, env.observation_space.dtype)
    reward, terminated, truncated = following[2:]
    assert reward.shape == terminated.shape == truncated.shape == ()
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (jnp.float32, jnp.bool_, jnp.bool_)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((start, following)))


def test_value_probes():
    observation, _, reward, terminated, truncated = transitions(probes.value_constant(), 0)
    assert (observation == 0).all()
    assert (reward == 1).all()
    assert terminated.all()
    assert not truncated.any()
    observation, _, reward, terminated, _ = transitions(probes.value_observation(), 0)
    assert set(observation) == {-1, 1}
    np.testing.assert_array_equal(reward, observation)
    assert terminated.all()


def test_value_discount():
    env = probes.value_discount()
    observation, state = env.reset(KEYS[0])
    middle, state, reward, terminated, _ = env.step(KEYS[0], state, 0)
    assert (observation[0], middle[0], reward, bool(terminated)) == (0, 1, 0, False)
    _, _, reward, terminated, truncated = env.step(KEYS[0], state, 0)
    assert (reward, bool(terminated), bool(truncated)) == (1, True, False)


def test_policy_probes():
    for action, expected in [(0, -1), (1, 1)]:
        _, _, reward, terminated, _ = transitions(probes.policy_advantage(), action)
        assert (reward == expected).all()
        assert terminated.all()
        observation, _, reward, _, _ = transitions(probes.policy_observation(), action)
        np.testing.assert_array_equal(reward, observation * expected)


def test_continuous_probes():
    _, _, reward, terminated, _ = transitions(probes.continuous_advantage(target=0.25), jnp.array([0.75]))
    np.testing.assert_allclose(reward, -0.25)
    assert terminated.all()
    observation, _, reward, _, _ = transitions(probes.continuous_observation(), jnp.array([0.5]))
    np.testing.assert_allclose(reward, np.where(observation > 0, 0.0, -1.0))


def test_truncation():
    env = envs.make("Truncation-probe", max_steps=3)
    _, state = env.reset(KEYS[0])
    flags = []
    for _ in range(3):
        observation, state, reward, terminated, truncated = env.step(KEYS[0], state, 0)
        assert (observation[0], reward, bool(terminated)) == (0, 1, False)
        flags.append(bool(truncated))
    assert flags == [False, False, True]
    assert env.max_steps == 3
    assert env.action_space == Discrete(1)


def test_final_observation_has_the_value_it_promises():
    observation, following, reward, terminated, truncated = transitions(probes.final_observation(), 0)
    assert set(observation) == {-1, 1}
    assert truncated.all()
    assert not terminated.any()
    value = lambda x: np.where(x > 0, 1.0, GAMMA) / (1 - GAMMA**2)
    np.testing.assert_allclose(reward + GAMMA * value(following), value(observation), rtol=1e-6)


def test_nan_reward():
    env = probes.nan_reward(at=2, max_steps=3)
    _, state = env.reset(KEYS[0])
    rewards, flags = [], []
    for _ in range(3):
        _, state, reward, _, truncated = env.step(KEYS[0], state, 0)
        rewards.append(float(reward))
        flags.append(bool(truncated))
    np.testing.assert_array_equal(rewards, [1, np.nan, np.nan])
    assert flags == [False, False, True]
    _, _, reward, _, _ = transitions(probes.nan_reward(at=1, probability=0.5), 0)
    assert 0 < np.isnan(reward).sum() < 32


@pytest.mark.parametrize("build", [lambda: probes.truncation(0), lambda: probes.nan_reward(at=0)])
def test_a_bad_number_of_steps_is_refused(build):
    with pytest.raises(ValueError, match="= 0: must be an integer of at least 1"):
        build()
