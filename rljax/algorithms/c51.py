"""C51, the categorical DQN (Bellemare, Dabney & Munos 2017, arXiv:1707.06887), for discrete actions: a
network gives for every action a distribution of the return on M fixed atoms.

    z_i = V_low + i (V_high − V_low) / (M − 1),   q(s, a) = Σ_i z_i p_i(s, a)
    m   = Φ(R + Γ z, p⁻(s', a*)),   a* = argmax_a q⁻(s', a)                target "max"
                                    a* = argmax_a q(s', a)                 "double"
    L   = E[−w Σ_i m_i log p_i(s, a)]

with Φ the projection of the moved atoms onto the fixed ones, R the sum of n discounted rewards, Γ = γⁿ, or 0
where the episode terminated, p⁻ and q⁻ of the target network and w the importance weights of a prioritised
replay (1 for a uniform one), whose priorities are KL(m ‖ p). Returns outside [value_low, value_high] are
clipped to it: set both to the range of discounted returns. With a dueling head, n_step = 3 and prioritised
replay this is Rainbow: see `rainbow`.

Differs from the paper: as `dqn` does (soft target updates, Adam, clipped gradients, truncated steps bootstrap
from their true final observation); the default target is double DQN's.
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
from rljax.learning import choices, deep_q_learning, env_rollouts, off_policy, replay
from rljax.learning.env_rollouts import Worlds
from rljax.learning.replay import Batch, Ring
from rljax.math import action_values
from rljax.models import contract, discrete_actions, normalizer, q_network, q_policy
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Network, Policy, PyTree, copy_of

# The action values that choose the next action: (q, online parameters, target parameters, observations).
TARGETS = {
    "max": lambda q, params, target_params, obs: q(target_params, obs),
    "double": lambda q, params, target_params, obs: q(params, obs),
}


@struct.dataclass
class Config:
    """Fields of C51; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 500_000  # environment steps of the run, learning_starts included
    learning_rate: float = 1e-3  # of Adam, at the start
    discount: float = 0.99
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    exploration_fraction: float = 0.2  # of the run, over which ε falls
    target_rate: float = 0.01  # how far the target network moves, 1: copies
    max_grad_norm: float = 10.0  # global norm to which gradients are clipped
    adam_epsilon: float = 1e-8
    priority_exponent: float = 0.6  # α of prioritised replay
    importance_exponent: float = 0.4  # β of prioritised replay at the start, 1 at the end
    value_low: float = -10.0  # V_low, the least return that an atom stands for
    value_high: float = 10.0  # V_high, the largest
    atoms: int = struct.field(pytree_node=False, default=51)  # M, of each distribution
    num_envs: int = struct.field(pytree_node=False, default=8)
    num_steps: int = struct.field(pytree_node=False, default=128)  # of each environment per iteration
    train_every: int = struct.field(pytree_node=False, default=1)  # rows between updates
    num_updates: int = struct.field(pytree_node=False, default=2)  # after every train_every rows
    batch_size: int = struct.field(pytree_node=False, default=128)
    buffer_size: int = struct.field(pytree_node=False, default=50_000)  # transitions, of all environments
    learning_starts: int = struct.field(pytree_node=False, default=5_000)  # random steps before learning
    target_every: int = struct.field(pytree_node=False, default=1)  # updates between moves of the target
    n_step: int = struct.field(pytree_node=False, default=1)
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))
    activation: str = struct.field(pytree_node=False, default="relu")
    initialization: Literal["orthogonal", "lecun"] = struct.field(pytree_node=False, default="lecun")
    architecture: Literal["mlp", "cnn"] = struct.field(pytree_node=False, default="mlp")
    head: Literal["plain", "dueling", "linear_dueling"] = struct.field(pytree_node=False, default="plain")
    hidden_normalization: Literal["none", "layer"] = struct.field(pytree_node=False, default="none")
    target: Literal["max", "double"] | Callable[..., Any] = struct.field(pytree_node=False, default="double")
    replay: Literal["uniform", "prioritized"] = struct.field(pytree_node=False, default="uniform")
    schedule: Literal["constant", "linear", "cosine"] = struct.field(
        pytree_node=False, default="linear"
    )  # learning rate
    observation_normalization: Literal["none", "running"] = struct.field(pytree_node=False, default="none")

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def initial_steps(self) -> int:
        return -(-self.learning_starts // self.num_envs) * self.num_envs


@struct.dataclass
class State:
    params: PyTree = struct.field(metadata=CARRIED)
    target_params: PyTree = struct.field(metadata=copy_of("params"))
    opt_state: PyTree
    worlds: Worlds  # num_envs running environments and their last observation
    ring: Ring  # the replay
    normalizer: PyTree = struct.field(metadata=CARRIED)  # running statistics of observations, or ()
    iteration: Array


class Metrics(NamedTuple):
    episode_return: Mean  # undiscounted, of the episodes that ended
    episode_length: Mean
    loss: Mean
    q_value: Mean  # of the actions taken
    kl: Mean  # KL(m ‖ p)
    gradient_norm: Mean  # before clipping


def _forbidden(logits: Array) -> Array:
    return logits.max(axis=-1) == -jnp.inf


def _probability(logits: Array) -> Array:
    """Of the atoms (..., M); the same of all for a forbidden action, which counts for nothing."""
    return jax.nn.softmax(jnp.where(_forbidden(logits)[..., None], 0.0, logits))


def make(env: Env, config: Any, network: Network | None = None, frozen: Any = None) -> Algorithm:
    """C51 on `env`. A `network` of the user's own gives the logits of an observation, (..., A, M).

    Raises: ValueError naming a field of `config`, its value and what would be right, or the methods that fit
    where the actions are not discrete.
    """
    config = checks.fields(config)
    del frozen
    num_actions, to_env = discrete_actions(env.action_space, checks.algorithm_of(config))
    deep_q_learning.check(config)
    checks.number(config, "value_low", "value_high")
    checks.count(config, "atoms", low=2, high=checks.OUTPUTS)
    bounds = config.value_low, config.value_high
    if not any(isinstance(bound, Tracer) for bound in bounds) and np.any(np.subtract(*bounds) >= 0):
        checks.complain(config, "value_high", f"must be above value_low = {checks.show(config.value_low)}")
    memory = replay.make(config, env)
    contract.check(env, config, network, contract.Output("logits", (num_actions, config.atoms)))
    own = network is not None
    network = network or q_network(env.observation_space, num_actions, config, config.atoms)
    observe = normalizer(env.observation_space, config)
    choose = choices.function(config, "target", TARGETS)
    support = jnp.linspace(*bounds, config.atoms, dtype=jnp.float32)

    def expected(logits: Array) -> Array:
        """The means (...) of distributions (..., M); −∞ where logits of −∞ alone forbid the action."""
        return jnp.where(_forbidden(logits), -jnp.inf, _probability(logits) @ support)

    optimizer = deep_q_learning.optimizer(config)

    def init(key: Key) -> State:
        params_key, worlds_key, fill_key = jax.random.split(key, 3)
        worlds = env_rollouts.reset(env, worlds_key, config.num_envs)
        example = jax.tree.map(lambda x: x[0], worlds.obs)
        params = network.init(params_key, example)
        see = lambda obs: observe.apply(observe.init(example), obs)
        values = lambda obs: expected(network.apply(params, see(obs)))
        explore = off_policy.random_choices(config, num_actions, values if own else None)
        worlds, ring, obs = off_policy.warm_up(env, memory, explore, to_env, fill_key, worlds, config)
        return State(
            params=params,
            target_params=params,
            opt_state=optimizer.init(params),
            worlds=worlds,
            ring=ring,
            normalizer=observe.update(observe.init(example), obs),
            iteration=jnp.int32(0),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        logits = lambda params, obs: network.apply(params, observe.apply(state.normalizer, obs))
        q = lambda params, obs: expected(logits(params, obs))

        def learn(key: Key, learner: tuple, batch: Batch, update: Array) -> tuple[tuple, Array, Array]:
            params, target_params, _ = learner
            chosen = action_values.greedy(choose(q, params, target_params, batch.next_obs))
            following = _probability(action_values.select(logits(target_params, batch.next_obs), chosen))
            project = jax.vmap(action_values.categorical_projection, (None, 0, 0, 0))
            goal = project(support, following, batch.reward, batch.discount)

            def loss(params: PyTree) -> tuple[Array, tuple[Array, Array]]:
                predicted = action_values.select(logits(params, batch.obs), batch.action)
                losses = action_values.categorical_cross_entropy(goal, predicted)
                kl = jnp.maximum(action_values.categorical_kl(goal, predicted), 0.0)
                return (batch.weight * losses).mean(), (expected(predicted), kl)

            return deep_q_learning.update(loss, optimizer, learner, update, state.iteration, config)

        learner = (state.params, state.target_params, state.opt_state)
        act = deep_q_learning.acting(q, to_env, config)
        done = off_policy.cycle(
            env, memory, act, learn, key, state.worlds, state.ring, learner, (), state.iteration, config
        )
        new = off_policy.after(state, done, observe)
        return new, Metrics(*done.episodes, *map(Mean.of, done.measures.T))

    def policy(state: State) -> Policy:
        q = lambda obs: expected(network.apply(state.params, observe.apply(state.normalizer, obs)))
        return q_policy(to_env, q, jnp.float32(config.epsilon_end))

    return Algorithm(init, step, policy)
