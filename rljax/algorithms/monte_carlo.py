"""Monte Carlo control with a table: every visit, ε-greedy (Sutton & Barto 2018, sec. 5.4), for environments
whose observations and actions are Discrete, with a time limit.

    q(s, a) ← q(s, a) + α_n [G − q(s, a)],    G_t = r_t + γ G_{t+1},    α_n = α / nᵚ

for every step (s, a) of every episode, once that has ended, n the number of updates of that entry: with α = 1
and ω = 1 it is the mean of the returns. No estimate is built on another one, but for one thing: a truncated
episode stands for a longer one, so that its return goes on with γ Σ_a π(a | s) q(s, a) of its true final
state s. (Taking the rewards that were seen for the whole would give values of a problem with another end;
leaving such episodes out would prefer short ones.)

One step plays num_steps of each environment with the ε-greedy policy of q as it was before; then the returns
of the episodes that ended are learned from, in the order of time. Steps of an episode that has not ended wait
in the State, at most as many as the time limit; so an episode longer than num_steps is played by a few
successive policies.

Differs from the textbook: the policy changes once per iteration, not after each episode; ties of greedy
actions are broken at random; first visits are not told from others; truncation, as above.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rljax import checks
from rljax.learning import env_rollouts, tables
from rljax.learning.env_rollouts import Worlds
from rljax.learning.tables import Table
from rljax.math import action_values, returns, tabular
from rljax.models import contract
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Network, Policy


@struct.dataclass
class Config:
    """Fields; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 500_000  # environment steps of the run: its length and the horizon of exploration
    step_size: float = 1.0  # α: how far an estimate moves towards its target
    step_size_decay: float = 0.7  # ω; 0: a constant step size
    discount: float = 0.99
    epsilon_start: float = 1.0  # ε of ε-greedy at first
    epsilon_end: float = 0.05  # ε at last
    exploration_fraction: float = 0.5  # of the run, over which ε falls
    initial_value: float = 0.0  # of every entry; above what can be reached: optimistic
    num_envs: int = struct.field(pytree_node=False, default=8)
    num_steps: int = struct.field(pytree_node=False, default=128)  # of each environment per iteration

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one `step`."""
        return self.num_envs * self.num_steps

    @property
    def initial_steps(self) -> int:
        """Environment steps of `init`."""
        return 0


class Steps(NamedTuple):
    """Steps of N environments, time first."""

    obs: Array
    action: Array
    reward: Array  # and the value of what follows a truncation
    discount: Array  # γ, and 0 where an episode ended


@struct.dataclass
class State:
    params: Array = struct.field(metadata=CARRIED)  # q, (S, A)
    visits: Array  # the number of updates of each entry
    waiting: Steps  # (L, N) the newest steps, of which the last episode_length are of a running episode
    worlds: Worlds  # num_envs running environments
    iteration: Array


class Metrics(NamedTuple):
    episode_return: Mean  # undiscounted, of the episodes that ended
    episode_length: Mean
    error: Mean  # |G − q(s, a)| of the steps of episodes that ended
    epsilon: Mean


def make(env: Env, config: Config, network: Network | None = None, frozen: Any = None) -> Algorithm:
    """Monte Carlo control on `env`; without a network.

    Raises: ValueError naming a field of `config`, its value and what would be right, or the methods that fit
    where a space is not Discrete, or without a time limit.
    """
    config = checks.fields(config)
    del frozen
    num_states, num_actions = tables.sizes(env, "monte_carlo", network)
    tables.check(config)
    contract.check(env, config)
    tables.check_exploration(config)
    if (limit := env.max_steps) is None:
        raise ValueError(f"{env.name}: monte_carlo needs a time limit; use rljax.envs.wrappers.time_limit")

    def init(key: Key) -> State:
        table = tables.create(config, num_states, num_actions)
        shape = limit, config.num_envs
        index, number = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
        return State(
            params=table.value,
            visits=table.visits,
            waiting=Steps(index, index, number, number),
            worlds=env_rollouts.reset(env, key, config.num_envs),
            iteration=jnp.int32(0),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        epsilon = tables.exploration(config, state.iteration)
        table = Table(state.params, state.visits)

        def act(key: Key, obs: Array) -> tuple[Array, Array]:
            action = tables.choose(key, table.value[obs], epsilon)
            return action, action

        def value(obs: Array) -> Array:
            q = table.value[obs]
            return action_values.expected_value(q, tabular.epsilon_greedy_policy(q, epsilon))

        worlds, played, episodes = env_rollouts.rollout(env, act, value, key, state.worlds, config.num_steps)
        done = played.terminated | played.truncated
        reward = played.reward + config.discount * played.final_value
        steps = Steps(played.obs, played.action, reward, config.discount * (~done).astype(jnp.float32))
        steps = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), state.waiting, steps)
        target = jax.vmap(returns.discounted_returns, (1, 1, None), 1)(steps.reward, steps.discount, 0.0)

        # Of the limit + num_steps rows: from where the running episode began to where the last one ended.
        row = jnp.broadcast_to(jnp.arange(target.shape[0])[:, None], target.shape)
        begin = limit - state.worlds.episode_length
        ended = target.shape[0] - worlds.episode_length
        counted = (row >= begin[None]) & (row < ended[None])

        def learn_one(table: Table, step: tuple) -> tuple[Table, Array]:
            obs, action, target, counted = step
            return tables.move(config, table, (obs, action), target, counted)

        flat = jax.tree.map(lambda x: x.reshape(-1), (steps.obs, steps.action, target, counted))
        table, errors = jax.lax.scan(learn_one, table, flat)
        new = State(
            params=table.value,
            visits=table.visits,
            waiting=jax.tree.map(lambda x: x[-limit:], steps),
            worlds=worlds,
            iteration=state.iteration + 1,
        )
        return new, Metrics(*episodes, Mean.of(jnp.abs(errors), flat[3]), Mean.of(epsilon))

    def policy(state: State) -> Policy:
        return tables.policy(state.params, tables.exploration(config, state.iteration))

    return Algorithm(init, step, policy)
