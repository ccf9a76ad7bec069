"""Synchronous advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783), for every kind of action.

    A_t = Σ_{k<n} γᵏ r_{t+k} + γⁿ v(s_{t+n}) − v(s_t),   n: steps to the rollout's end (trace_decay = 1)
    L   = −E[log π(a_t | s_t) A_t] + c_v · ½ E[(v(s_t) − G_t)²] − c_e · E[H(π(· | s_t))]

with A_t and G_t = A_t + v(s_t) held constant. One step collects num_envs × num_steps transitions and takes
one gradient step over all of them: what PPO does with one epoch, one minibatch and the plain value loss, as
no ratio is clipped yet (Huang et al. 2022, arXiv:2205.09123).

Differs from the paper's A3C: the environments step together, so that no gradient is stale; the loss is a mean
over the steps, not a sum; gradients are clipped in global norm; trace_decay < 1 gives GAE (Schulman et al.
2016, arXiv:1506.02438) in place of n-step returns; a truncated step bootstraps from the value of its true
final observation; the network is not recurrent.
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
from rljax.math import losses, masked, optimization, returns, schedules
from rljax.math.normalizers import REWARD_SCALERS
from rljax.models import actor_critic, contract, normalizer, policy_head
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Network, Policy, PyTree

OPTIMIZERS = {
    "adam": lambda epsilon: optax.scale_by_adam(eps=epsilon),
    "rmsprop": lambda epsilon: optax.scale_by_rms(decay=0.99, eps=epsilon),  # g / √(E[g²] + ε)
}


@struct.dataclass
class Config:
    """Fields of A2C; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 500_000  # environment steps of the run: its length and the horizon of the schedule
    learning_rate: float = 3e-3  # at the start
    discount: float = 0.99
    trace_decay: float = 1.0  # λ of GAE; 1: n-step returns, as the paper
    entropy_coefficient: float = 0.01
    value_coefficient: float = 0.5
    max_grad_norm: float = 0.5  # global norm to which gradients are clipped
    epsilon: float = 1e-5  # of the optimizer
    num_envs: int = struct.field(pytree_node=False, default=16)
    num_steps: int = struct.field(pytree_node=False, default=5)  # per rollout of each environment
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))
    activation: str = struct.field(pytree_node=False, default="tanh")
    initialization: Literal["orthogonal", "lecun"] = struct.field(pytree_node=False, default="orthogonal")
    policy_gain: float | None = None
    architecture: Literal["mlp", "cnn"] = struct.field(pytree_node=False, default="mlp")
    torso: Literal["separate", "shared"] = struct.field(pytree_node=False, default="separate")
    action_distribution: Literal["gaussian", "tanh"] = struct.field(pytree_node=False, default="gaussian")
    initial_log_std: float = 0.0  # of a Gaussian policy
    optimizer: Literal["adam", "rmsprop"] = struct.field(pytree_node=False, default="rmsprop")
    schedule: Literal["constant", "linear", "cosine"] = struct.field(
        pytree_node=False, default="linear"
    )  # of the learning rate
    advantage_normalization: Literal["none", "batch"] = struct.field(pytree_node=False, default="none")
    observation_normalization: Literal["none", "running"] = struct.field(pytree_node=False, default="none")
    reward_scaling: Literal["none", "running"] = struct.field(pytree_node=False, default="none")

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one `step`."""
        return self.num_envs * self.num_steps

    @property
    def initial_steps(self) -> int:
        return 0


@struct.dataclass
class State:
    params: PyTree = struct.field(metadata=CARRIED)
    opt_state: PyTree
    worlds: Worlds  # num_envs running environments and their last observation
    normalizer: PyTree = struct.field(metadata=CARRIED)  # running statistics of observations, or ()
    scaler: PyTree  # running statistics of discounted returns, or ()
    iteration: Array


class Metrics(NamedTuple):
    episode_return: Mean  # undiscounted, unscaled, of the episodes that ended in the rollout
    episode_length: Mean
    policy_loss: Mean
    value_loss: Mean
    entropy: Mean
    gradient_norm: Mean  # before clipping


def make(env: Env, config: Config, network: Network | None = None, frozen: Any = None) -> Algorithm:
    """A2C on `env`. A `network` of the user's own gives (policy parameters, value) of an observation.

    Raises: ValueError naming a field of `config`, its value and what would be right.
    """
    config = checks.fields(config)
    del frozen
    checks.rate(config, "learning_rate")
    checks.number(config, "total_steps", "max_grad_norm", "epsilon", low=0, open_low=True)
    checks.number(config, "discount", "trace_decay", low=0, high=1)
    checks.number(config, "entropy_coefficient", "value_coefficient", low=0)
    checks.count(config, "num_envs", "num_steps")
    checks.whitened(config, env_rollouts.rollout_size(env, config))
    head = policy_head(env.action_space, config.action_distribution)
    contract.check(env, config, network, contract.policy_and_value(head), axes=2)
    network = network or actor_critic(env.observation_space, head, config)
    distribution = head.distribution
    observe = normalizer(env.observation_space, config)
    scaler = REWARD_SCALERS[config.reward_scaling]
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm), OPTIMIZERS[config.optimizer](config.epsilon)
    )

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
            scaler=scaler.init(config.num_envs),
            iteration=jnp.int32(0),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        rollout_key, entropy_key = jax.random.split(key)
        see = lambda obs: observe.apply(state.normalizer, obs)
        forward = lambda params, obs: network.apply(params, see(obs))

        def act(key: Key, obs: PyTree) -> tuple[PyTree, PyTree]:
            raw = distribution.sample(key, forward(state.params, obs)[0])
            return raw, head.to_env(raw)

        worlds, steps, episodes = env_rollouts.rollout(
            env, act, lambda obs: forward(state.params, obs)[1], rollout_key, state.worlds, config.num_steps
        )
        done = steps.terminated | steps.truncated
        reward, scale = scaler.apply(state.scaler, steps.reward, done, config.discount)

        value = forward(state.params, steps.obs)[1]
        last_value = forward(state.params, worlds.obs)[1]
        discount, next_value, trace = env_rollouts.boundaries(
            steps, value, last_value, config.discount, config.trace_decay
        )
        advantage = jax.vmap(returns.gae, 1, 1)(reward, discount, value, next_value, trace)
        target = advantage + value
        if config.advantage_normalization == "batch":
            advantage = masked.whiten(advantage)

        def loss(params: PyTree) -> tuple[Array, tuple[Mean, ...]]:
            parameters, value = forward(params, steps.obs)
            policy_losses = losses.policy_gradient(distribution.log_prob(parameters, steps.action), advantage)
            value_losses = losses.value_loss(value, target)
            entropy = distribution.entropy(parameters, entropy_key)
            total = (
                policy_losses.mean()
                + config.value_coefficient * value_losses.mean()
                - config.entropy_coefficient * entropy.mean()
            )
            return total, tuple(map(Mean.of, (policy_losses, value_losses, entropy)))

        gradients, means = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state)
        progress = state.iteration * (config.steps_per_iteration / config.total_steps)
        learning_rate = config.learning_rate * schedules.factor(config.schedule, progress)
        new = State(
            params=optimization.move(state.params, -learning_rate, updates),
            opt_state=opt_state,
            worlds=worlds,
            normalizer=observe.update(state.normalizer, steps.obs),
            scaler=scale,
            iteration=state.iteration + 1,
        )
        return new, Metrics(*episodes, *means, gradient_norm=Mean.of(optax.tree.norm(gradients)))

    def policy(state: State) -> Policy:
        return head.policy(lambda obs: network.apply(state.params, observe.apply(state.normalizer, obs))[0])

    return Algorithm(init, step, policy)
