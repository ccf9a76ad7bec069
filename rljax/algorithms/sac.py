"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905), for continuous actions.

    y   = R + Γ · (min_i q_i⁻(s', a') − α log π(a' | s')),   a' ~ π(· | s')
    L_q = E[w · Σ_i ½ (q_i(s, a) − y)²]
    L_π = E[α log π(ã | s) − min_i q_i(s, ã)],               ã ~ π(· | s), reparameterised
    L_α = E[−α (log π(ã | s) + H)],                          H = −target_entropy_ratio · D

with R the sum of n discounted rewards, Γ = γⁿ, or 0 where the episode terminated, q⁻ the target networks, and
w the importance weights of a prioritised replay (else 1). The policy is a Gaussian squashed by tanh; actions,
densities and H are in units of an action space [−1, 1]. An update takes the critics, the policy by the new
critics, α, and moves the targets, in this order. The first `learning_starts` steps are uniform. One step is
num_steps rows of num_envs environments, each `train_every` of them followed by num_updates minibatches.

Differs from the paper: networks are 64 wide (its Table 1 and Brax: hidden_sizes=(256, 256)), with SiLU and
orthogonal layers; with n_step > 1 only the last value has an entropy bonus; truncated steps bootstrap from
true final observations; the normal numbers behind an episode's actions may be correlated in time, where
actions must be held to get anywhere (Eberhard et al. 2023, "Pink noise is all you need").
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rljax import checks, models
from rljax.learning import env_rollouts, off_policy, replay
from rljax.learning.env_rollouts import Worlds
from rljax.learning.replay import Batch, Ring
from rljax.math import optimization, schedules
from rljax.math.distributions import reparameterise
from rljax.math.noise import NOISES
from rljax.models import ActorCritic, contract
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Policy, PyTree, copy_of

TEMPERATURES = {"automatic": 1.0, "fixed": 0.0}  # what its gradient is multiplied by


@struct.dataclass
class Config:
    """Fields of SAC; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 100_000  # environment steps of the run, learning_starts included
    learning_rate: float = 1e-3  # of the three Adams, at the start
    discount: float = 0.99
    initial_temperature: float = 1.0  # α at the start
    target_entropy_ratio: float = 1.0  # entropy that α aims for, over −D
    noise_reversion: float = 0.15  # of Ornstein-Uhlenbeck noise, per step: 1 over the length of an excursion
    target_rate: float = 0.005  # how far the target networks move, 1: copies
    adam_epsilon: float = 1e-8
    priority_exponent: float = 0.6  # α of prioritised replay
    importance_exponent: float = 0.4  # β of prioritised replay at the start, 1 at the end
    num_envs: int = struct.field(pytree_node=False, default=1)
    num_steps: int = struct.field(pytree_node=False, default=128)  # of each environment per iteration
    train_every: int = struct.field(pytree_node=False, default=1)  # rows between updates
    num_updates: int = struct.field(pytree_node=False, default=1)  # after every train_every rows
    batch_size: int = struct.field(pytree_node=False, default=256)
    buffer_size: int = struct.field(pytree_node=False, default=100_000)  # transitions, of all environments
    learning_starts: int = struct.field(pytree_node=False, default=1_000)  # random steps before learning
    target_every: int = struct.field(pytree_node=False, default=1)  # updates between moves of the targets
    n_step: int = struct.field(pytree_node=False, default=1)
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))
    activation: str = struct.field(pytree_node=False, default="silu")
    initialization: Literal["orthogonal", "lecun"] = struct.field(pytree_node=False, default="orthogonal")
    policy_gain: float | None = None
    architecture: Literal["mlp", "cnn"] = struct.field(pytree_node=False, default="mlp")
    temperature: Literal["automatic", "fixed"] = struct.field(pytree_node=False, default="automatic")
    noise: Literal["gaussian", "ornstein-uhlenbeck"] = struct.field(pytree_node=False, default="gaussian")
    replay: Literal["uniform", "prioritized"] = struct.field(pytree_node=False, default="uniform")
    schedule: Literal["constant", "linear", "cosine"] = struct.field(pytree_node=False, default="constant")
    observation_normalization: Literal["none", "running"] = struct.field(pytree_node=False, default="none")

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def initial_steps(self) -> int:
        return -(-self.learning_starts // self.num_envs) * self.num_envs


class Params(NamedTuple):
    """One part for each of the three losses: of the parameters and of the optimizer's state."""

    actor: PyTree
    critic: PyTree
    log_temperature: PyTree


