"""Soft actor-critic for discrete actions (Christodoulou 2019, arXiv:1910.07207): expectations over actions
where `sac` has samples.

    V(s) = Σ_a π(a | s) (min_i q_i⁻(s, a) − α log π(a | s))
    y    = R + Γ · V(s')
    L_q  = E[w · Σ_i ½ (q_i(s, a) − y)²]
    L_π  = E[Σ_a π(a | s) (α log π(a | s) − min_i q_i(s, a))]
    L_α  = E[−α Σ_a π(a | s) (log π(a | s) + H)],          H = target_entropy_ratio · log A

with R the sum of n discounted rewards, Γ = γⁿ, or 0 where the episode terminated, q⁻ the target networks, and
w the importance weights of a prioritised replay (1 for a uniform one). The policy is a softmax. An update
takes the critics, the policy by the new critics, α = exp(log_temperature), and moves the targets, in this
order. The first `learning_starts` steps are uniform. One step is num_steps rows of num_envs environments,
each `train_every` of them followed by num_updates minibatches.

Differs from the paper: the target entropy defaults to half that of a uniform policy, not 0.98 of it, which
keeps a policy near random; rewards are not clipped; truncated steps bootstrap from true final observations.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rljax import checks, models
from rljax.learning import env_rollouts, off_policy, replay
from rljax.learning.env_rollouts import Worlds
from rljax.learning.replay import Batch, Ring
from rljax.math import action_values, optimization, schedules
from rljax.math.distributions import categorical
from rljax.models import ActorCritic, contract
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Policy, PyTree, copy_of

TEMPERATURES = {"automatic": 1.0, "fixed": 0.0}  # what its gradient is multiplied by


@struct.dataclass
class Config:
    """Fields; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 100_000  # environment steps of the run, learning_starts included
    learning_rate: float = 1e-3  # of the three Adams, at the start
    discount: float = 0.99
    initial_temperature: float = 1.0  # α at the start
    target_entropy_ratio: float = 0.5  # entropy that α aims for, over log A
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
    initialization: Literal["orthogonal", "lecun"] = struct.field(pytree_node=False, default="lecun")
    architecture: Literal["mlp", "cnn"] = struct.field(pytree_node=False, default="mlp")
    head: Literal["plain", "dueling", "linear_dueling"] = struct.field(pytree_node=False, default="plain")
    hidden_normalization: Literal["none", "layer"] = struct.field(pytree_node=False, default="none")
    temperature: Literal["automatic", "fixed"] = struct.field(pytree_node=False, default="automatic")
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
    normalizer: PyTree = struct.field(metadata=CARRIED)  # running statistics of observations, or ()
    iteration: Array


class Metrics(NamedTuple):
    episode_return: Mean  # undiscounted, of the episodes that ended, of the sampled actions
    episode_length: Mean
    critic_loss: Mean
    actor_loss: Mean
    q_value: Mean  # of the actions taken, mean of both critics
    temperature: Mean  # α
    entropy: Mean  # of the policy
    gradient_norm: Mean  # of the critics


def soft_value(logits: Array, value: Array, temperature: Array) -> Array:
    """V (...) from the policy's logits (..., A) and the values of both critics (2, ..., A). A logit of −∞
    forbids its action, whatever its value.
    """
    log_prob = jax.nn.log_softmax(logits)
    return action_values.expected_value(value.min(axis=0) - temperature * log_prob, jnp.exp(log_prob))


def target(networks: ActorCritic, params: Params, target_params: PyTree, batch: Batch) -> Array:
    """y (B,), for a batch of normalised observations."""
    logits = networks.actor.apply(params.actor, batch.next_obs)
    value = networks.critic.apply(target_params, batch.next_obs)
    following = soft_value(logits, value, jnp.exp(params.log_temperature))
    return action_values.bootstrap(batch.reward, batch.discount, following)


