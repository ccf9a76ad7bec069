"""Expected SARSA (van Seijen et al. 2009, doi:10.1109/ADPRL.2009.4927542) with a table, for environments
whose observations and actions are Discrete.

    q(s, a) ← q(s, a) + α_n [r + γ Σ_a' π(a' | s') q(s', a') − q(s, a)],    α_n = α / nᵚ

with n the number of updates of that entry and π the ε-greedy policy of q that also acts, ties shared: SARSA
without the variance of the next action. With ε falling to 0 it converges to q* as SARSA does; with a constant
ε to the action values of the best ε-greedy policy; with ε = 0 the target is that of Q-learning.

Differs from the paper: num_envs environments share the table, see `rljax.learning.tables`; a truncated step
bootstraps from its true final state. Textbook: Sutton & Barto 2018, sec. 6.6.
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
from rljax.math import action_values, tabular
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
    worlds: Worlds  # num_envs running environments
    iteration: Array


class Metrics(NamedTuple):
    episode_return: Mean  # undiscounted, of the episodes that ended
    episode_length: Mean
    td_error: Mean  # absolute
    epsilon: Mean


def make(env: Env, config: Config, network: Network | None = None, frozen: Any = None) -> Algorithm:
    """Expected SARSA on `env`; without a network.

    Raises: ValueError naming a field of `config`, its value and what would be right, or the methods that fit
    where a space is not Discrete.
    """
    config = checks.fields(config)
    del frozen
    num_states, num_actions = tables.sizes(env, "expected_sarsa", network)
    tables.check(config)
    contract.check(env, config)
    tables.check_exploration(config)

    def init(key: Key) -> State:
        table = tables.create(config, num_states, num_actions)
        return State(
            params=table.value,
            visits=table.visits,
            worlds=env_rollouts.reset(env, key, config.num_envs),
            iteration=jnp.int32(0),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        epsilon = tables.exploration(config, state.iteration)

        def act(key: Key, table: Table, obs: Array) -> Array:
            return tables.choose(key, table.value[obs], epsilon)

        def learn_one(table: Table, step: Transition) -> tuple[Table, Array]:
            following = table.value[step.next_obs]
            probability = tabular.epsilon_greedy_policy(following, epsilon)
            target = step.reward + step.discount * action_values.expected_value(following, probability)
            return tables.move(config, table, (step.obs, step.action), target)

        def learn(key: Key, table: Table, steps: Transition) -> tuple[Table, Array]:
            return jax.lax.scan(learn_one, table, steps)

        table = Table(state.params, state.visits)
        worlds, table, episodes, errors = tables.cycle(env, act, learn, key, state.worlds, table, config)
        new = State(params=table.value, visits=table.visits, worlds=worlds, iteration=state.iteration + 1)
        return new, Metrics(*episodes, Mean.of(jnp.abs(errors)), Mean.of(epsilon))

    def policy(state: State) -> Policy:
        return tables.policy(state.params, tables.exploration(config, state.iteration))

    return Algorithm(init, step, policy)
