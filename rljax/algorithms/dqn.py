"""Deep Q-networks (Mnih et al. 2015) and what grew on them without changing what a network predicts: double
DQN (van Hasselt et al. 2016, arXiv:1509.06461), dueling heads (Wang et al. 2016, arXiv:1511.06581), n-step
targets, prioritised replay (Schaul et al. 2016, arXiv:1511.05952) and Munchausen DQN (Vieillard et al. 2020,
arXiv:2007.14430). For discrete actions.

    y = R + Γ · max_a q⁻(s', a)                                   "max"
    y = R + Γ · q⁻(s', argmax_a q(s', a))                         "double"
    y = R + α [τ log π⁻(a | s)]_{l₀}^0 + Γ · τ log Σ_a exp(q⁻(s', a) / τ)   "munchausen"
    L = E[w · huber(q(s, a) − y)]

with π⁻ = softmax(q⁻ / τ), R the sum of n discounted rewards, Γ = γⁿ, or 0 where the episode terminated, q⁻
the target network and w the importance weights of a prioritised replay (1 for a uniform one). Acting is
ε-greedy. One step is num_steps rows of num_envs environments, with num_updates minibatches after each
`train_every` of them.

Differs from the paper: the target network moves by target_rate every target_every updates (1.0 and 200, like
the paper's, are copies; 0.01 and 1 are soft updates); Adam instead of RMSProp, gradients clipped in global
norm; rewards are not clipped; a truncated step bootstraps from its true final observation. The paper's
clipped error, here the loss "huber", has its minimum beside the mean of y where y is noisy, for instance
where episodes end at random; with "squared", the default, q is the expected return
(tests/algorithms/test_exact.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rljax import checks
from rljax.learning import choices, deep_q_learning, env_rollouts, off_policy, replay
from rljax.learning.env_rollouts import Worlds
from rljax.learning.replay import Batch, Ring
from rljax.math import action_values
from rljax.models import contract, discrete_actions, normalizer, q_network, q_policy
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Network, Policy, PyTree, copy_of


def _max(q: Callable, params: PyTree, target: PyTree, batch: Batch, config: Config) -> Array:
    value = action_values.max_value(q(target, batch.next_obs))
    return action_values.bootstrap(batch.reward, batch.discount, value)


def _double(q: Callable, params: PyTree, target: PyTree, batch: Batch, config: Config) -> Array:
    value = action_values.double_value(q(target, batch.next_obs), q(params, batch.next_obs))
    return action_values.bootstrap(batch.reward, batch.discount, value)


def _munchausen(q: Callable, params: PyTree, target: PyTree, batch: Batch, config: Config) -> Array:
    temperature, scale, low = config.entropy_temperature, config.munchausen_scale, config.munchausen_low
    bonus = action_values.munchausen_bonus(q(target, batch.obs), batch.action, temperature, scale, low)
    value = action_values.soft_value(q(target, batch.next_obs), temperature)
    return action_values.bootstrap(batch.reward + bonus, batch.discount, value)


TARGETS = {"max": _max, "double": _double, "munchausen": _munchausen}
LOSSES: dict[str, Callable[[Array], Array]] = {
    "huber": lambda error: action_values.huber(error, 1.0),
    "squared": lambda error: 0.5 * jnp.square(error),
}


@struct.dataclass
class Config:
    """Fields of DQN; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 500_000  # environment steps of the run, learning_starts included
    learning_rate: float = 1e-3  # of Adam, at the start
    discount: float = 0.99
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    exploration_fraction: float = 0.2  # of the run, over which ε falls
    target_rate: float = 1.0  # how far the target network moves, 1: copies
    max_grad_norm: float = 10.0  # global norm to which gradients are clipped
    adam_epsilon: float = 1e-8
    priority_exponent: float = 0.6  # α of prioritised replay
    importance_exponent: float = 0.4  # β of prioritised replay at the start, 1 at the end
    entropy_temperature: float = 0.03  # τ of the Munchausen target
    munchausen_scale: float = 0.9  # α of the Munchausen target
    munchausen_low: float = -1.0  # l₀ of the Munchausen target
    num_envs: int = struct.field(pytree_node=False, default=8)
    num_steps: int = struct.field(pytree_node=False, default=128)  # of each environment per iteration
    train_every: int = struct.field(pytree_node=False, default=1)  # rows between updates
    num_updates: int = struct.field(pytree_node=False, default=2)  # after every train_every rows
    batch_size: int = struct.field(pytree_node=False, default=128)
    buffer_size: int = struct.field(pytree_node=False, default=50_000)  # transitions, of all environments
    learning_starts: int = struct.field(pytree_node=False, default=5_000)  # random steps before learning
    target_every: int = struct.field(pytree_node=False, default=200)  # updates between moves of the target
    n_step: int = struct.field(pytree_node=False, default=1)
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))
    activation: str = struct.field(pytree_node=False, default="relu")
    initialization: Literal["orthogonal", "lecun"] = struct.field(pytree_node=False, default="lecun")
    architecture: Literal["mlp", "cnn"] = struct.field(pytree_node=False, default="mlp")
    head: Literal["plain", "dueling", "linear_dueling"] = struct.field(pytree_node=False, default="plain")
    hidden_normalization: Literal["none", "layer"] = struct.field(pytree_node=False, default="none")
    target: Literal["max", "double", "munchausen"] | Callable[..., Any] = struct.field(
        pytree_node=False, default="double"
    )
    loss: Literal["huber", "squared"] | Callable[..., Any] = struct.field(
        pytree_node=False, default="squared"
    )
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
    td_error: Mean  # absolute
    gradient_norm: Mean  # before clipping


