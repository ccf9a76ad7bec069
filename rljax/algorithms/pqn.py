"""PQN, parallelised Q-network (Gallici et al. 2025, arXiv:2407.04811), for discrete actions: Q-learning with
neither replay nor target network, which layer norm keeps stable.

    G_t = r_t + γ [(1 − λ) max_a q(s_{t+1}, a) + λ G_{t+1}]
    L   = ½ E[(q(s_t, a_t) − G_t)²]

with G_t held constant: Peng's Q(λ) (1996), whose trace is not cut at exploring actions. One step collects
num_envs × num_steps transitions ε-greedily with frozen parameters, then takes num_epochs passes over them in
num_minibatches shuffled minibatches, by RAdam. ε falls in a straight line over the first
`exploration_fraction` of the run.

Differs from the paper: a truncated step bootstraps from the values of its true final observation; q of the
targets comes from one forward over the whole rollout instead of one per step. The layer norm is before the
activation, as in the authors' code; `hidden_normalization` = "none" shows what it is for.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rljax import checks
from rljax.learning import env_rollouts
from rljax.learning.env_rollouts import Worlds
from rljax.math import action_values, losses, optimization, returns, schedules
from rljax.math.shuffle import permutation
from rljax.models import contract, discrete_actions, normalizer, q_network, q_policy
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Network, Policy, PyTree


@struct.dataclass
class Config:
    """Fields of PQN; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 500_000  # environment steps of the run: its length and the horizon of the schedules
    learning_rate: float = 5e-4  # of RAdam, at the start
    discount: float = 0.99
    trace_decay: float = 0.65  # λ: how far targets look ahead; 0: one step, 1: to the end
    epsilon_start: float = 1.0  # ε of ε-greedy at the start
    epsilon_end: float = 0.05  # ε after exploration_fraction of the run
    exploration_fraction: float = 0.1  # of the run, in which ε falls
    max_grad_norm: float = 10.0  # global norm to which gradients are clipped
    reward_scale: float = 1.0  # that rewards are multiplied by where they are learnt from
    num_envs: int = struct.field(pytree_node=False, default=32)
    num_steps: int = struct.field(pytree_node=False, default=64)  # of each environment per rollout
    num_epochs: int = struct.field(pytree_node=False, default=4)
    num_minibatches: int = struct.field(pytree_node=False, default=16)
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))
    activation: str = struct.field(pytree_node=False, default="relu")
    initialization: Literal["orthogonal", "lecun"] = struct.field(pytree_node=False, default="lecun")
    architecture: Literal["mlp", "cnn"] = struct.field(pytree_node=False, default="mlp")
    head: Literal["plain", "dueling"] = struct.field(pytree_node=False, default="plain")
    hidden_normalization: Literal["none", "layer"] = struct.field(pytree_node=False, default="layer")
    schedule: Literal["constant", "linear", "cosine"] = struct.field(
        pytree_node=False, default="linear"
    )  # of the learning rate
    observation_normalization: Literal["none", "running"] = struct.field(pytree_node=False, default="none")

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
    params: PyTree = struct.field(metadata=CARRIED)
    opt_state: PyTree
    worlds: Worlds  # num_envs running environments and their last observation
    normalizer: PyTree = struct.field(metadata=CARRIED)  # running statistics of observations, or ()
    iteration: Array


class Metrics(NamedTuple):
    episode_return: Mean  # undiscounted, unscaled, of the episodes that ended in the rollout
    episode_length: Mean
    value_loss: Mean
    value: Mean  # q(s, a) of the actions taken, scaled
    epsilon: Mean
    gradient_norm: Mean  # before clipping


class Batch(NamedTuple):
    """The rollout as the update sees it, (num_envs · num_steps, ...)."""

    obs: PyTree
    action: Array
    target: Array


