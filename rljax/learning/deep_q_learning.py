"""What dqn, c51, qrdqn and iqn share around their losses: ε-greedy acting, a step of Adam per minibatch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rljax import checks
from rljax.learning import off_policy
from rljax.math import action_values, optimization, schedules
from rljax.types import Array, Key, PyTree

LEAST_PRIORITY = 1e-6  # of a transition without error


def check(config: Any) -> None:
    """The fields that this file and `off_policy` read. ValueError naming the one that is wrong."""
    off_policy.check(config)
    checks.rate(config, "learning_rate")
    positive = "max_grad_norm", "adam_epsilon", "target_rate", "exploration_fraction"
    checks.number(config, *positive, low=0, open_low=True)
    fractions = "epsilon_start", "epsilon_end", "target_rate", "exploration_fraction"
    checks.number(config, *fractions, low=0, high=1)
    checks.count(config, "target_every")


def check_munchausen(config: Any) -> None:
    """The fields of the Munchausen target. ValueError naming the one that is wrong."""
    checks.number(config, "entropy_temperature", low=0, open_low=True)
    checks.number(config, "munchausen_scale", low=0)
    checks.number(config, "munchausen_low", high=0)


def optimizer(config: Any) -> optax.GradientTransformation:
    """Gradients clipped in global norm, then Adam's direction, without the learning rate."""
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return optax.flatten(optax.chain(clip, optax.scale_by_adam(eps=config.adam_epsilon)))


def acting(q: Callable[[PyTree, PyTree], Array], to_env: Callable, config: Any) -> Callable[..., tuple]:
    """The ε-greedy `act` of `off_policy.cycle`. `q`: (params, observations (N, ...)) -> values (N, A)."""

    def act(key: Key, learner: tuple, obs: PyTree, noise: tuple, progress: Array) -> tuple:
        ends = config.epsilon_start, config.epsilon_end
        epsilon = schedules.interpolate(*ends, progress, config.exploration_fraction)
        action = action_values.epsilon_greedy(key, q(learner[0], obs), epsilon)
        return action, to_env(action), noise

    return act


def update(
    loss: Callable[[PyTree], tuple[Array, tuple[Array, Array]]],
    optimizer: optax.GradientTransformation,
    learner: tuple,
    count: Array,
    iteration: Array,
    config: Any,
) -> tuple[tuple, Array, Array]:
    """One step down `loss`, after which the target network follows.

    Args:
        loss: (params) -> (scalar, (values (B,) of the actions taken, sizes of their errors (B,))).
        learner: (params, target_params, opt_state).
        count: updates before this one.

    Returns: the learner, the priorities (B,), and the four measures: loss, value, error, gradient norm.
    """
    params, target_params, opt_state = learner
    (total, (value, error)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradients, opt_state)
    progress = off_policy.progress(config, iteration)
    learning_rate = config.learning_rate * schedules.factor(config.schedule, progress)
    params = optimization.move(params, -learning_rate, updates)
    target_params = off_policy.follow(params, target_params, count, config)
    measures = jnp.stack([total, value.mean(), error.mean(), optax.tree.norm(gradients)])
    return (params, target_params, opt_state), error + LEAST_PRIORITY, measures
