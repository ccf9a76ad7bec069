"""REINFORCE (Williams 1992, doi:10.1007/BF00992696), reward-to-go and a baseline: the textbooks' program.

    G_t = Σ_{k≥t} γ^{k−t} r_k
    L   = 1/N Σ_episodes Σ_t [−log π(a_t | s_t) (G_t − b_t) + c_v · ½ (v(s_t) − G_t)² − c_e · H(π(· | s_t))]

One step plays N = num_envs whole episodes, one in each environment, and takes one gradient step. Episodes run
to their end and the sum is divided by their number, not that of their steps, so that short ones are not
preferred: with advantage_normalization = "none" the gradient is unbiased. An environment that has finished
waits until the longest possible episode would be over, its steps masked out. So num_envs × num_steps, which
counts a run's steps, is an upper bound on an iteration's; `episode_length` tells the true ones. An episode
that is longer than num_steps is cut there, as by a time limit: the metric `cut` tells how many are.

The baseline b_t is 0 ("none"), the mean G of the batch ("mean"; its own episode included, a bias of order
1/N), or v(s_t) ("learned"). An episode that hit a time limit has, as in the textbooks, a return of only the
rewards that were seen; with the learned baseline γ v(final observation) stands for the rest.

Differs from Williams: reward-to-go, not the whole episode's return; whitened advantages; Adam; an entropy
bonus (off by default). Differs from Sutton & Barto (2018, sec. 13.3): no γᵗ before the gradient, as is usual.
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
from rljax.math import losses, masked, optimization, returns, schedules
from rljax.models import actor_critic, contract, normalizer, policy_head
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Network, Policy, PyTree


class Baseline(NamedTuple):
    of: Callable[..., Array]  # (returns, values, mask), each (T, N) -> b, (T, N) or ()
    learned: bool  # the value function is trained, and stands for what follows a time limit


BASELINES = {
    "none": Baseline(lambda target, value, mask: jnp.zeros_like(target), False),
    "mean": Baseline(lambda target, value, mask: masked.masked_mean(target, mask), False),
    "learned": Baseline(lambda target, value, mask: value, True),
}


@struct.dataclass
class Config:
    """Fields of REINFORCE; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 500_000  # iterations × num_envs × num_steps, and the horizon of the schedule
    learning_rate: float = 1e-2  # of Adam, at the start
    discount: float = 0.99
    entropy_coefficient: float = 0.0
    value_coefficient: float = 0.5  # c_v: weight of the learned baseline's loss; far less with a shared torso
    num_envs: int = struct.field(pytree_node=False, default=16)  # episodes per iteration
    num_steps: int = struct.field(pytree_node=False, default=500)  # of an episode, longer ones are cut
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
    )  # of the learning rate
    baseline: Literal["none", "mean", "learned"] | Callable[..., Any] = struct.field(
        pytree_node=False, default="learned"
    )
    advantage_normalization: Literal["none", "batch"] = struct.field(pytree_node=False, default="batch")
    observation_normalization: Literal["none", "running"] = struct.field(pytree_node=False, default="none")

    @property
    def steps_per_iteration(self) -> int:
        """The most environment steps of one `step`; those that finished environments wait are counted too."""
        return self.num_envs * self.num_steps

    @property
    def initial_steps(self) -> int:
        return 0


@struct.dataclass
class State:
    params: PyTree = struct.field(metadata=CARRIED)
    opt_state: PyTree
    normalizer: PyTree = struct.field(metadata=CARRIED)  # running statistics of observations, or ()
    iteration: Array


class Metrics(NamedTuple):
    episode_return: Mean  # undiscounted, of every episode of the iteration, as far as it was played
    episode_length: Mean
    cut: Mean  # share of the episodes that num_steps ended
    policy_loss: Mean  # this and the next two per step
    value_loss: Mean  # empty without a learned baseline
    entropy: Mean
    gradient_norm: Mean


class World(NamedTuple):
    """An environment that plays one episode."""

    state: PyTree
    obs: PyTree  # the observation to act on, at last the final one
    running: Array  # bool: the episode has not ended
    terminated: Array  # bool: it has, and nothing follows


