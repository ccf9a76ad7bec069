"""What tabular methods have in common: N environments act at once, one table learns from them in turn.

At every time step the N actions are chosen with the same table. Then the N transitions are learned from one
after the other, in the order of the environments, each seeing what the one before has changed: with
num_envs = 1 this is the textbook's program, with more it is that program over the same transitions, and no
step size is too large because several environments were in the same state. Step sizes are α / nᵚ, with n the
number of updates of that entry of the table, this one included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import checks
from rljax.learning import env_rollouts
from rljax.learning.env_rollouts import Episodes, Worlds
from rljax.math import schedules, tabular
from rljax.models import discrete_actions
from rljax.models.heads import DISCRETE_METHODS
from rljax.types import Array, Discrete, Env, Key, Policy, PyTree


class Table(NamedTuple):
    """Estimates and how often each has been updated."""

    value: Array  # (..., S, A) or (S,)
    visits: Array  # the same shape, int32


class Transition(NamedTuple):
    """One step of each environment, (N,)."""

    obs: Array
    action: Array
    reward: Array
    discount: Array  # γ, and 0 where the episode terminated
    next_obs: Array  # the true next one, also where the episode was truncated
    done: Array  # bool: terminated or truncated
    new_obs: Array  # the one to act on next: next_obs, or the first of a new episode


def sizes(env: Env, algorithm: str, network: Any) -> tuple[int, int]:
    """(S, A): the numbers of observations and of actions.

    Raises: ValueError naming the methods that fit where either is not Discrete, or for a network.
    """
    num_actions, _ = discrete_actions(env.action_space, algorithm)
    if not isinstance(env.observation_space, Discrete):
        space = type(env.observation_space).__name__
        raise ValueError(
            f"{algorithm} keeps a table and needs a Discrete observation space, that of {env.name} is a "
            f"{space}: use {DISCRETE_METHODS}"
        )
    if network is not None:
        raise ValueError(f"{algorithm} keeps a table and takes no network: use {DISCRETE_METHODS}")
    return env.observation_space.n, num_actions


def check(config: Any) -> None:
    """The fields that every tabular Config has. ValueError naming the one that is wrong."""
    checks.number(config, "total_steps", "step_size", low=0, open_low=True)
    checks.number(config, "step_size", "step_size_decay", "discount", low=0, high=1)
    checks.number(config, "initial_value")
    checks.count(config, "num_envs", "num_steps")
    checks.product(config, "num_envs", "num_steps")


def check_exploration(config: Any) -> None:
    """The fields that `exploration` reads. ValueError naming the one that is wrong."""
    checks.number(config, "epsilon_start", "epsilon_end", low=0, high=1)
    checks.number(config, "exploration_fraction", low=0, high=1, open_low=True)


def exploration(config: Any, iteration: Array) -> Array:
    """ε of this iteration: from epsilon_start to epsilon_end over exploration_fraction of the run."""
    progress = iteration * (config.steps_per_iteration / config.total_steps)
    ends = config.epsilon_start, config.epsilon_end
    return schedules.interpolate(*ends, progress, config.exploration_fraction)


def create(config: Any, *shape: int) -> Table:
    """A table that holds initial_value everywhere."""
    return Table(jnp.full(shape, config.initial_value, jnp.float32), jnp.zeros(shape, jnp.int32))


def step_size(config: Any, visits: Array) -> Array:
    """α / nᵚ for n `visits`, elementwise; α where there were none."""
    return config.step_size / jnp.maximum(visits, 1).astype(jnp.float32) ** config.step_size_decay


def move(
    config: Any, table: Table, index: tuple, target: Array, counted: Array | bool = True
) -> tuple[Table, Array]:
    """Move one entry towards `target` (), and return by how much they were apart.

    Nothing changes where the scalar `counted` does not hold.
    """
    visits = table.visits.at[index].add(jnp.asarray(counted, jnp.int32))
    error = target - table.value[index]
    change = jnp.where(counted, step_size(config, visits[index]) * error, 0.0)
    return Table(table.value.at[index].add(change), visits), error


def draw(key: Key, probability: Array) -> Array:
    """One action of each row of probabilities (N, A) -> (N,) int32, never one of probability 0."""
    cumulative = probability.cumsum(-1)
    # Less than the sum as it was rounded: the largest uniform number is 1 − 2⁻²³.
    threshold = jax.random.uniform(key, (probability.shape[0], 1), jnp.float32) * cumulative[:, -1:]
    return (threshold >= cumulative).sum(-1, dtype=jnp.int32)


def choose(key: Key, action_value: Array, epsilon: Array) -> Array:
    """ε-greedy actions (N,) for rows of action values (N, A), ties at random."""
    return draw(key, tabular.epsilon_greedy_policy(action_value, epsilon))


def policy(action_value: Array, epsilon: Array) -> Policy:
    """What evaluation runs for a table (S, A): the lowest of the best actions, or ε-greedy."""

    def act(key: Key, obs: Array, carry: tuple, greedy: bool | Array) -> tuple[Array, tuple]:
        rows = action_value[obs]
        best = rows.argmax(-1).astype(jnp.int32)
        return jnp.where(greedy, best, choose(key, rows, epsilon)), carry

    return Policy(tuple, act)


def cycle(
    env: Env,
    act: Callable[[Key, PyTree, Array], Array],
    learn: Callable[[Key, PyTree, Transition], tuple[PyTree, PyTree]],
    key: Key,
    worlds: Worlds,
    learner: PyTree,
    config: Any,
) -> tuple[Worlds, PyTree, Episodes, PyTree]:
    """num_steps time steps, each followed by learning from its N transitions.

    Args:
        act: (key, learner, observations (N,)) -> actions (N,).
        learn: (key, learner, transitions (N,)) -> (learner, TD errors (N,), or more like them).
        key: consumed.
        config: has num_envs, num_steps and discount.

    Returns: the environments and the learner afterwards, the episodes that ended, and the TD errors (T, N).
    """

    def turn(carry: tuple, key: Key) -> tuple[tuple, PyTree]:
        worlds, pool, learner, episodes = carry
        act_key, env_key, learn_key = jax.random.split(key, 3)
        action = act(act_key, learner, worlds.obs)
        following, pool, outcome = env_rollouts.step(env, env_key, worlds, pool, action)
        transition = Transition(
            obs=worlds.obs,
            action=action,
            reward=outcome.reward,
            discount=config.discount * (~outcome.terminated).astype(jnp.float32),
            next_obs=outcome.obs,
            done=outcome.terminated | outcome.truncated,
            new_obs=following.obs,
        )
        learner, errors = learn(learn_key, learner, transition)
        episodes = jax.tree.map(jnp.add, episodes, outcome.episodes)
        return (following, pool, learner, episodes), errors

    pool_key, fill_key, steps_key = jax.random.split(key, 3)
    pool = env_rollouts.starts(env, pool_key, fill_key, config.num_envs, config.num_steps)
    first = (worlds, pool, learner, env_rollouts.no_episodes())
    keys = jax.random.split(steps_key, config.num_steps)
    (worlds, _, learner, episodes), errors = jax.lax.scan(turn, first, keys)
    return worlds, learner, episodes, errors