@struct.dataclass
class State:
    params: Params = struct.field(metadata=CARRIED)
    target_params: PyTree = struct.field(metadata=copy_of("params.critic"))  # of the critics
    opt_state: Params
    worlds: Worlds  # num_envs running environments and their last observation
    ring: Ring  # the replay
    noise: Array  # (N, D) of the running episodes
    normalizer: PyTree = struct.field(metadata=CARRIED)  # running statistics of observations, or ()
    iteration: Array


class Metrics(NamedTuple):
    episode_return: Mean  # undiscounted, of the episodes that ended, of the sampled actions
    episode_length: Mean
    critic_loss: Mean
    actor_loss: Mean
    q_value: Mean  # of the actions taken, mean of both critics
    temperature: Mean  # α
    entropy: Mean  # of the squashed policy, by −log π(ã | s)
    gradient_norm: Mean  # of the critics


def target(noise: Array, networks: ActorCritic, params: Params, target_params: PyTree, batch: Batch) -> Array:
    """y (B,), for a batch of normalised observations and standard normal noise (B, D)."""
    action, log_prob = reparameterise(noise, networks.actor.apply(params.actor, batch.next_obs))
    value = networks.critic.apply(target_params, batch.next_obs, action).min(axis=0)
    return batch.reward + batch.discount * (value - jnp.exp(params.log_temperature) * log_prob)