def make(env: Env, config: Config, network: ActorCritic | None = None, frozen: Any = None) -> Algorithm:
    """Discrete SAC on `env`. A `network` of the user's own: an actor and a critic, each to (..., A).

    Raises: ValueError naming a field of `config`, its value and what would be right, or the methods that fit
    where the actions are not discrete.
    """
    config = checks.fields(config)
    del frozen
    num_actions, to_env = models.discrete_actions(env.action_space, "discrete_sac")
    off_policy.check(config)
    checks.rate(config, "learning_rate")
    checks.number(config, "adam_epsilon", "initial_temperature", low=0, open_low=True)
    checks.number(config, "target_rate", low=0, high=1, open_low=True)
    checks.number(config, "target_entropy_ratio")
    checks.count(config, "target_every")
    policy_outputs = contract.Output("logits", (num_actions,))
    contract.check_pair(
        env, config, network, policy_outputs, contract.Output("action values", (num_actions,)), None
    )
    memory = replay.make(config, env)
    q = models.q_network(env.observation_space, num_actions, config)
    actor, single = network or (q, q)
    networks = ActorCritic(actor, models.ensemble(single, 2))
    head = models.policy_head(env.action_space)
    observe = models.normalizer(env.observation_space, config)
    target_entropy = config.target_entropy_ratio * math.log(num_actions)
    optimizer = optax.scale_by_adam(eps=config.adam_epsilon)

    def init(key: Key) -> State:
        actor_key, critic_key, worlds_key, fill_key = jax.random.split(key, 4)
        worlds = env_rollouts.reset(env, worlds_key, config.num_envs)
        example = jax.tree.map(lambda x: x[0], worlds.obs)
        params = Params(
            networks.actor.init(actor_key, example),
            networks.critic.init(critic_key, example),
            jnp.log(jnp.asarray(config.initial_temperature, jnp.float32)),
        )
        see = lambda obs: observe.apply(observe.init(example), obs)
        logits = lambda obs: networks.actor.apply(params.actor, see(obs))
        explore = off_policy.random_choices(config, num_actions, None if network is None else logits)
        worlds, ring, obs = off_policy.warm_up(env, memory, explore, to_env, fill_key, worlds, config)
        return State(
            params=params,
            target_params=params.critic,
            opt_state=Params(*map(optimizer.init, params)),
            worlds=worlds,
            ring=ring,
            normalizer=observe.update(observe.init(example), obs),
            iteration=jnp.int32(0),
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        see = lambda obs: observe.apply(state.normalizer, obs)
        progress = off_policy.progress(config, state.iteration)
        learning_rate = config.learning_rate * schedules.factor(config.schedule, progress)
        descend = lambda params, updates: optimization.move(params, -learning_rate, updates)

        def act(key: Key, learner: tuple, obs: PyTree, noise: tuple, progress: Array) -> tuple:
            action = categorical.sample(key, networks.actor.apply(learner[0].actor, see(obs)))
            return action, to_env(action), noise

        def learn(key: Key, learner: tuple, batch: Batch, update: Array) -> tuple[tuple, Array, Array]:
            del key
            params, target_params, opt_state = learner
            batch = batch._replace(obs=see(batch.obs), next_obs=see(batch.next_obs))
            y = target(networks, params, target_params, batch)

            def critic_loss(params: PyTree) -> tuple[Array, tuple[Array, Array]]:
                values = networks.critic.apply(params, batch.obs)  # (2, B, A)
                value = jax.vmap(action_values.select, (0, None))(values, batch.action)
                error = value - y[None]
                return (batch.weight * 0.5 * jnp.square(error).sum(axis=0)).mean(), (value, error)

            (loss, (value, error)), gradients = jax.value_and_grad(critic_loss, has_aux=True)(params.critic)
            updates, critic_state = optimizer.update(gradients, opt_state.critic)
            new_critic, temperature = descend(params.critic, updates), jnp.exp(params.log_temperature)
            values = networks.critic.apply(new_critic, batch.obs)

            def actor_loss(params: PyTree) -> tuple[Array, Array]:
                logits = networks.actor.apply(params, batch.obs)
                return -soft_value(logits, values, temperature).mean(), categorical.entropy(logits).mean()

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
            env, memory, act, learn, key, state.worlds, state.ring, learner, (), state.iteration, config
        )
        new = off_policy.after(state, done, observe)
        return new, Metrics(*done.episodes, *map(Mean.of, done.measures.T))

    def policy(state: State) -> Policy:
        see = lambda obs: observe.apply(state.normalizer, obs)
        return head.policy(lambda obs: networks.actor.apply(state.params.actor, see(obs)))

    return Algorithm(init, step, policy)
