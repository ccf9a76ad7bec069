"""Trust region policy optimisation (Schulman et al. 2015, arXiv:1502.05477), for discrete, multi-discrete and
continuous actions.

    L(θ) = E[π_θ(a | s) / π_old(a | s) · A + c_e · H(π_θ(· | s))],   D(θ) = E[KL(π_old(· | s) ‖ π_θ(· | s))]
    θ = θ_old + αᵏ √(2δ / xᵀ F x) x,   F x = ∇L(θ_old),   F = ∇²D(θ_old) + damping · I

with A by GAE (Schulman et al. 2016, arXiv:1506.02438), x from conjugate gradient on products with the Fisher
matrix ∇²D, and k the least in 0 … line_search_steps − 1 for which L(θ) > L(θ_old) and D(θ) ≤ δ = max_kl;
without one the policy stays what it was, bit for bit. Expectations are means over the num_envs × num_steps
transitions of one rollout, D exact in the action. Then Adam fits the value function to A + v_old(s) in
num_value_epochs passes over the same transitions.

D(θ) ≤ δ also holds after that fit, because it moves only parameters that the policy does not read. The
network from `models` has a torso each. In one of the user's own, layers in common belong to the policy, and
only what the value has of its own is fitted; a ValueError where that is nothing. Under "running"
observation_normalization the bound is on the step at the statistics of the rollout: they move after it.

Differs from the paper: GAE with a value network in place of the returns of whole paths; whitened advantages;
damping, as in the authors' program, also under the root; truncated steps bootstrap from final observations.
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
from rljax.math import losses, masked, optimization, returns
from rljax.math.normalizers import REWARD_SCALERS
from rljax.math.shuffle import permutation
from rljax.models import actor_critic, contract, normalizer, policy_head
from rljax.types import CARRIED, Algorithm, Array, Env, Key, Mean, Network, Policy, PyTree


@struct.dataclass
class Config:
    """Fields of TRPO; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 200_000  # environment steps of the run
    max_kl: float = 0.01  # δ, in nats
    discount: float = 0.99
    trace_decay: float = 0.95  # λ of GAE: how far advantages look ahead; 0: one step, 1: to the end
    damping: float = 0.1  # added to the diagonal of the Fisher matrix
    entropy_coefficient: float = 0.0
    line_search_factor: float = 0.8  # α, by which a step that is refused is shortened
    value_learning_rate: float = 1e-3  # of Adam, for the value function
    num_envs: int = struct.field(pytree_node=False, default=16)
    num_steps: int = struct.field(pytree_node=False, default=64)  # of each environment per rollout
    conjugate_gradient_iterations: int = struct.field(pytree_node=False, default=10)  # Fisher products
    fisher_stride: int = struct.field(pytree_node=False, default=1)  # every how many steps enter the products
    line_search_steps: int = struct.field(pytree_node=False, default=10)  # step lengths tried at most
    num_value_epochs: int = struct.field(pytree_node=False, default=10)  # passes over each rollout
    num_minibatches: int = struct.field(pytree_node=False, default=4)  # value steps of each pass
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))
    activation: str = struct.field(pytree_node=False, default="tanh")
    initialization: Literal["orthogonal", "lecun"] = struct.field(pytree_node=False, default="orthogonal")
    policy_gain: float | None = None
    architecture: Literal["mlp", "cnn"] = struct.field(pytree_node=False, default="mlp")
    action_distribution: Literal["gaussian", "tanh"] = struct.field(pytree_node=False, default="gaussian")
    initial_log_std: float = 0.0  # of a Gaussian policy
    advantage_normalization: Literal["none", "batch"] = struct.field(pytree_node=False, default="batch")
    observation_normalization: Literal["none", "running"] = struct.field(pytree_node=False, default="none")
    reward_scaling: Literal["none", "running"] = struct.field(pytree_node=False, default="none")

    torso = "separate"  # not a field: policy and value have no layer in common

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def initial_steps(self) -> int:
        return 0


