"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347), for discrete, multi-discrete and
continuous actions.

    ρ_t = π(a_t | s_t) / π_old(a_t | s_t)
    L   = E[−min(ρ_t A_t, clip(ρ_t, 1 ± ε) A_t)] + c_v · ½ E[(v(s_t) − G_t)²] − c_e · E[H(π(· | s_t))]

with A_t by GAE (Schulman et al. 2016, arXiv:1506.02438) and G_t = A_t + v_old(s_t). One step collects
num_envs × num_steps transitions with the frozen policy, then takes num_epochs passes over them in
num_minibatches shuffled minibatches.

Differs from the paper: what "The 37 Implementation Details of PPO" (Huang et al. 2022) lists, see
docs/ppo_details.md. Differs from that list: a truncated step bootstraps from the value of its true final
observation, and old log-probabilities and values come from one forward over the whole rollout instead of one
per step, so that ρ is 1 to float32 precision in the first minibatch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rljax import checks
from rljax.learning import choices, env_rollouts
from rljax.learning.env_rollouts import Worlds
from rljax.math import divergences, losses, masked, optimization, returns, schedules
from rljax.math.normalizers import REWARD_SCALERS
from rljax.math.shuffle import permutation
from rljax.models import actor_critic, contract, normalizer, policy_head
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Network, Policy, PyTree

# (reward, discount, value, next_value, trace) of one environment, each (T,) -> advantage (T,)
ADVANTAGES: dict[str, Callable[..., Array]] = {"gae": returns.gae}
# (log_prob, old log_prob, advantage), each (B,), and ε () -> loss of each step (B,)
POLICY_LOSSES: dict[str, Callable[..., Array]] = {"clipped": losses.clipped_surrogate}


