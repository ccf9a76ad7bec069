"""Q-learning (Watkins 1989; Watkins & Dayan 1992, doi:10.1007/BF00992698) with a table, and double Q-learning
(van Hasselt 2010), for environments whose observations and actions are Discrete.

    q(s, a) ← q(s, a) + α_n [r + γ max_a' q(s', a') − q(s, a)],    α_n = α / nᵚ            target "max"
    q_i(s, a) ← q_i(s, a) + α_n [r + γ q_j(s', argmax_a' q_i(s', a')) − q_i(s, a)]          "double"

with n the number of updates of that entry, and for "double" one of two tables i drawn at every update, j the
other one; actions are ε-greedy in their mean, ties at random. q converges to q* with probability 1 where
every pair is visited without end, 1/2 < ω ≤ 1 and γ < 1; with a constant step (ω = 0) it goes on moving
around q* by an amount that shrinks with α.

Differs from the paper: num_envs environments share the table, see `rljax.learning.tables`; a truncated step
bootstraps from its true final state. Textbook: Sutton & Barto 2018, sec. 6.5 and 6.7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rljax import checks
from rljax.learning import choices, env_rollouts, tables
from rljax.learning.env_rollouts import Worlds
from rljax.learning.tables import Table, Transition
from rljax.models import contract
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Network, Policy


class Target(NamedTuple):
    tables: int
    value: Callable[[Array, Array, Array], Array]  # (values (K, S, A), i, s') -> bootstrap value of s'


def _double(value: Array, which: Array, state: Array) -> Array:
    return value[1 - which, state, value[which, state].argmax()]


TARGETS = {
    "max": Target(1, lambda value, which, state: value[which, state].max()),
    "double": Target(2, _double),
}


@struct.dataclass
class Config:
    """Fields; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 500_000  # environment steps of the run: its length and the horizon of exploration
    step_size: float = 0.5  # α: how far an estimate moves towards its target
    step_size_decay: float = 0.5  # ω; 0: a constant step size
    discount: float = 0.99
    epsilon_start: float = 1.0  # ε of ε-greedy at first
    epsilon_end: float = 0.05  # ε at last
    exploration_fraction: float = 0.5  # of the run, over which ε falls
    initial_value: float = 0.0  # of every entry; above what can be reached: optimistic
    num_envs: int = struct.field(pytree_node=False, default=8)
    num_steps: int = struct.field(pytree_node=False, default=128)  # of each environment per iteration
    target: Literal["max", "double"] | Callable[..., Any] = struct.field(
        pytree_node=False, default="max"
    )  # double: two tables, one to choose the next action and one to value it

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one `step`."""
        return self.num_envs * self.num_steps

    @property
    def initial_steps(self) -> int:
        """Environment steps of `init`."""
        return 0


@struct.dataclass
class State:
    params: Array = struct.field(metadata=CARRIED)  # q, (K, S, A): K = 2 tables for "double", else 1
    visits: Array  # the number of updates of each entry
    worlds: Worlds  # num_envs running environments
    iteration: Array


class Metrics(NamedTuple):
    episode_return: Mean  # undiscounted, of the episodes that ended
    episode_length: Mean
    td_error: Mean  # absolute
    epsilon: Mean


def make(env: Env, config: Config, network: Network | None = None, frozen: Any = None) -> Algorithm:
    """Q-learning on `env`; without a network.

    Raises: ValueError naming a field of `config`, its value and what would be right, or the methods that fit
    where a space is not Discrete.
    """
    config = checks.fields(config)
    del frozen
    num_states, num_actions = tables.sizes(env, "q_learning", network)
    tables.check(config)
    contract.check(env, config)
    tables.check_exploration(config)
    target = choices.function(config, "target", TARGETS)

    def init(key: Key) -> State:
        table = tables.create(config, target.tables, num_states, num_actions)
        return State(
            params=table.value,
            visits=table.visits,
            worlds=env_rollouts.reset(env, key, config.num_envs),
            iteration=jnp.int32(0),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        epsilon = tables.exploration(config, state.iteration)

        def act(key: Key, table: Table, obs: Array) -> Array:
            return tables.choose(key, table.value.mean(0)[obs], epsilon)

        def learn_one(table: Table, step: tuple[Transition, Array]) -> tuple[Table, Array]:
            (s, a, reward, discount, following, *_), which = step
            goal = reward + discount * target.value(table.value, which, following)
            return tables.move(config, table, (which, s, a), goal)

        def learn(key: Key, table: Table, steps: Transition) -> tuple[Table, Array]:
            which = jax.random.randint(key, (config.num_envs,), 0, target.tables)
            return jax.lax.scan(learn_one, table, (steps, which))

        table = Table(state.params, state.visits)
        worlds, table, episodes, errors = tables.cycle(env, act, learn, key, state.worlds, table, config)
        new = State(params=table.value, visits=table.visits, worlds=worlds, iteration=state.iteration + 1)
        return new, Metrics(*episodes, Mean.of(jnp.abs(errors)), Mean.of(epsilon))

    def policy(state: State) -> Policy:
        return tables.policy(state.params.mean(0), tables.exploration(config, state.iteration))

    return Algorithm(init, step, policy)