def make(env: Env, config: Config, network: Network | None = None, frozen: Any = None) -> Algorithm:
    """DQN on `env`. A `network` of the user's own gives the value of each action of an observation, (..., A).

    Raises: ValueError naming a field of `config`, its value and what would be right, or the methods that fit
    where the actions are not discrete.
    """
    config = checks.fields(config)
    del frozen
    num_actions, to_env = discrete_actions(env.action_space, "dqn")
    deep_q_learning.check(config)
    deep_q_learning.check_munchausen(config)
    memory = replay.make(config, env)
    contract.check(env, config, network, contract.Output("action values", (num_actions,)))
    own = network is not None
    network = network or q_network(env.observation_space, num_actions, config)
    observe = normalizer(env.observation_space, config)
    target_of = choices.function(config, "target", TARGETS)
    loss_of = choices.function(config, "loss", LOSSES, given="B", gives="B")
    optimizer = deep_q_learning.optimizer(config)

    def init(key: Key) -> State:
        params_key, worlds_key, fill_key = jax.random.split(key, 3)
        worlds = env_rollouts.reset(env, worlds_key, config.num_envs)
        example = jax.tree.map(lambda x: x[0], worlds.obs)
        params = network.init(params_key, example)
        see = lambda obs: observe.apply(observe.init(example), obs)
        values = lambda obs: network.apply(params, see(obs))
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
        q = lambda params, obs: network.apply(params, observe.apply(state.normalizer, obs))

        def learn(key: Key, learner: tuple, batch: Batch, update: Array) -> tuple[tuple, Array, Array]:
            params, target_params, _ = learner
            y = target_of(q, params, target_params, batch, config)

            def loss(params: PyTree) -> tuple[Array, tuple[Array, Array]]:
                value = action_values.select(q(params, batch.obs), batch.action)
                return (batch.weight * loss_of(value - y)).mean(), (value, jnp.abs(value - y))

            return deep_q_learning.update(loss, optimizer, learner, update, state.iteration, config)

        learner = (state.params, state.target_params, state.opt_state)
        act = deep_q_learning.acting(q, to_env, config)
        done = off_policy.cycle(
            env, memory, act, learn, key, state.worlds, state.ring, learner, (), state.iteration, config
        )
        new = off_policy.after(state, done, observe)
        return new, Metrics(*done.episodes, *map(Mean.of, done.measures.T))

    def policy(state: State) -> Policy:
        q = lambda obs: network.apply(state.params, observe.apply(state.normalizer, obs))
        return q_policy(to_env, q, jnp.float32(config.epsilon_end))

    return Algorithm(init, step, policy)
