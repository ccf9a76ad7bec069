"""Auto-reset and rollouts: statistically exact starts, true boundaries, episode accounting."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rljax import envs
from rljax.envs import probes
from rljax.learning import env_rollouts
from rljax.math import returns
from rljax.types import Box, Discrete, Env


def counter(lengths: tuple[int, ...], truncates: bool = False) -> Env:
    """Episode k of an environment draws its length from `lengths`; observation = (start id, time). Reward =
    time + 1.
    """

    def reset(key: Any) -> tuple[Any, Any]:
        start, which = jax.random.split(key)
        state = (jax.random.uniform(start), jax.random.choice(which, jnp.array(lengths)), jnp.int32(0))
        return jnp.stack([state[0], 0.0]), state

    def step(key: Any, state: Any, action: Any) -> tuple[Any, ...]:
        start, length, time = state
        time = time + 1
        over = time >= length
        obs = jnp.stack([start, time.astype(jnp.float32)])
        flags = (jnp.bool_(False), over) if truncates else (over, jnp.bool_(False))
        return obs, (start, length, time), time.astype(jnp.float32), *flags

    return Env("counter", reset, step, Box(0.0, np.inf, (2,)), Discrete(2), max_steps=max(lengths))


def roll(
    env: Env, num_envs: int, num_steps: int, seed: int = 0, bootstrap: Any = None, worlds: Any = None
) -> Any:
    policy = lambda key, obs: (jax.random.randint(key, (num_envs,), 0, 2),) * 2
    bootstrap = bootstrap or (lambda obs: jnp.zeros(num_envs))
    reset_key, key = jax.random.split(jax.random.key(seed))
    worlds = env_rollouts.reset(env, reset_key, num_envs) if worlds is None else worlds
    return jax.jit(lambda key, worlds: env_rollouts.rollout(env, policy, bootstrap, key, worlds, num_steps))(
        key, worlds
    )


def starts(steps: env_rollouts.Rollout) -> np.ndarray:
    """Observations that follow the end of an episode."""
    done = np.asarray(steps.terminated | steps.truncated)
    return np.asarray(steps.obs)[1:][done[:-1]]


def test_start_states_have_resets_distribution_and_are_all_different() -> None:
    env = envs.make("CartPole-v1")
    found = starts(roll(env, 64, 6000)[1])
    assert len(found) >= 10_000
    assert len(np.unique(found, axis=0)) == len(found)  # never one start twice
    fresh = np.asarray(jax.vmap(env.reset)(jax.random.split(jax.random.key(99), len(found)))[0])
    for component in range(4):
        assert stats.ks_2samp(found[:, component], fresh[:, component]).pvalue > 1e-3
        assert stats.kstest(found[:, component], stats.uniform(-0.05, 0.1).cdf).pvalue > 1e-3
        lagged = np.corrcoef(found[:-1, component], found[1:, component])[0, 1]
        assert abs(lagged) < 4 / np.sqrt(len(found))


def test_a_pool_that_runs_out_many_times_stays_exact() -> None:
    found = starts(roll(counter((1,)), 8, 2000)[1])[
        :, 0
    ]  # every step ends an episode: 16,000 starts from pools of 1,000
    assert len(found) == 8 * 1999
    assert len(np.unique(found)) > 0.998 * len(found)  # uniforms have 23 bits: some of 16,000 coincide
    assert stats.kstest(found, stats.uniform.cdf).pvalue > 1e-3


def test_vmapped_members_have_starts_of_their_own_and_equal_single_ones() -> None:
    env = counter((1, 2, 3))
    policy = lambda key, obs: (jnp.zeros(4, jnp.int32),) * 2

    def one(key: Any) -> Any:
        reset_key, key = jax.random.split(key)
        return env_rollouts.rollout(
            env, policy, lambda obs: jnp.zeros(4), key, env_rollouts.reset(env, reset_key, 4), 50
        )[1]

    keys = jax.random.split(jax.random.key(3), 5)
    mapped = jax.jit(jax.vmap(one))(keys)
    for member in range(5):
        np.testing.assert_allclose(mapped.obs[member], jax.jit(one)(keys[member]).obs, rtol=1e-6)
    seen = [starts(jax.tree.map(lambda x, m=member: x[m], mapped))[:, 0] for member in range(5)]
    assert len(np.unique(np.concatenate(seen))) == sum(map(len, seen))


def test_episode_accounting_over_several_rollouts() -> None:
    env, worlds, number, total = counter((2, 3, 7)), None, 0, 0.0
    flags = []
    for seed in range(4):
        worlds, steps, episodes = roll(env, 3, 5, seed, worlds=worlds)
        number += int(episodes.episode_return.count)
        total += float(episodes.episode_return.total)
        assert int(episodes.episode_length.count) == int(episodes.episode_return.count)
        flags.append(np.asarray(steps.terminated))
    done, expected = np.concatenate(flags), []
    for column in done.T:
        length = 0
        for over in column:
            length += 1
            if over:
                expected.append(length * (length + 1) / 2)
                length = 0
    assert number == len(expected) == int(done.sum())
    assert total == pytest.approx(sum(expected))


def test_final_value_is_of_the_true_final_observation_only_where_truncated() -> None:
    length = 4
    bootstrap = lambda obs: (
        10 + obs[:, 1]
    )  # reads the time: 4 in the final observation, 0 in the next episode's first
    _, steps, _ = roll(counter((length,), truncates=True), 3, 9, bootstrap=bootstrap)
    cut = np.asarray(steps.truncated)
    assert cut.sum() == 6
    np.testing.assert_array_equal(np.asarray(steps.final_value), np.where(cut, 10.0 + length, 0.0))
    np.testing.assert_array_equal(
        np.asarray(steps.obs)[4, :, 1], 0
    )  # the step after it acts on a fresh start
    _, steps, _ = roll(counter((length,)), 3, 9, bootstrap=bootstrap)
    assert np.asarray(steps.terminated).sum() == 6
    assert not np.asarray(steps.final_value).any()


def test_boundaries_against_a_loop_over_each_environment() -> None:
    rng = np.random.default_rng(0)
    shape = (30, 4)
    terminated, truncated = rng.random(shape) < 0.1, rng.random(shape) < 0.1
    reward, value, final = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
    last = rng.normal(size=4).astype(np.float32)
    zeros = jnp.zeros(shape)
    steps = env_rollouts.Rollout(
        zeros, zeros, jnp.asarray(reward), jnp.asarray(terminated), jnp.asarray(truncated), jnp.asarray(final)
    )
    discount, following, trace = env_rollouts.boundaries(
        steps, jnp.asarray(value), jnp.asarray(last), jnp.float32(0.9), jnp.float32(0.8)
    )
    found = jax.vmap(returns.gae, 1, 1)(steps.reward, discount, jnp.asarray(value), following, trace)
    for n in range(4):
        after, after_value = 0.0, last[n]
        for t in reversed(range(30)):
            done = terminated[t, n] or truncated[t, n]
            bootstrap = 0.0 if terminated[t, n] else final[t, n] if truncated[t, n] else after_value
            after = reward[t, n] + 0.9 * bootstrap - value[t, n] + (0.0 if done else 0.9 * 0.8 * after)
            after_value = value[t, n]
            np.testing.assert_allclose(found[t, n], after, rtol=1e-4, atol=1e-5)


def test_both_flags_at_once_terminate() -> None:
    env = counter((3,))

    def step(key: Any, state: Any, action: Any) -> tuple[Any, ...]:
        obs, state, reward, terminated, _ = env.step(key, state, action)
        return obs, state, reward, terminated, terminated

    _, steps, _ = roll(env._replace(step=step), 2, 7, bootstrap=lambda obs: jnp.full(2, 5.0))
    assert np.asarray(steps.terminated & steps.truncated).sum() == 4
    assert not np.asarray(steps.final_value).any()


def test_one_environment_and_one_step() -> None:
    worlds, steps, episodes = roll(probes.value_constant(), 1, 1)
    assert steps.reward.shape == (1, 1)
    assert int(episodes.episode_return.count) == 1
    assert float(episodes.episode_return.value) == 1.0
    assert float(worlds.episode_return[0]) == 0.0


def test_when_runs_at_most_once_and_only_where_asked_under_vmap() -> None:
    double = lambda x: 2 * x
    flags, values = jnp.array([True, False, True]), jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(
        jax.vmap(lambda p, x: env_rollouts.when(p, double, x))(flags, values), [2.0, 2.0, 6.0]
    )