@struct.dataclass
class State:
    params: PyTree = struct.field(metadata=CARRIED)
    opt_state: PyTree  # of the value function's Adam
    worlds: Worlds  # num_envs running environments and their last observation
    normalizer: PyTree = struct.field(metadata=CARRIED)  # running statistics of observations, or ()
    scaler: PyTree  # running statistics of discounted returns, or ()
    iteration: Array


class Metrics(NamedTuple):
    episode_return: Mean  # undiscounted, unscaled, of the episodes that ended in the rollout
    episode_length: Mean
    surrogate_improvement: Mean  # L(θ) − L(θ_old), 0 where no step was accepted
    kl: Mean  # D(θ), exact in the action
    entropy: Mean  # of the new policy
    value_loss: Mean
    accepted: Mean  # 1 where the line search found a step, else 0
    line_search_steps: Mean  # lengths tried
    gradient_norm: Mean  # ‖∇L(θ_old)‖


def make(env: Env, config: Config, network: Network | None = None, frozen: Any = None) -> Algorithm:
    """TRPO on `env`. A `network` of the user's own gives (policy parameters, value) of an observation.

    Raises: ValueError naming a field of `config`, its value and what would be right; from `step` for a
    network whose value has no parameter of its own.
    """
    config = checks.fields(config)
    del frozen
    checks.rate(config, "value_learning_rate")
    checks.number(config, "total_steps", "max_kl", low=0, open_low=True)
    checks.number(config, "discount", "trace_decay", low=0, high=1)
    checks.number(config, "damping", "entropy_coefficient", low=0)
    checks.number(config, "line_search_factor", low=0, high=1, open_low=True)
    checks.count(config, "num_envs", "num_steps", "num_value_epochs", "num_minibatches")
    checks.count(config, "conjugate_gradient_iterations", "fisher_stride", "line_search_steps")
    batch_size = env_rollouts.rollout_size(env, config)
    if batch_size % config.num_minibatches:
        checks.complain(config, "num_minibatches", f"must divide num_envs x num_steps = {batch_size}")
    checks.whitened(config, batch_size)
    head = policy_head(env.action_space, config.action_distribution)
    contract.check(env, config, network, contract.policy_and_value(head), axes=2)
    network = network or actor_critic(env.observation_space, head, config)
    distribution = head.distribution
    observe = normalizer(env.observation_space, config)
    scaler = REWARD_SCALERS[config.reward_scaling]
    optimizer = optax.flatten(optax.scale_by_adam(eps=1e-5))

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

    def improve(key: Key, params: PyTree, obs: PyTree, action: PyTree, advantage: Array) -> tuple:
        """The step within the trust region, over transitions (T, N): (params, the metrics of it). An entropy
        without closed form is estimated with the same key, so the same noise, everywhere in it.
        """
        parameters = lambda params: network.apply(params, obs)[0]
        old = parameters(params)
        old_log_prob = distribution.log_prob(old, action)

        def objective(params: PyTree) -> Array:
            new = parameters(params)
            gains = -losses.surrogate(distribution.log_prob(new, action), old_log_prob, advantage)
            return gains.mean() + config.entropy_coefficient * distribution.entropy(new, key).mean()

        part, part_old = jax.tree.map(lambda x: x[:: config.fisher_stride], (obs, old))
        part_kl = lambda params: distribution.kl(part_old, network.apply(params, part)[0]).mean()
        with jax.default_matmul_precision("highest"):  # conjugate gradients add its errors up
            fisher = jax.linearize(jax.grad(part_kl), params)[1]
        damped = lambda vector: optimization.move(fisher(vector), config.damping, vector)

        before, gradient = jax.value_and_grad(objective)(params)
        direction = optimization.conjugate_gradient(damped, gradient, config.conjugate_gradient_iterations)
        curvature = optimization.inner(direction, damped(direction))
        length = jnp.sqrt(2 * config.max_kl / jnp.maximum(curvature, 1e-30))

        def accept(candidate: PyTree) -> Array:  # NaN is refused
            kl = distribution.kl(old, parameters(candidate)).mean()
            return (objective(candidate) > before) & (kl <= config.max_kl)

        full = jax.tree.map(lambda x: length * x, direction)
        limits = config.line_search_factor, config.line_search_steps
        params, *search = optimization.backtracking(accept, params, full, *limits)
        kl, entropy = distribution.kl(old, parameters(params)), distribution.entropy(parameters(params), key)
        told = objective(params) - before, kl, entropy, *search, optax.tree.norm(gradient)
        return params, list(map(Mean.of, told))

    def fit(key: Key, params: PyTree, opt_state: PyTree, obs: PyTree, target: Array) -> tuple:
        """Adam on the value function, over transitions (B,): (params, its state, mean loss)."""
        example = jax.tree.map(lambda x: x[0], obs)
        used = lambda part: optimization.reads(lambda params: network.apply(params, example)[part], params)
        fitted = jax.tree.map(lambda policy, value: value and not policy, used(0), used(1))
        if not any(jax.tree.leaves(fitted)):
            raise ValueError(
                "trpo: the network's value has no parameter that its policy does not read; fitting it would "
                "break the bound on KL: give it at least a last layer of its own"
            )
        loss = lambda params, obs, target: losses.value_loss(network.apply(params, obs)[1], target).mean()

        def minibatch(carry: tuple, indices: Array) -> tuple[tuple, Array]:
            params, opt_state = carry
            part = jax.tree.map(lambda x: x[indices], (obs, target))
            error, gradients = jax.value_and_grad(loss)(params, *part)
            gradients = jax.tree.map(lambda g, own: g if own else jnp.zeros_like(g), gradients, fitted)
            updates, opt_state = optimizer.update(gradients, opt_state)
            params = optimization.move(params, -config.value_learning_rate, updates)
            return (params, opt_state), error

        def epoch(carry: tuple, key: Key) -> tuple[tuple, Array]:
            indices = permutation(key, batch_size).reshape(config.num_minibatches, -1)
            return jax.lax.scan(minibatch, carry, indices)

        keys = jax.random.split(key, config.num_value_epochs)
        (params, opt_state), errors = jax.lax.scan(epoch, (params, opt_state), keys)
        return params, opt_state, Mean.of(errors)

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        rollout_key, shuffle_key, bonus_key = jax.random.split(key, 3)
        see = lambda obs: observe.apply(state.normalizer, obs)
        forward = lambda obs: network.apply(state.params, see(obs))

        def act(key: Key, obs: PyTree) -> tuple[PyTree, PyTree]:
            raw = distribution.sample(key, forward(obs)[0])
            return raw, head.to_env(raw)

        worlds, steps, episodes = env_rollouts.rollout(
            env, act, lambda obs: forward(obs)[1], rollout_key, state.worlds, config.num_steps
        )
        done = steps.terminated | steps.truncated
        reward, scale = scaler.apply(state.scaler, steps.reward, done, config.discount)

        value, last_value = forward(steps.obs)[1], forward(worlds.obs)[1]
        discount, next_value, trace = env_rollouts.boundaries(
            steps, value, last_value, config.discount, config.trace_decay
        )
        advantage = jax.vmap(returns.gae, 1, 1)(reward, discount, value, next_value, trace)
        target = advantage + value
        if config.advantage_normalization == "batch":
            advantage = masked.whiten(advantage)

        obs = see(steps.obs)
        params, (gain, kl, entropy, *rest) = improve(bonus_key, state.params, obs, steps.action, advantage)
        flat = jax.tree.map(lambda x: x.reshape(batch_size, *x.shape[2:]), (obs, target))
        params, opt_state, error = fit(shuffle_key, params, state.opt_state, *flat)
        state = State(
            params=params,
            opt_state=opt_state,
            worlds=worlds,
            normalizer=observe.update(state.normalizer, steps.obs),
            scaler=scale,
            iteration=state.iteration + 1,
        )
        return state, Metrics(*episodes, gain, kl, entropy, error, *rest)

    def policy(state: State) -> Policy:
        return head.policy(lambda obs: network.apply(state.params, observe.apply(state.normalizer, obs))[0])

    return Algorithm(init, step, policy)
