"""Twin delayed DDPG (Fujimoto et al. 2018, arXiv:1802.09477), for continuous actions.

    a'  = clip(μ⁻(s') + clip(N(0, σ'²), ±c), ±1)           target policy smoothing
    y   = R + Γ · min(q₁⁻(s', a'), q₂⁻(s', a'))            clipped double Q
    L_q = E[w · Σ_i ½ (q_i(s, a) − y)²]
    L_μ = −E[q₁(s, μ(s))]                                  every `policy_delay` updates, then the targets move

with R the sum of n discounted rewards, Γ = γⁿ, or 0 where the episode terminated, q⁻ and μ⁻ the target
networks, and w the importance weights of a prioritised replay (1 for a uniform one). Acting is μ(s) plus
noise, clipped to the bounds; the first `learning_starts` steps are uniform. One step is num_steps rows of
num_envs environments, each `train_every` of them followed by num_updates minibatches.

Differs from the paper: noise may be Ornstein-Uhlenbeck; orthogonal kernels (see initialization); truncated
steps bootstrap from true final observations. Noise and its bounds are in units of an action space [−1, 1].
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
from rljax.math.noise import NOISES, clipped_gaussian
from rljax.models import ActorCritic, contract
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Policy, PyTree, copy_of


@struct.dataclass
class Config:
    """Fields of TD3; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 100_000  # environment steps of the run, learning_starts included
    learning_rate: float = 1e-3  # of Adam, at the start
    discount: float = 0.99
    noise_scale: float = 0.1  # deviation, where the action space is [−1, 1]
    noise_reversion: float = 0.15  # of Ornstein-Uhlenbeck noise, per step: 1 over the length of an excursion
    target_noise: float = 0.2  # σ' of the target policy's actions
    target_noise_clip: float = 0.5  # c: bound of that noise
    target_rate: float = 0.005  # how far the target networks move, 1: copies
    adam_epsilon: float = 1e-8
    priority_exponent: float = 0.6  # α of prioritised replay
    importance_exponent: float = 0.4  # β of prioritised replay at the start, 1 at the end
    num_envs: int = struct.field(pytree_node=False, default=1)
    num_steps: int = struct.field(pytree_node=False, default=128)  # of each environment per iteration
    train_every: int = struct.field(pytree_node=False, default=1)  # rows between updates
    num_updates: int = struct.field(pytree_node=False, default=1)  # after every train_every rows
    batch_size: int = struct.field(pytree_node=False, default=128)
    buffer_size: int = struct.field(pytree_node=False, default=100_000)  # transitions, of all environments
    learning_starts: int = struct.field(pytree_node=False, default=1_000)  # random steps before learning
    policy_delay: int = struct.field(pytree_node=False, default=2)  # critic updates for each of the actor
    n_step: int = struct.field(pytree_node=False, default=1)
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))
    activation: str = struct.field(pytree_node=False, default="silu")
    initialization: Literal["orthogonal", "lecun"] = struct.field(pytree_node=False, default="orthogonal")
    policy_gain: float | None = None
    architecture: Literal["mlp", "cnn"] = struct.field(pytree_node=False, default="mlp")
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
    """One part for the actor and one for the critic: of the parameters and of the optimizer's state."""

    actor: PyTree
    critic: PyTree


@struct.dataclass
class State:
    params: Params = struct.field(metadata=CARRIED)
    target_params: Params = struct.field(metadata=copy_of("params"))
    opt_state: Params
    worlds: Worlds  # num_envs running environments and their last observation
    ring: Ring  # the replay
    noise: Array  # (N, D) of the running episodes
    normalizer: PyTree = struct.field(metadata=CARRIED)  # running statistics of observations, or ()
    iteration: Array


class Metrics(NamedTuple):
    episode_return: Mean  # undiscounted, of the episodes that ended, noise included
    episode_length: Mean
    critic_loss: Mean
    actor_loss: Mean
    q_value: Mean  # of the actions taken, mean of both critics
    gradient_norm: Mean  # of the critics


def target(key: Key, networks: ActorCritic, target_params: Params, batch: Batch, config: Config) -> Array:
    """y (B,), for a batch of normalised observations."""
    action = networks.actor.apply(target_params.actor, batch.next_obs)
    noise = clipped_gaussian(key, action.shape, config.target_noise, config.target_noise_clip)
    value = networks.critic.apply(target_params.critic, batch.next_obs, jnp.clip(action + noise, -1.0, 1.0))
    return batch.reward + batch.discount * value.min(axis=0)


