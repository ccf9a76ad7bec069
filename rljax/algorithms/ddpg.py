"""Deep deterministic policy gradient (Lillicrap et al. 2016, arXiv:1509.02971), for continuous actions.

    y   = R + Γ · q⁻(s', μ⁻(s'))
    L_q = E[w · ½ (q(s, a) − y)²]
    L_μ = −E[q(s, μ(s))]

with R the sum of n discounted rewards, Γ = γⁿ, or 0 where the episode terminated, q⁻ and μ⁻ the target
networks, and w the importance weights of a prioritised replay (1 for a uniform one). An update takes the
critic first, then the actor by the new critic, then moves both targets. Acting is μ(s) plus noise, Gaussian
or Ornstein-Uhlenbeck, clipped to the bounds; the first `learning_starts` steps are uniform. One step is
num_steps rows of num_envs environments, each `train_every` of them followed by num_updates minibatches.

Differs from the paper: actions enter the critic in its first layer; no weight decay and no batch
normalisation (see observation_normalization); orthogonal kernels (see initialization); a truncated step
bootstraps from its true final observation.
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
from rljax.math.noise import NOISES
from rljax.models import ActorCritic, contract
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Policy, PyTree, copy_of


@struct.dataclass
class Config:
    """Fields of DDPG; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 100_000  # environment steps of the run, learning_starts included
    learning_rate: float = 1e-3  # of the critic's Adam, at the start
    actor_learning_rate: float = 1e-3  # of the actor's Adam, at the start
    discount: float = 0.99
    noise_scale: float = 0.2  # deviation, where the action space is [−1, 1]
    noise_reversion: float = 0.15  # of Ornstein-Uhlenbeck noise, per step: 1 over the length of an excursion
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
    target_every: int = struct.field(pytree_node=False, default=1)  # updates between moves of the targets
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
    q_value: Mean  # of the actions taken
    gradient_norm: Mean  # of the critic


def target(networks: ActorCritic, target_params: Params, batch: Batch) -> Array:
    """y (B,), for a batch of normalised observations."""
    action = networks.actor.apply(target_params.actor, batch.next_obs)
    value = networks.critic.apply(target_params.critic, batch.next_obs, action)
    return batch.reward + batch.discount * value


def make(env: Env, config: Config, network: ActorCritic | None = None, frozen: Any = None) -> Algorithm:
    """DDPG on `env`. A `network` of the user's own is an actor to actions in [−1, 1] and a critic.

    Raises: ValueError naming a field of `config`, its value and what would be right, or the methods that fit
    where the actions are not a bounded Box.
    """
    config = checks.fields(config)
    del frozen
    size, to_env = models.continuous_actions(env.action_space, "ddpg")
    off_policy.check(config)
    checks.rate(config, "learning_rate", "actor_learning_rate")
    checks.number(config, "adam_epsilon", "noise_reversion", "target_rate", low=0, open_low=True)
    checks.number(config, "noise_scale", low=0)
    checks.number(config, "target_rate", low=0, high=1)
    checks.count(config, "target_every")
    policy_outputs = contract.Output("action", (size,))
    contract.check_pair(env, config, network, policy_outputs, contract.Output("value", ()), (size,))
    memory = replay.make(config, env)
    networks = network or ActorCritic(
        models.deterministic_actor(env.observation_space, size, config),
        models.critic(env.observation_space, size, config),
    )
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
        factor = schedules.factor(config.schedule, progress)
        descend = lambda params, updates, rate: optimization.move(params, -rate * factor, updates)

        def act(key: Key, learner: tuple, obs: PyTree, wander: Array, progress: Array) -> tuple:
            x, wander = noise.sample(key, wander)
            raw = jnp.clip(networks.actor.apply(learner[0].actor, see(obs)) + x, -1.0, 1.0)
            return raw, to_env(raw), wander

        def learn(key: Key, learner: tuple, batch: Batch, update: Array) -> tuple[tuple, Array, Array]:
            del key
            params, target_params, opt_state = learner
            batch = batch._replace(obs=see(batch.obs), next_obs=see(batch.next_obs))
            y = target(networks, target_params, batch)

            def critic_loss(params: PyTree) -> tuple[Array, tuple[Array, Array]]:
                value = networks.critic.apply(params, batch.obs, batch.action)
                return (batch.weight * 0.5 * jnp.square(value - y)).mean(), (value, value - y)

            (loss, (value, error)), gradients = jax.value_and_grad(critic_loss, has_aux=True)(params.critic)
            updates, critic_state = optimizer.update(gradients, opt_state.critic)
            new_critic = descend(params.critic, updates, config.learning_rate)

            def actor_loss(params: PyTree) -> Array:
                action = networks.actor.apply(params, batch.obs)
                return -networks.critic.apply(new_critic, batch.obs, action).mean()

            policy_loss, slopes = jax.value_and_grad(actor_loss)(params.actor)
            updates, actor_state = optimizer.update(slopes, opt_state.actor)
            params = Params(descend(params.actor, updates, config.actor_learning_rate), new_critic)
            target_params = off_policy.follow(params, target_params, update, config)
            measures = jnp.stack([loss, policy_loss, value.mean(), optax.tree.norm(gradients)])
            learner = (params, target_params, Params(actor_state, critic_state))
            return learner, jnp.abs(error) + 1e-6, measures

        learner = (state.params, state.target_params, state.opt_state)
        done = off_policy.cycle(
            env, memory, act, learn, key, state.worlds, state.ring, learner, state.noise, state.iteration,
            config,
        )  # fmt: skip
        new = off_policy.after(state, done, observe).replace(noise=done.noise)
        return new, Metrics(*done.episodes, *map(Mean.of, done.measures.T))

    def policy(state: State) -> Policy:
        actor = lambda obs: networks.actor.apply(state.params.actor, observe.apply(state.normalizer, obs))
        return models.noisy_policy(actor, to_env, noise.draw)

    return Algorithm(init, step, policy)