def make(env: Env, config: Config, network: Network | None = None, frozen: Any = None) -> Algorithm:
    """REINFORCE on `env`. A `network` of the user's own gives (policy parameters, value) of an observation.

    Raises: ValueError naming a field of `config`, its value and what would be right.
    """
    config = checks.fields(config)
    del frozen
    checks.rate(config, "learning_rate")
    checks.number(config, "total_steps", low=0, open_low=True)
    checks.number(config, "discount", low=0, high=1)
    checks.number(config, "entropy_coefficient", "value_coefficient", low=0)
    checks.count(config, "num_envs", "num_steps")
    env_rollouts.rollout_size(env, config)  # checks that it fits
    length = config.num_steps if env.max_steps is None else min(config.num_steps, env.max_steps)
    checks.whitened(config, config.num_envs * length)
    head = policy_head(env.action_space, config.action_distribution)
    contract.check(env, config, network, contract.policy_and_value(head), axes=2)
    network = network or actor_critic(env.observation_space, head, config)
    distribution = head.distribution
    observe = normalizer(env.observation_space, config)
    baseline = choices.function(config, "baseline", BASELINES, lambda own: Baseline(own, True))
    optimizer = optax.scale_by_adam()

    def start(key: Key) -> World:
        obs, state = env.reset(key)
        return World(state, obs, jnp.bool_(True), jnp.bool_(False))

    def advance(key: Key, world: World, action: PyTree) -> tuple[World, Array]:
        obs, state, reward, terminated, truncated = env.step(key, world.state, action)
        after = World(state, obs, ~(terminated | truncated), terminated)
        unless_over = lambda new, old: jnp.where(world.running, new, old)
        return jax.tree.map(unless_over, after, world), unless_over(reward, 0.0).astype(jnp.float32)

    def init(key: Key) -> State:
        reset_key, params_key = jax.random.split(key)
        example = env.reset(reset_key)[0]
        params = network.init(params_key, example)
        return State(params, optimizer.init(params), observe.init(example), jnp.int32(0))

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        reset_key, steps_key, entropy_key = jax.random.split(key, 3)
        forward = lambda params, obs: network.apply(params, observe.apply(state.normalizer, obs))

        def play(worlds: World, key: Key) -> tuple[World, tuple[PyTree, ...]]:
            action_key, env_key = jax.random.split(key)
            action = distribution.sample(action_key, forward(state.params, worlds.obs)[0])
            env_keys = jax.random.split(env_key, config.num_envs)
            after, reward = jax.vmap(advance)(env_keys, worlds, head.to_env(action))
            return after, (worlds.obs, action, reward, worlds.running)

        worlds = jax.vmap(start)(jax.random.split(reset_key, config.num_envs))
        worlds, (obs, action, reward, mask) = jax.lax.scan(play, worlds, jax.random.split(steps_key, length))

        value, last_value = forward(state.params, obs)[1], forward(state.params, worlds.obs)[1]
        bootstrap = jnp.where(baseline.learned & ~worlds.terminated, last_value, 0.0)
        # 1 carries the bootstrap back to the episode's end
        discount = jnp.where(mask, config.discount, 1.0).astype(jnp.float32)
        target = jax.vmap(returns.discounted_returns, (1, 1, 0), 1)(reward, discount, bootstrap)
        advantage = target - baseline.of(target, value, mask)
        if config.advantage_normalization == "batch":
            advantage = masked.whiten(advantage, mask)

        def loss(params: PyTree) -> tuple[Array, tuple[Mean, ...]]:
            parameters, value = forward(params, obs)
            policy_losses = losses.policy_gradient(distribution.log_prob(parameters, action), advantage)
            value_losses = losses.value_loss(value, target)
            entropy = distribution.entropy(parameters, entropy_key)
            fitted = mask & baseline.learned
            means = Mean.of(policy_losses, mask), Mean.of(value_losses, fitted), Mean.of(entropy, mask)
            policy, fit, bonus = (mean.total for mean in means)
            total = policy + config.value_coefficient * fit - config.entropy_coefficient * bonus
            return total / config.num_envs, means

        gradients, means = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state)
        progress = state.iteration * (config.steps_per_iteration / config.total_steps)
        learning_rate = config.learning_rate * schedules.factor(config.schedule, progress)
        # For statistics that take no mask, the steps that were played are spread evenly over all places.
        places = jnp.arange(mask.size) * (mask.sum() / mask.size)
        order = jnp.argsort(~mask.reshape(-1))[places.astype(jnp.int32)]
        played = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[order], obs)
        new = State(
            params=optimization.move(state.params, -learning_rate, updates),
            opt_state=opt_state,
            normalizer=observe.update(state.normalizer, played),
            iteration=state.iteration + 1,
        )
        episodes = Mean.of(reward.sum(0)), Mean.of(mask.sum(0)), Mean.of(worlds.running)
        return new, Metrics(*episodes, *means, gradient_norm=Mean.of(optax.tree.norm(gradients)))

    def policy(state: State) -> Policy:
        return head.policy(lambda obs: network.apply(state.params, observe.apply(state.normalizer, obs))[0])

    return Algorithm(init, step, policy)