@struct.dataclass
class Config:
    """Fields of PPO; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 500_000  # environment steps of the run: its length and the horizon of the schedules
    learning_rate: float = 2.5e-4  # of Adam, at the start
    clip: float = 0.2  # ε at the start: how far a ratio may go from 1 and still be learnt from
    discount: float = 0.99
    trace_decay: float = 0.95  # λ of GAE: how far advantages look ahead; 0: one step, 1: to the end
    entropy_coefficient: float = 0.01
    value_coefficient: float = 0.5
    max_grad_norm: float = 0.5  # global norm to which gradients are clipped
    adam_epsilon: float = 1e-5
    num_envs: int = struct.field(pytree_node=False, default=64)
    num_steps: int = struct.field(pytree_node=False, default=128)  # of each environment per rollout
    num_epochs: int = struct.field(pytree_node=False, default=4)
    num_minibatches: int = struct.field(pytree_node=False, default=4)
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))
    activation: str = struct.field(pytree_node=False, default="tanh")
    initialization: Literal["orthogonal", "lecun"] = struct.field(pytree_node=False, default="orthogonal")
    policy_gain: float | None = None
    architecture: Literal["mlp", "cnn"] = struct.field(pytree_node=False, default="mlp")
    torso: Literal["separate", "shared"] = struct.field(pytree_node=False, default="separate")
    action_distribution: Literal["gaussian", "tanh"] = struct.field(pytree_node=False, default="gaussian")
    initial_log_std: float = 0.0  # of a Gaussian policy
    schedule: Literal["constant", "linear", "cosine"] = struct.field(
        pytree_node=False, default="linear"
    )  # learning rate
    clip_schedule: Literal["constant", "linear", "cosine"] = struct.field(
        pytree_node=False, default="constant"
    )
    advantage: Literal["gae"] | Callable[..., Any] = struct.field(
        pytree_node=False, default="gae"
    )  # of a step, by which its action was better than expected
    policy_loss: Literal["clipped"] | Callable[..., Any] = struct.field(
        pytree_node=False, default="clipped"
    )  # of each step, as a function of its ratio and advantage
    value_loss: Literal["plain", "clipped"] | Callable[..., Any] = struct.field(
        pytree_node=False, default="clipped"
    )
    advantage_normalization: Literal["none", "minibatch", "batch"] = struct.field(
        pytree_node=False, default="minibatch"
    )
    observation_normalization: Literal["none", "running"] = struct.field(pytree_node=False, default="none")
    reward_scaling: Literal["none", "running"] = struct.field(pytree_node=False, default="none")

    @property
    def steps_per_iteration(self) -> int:
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
    kl: Mean  # k3 estimate of KL(π_old ‖ π)
    clip_fraction: Mean  # steps whose gradient the clip cuts off
    gradient_norm: Mean  # before clipping


class Batch(NamedTuple):
    """The rollout as the update sees it, (num_envs · num_steps, ...)."""

    obs: PyTree
    action: PyTree
    log_prob: Array
    value: Array
    advantage: Array
    target: Array


def make(env: Env, config: Config, network: Network | None = None, frozen: Any = None) -> Algorithm:
    """PPO on `env`. A `network` of the user's own gives (policy parameters, value) of an observation.

    Raises: ValueError naming a field of `config`, its value and what would be right.
    """
    config = checks.fields(config)
    del frozen
    checks.rate(config, "learning_rate")
    checks.number(config, "clip", "total_steps", "max_grad_norm", "adam_epsilon", low=0, open_low=True)
    checks.number(config, "discount", "trace_decay", low=0, high=1)
    checks.number(config, "entropy_coefficient", "value_coefficient", low=0)
    checks.count(config, "num_envs", "num_steps", "num_epochs", "num_minibatches")
    batch_size = env_rollouts.rollout_size(env, config)
    if batch_size % config.num_minibatches:
        checks.complain(config, "num_minibatches", f"must divide num_envs x num_steps = {batch_size}")
    parts = config.num_minibatches if config.advantage_normalization == "minibatch" else 1
    checks.whitened(config, batch_size // parts)
    head = policy_head(env.action_space, config.action_distribution)
    contract.check(env, config, network, contract.policy_and_value(head), axes=2)
    network = network or actor_critic(env.observation_space, head, config)
    distribution = head.distribution
    observe = normalizer(env.observation_space, config)
    scaler = REWARD_SCALERS[config.reward_scaling]
    optimizer = optax.flatten(
        optax.chain(
            optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam(eps=config.adam_epsilon)
        )
    )
    advantage_of = choices.function(config, "advantage", ADVANTAGES, given="TTTTT", gives="T")
    policy_loss_of = choices.function(config, "policy_loss", POLICY_LOSSES, given="BBB1", gives="B")
    value_loss = choices.function(config, "value_loss", losses.VALUE_LOSSES)

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
        rollout_key, shuffle_key, entropy_key = jax.random.split(key, 3)
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

        parameters, value = forward(state.params, steps.obs)
        log_prob = distribution.log_prob(parameters, steps.action)
        last_value = forward(state.params, worlds.obs)[1]
        discount, next_value, trace = env_rollouts.boundaries(
            steps, value, last_value, config.discount, config.trace_decay
        )
        advantage = jax.vmap(advantage_of, 1, 1)(reward, discount, value, next_value, trace)
        target = advantage + value
        if config.advantage_normalization == "batch":
            advantage = masked.whiten(advantage)

        batch = Batch(see(steps.obs), steps.action, log_prob, value, advantage, target)
        batch = jax.tree.map(lambda x: x.reshape(batch_size, *x.shape[2:]), batch)
        progress = state.iteration * (batch_size / config.total_steps)
        learning_rate = config.learning_rate * schedules.factor(config.schedule, progress)
        clip = config.clip * schedules.factor(config.clip_schedule, progress)

        def loss(params: PyTree, batch: Batch, key: Key) -> tuple[Array, Array]:
            parameters, value = network.apply(params, batch.obs)
            log_prob = distribution.log_prob(parameters, batch.action)
            entropy = distribution.entropy(parameters, key)
            advantage = batch.advantage
            if config.advantage_normalization == "minibatch":
                advantage = masked.whiten(advantage)
            policy_losses = policy_loss_of(log_prob, batch.log_prob, advantage, clip)
            value_losses = value_loss(value, batch.value, batch.target, clip)
            total = (
                policy_losses.mean()
                + config.value_coefficient * value_losses.mean()
                - config.entropy_coefficient * entropy.mean()
            )
            ratio = jnp.exp(log_prob - batch.log_prob)
            kl = divergences.k3(batch.log_prob, log_prob)
            cut = losses.without_gradient(ratio, advantage, clip).astype(jnp.float32)
            return total, jnp.stack([policy_losses, value_losses, entropy, kl, cut]).mean(axis=1)

        def minibatch(carry: tuple, inputs: tuple[Array, Key]) -> tuple[tuple, Array]:
            params, opt_state = carry
            indices, key = inputs
            part = jax.tree.map(lambda x: x[indices], batch)
            gradients, means = jax.grad(loss, has_aux=True)(params, part, key)
            updates, opt_state = optimizer.update(gradients, opt_state)
            params = optimization.move(params, -learning_rate, updates)
            return (params, opt_state), jnp.append(means, optax.tree.norm(gradients))

        def epoch(carry: tuple, keys: tuple[Key, Key]) -> tuple[tuple, Array]:
            key, entropy_keys = keys
            indices = permutation(key, batch_size).reshape(config.num_minibatches, -1)
            return jax.lax.scan(minibatch, carry, (indices, entropy_keys))

        keys = (
            jax.random.split(shuffle_key, config.num_epochs),
            jax.random.split(entropy_key, (config.num_epochs, config.num_minibatches)),
        )
        (params, opt_state), seen = jax.lax.scan(epoch, (state.params, state.opt_state), keys)
        means = map(Mean.of, seen.reshape(-1, seen.shape[-1]).T)
        state = State(
            params=params,
            opt_state=opt_state,
            worlds=worlds,
            normalizer=observe.update(state.normalizer, steps.obs),
            scaler=scale,
            iteration=state.iteration + 1,
        )
        return state, Metrics(*episodes, *means)

    def policy(state: State) -> Policy:
        return head.policy(lambda obs: network.apply(state.params, observe.apply(state.normalizer, obs))[0])

    return Algorithm(init, step, policy)