def make(env: Env, config: Config, network: ActorCritic | None = None, frozen: Any = None) -> Algorithm:
    """SAC on `env`. A `network` of the user's own is an actor to (mean, log_std) and one critic.

    Raises: ValueError naming a field of `config`, its value and what would be right, or the methods that fit
    where the actions are not a bounded Box.
    """
    config = checks.fields(config)
    del frozen
    size, to_env = models.continuous_actions(env.action_space, "sac")
    off_policy.check(config)
    checks.rate(config, "learning_rate")
    checks.number(config, "adam_epsilon", "initial_temperature", "noise_reversion", low=0, open_low=True)
    checks.number(config, "target_rate", low=0, high=1, open_low=True)
    checks.number(config, "target_entropy_ratio")
    checks.count(config, "target_every")
    policy_outputs = (contract.Output("mean", (size,)), contract.Output("log_std", (size,)))
    contract.check_pair(env, config, network, policy_outputs, contract.Output("value", ()), (size,))
    memory = replay.make(config, env)
    actor, single = network or (
        models.gaussian_actor(env.observation_space, size, config),
        models.critic(env.observation_space, size, config),
    )
    networks = ActorCritic(actor, models.ensemble(single, 2))
    observe = models.normalizer(env.observation_space, config)
    target_entropy = -config.target_entropy_ratio * size
    noise = NOISES[config.noise](1.0, config.noise_reversion)
    optimizer = optax.scale_by_adam(eps=config.adam_epsilon)

    def init(key: Key) -> State:
        actor_key, critic_key, worlds_key, fill_key = jax.random.split(key, 4)
        worlds = env_rollouts.reset(env, worlds_key, config.num_envs)
        example = jax.tree.map(lambda x: x[0], worlds.obs)
        params = Params(
            networks.actor.init(actor_key, example),
            networks.critic.init(critic_key, example, jnp.zeros(size, jnp.float32)),
            jnp.log(jnp.asarray(config.initial_temperature, jnp.float32)),
        )
        explore = off_policy.random_moves(config, size)
        worlds, ring, obs = off_policy.warm_up(env, memory, explore, to_env, fill_key, worlds, config)
        return State(
            params=params,
            target_params=params.critic,
            opt_state=Params(*map(optimizer.init, params)),
            worlds=worlds,
            ring=ring,
            noise=noise.init((config.num_envs, size)),
            normalizer=observe.update(observe.init(example), obs),
            iteration=jnp.int32(0),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        see = lambda obs: observe.apply(state.normalizer, obs)
        progress = off_policy.progress(config, state.iteration)
        learning_rate = config.learning_rate * schedules.factor(config.schedule, progress)
        descend = lambda params, updates: optimization.move(params, -learning_rate, updates)

        def act(key: Key, learner: tuple, obs: PyTree, wander: Array, progress: Array) -> tuple:
            x, wander = noise.sample(key, wander)
            raw, _ = reparameterise(x, networks.actor.apply(learner[0].actor, see(obs)))
            return raw, to_env(raw), wander

        def learn(key: Key, learner: tuple, batch: Batch, update: Array) -> tuple[tuple, Array, Array]:
            params, target_params, opt_state = learner
            batch = batch._replace(obs=see(batch.obs), next_obs=see(batch.next_obs))
            next_normal, normal = jax.random.normal(key, (2, config.batch_size, size), jnp.float32)
            y = target(next_normal, networks, params, target_params, batch)

            def critic_loss(params: PyTree) -> tuple[Array, tuple[Array, Array]]:
                value = networks.critic.apply(params, batch.obs, batch.action)  # (2, B)
                error = value - y[None]
                return (batch.weight * 0.5 * jnp.square(error).sum(axis=0)).mean(), (value, error)

            (loss, (value, error)), gradients = jax.value_and_grad(critic_loss, has_aux=True)(params.critic)
            updates, critic_state = optimizer.update(gradients, opt_state.critic)
            new_critic, temperature = descend(params.critic, updates), jnp.exp(params.log_temperature)

            def actor_loss(params: PyTree) -> tuple[Array, Array]:
                action, log_prob = reparameterise(normal, networks.actor.apply(params, batch.obs))
                value = networks.critic.apply(new_critic, batch.obs, action).min(axis=0)
                return (temperature * log_prob - value).mean(), -log_prob.mean()

            (policy_loss, entropy), slopes = jax.value_and_grad(actor_loss, has_aux=True)(params.actor)
            updates, actor_state = optimizer.update(slopes, opt_state.actor)
            slope = TEMPERATURES[config.temperature] * temperature * (entropy - target_entropy)
            change, temperature_state = optimizer.update(slope, opt_state.log_temperature)
            norm = optax.tree.norm(gradients)
            measures = jnp.stack([loss, policy_loss, value.mean(), temperature, entropy, norm])
            log_temperature = descend(params.log_temperature, change)
            params = Params(descend(params.actor, updates), new_critic, log_temperature)
            target_params = off_policy.follow(new_critic, target_params, update, config)
            learner = (params, target_params, Params(actor_state, critic_state, temperature_state))
            return learner, jnp.abs(error).mean(axis=0) + 1e-6, measures

        learner = (state.params, state.target_params, state.opt_state)
        done = off_policy.cycle(
            env, memory, act, learn, key, state.worlds, state.ring, learner, state.noise, state.iteration,
            config,
        )  # fmt: skip
        new = off_policy.after(state, done, observe).replace(noise=done.noise)
        return new, Metrics(*done.episodes, *map(Mean.of, done.measures.T))

    def policy(state: State) -> Policy:
        head = models.policy_head(env.action_space, "tanh")
        see = lambda obs: observe.apply(state.normalizer, obs)
        return head.policy(lambda obs: networks.actor.apply(state.params.actor, see(obs)))

    return Algorithm(init, step, policy)
