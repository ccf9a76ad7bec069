"""QR-DQN, quantile regression DQN (Dabney et al. 2018, arXiv:1710.10044), for discrete actions: a network
gives for every action K quantiles of the return, at the fractions τ_i = (i + ½) / K.

    q(s, a) = mean_i z_i(s, a)
    y_j = R + Γ z⁻_j(s', argmax_a q⁻(s', a))                              target "max"
    y_j = R + Γ z⁻_j(s', argmax_a q(s', a))                               "double"
    y_j = R + α [τ log π⁻(a | s)]_{l₀}^0 + Γ Σ_a π⁻(a | s') (z⁻_j(s', a) − τ log π⁻(a | s'))    "munchausen"
    L   = E[w Σ_i mean_j |τ_i − 1{δ_ij < 0}| huber_κ(δ_ij) / κ],   δ_ij = y_j − z_i(s, a)

with R the sum of n discounted rewards, Γ = γⁿ, or 0 where the episode terminated, z⁻ and q⁻ of the target
network, π⁻ = softmax(q⁻ / τ) (Vieillard et al. 2020, arXiv:2007.14430) and w the importance weights of a
prioritised replay (1 for a uniform one), whose priorities are |mean_j y_j − q(s, a)|.

Differs from the paper: as `dqn` does (soft target updates, clipped gradients, truncated steps bootstrap from
their true final observation); the default target is double DQN's; the loss is divided by κ.
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


def _max(z: Callable, q: Callable, params: PyTree, target: PyTree, batch: Batch, config: Any) -> Array:
    chosen = action_values.greedy(q(target, batch.next_obs))
    return _bootstrap(batch, action_values.select(z(target, batch.next_obs), chosen))


def _double(z: Callable, q: Callable, params: PyTree, target: PyTree, batch: Batch, config: Any) -> Array:
    chosen = action_values.greedy(q(params, batch.next_obs))
    return _bootstrap(batch, action_values.select(z(target, batch.next_obs), chosen))


def _munchausen(z: Callable, q: Callable, params: PyTree, target: PyTree, batch: Batch, config: Any) -> Array:
    temperature, scale, low = config.entropy_temperature, config.munchausen_scale, config.munchausen_low
    bonus = action_values.munchausen_bonus(q(target, batch.obs), batch.action, temperature, scale, low)
    soft = action_values.soft_quantiles(z(target, batch.next_obs), q(target, batch.next_obs), temperature)
    return bonus[:, None] + _bootstrap(batch, soft)


def _bootstrap(batch: Batch, following: Array) -> Array:
    return action_values.bootstrap(batch.reward, batch.discount, following)


# The target quantiles (B, K) from functions of (parameters, observations) to quantiles z (B, A, K) and action
# values q (B, A).
TARGETS = {"max": _max, "double": _double, "munchausen": _munchausen}


@struct.dataclass
class Config:
    """Fields of QR-DQN; numbers are leaves that a sweep varies in one compilation, the rest is static."""

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
    kappa: float = 1.0  # κ, up to which errors are squared, in units of the return
    entropy_temperature: float = 0.03  # τ of the Munchausen target
    munchausen_scale: float = 0.9  # α of the Munchausen target
    munchausen_low: float = -1.0  # l₀ of the Munchausen target
    quantiles: int = struct.field(pytree_node=False, default=51)  # K, of each action value
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
    target: Literal["max", "double", "munchausen"] | Callable[..., Any] = struct.field(
        pytree_node=False, default="double"
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
    td_error: Mean  # absolute, of the means
    gradient_norm: Mean  # before clipping


def make(env: Env, config: Config, network: Network | None = None, frozen: Any = None) -> Algorithm:
    """QR-DQN on `env`. A `network` of the user's own gives the quantiles of an observation, (..., A, K).

    Raises: ValueError naming a field of `config`, its value and what would be right, or the methods that fit
    where the actions are not discrete.
    """
    config = checks.fields(config)
    del frozen
    num_actions, to_env = discrete_actions(env.action_space, "qrdqn")
    deep_q_learning.check(config)
    checks.number(config, "kappa", low=0, open_low=True)
    deep_q_learning.check_munchausen(config)
    checks.count(config, "quantiles", high=checks.OUTPUTS)
    memory = replay.make(config, env)
    contract.check(env, config, network, contract.Output("quantiles", (num_actions, config.quantiles)))
    own = network is not None
    network = network or q_network(env.observation_space, num_actions, config, config.quantiles)
    observe = normalizer(env.observation_space, config)
    target_of = choices.function(config, "target", TARGETS)
    tau = (jnp.arange(config.quantiles, dtype=jnp.float32) + 0.5) / config.quantiles
    optimizer = deep_q_learning.optimizer(config)

    def init(key: Key) -> State:
        params_key, worlds_key, fill_key = jax.random.split(key, 3)
        worlds = env_rollouts.reset(env, worlds_key, config.num_envs)
        example = jax.tree.map(lambda x: x[0], worlds.obs)
        params = network.init(params_key, example)
        see = lambda obs: observe.apply(observe.init(example), obs)
        values = lambda obs: network.apply(params, see(obs)).mean(axis=-1)
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
        z = lambda params, obs: network.apply(params, observe.apply(state.normalizer, obs))
        q = lambda params, obs: z(params, obs).mean(axis=-1)

        def learn(key: Key, learner: tuple, batch: Batch, update: Array) -> tuple[tuple, Array, Array]:
            params, target_params, _ = learner
            goal = target_of(z, q, params, target_params, batch, config)

            def loss(params: PyTree) -> tuple[Array, tuple[Array, Array]]:
                predicted = action_values.select(z(params, batch.obs), batch.action)
                losses = jax.vmap(action_values.quantile_huber, (0, 0, None, None))(
                    predicted, goal, tau, config.kappa
                )
                value = predicted.mean(axis=-1)
                return (batch.weight * losses).mean(), (value, jnp.abs(goal.mean(axis=-1) - value))

            return deep_q_learning.update(loss, optimizer, learner, update, state.iteration, config)

        learner = (state.params, state.target_params, state.opt_state)
        act = deep_q_learning.acting(q, to_env, config)
        done = off_policy.cycle(
            env, memory, act, learn, key, state.worlds, state.ring, learner, (), state.iteration, config
        )
        new = off_policy.after(state, done, observe)
        return new, Metrics(*done.episodes, *map(Mean.of, done.measures.T))

    def policy(state: State) -> Policy:
        q = lambda obs: network.apply(state.params, observe.apply(state.normalizer, obs)).mean(axis=-1)
        return q_policy(to_env, q, jnp.float32(config.epsilon_end))

    return Algorithm(init, step, policy)
