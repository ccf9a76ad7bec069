"""TD(λ) (Sutton 1988, doi:10.1007/BF00115009): the values of a given policy, by temporal differences with
eligibility traces and a table, for environments whose observations and actions are Discrete.

    δ = r + γ v(s') − v(s)
    e ← γ λ e,  then  e(s) ← e(s) + 1    traces "accumulating"
                      e(s) ← 1                  "replacing" (Singh & Sutton 1996, doi:10.1007/BF00114726)
    v ← v + α_n δ e,    α_n = α / nᵚ, for every state by the number n of its own visits

λ = 0 is one-step TD; λ = 1 is Monte Carlo in which each step learns at once what it changes about the returns
of the steps before it. Nothing is controlled here: the policy is what `frozen` holds, an (S, A) array of
probabilities, or uniformly random where that is None. `policy(state)` acts with it, greedy or not, so that
the return of a run is that policy's.

Differs from the paper: updates during the episode (the paper's come at its end); num_envs environments share
v, each with traces of its own, see `rljax.learning.tables`; a truncated step bootstraps from its true final
state and ends the trace. Textbook: Sutton & Barto 2018, sec. 12.2 with one feature per state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import Tracer

from rljax import checks
from rljax.learning import env_rollouts, tables
from rljax.learning.env_rollouts import Worlds
from rljax.learning.tables import Table, Transition
from rljax.models import contract
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Network, Policy

TRACES: dict[str, Callable[[Array, Array], Array]] = {
    "accumulating": lambda trace, state: trace.at[state].add(1.0),
    "replacing": lambda trace, state: trace.at[state].set(1.0),
}

FROZEN = "the policy to be evaluated, an (S, A) array of probabilities"


@struct.dataclass
class Config:
    """Fields; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 500_000  # environment steps of the run
    step_size: float = 0.5  # α: how far an estimate moves towards its target
    step_size_decay: float = 0.5  # ω; 0: a constant step size
    discount: float = 0.99
    trace_decay: float = 0.9  # λ: how far targets look ahead; 0: one step, 1: to the end
    initial_value: float = 0.0  # of every state
    num_envs: int = struct.field(pytree_node=False, default=8)
    num_steps: int = struct.field(pytree_node=False, default=128)  # of each environment per iteration
    traces: Literal["accumulating", "replacing"] = struct.field(
        pytree_node=False, default="accumulating"
    )  # whether a visit adds 1 to the trace of its state or sets it to 1

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
    params: Array = struct.field(metadata=CARRIED)  # v, (S,)
    visits: Array  # (S,) of each state
    trace: Array  # e, (N, S)
    worlds: Worlds  # num_envs running environments
    iteration: Array


class Metrics(NamedTuple):
    episode_return: Mean  # undiscounted, of the episodes that ended
    episode_length: Mean
    td_error: Mean  # absolute
    value: Mean  # v of the states visited, after the iteration


def make(env: Env, config: Config, network: Network | None = None, frozen: Any = None) -> Algorithm:
    """TD(λ) on `env`; without a network. `frozen` is the policy (S, A) to be evaluated, None: random actions.

    Raises: ValueError naming a field of `config`, its value and what would be right, or the methods that fit
    where a space is not Discrete, or what is wrong with the policy.
    """
    config = checks.fields(config)
    num_states, num_actions = tables.sizes(env, "td_lambda", network)
    tables.check(config)
    contract.check(env, config)
    checks.number(config, "trace_decay", low=0, high=1)
    if frozen is None:
        frozen = np.full((num_states, num_actions), 1 / num_actions)
    check_policy(frozen, num_states, num_actions)
    probability, mark = jnp.asarray(frozen, jnp.float32), TRACES[config.traces]

    def init(key: Key) -> State:
        trace = jnp.zeros((config.num_envs, num_states), jnp.float32)
        worlds = env_rollouts.reset(env, key, config.num_envs)
        table = tables.create(config, num_states)
        return State(
            params=table.value,
            visits=table.visits,
            trace=trace,
            worlds=worlds,
            iteration=jnp.int32(0),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        def act(key: Key, learner: tuple[Table, Array], obs: Array) -> Array:
            return tables.draw(key, probability[obs])

        def learn_one(table: Table, step: tuple[Transition, Array]) -> tuple[Table, tuple[Array, Array]]:
            (s, _, reward, discount, following, done, *_), trace = step
            visits = table.visits.at[s].add(1)
            trace = mark(config.discount * config.trace_decay * trace, s)
            error = reward + discount * table.value[following] - table.value[s]
            value = table.value + tables.step_size(config, visits) * error * trace
            return Table(value, visits), (jnp.where(done, 0.0, trace), error)

        def learn(key: Key, learner: tuple[Table, Array], steps: Transition) -> tuple[tuple, tuple]:
            table, trace = learner
            table, (trace, errors) = jax.lax.scan(learn_one, table, (steps, trace))
            return (table, trace), (errors, steps.obs)

        learner = (Table(state.params, state.visits), state.trace)
        worlds, (table, trace), episodes, (errors, visited) = tables.cycle(
            env, act, learn, key, state.worlds, learner, config
        )
        new = State(
            params=table.value,
            visits=table.visits,
            trace=trace,
            worlds=worlds,
            iteration=state.iteration + 1,
        )
        return new, Metrics(*episodes, Mean.of(jnp.abs(errors)), Mean.of(table.value[visited]))

    def policy(state: State) -> Policy:
        return Policy(tuple, lambda key, obs, carry, greedy: (tables.draw(key, probability[obs]), carry))

    return Algorithm(init, step, policy)


def check_policy(policy: Any, num_states: int, num_actions: int) -> None:
    """ValueError in one line where `policy` is not (S, A) with rows of probabilities; skips traced values."""
    if np.shape(policy) != (num_states, num_actions):
        right = f"must be (S, A) = {(num_states, num_actions)}"
        raise ValueError(f"td_lambda: the policy (frozen) has shape {np.shape(policy)}: {right}")
    if isinstance(policy, Tracer):
        return
    rows = np.asarray(policy, np.float64)
    if not ((rows >= 0).all() and np.allclose(rows.sum(1), 1, atol=1e-5)):
        raise ValueError("td_lambda: the policy (frozen) must have rows of probabilities that sum to 1")
