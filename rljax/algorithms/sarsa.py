"""SARSA (Rummery & Niranjan 1994) with a table, for environments whose observations and actions are Discrete.

    q(s, a) ← q(s, a) + α_n [r + γ q(s', a') − q(s, a)],    α_n = α / nᵚ

with n the number of updates of that entry, and a' the action that is really taken next: ε-greedy in q before
this update, ties at random. q converges to q* with probability 1 where every pair is visited without end,
1/2 < ω ≤ 1 and ε falls to 0 (Singh et al. 2000, doi:10.1023/A:1007678930559); with a constant ε to the action
values of the best ε-greedy policy, so that it keeps away from cliffs that an exploring step falls off.

Differs from the report: num_envs environments share the table, see `rljax.learning.tables`; a truncated
step bootstraps from its true final state and an action drawn for it, which is not taken. Textbook: Sutton &
Barto 2018, sec. 6.4.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rljax import checks
from rljax.learning import env_rollouts, tables
from rljax.learning.env_rollouts import Worlds
from rljax.learning.tables import Table, Transition
from rljax.models import contract
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Network, Policy


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
    params: Array = struct.field(metadata=CARRIED)  # q, (S, A)
    visits: Array  # the number of updates of each entry
    action: Array  # (N,) chosen for the observation that each environment waits at
    worlds: Worlds  # num_envs running environments
    iteration: Array


class Metrics(NamedTuple):
    episode_return: Mean  # undiscounted, of the episodes that ended
    episode_length: Mean
    td_error: Mean  # absolute
    epsilon: Mean


def make(env: Env, config: Config, network: Network | None = None, frozen: Any = None) -> Algorithm:
    """SARSA on `env`; without a network.

    Raises: ValueError naming a field of `config`, its value and what would be right, or the methods that fit
    where a space is not Discrete.
    """
    config = checks.fields(config)
    del frozen
    num_states, num_actions = tables.sizes(env, "sarsa", network)
    tables.check(config)
    contract.check(env, config)
    tables.check_exploration(config)

    def init(key: Key) -> State:
        table = tables.create(config, num_states, num_actions)
        worlds_key, action_key = jax.random.split(key)
        worlds = env_rollouts.reset(env, worlds_key, config.num_envs)
        epsilon = tables.exploration(config, jnp.int32(0))
        action = tables.choose(action_key, table.value[worlds.obs], epsilon)
        return State(
            params=table.value,
            visits=table.visits,
            action=action,
            worlds=worlds,
            iteration=jnp.int32(0),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        epsilon = tables.exploration(config, state.iteration)

        def act(key: Key, learner: tuple[Table, Array], obs: Array) -> Array:
            return learner[1]

        def learn_one(table: Table, step: tuple[Transition, Array]) -> tuple[Table, Array]:
            (s, a, reward, discount, following, *_), chosen = step
            return tables.move(config, table, (s, a), reward + discount * table.value[following, chosen])

        def learn(key: Key, learner: tuple[Table, Array], steps: Transition) -> tuple[tuple, Array]:
            table, _ = learner
            key, new_key = jax.random.split(key)
            chosen = tables.choose(key, table.value[steps.next_obs], epsilon)
            table, errors = jax.lax.scan(learn_one, table, (steps, chosen))
            first = tables.choose(new_key, table.value[steps.new_obs], epsilon)  # of a new episode
            return (table, jnp.where(steps.done, first, chosen)), errors

        learner = (Table(state.params, state.visits), state.action)
        worlds, (table, action), episodes, errors = tables.cycle(
            env, act, learn, key, state.worlds, learner, config
        )
        new = State(
            params=table.value,
            visits=table.visits,
            action=action,
            worlds=worlds,
            iteration=state.iteration + 1,
        )
        return new, Metrics(*episodes, Mean.of(jnp.abs(errors)), Mean.of(epsilon))

    def policy(state: State) -> Policy:
        return tables.policy(state.params, tables.exploration(config, state.iteration))

    return Algorithm(init, step, policy)