def make(env: Env, config: Config, network: Network | None = None, frozen: Any = None) -> Algorithm:
    """PQN on `env`. A `network` of the user's own gives action values (..., A) of an observation.

    Raises: ValueError naming a field of `config`, its value and what would be right, or the methods that fit
    an action space that is not Discrete.
    """
    config = checks.fields(config)
    del frozen
    checks.rate(config, "learning_rate")
    checks.number(config, "total_steps", "max_grad_norm", low=0, open_low=True)
    checks.number(config, "exploration_fraction", low=0, high=1, open_low=True)
    checks.number(config, "discount", "trace_decay", "epsilon_start", "epsilon_end", low=0, high=1)
    checks.number(config, "reward_scale", low=0, open_low=True)
    checks.count(config, "num_envs", "num_steps", "num_epochs", "num_minibatches")
    batch_size = env_rollouts.rollout_size(env, config)
    if batch_size % config.num_minibatches:
        checks.complain(config, "num_minibatches", f"must divide num_envs x num_steps = {batch_size}")
    num_actions, to_env = discrete_actions(env.action_space, "pqn")
    contract.check(env, config, network, contract.Output("action values", (num_actions,)))
    network = network or q_network(env.observation_space, num_actions, config)
    observe = normalizer(env.observation_space, config)
    optimizer = optax.flatten(
        optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_radam())
    )

    def progress(state: State) -> Array:
        return state.iteration * (config.steps_per_iteration / config.total_steps)

    def exploration(state: State) -> Array:
        ends = config.epsilon_start, config.epsilon_end
        return schedules.interpolate(*ends, progress(state), config.exploration_fraction)

    def init(key: Key) -> State:
        params_key, worlds_key = jax.random.split(key)
        worlds = env_rollouts.reset(env, worlds_key, config.num_envs)
        example = jax.tree.map(lambda x: x[0], worlds.obs)
        params = network.init(params_key, example)
        return State(
            params=params,
            opt_state=optimizer.init(params),
            worlds=worlds,
            normalizer=observe.init(example),
            iteration=jnp.int32(0),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        rollout_key, shuffle_key = jax.random.split(key)
        epsilon = exploration(state)
        see = lambda obs: observe.apply(state.normalizer, obs)
        best = lambda obs: action_values.max_value(network.apply(state.params, see(obs)))

        def act(key: Key, obs: PyTree) -> tuple[Array, Array]:
            action = action_values.epsilon_greedy(key, network.apply(state.params, see(obs)), epsilon)
            return action, to_env(action)

        worlds, steps, episodes = env_rollouts.rollout(
            env, act, best, rollout_key, state.worlds, config.num_steps
        )
        discount, next_value, trace = env_rollouts.boundaries(
            steps, best(steps.obs), best(worlds.obs), config.discount, config.trace_decay
        )
        reward = config.reward_scale * steps.reward
        target = jax.vmap(returns.lambda_returns, 1, 1)(reward, discount, next_value, trace)

        batch = Batch(see(steps.obs), steps.action, target)
        batch = jax.tree.map(lambda x: x.reshape(batch_size, *x.shape[2:]), batch)

        def loss(params: PyTree, batch: Batch) -> tuple[Array, Array]:
            value = action_values.select(network.apply(params, batch.obs), batch.action)
            value_loss = losses.value_loss(value, batch.target).mean()
            return value_loss, jnp.stack([value_loss, value.mean()])

        learning_rate = config.learning_rate * schedules.factor(config.schedule, progress(state))

        def minibatch(carry: tuple, indices: Array) -> tuple[tuple, Array]:
            params, opt_state = carry
            part = jax.tree.map(lambda x: x[indices], batch)
            gradients, means = jax.grad(loss, has_aux=True)(params, part)
            updates, opt_state = optimizer.update(gradients, opt_state)
            params = optimization.move(params, -learning_rate, updates)
            return (params, opt_state), jnp.append(means, optax.tree.norm(gradients))

        def epoch(carry: tuple, key: Key) -> tuple[tuple, Array]:
            indices = permutation(key, batch_size).reshape(config.num_minibatches, -1)
            return jax.lax.scan(minibatch, carry, indices)

        keys = jax.random.split(shuffle_key, config.num_epochs)
        (params, opt_state), seen = jax.lax.scan(epoch, (state.params, state.opt_state), keys)
        value_loss, value, gradient_norm = map(Mean.of, seen.reshape(-1, seen.shape[-1]).T)
        new = State(
            params=params,
            opt_state=opt_state,
            worlds=worlds,
            normalizer=observe.update(state.normalizer, steps.obs),
            iteration=state.iteration + 1,
        )
        return new, Metrics(*episodes, value_loss, value, Mean.of(epsilon), gradient_norm)

    def policy(state: State) -> Policy:
        q = lambda obs: network.apply(state.params, observe.apply(state.normalizer, obs))
        return q_policy(to_env, q, exploration(state))

    return Algorithm(init, step, policy)