def make(env: Env, config: Config, network: ActorCritic | None = None, frozen: Any = None) -> Algorithm:
    """TD3 on `env`. A `network` of the user's own is an actor to actions in [−1, 1] and one critic.

    Raises: ValueError naming a field of `config`, its value and what would be right, or the methods that fit
    where the actions are not a bounded Box.
    """
    config = checks.fields(config)
    del frozen
    size, to_env = models.continuous_actions(env.action_space, "td3")
    off_policy.check(config)
    checks.rate(config, "learning_rate")
    checks.number(config, "adam_epsilon", "noise_reversion", "target_rate", low=0, open_low=True)
    checks.number(config, "noise_scale", "target_noise", "target_noise_clip", low=0)
    checks.number(config, "target_rate", low=0, high=1)
    checks.count(config, "policy_delay")
    policy_outputs = contract.Output("action", (size,))
    contract.check_pair(env, config, network, policy_outputs, contract.Output("value", ()), (size,))
    memory = replay.make(config, env)
    actor, single = network or (
        models.deterministic_actor(env.observation_space, size, config),
        models.critic(env.observation_space, size, config),
    )
    networks = ActorCritic(actor, models.ensemble(single, 2))
    observe = models.normalizer(env.observation_space, config)
    noise = NOISES[config.noise](config.noise_scale, config.noise_reversion)
    optimizer = optax.scale_by_adam(eps=config.adam_epsilon)

    def init(key: Key) -> State:
        actor_key, critic_key, worlds_key, fill_key = jax.random.split(key, 4)
        worlds = env_rollouts.reset(env, worlds_key, config.num_envs)
        example = jax.tree.map(lambda x: x[0], worlds.obs)
        params = Params(
            networks.actor.init(actor_key, example),
            networks.critic.init(critic_key, example, jnp.zeros(size, jnp.float32)),
        )
        explore = off_policy.random_moves(config, size)
        worlds, ring, obs = off_policy.warm_up(env, memory, explore, to_env, fill_key, worlds, config)
        return State(
            params=params,
            target_params=params,
            opt_state=Params(optimizer.init(params.actor), optimizer.init(params.critic)),
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
            raw = jnp.clip(networks.actor.apply(learner[0].actor, see(obs)) + x, -1.0, 1.0)
            return raw, to_env(raw), wander

        def learn(key: Key, learner: tuple, batch: Batch, update: Array) -> tuple[tuple, Array, Array]:
            params, target_params, opt_state = learner
            batch = batch._replace(obs=see(batch.obs), next_obs=see(batch.next_obs))
            y = target(key, networks, target_params, batch, config)

            def critic_loss(params: PyTree) -> tuple[Array, tuple[Array, Array]]:
                value = networks.critic.apply(params, batch.obs, batch.action)  # (2, B)
                error = value - y[None]
                return (batch.weight * 0.5 * jnp.square(error).sum(axis=0)).mean(), (value, error)

            (loss, (value, error)), gradients = jax.value_and_grad(critic_loss, has_aux=True)(params.critic)
            updates, critic_state = optimizer.update(gradients, opt_state.critic)
            new_critic = descend(params.critic, updates)

            def actor_loss(params: PyTree) -> Array:
                action = networks.actor.apply(params, batch.obs)
                first = jax.tree.map(lambda x: x[0], new_critic)
                return -single.apply(first, batch.obs, action).mean()

            def improve(carry: tuple) -> tuple:
                actor, actor_state, target_params, _ = carry
                policy_loss, slopes = jax.value_and_grad(actor_loss)(actor)
                updates, actor_state = optimizer.update(slopes, actor_state)
                actor = descend(actor, updates)
                targets = off_policy.move(Params(actor, new_critic), target_params, config.target_rate)
                return actor, actor_state, targets, policy_loss

            due = (update + 1) % config.policy_delay == 0  # the same for all members of a sweep: a branch
            carry = (params.actor, opt_state.actor, target_params, jnp.float32(0))
            carry = jax.lax.cond(due, improve, lambda carry: carry, carry)
            actor, actor_state, target_params, policy_loss = carry
            measures = jnp.stack([loss, policy_loss, value.mean(), optax.tree.norm(gradients), due])
            learner = (Params(actor, new_critic), target_params, Params(actor_state, critic_state))
            return learner, jnp.abs(error).mean(axis=0) + 1e-6, measures

        learner = (state.params, state.target_params, state.opt_state)
        done = off_policy.cycle(
            env, memory, act, learn, key, state.worlds, state.ring, learner, state.noise, state.iteration,
            config,
        )  # fmt: skip
        new = off_policy.after(state, done, observe).replace(noise=done.noise)
        loss, policy_loss, value, norm, improved = done.measures.T
        means = (Mean.of(loss), Mean.of(policy_loss, improved > 0), Mean.of(value), Mean.of(norm))
        return new, Metrics(*done.episodes, *means)

    def policy(state: State) -> Policy:
        actor = lambda obs: networks.actor.apply(state.params.actor, observe.apply(state.normalizer, obs))
        return models.noisy_policy(actor, to_env, noise.draw)

    return Algorithm(init, step, policy)
