"""N environments in step: auto-reset, episode statistics, and the rollout that every on-policy method scans.

Auto-reset is ours. Gymnax's `step` runs a whole reset in every step, of which nearly all are thrown away;
here a rollout draws a pool of fresh starts at once and hands each out once, to whichever environment ends an
episode. A pool that runs out is drawn anew, inside a `while_loop` that runs at most once: under `vmap` it
costs nothing while no member needs it, where a `cond` would become a `select` that always pays. Which starts
are handed out depends on nothing about their values, so they are as independent as `reset`'s own
(`tests/envs/test_vector.py` has the Kolmogorov-Smirnov test, `benchmarks/README.md` the costs).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import checks
from rljax.types import Array, Env, Key, Mean, PyTree, space_bytes


class Worlds(NamedTuple):
    """N running environments: everything that the next step needs to go on."""

    state: PyTree  # of the environments, (N, ...)
    obs: PyTree  # the observation to act on, (N, ...)
    episode_return: Array  # (N,) undiscounted reward of the running episode
    episode_length: Array  # (N,) its steps so far


class Rollout(NamedTuple):
    """T steps of N environments, time first."""

    obs: PyTree  # (T, N, ...) raw, as acted on
    action: PyTree  # (T, N, ...) raw action of the policy
    reward: Array  # (T, N)
    terminated: Array  # (T, N) bool: nothing follows
    truncated: Array  # (T, N) bool: cut off, something would follow
    final_value: (
        Array  # (T, N) value of the true final observation, where truncated and not terminated; else 0
    )


class Episodes(NamedTuple):
    """The episodes that ended in a rollout."""

    episode_return: Mean
    episode_length: Mean


class Outcome(NamedTuple):
    """What one step of N environments gave."""

    obs: PyTree  # (N, ...) the true next observation, final where the episode ended
    reward: Array  # (N,)
    terminated: Array  # (N,) bool: nothing follows
    truncated: Array  # (N,) bool: cut off, something would follow
    episodes: Episodes


class Pool(NamedTuple):
    """P fresh starts of episodes, to be handed out once each."""

    key: Key
    obs: PyTree  # (P, ...)
    state: PyTree
    used: Array  # how many have been handed out


def rollout_size(env: Env, config: Any) -> int:
    """Transitions of a rollout, num_envs × num_steps. ValueError naming the field where they do not fit into
    memory.
    """
    size = checks.product(config, "num_envs", "num_steps")
    checks.fits(config, "num_envs", size * space_bytes(env.observation_space))
    return size


def reset(env: Env, key: Key, num_envs: int) -> Worlds:
    """N environments at the start of an episode."""
    obs, state = jax.vmap(env.reset)(jax.random.split(key, num_envs))
    return Worlds(state, obs, jnp.zeros(num_envs, jnp.float32), jnp.zeros(num_envs, jnp.int32))


def when(predicate: Array, function: Callable[[PyTree], PyTree], operand: PyTree) -> PyTree:
    """`function(operand)` if the scalar `predicate` holds, else `operand`, for a rare event and equal types.

    A loop of at most one turn: under `vmap` it runs only where some member needs it.
    """
    turn = lambda carry: (jnp.zeros_like(carry[0]), function(carry[1]))
    return jax.lax.while_loop(lambda carry: carry[0], turn, (predicate, operand))[1]


def starts(env: Env, key: Key, fill_key: Key, num_envs: int, num_steps: int) -> Pool:
    """A pool for about `num_steps` steps of N environments: one start for every 16 of their steps.

    `fill_key` is consumed, `key` is kept for drawing the pool anew.
    """
    return _fill(env, key, fill_key, max(num_envs, num_envs * num_steps // 16))


def _fill(env: Env, key: Key, fill_key: Key, size: int) -> Pool:
    obs, state = jax.vmap(env.reset)(jax.random.split(fill_key, size))
    return Pool(key, obs, state, jnp.int32(0))


def _refill(env: Env, pool: Pool, size: int) -> Pool:
    key, fill_key = jax.random.split(pool.key)
    return _fill(env, key, fill_key, size)


def step(env: Env, key: Key, worlds: Worlds, pool: Pool, action: PyTree) -> tuple[Worlds, Pool, Outcome]:
    """Step N environments once; those whose episode ends start anew from the pool.

    Args:
        action: (N, ...) as the environment takes it.
    """
    num_envs, size = worlds.episode_return.shape[0], jax.tree.leaves(pool.obs)[0].shape[0]
    keys = jax.random.split(key, num_envs)
    obs, state, reward, terminated, truncated = jax.vmap(env.step)(keys, worlds.state, action)
    reward = reward.astype(jnp.float32)
    done = terminated | truncated

    order = jnp.cumsum(done, dtype=jnp.int32)
    pool = when(pool.used + order[-1] > size, lambda pool: _refill(env, pool, size), pool)
    fresh = jnp.clip(pool.used + order - 1, 0, size - 1)
    pool = pool._replace(used=pool.used + order[-1])
    start = lambda new, old: jnp.where(_rows(done, old), new[fresh], old)

    returns, lengths = worlds.episode_return + reward, worlds.episode_length + 1
    worlds = Worlds(
        state=jax.tree.map(start, pool.state, state),
        obs=jax.tree.map(start, pool.obs, obs),
        episode_return=jnp.where(done, 0.0, returns),
        episode_length=jnp.where(done, 0, lengths),
    )
    episodes = Episodes(Mean.of(returns, done), Mean.of(lengths, done))
    return worlds, pool, Outcome(obs, reward, terminated, truncated, episodes)


def no_episodes() -> Episodes:
    """None ended yet."""
    none = Mean.none()
    return Episodes(none, none)


def rollout(
    env: Env,
    policy: Callable[[Key, PyTree], tuple[PyTree, PyTree]],
    bootstrap: Callable[[PyTree], Array],
    key: Key,
    worlds: Worlds,
    num_steps: int,
) -> tuple[Worlds, Rollout, Episodes]:
    """Step N environments T times.

    Args:
        env: the environment, of which N instances run.
        policy: (key, observations (N, ...)) -> (raw actions, actions that the environment takes).
        bootstrap: observations (N, ...) -> values (N,), evaluated only in a step in which some episode is
            truncated.
        key: consumed.
        worlds: the N environments.
        num_steps: T.

    Returns: the environments afterwards, the T × N steps, and the episodes that ended in them.
    """
    num_envs = worlds.episode_return.shape[0]
    pool_key, first_key, steps_key = jax.random.split(key, 3)

    def turn(carry: tuple, keys: Key) -> tuple[tuple, Rollout]:
        worlds, pool, episodes = carry
        action_key, env_key = keys
        raw, action = policy(action_key, worlds.obs)
        following, pool, outcome = step(env, env_key, worlds, pool, action)
        cut = outcome.truncated & ~outcome.terminated
        final = lambda _: bootstrap(outcome.obs).astype(jnp.float32)
        values = when(cut.any(), final, jnp.zeros(num_envs, jnp.float32))
        episodes = jax.tree.map(jnp.add, episodes, outcome.episodes)
        transition = Rollout(
            worlds.obs,
            raw,
            outcome.reward,
            outcome.terminated,
            outcome.truncated,
            jnp.where(cut, values, 0.0),
        )
        return (following, pool, episodes), transition

    keys = jax.random.split(steps_key, (num_steps, 2))
    first = (worlds, starts(env, pool_key, first_key, num_envs, num_steps), no_episodes())
    (worlds, _, episodes), steps = jax.lax.scan(turn, first, keys)
    return worlds, steps, episodes


def boundaries(
    steps: Rollout, value: Array, last_value: Array, discount: Array | float, trace_decay: Array | float
) -> tuple[Array, Array, Array]:
    """What the mathematics of returns needs of T steps: (discount, next_value, trace), each (T, N).

    `terminated` stops bootstrapping (discount 0); `terminated | truncated` cuts the trace; a truncated step
    is followed by the value of its true final observation. `value` is (T, N), `last_value` (N,) that of the
    observation after the last step.
    """
    done = steps.terminated | steps.truncated
    following = jnp.concatenate([value[1:], last_value[None]])
    next_value = jnp.where(done, steps.final_value, following)
    goes_on, within = (~steps.terminated).astype(value.dtype), (~done).astype(value.dtype)
    return discount * goes_on, next_value, trace_decay * within


def _rows(mask: Array, like: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (like.ndim - 1))
