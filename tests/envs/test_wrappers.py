"""Wrappers against plain loops over a tiny environment whose every number is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import envs
from rljax.envs import wrappers
from rljax.types import Box, Discrete, Env, MultiDiscrete

KEY = jax.random.key(0)


def counter(observe=None, observation_space=None, action_space=None, ends=100, max_steps=None):
    """Counts its steps, terminated at `ends`; the reward is the sum of the action that it takes."""
    observe = observe or (lambda time: jnp.array([time, 10 * time, -time], jnp.float32))
    reset = lambda key: (observe(jnp.int32(0)), jnp.int32(0))

    def step(key, state, action):
        reward = jnp.asarray(action, jnp.float32).sum()
        return observe(state + 1), state + 1, reward, state + 1 >= ends, jnp.bool_(False)

    observation_space = observation_space or Box(-np.array([1.0, 2.0, 3.0]), 99.0, (3,))
    return Env("Counter", reset, step, observation_space, action_space or Discrete(2), max_steps)


def run(env, actions):
    """A plain loop: observations, rewards, terminated, truncated, and the last state."""
    observation, state = env.reset(KEY)
    observations, rest = [observation], []
    for action in actions:
        observation, state, *flags = env.step(KEY, state, action)
        observations.append(observation)
        rest.append(flags)
    return observations, *map(np.array, zip(*rest, strict=True)), state


def test_time_limit():
    env = wrappers.time_limit(counter(), 3)
    *_, terminated, truncated, state = run(env, [0] * 4)
    assert truncated.tolist() == [False, False, True, True]
    assert not terminated.any()
    assert env.max_steps == 3
    assert wrappers.unwrapped(state) == 4
    *_, terminated, truncated, _ = run(wrappers.time_limit(counter(ends=2), 2), [0] * 2)
    assert terminated.tolist() == truncated.tolist() == [False, True]


def test_a_time_limit_says_nothing_of_the_environment_s_own_truncation():
    assert wrappers.time_limit(counter(), 3).truncates_early
    assert wrappers.time_limit(wrappers.time_limit(counter(), 3), 5).truncates_early
    never = counter()._replace(truncates_early=False)
    assert not wrappers.time_limit(never, 3).truncates_early


def test_time_limits_nest_and_the_shorter_holds():
    assert wrappers.time_limit(counter(max_steps=7), 9).max_steps == 7
    env = wrappers.time_limit(wrappers.time_limit(counter(), 2), 5)
    *_, truncated, state = run(env, [0] * 2)
    assert truncated.tolist() == [False, True]
    assert env.max_steps == 2
    assert wrappers.unwrapped(state) == 2


@pytest.mark.parametrize("axis", [-1, 0])
def test_stack_frames(axis):
    image = lambda time: time * 100 + jnp.arange(6).reshape(2, 3)
    plain = counter(image, Box(np.zeros((2, 3)), 999, (2, 3), np.int32))
    env = wrappers.stack_frames(plain, 3, axis)
    observations, *_ = run(env, [0] * 4)
    frames = [np.asarray(image(0))] * 2 + [np.asarray(image(time)) for time in range(5)]
    for time, observation in enumerate(observations):
        np.testing.assert_array_equal(observation, np.concatenate(frames[time : time + 3], axis))
        assert observation.dtype == jnp.int32
    assert env.observation_space.shape == observations[0].shape
    assert np.shape(env.observation_space.high) == observations[0].shape


def test_stack_frames_keeps_each_component_s_bounds():
    space = wrappers.stack_frames(counter(), 2).observation_space
    np.testing.assert_array_equal(space.low, [-1, -2, -3] * 2)
    np.testing.assert_array_equal(space.high, [99] * 6)


def test_sticky_actions():
    """With probability 1 the first action stays; with ½ each reward is that of this or the last action."""
    *_, stuck = run(wrappers.sticky_actions(counter(), 1.0), [1, 0, 0])
    assert wrappers.unwrapped(stuck) == 3
    _, reward, *_ = run(wrappers.sticky_actions(counter(), 1.0), [1, 0, 0])
    assert reward.tolist() == [1, 1, 1]
    _, reward, *_ = run(wrappers.sticky_actions(counter(), 0.0), [1, 0, 1])
    assert reward.tolist() == [1, 0, 1]
    env = wrappers.sticky_actions(counter(), 0.5)
    _, state = env.reset(KEY)
    _, state, *_ = env.step(KEY, state, 1)
    rewards = jax.vmap(lambda key: env.step(key, state, 0)[2])(jax.random.split(KEY, 4000))
    assert abs(float(rewards.mean()) - 0.5) < 0.04


def test_clip_actions():
    env = wrappers.clip_actions(counter(action_space=Box(np.array([-1.0, 0.0]), 2.0, (2,))))
    _, reward, *_ = run(env, [jnp.array([-5.0, -5.0]), jnp.array([0.5, 1.5]), jnp.array([9.0, 9.0])])
    assert reward.tolist() == [-1.0, 2.0, 4.0]
    assert env.action_space.high == np.inf


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (np.array([0.0, -2.0]), np.array([1.0, 2.0]))])
def test_rescale_actions(low, high):
    inner_low, inner_high = np.array([-3.0, 0.0]), np.array([1.0, 10.0])
    env = wrappers.rescale_actions(counter(action_space=Box(inner_low, inner_high, (2,))), low, high)
    middle = (np.asarray(low) + np.asarray(high)) / 2
    actions = [jnp.broadcast_to(jnp.float32(each), (2,)) for each in (low, middle, high)]
    _, reward, *_ = run(env, actions)
    np.testing.assert_allclose(reward, [-3.0, 4.0, 11.0], rtol=1e-6)


def test_discretise_actions():
    env = wrappers.discretise_actions(counter(action_space=Box(-1.0, np.array([1.0, 3.0]), (2,))), 5)
    assert env.action_space == MultiDiscrete((5, 5))
    _, reward, *_ = run(env, [jnp.array(each) for each in ([0, 0], [4, 0], [0, 4], [1, 3])])
    np.testing.assert_allclose(reward, [-2.0, 0.0, 2.0, -0.5 + 2.0])


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_integer_actions_get_equal_parts_of_a_rescaled_one(dtype):
    env = wrappers.rescale_actions(counter(action_space=Box(0, 3, (), dtype)))
    assert env.action_space.dtype == np.float32
    _, state = env.reset(KEY)
    rewards = jax.vmap(lambda action: env.step(KEY, state, action)[2])(jnp.linspace(-1.2, 1.2, 2401))
    assert np.bincount(np.asarray(rewards, int), minlength=4) == pytest.approx([700, 500, 500, 701], abs=2)


def test_bounds_as_large_as_float32_can_hold_are_rescaled():
    env = wrappers.rescale_actions(counter(action_space=Box(-3e38, 3e38, ())))
    _, reward, *_ = run(env, [jnp.float32(-1), jnp.float32(0), jnp.float32(1)])
    np.testing.assert_array_equal(reward, np.float32([-3e38, 0, 3e38]))


def test_as_many_bins_as_integers_give_each_of_them():
    for number in (3, 7, 50, 129, 299):
        env = wrappers.discretise_actions(counter(action_space=Box(2, number + 1, (), np.int32)), number)
        step = jax.vmap(lambda action, env=env: env.step(KEY, jnp.int32(0), action)[2])
        np.testing.assert_array_equal(step(jnp.arange(number)), np.arange(2, number + 2))
    env = wrappers.discretise_actions(counter(action_space=Box(0, 4, (), np.int32)), 3)
    _, reward, *_ = run(env, [jnp.int32(0), jnp.int32(1), jnp.int32(2)])
    assert reward.tolist() == [0, 2, 4]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_discretise_actions_of_one_component(shape):
    env = wrappers.discretise_actions(counter(action_space=Box(-2.0, 2.0, shape)), 3)
    assert env.action_space == Discrete(3)
    _, reward, *_ = run(env, [jnp.int32(0), jnp.int32(1), jnp.int32(2)])
    assert reward.tolist() == [-2.0, 0.0, 2.0]


@pytest.mark.parametrize("keep", [[0, 2], np.array([True, False, True]), (True, False, True)])
def test_mask_observation(keep):
    env = wrappers.mask_observation(counter(), keep)
    observations, *_ = run(env, [0] * 2)
    np.testing.assert_array_equal(observations, [[0, 0], [1, -1], [2, -2]])
    assert env.observation_space.shape == (2,)
    np.testing.assert_array_equal(env.observation_space.low, [-1, -3])


def test_flatten_observation():
    observe = lambda time: {"b": jnp.full((2, 2), time), "a": (time, jnp.array([1, 0])), "c": jnp.float32(7)}
    space = {
        "b": Box(0, 9, (2, 2), np.int32),
        "a": (Discrete(3), MultiDiscrete((2, 3))),
        "c": Box(-np.inf, 8, ()),
    }
    env = wrappers.flatten_observation(counter(observe, space))
    observations, *_ = run(env, [0])
    np.testing.assert_array_equal(observations[1], [0, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 7])
    assert observations[1].dtype == jnp.float32
    assert env.observation_space.shape == (13,)
    np.testing.assert_array_equal(env.observation_space.low, [0] * 12 + [-np.inf])
    np.testing.assert_array_equal(env.observation_space.high, [1] * 8 + [9] * 4 + [8])


def test_wrappers_of_gymnax_compose_under_jit_and_vmap():
    env = envs.make("Pendulum-v1")
    env = wrappers.stack_frames(wrappers.mask_observation(env, [0, 1]), 2)
    env = wrappers.time_limit(wrappers.discretise_actions(env, 5), 3)

    def play(key):
        observation, state = env.reset(key)
        step = lambda state, action: (lambda o, s, *rest: (s, (o, *rest)))(*env.step(key, state, action))
        return observation, jax.lax.scan(step, state, jnp.array([0, 4, 2]))

    first, (state, (observation, _, _, truncated)) = jax.jit(jax.vmap(play))(jax.random.split(KEY, 2))
    np.testing.assert_array_equal(first[:, :2], first[:, 2:])
    np.testing.assert_array_equal(observation[:, 0, :2], first[:, 2:])
    assert truncated.tolist() == [[False, False, True]] * 2
    assert wrappers.unwrapped(state).theta.shape == (2,)


def test_traced_bounds_can_be_rescaled():
    def force(max_force):
        env = wrappers.rescale_actions(envs.make("PointRobot-misc", max_force=max_force))
        _, state = env.reset(KEY)
        return env.step(KEY, state, jnp.array([1.0, 0.5]))[1].last_action

    forces = jax.vmap(force)(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(forces, [[0.1, 0.05], [0.2, 0.1]], rtol=1e-5)


def test_frozen_lake_flattens_to_one_hot():
    env = wrappers.flatten_observation(envs.make("FrozenLake-misc"))
    np.testing.assert_array_equal(env.reset(KEY)[0], np.eye(16)[0])


discrete, real = counter(), counter(action_space=Box(-1.0, 1.0, (2,)))
integers = counter(action_space=Box(0, np.array([9, 3]), (2,), np.int32))
unbounded, image = counter(action_space=Box(-np.inf, 1.0, (2,))), counter(None, Box(0, 1, (2, 2)))


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda: wrappers.time_limit(discrete, 0), "max_steps = 0: must be an integer of at least 1"),
        (lambda: wrappers.time_limit(discrete, 2.5), "max_steps = 2.5"),
        (lambda: wrappers.stack_frames(discrete, 0), "k = 0"),
        (lambda: wrappers.stack_frames(discrete, 2, axis=1), "axis 1 does not exist"),
        (
            lambda: wrappers.stack_frames(counter(None, Discrete(3)), 2),
            "needs a Box observation space, not Discrete",
        ),
        (lambda: wrappers.clip_actions(discrete), "needs a Box action space, not Discrete"),
        (lambda: wrappers.rescale_actions(discrete), "needs a Box action space"),
        (lambda: wrappers.rescale_actions(unbounded), "needs finite bounds of the action"),
        (lambda: wrappers.rescale_actions(real, 1.0, -1.0), "low = 1.0 must be below high = -1.0"),
        (lambda: wrappers.discretise_actions(real, 1), "bins = 1: must be an integer of at least 2"),
        (lambda: wrappers.discretise_actions(unbounded, 3), "needs finite bounds"),
        (lambda: wrappers.discretise_actions(integers, 5), "bins = 5: a component has only 4 values"),
        (lambda: wrappers.sticky_actions(discrete, 1.5), "probability = 1.5: must be from 0 to 1"),
        (lambda: wrappers.mask_observation(discrete, []), "3 booleans, or different indices from 0 to 2"),
        (lambda: wrappers.mask_observation(discrete, [0, 3]), "3 booleans"),
        (lambda: wrappers.mask_observation(discrete, [0, 0]), "3 booleans"),
        (lambda: wrappers.mask_observation(discrete, [True, False]), "3 booleans"),
        (lambda: wrappers.mask_observation(discrete, [False] * 3), "3 booleans"),
        (
            lambda: wrappers.mask_observation(image, [0]),
            r"shape \(2, 2\), not \(D,\); flatten_observation first",
        ),
    ],
)
def test_misuse_is_one_line(wrap, message):
    with pytest.raises(ValueError, match=message) as error:
        wrap()
    assert "\n" not in str(error.value)
