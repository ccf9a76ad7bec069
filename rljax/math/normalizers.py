"""Observation normalisation and reward scaling as values in a State, chosen by a static Config field.

A normaliser is frozen during a rollout and updated once after it, so that acting, learning and evaluation see
the same numbers. Reward scaling divides by the standard deviation of the running discounted return, one per
environment with one shared variance, and never touches the returns that are reported (Engstrom et al. 2020,
arXiv:2005.12729; the 37 details, 7 and 8).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.math import statistics
from rljax.types import Array, PyTree


class Normalizer(NamedTuple):
    init: Callable[[PyTree], Any]  # (one observation) -> state
    apply: Callable[[Any, PyTree], PyTree]  # (state, observations (..., D)) -> the same, normalised
    update: Callable[[Any, PyTree], Any]  # (state, observations (..., D)) -> state


class RewardScaler(NamedTuple):
    init: Callable[[int], Any]  # (N) -> state
    apply: Callable[
        ..., tuple[Array, Any]
    ]  # (state, reward (T, N), done (T, N), γ) -> (scaled reward, state)


class ScalerState(NamedTuple):
    running_return: Array  # (N,) discounted return so far of each running episode
    statistics: statistics.RunningStatistics  # of all of them, over time


def _scale(state: ScalerState, reward: Array, done: Array, discount: ArrayLike) -> tuple[Array, ScalerState]:
    def step(running: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, done = inputs
        running = jnp.asarray(discount * running + reward)
        return jnp.where(done, 0.0, running), running

    running, seen = jax.lax.scan(step, state.running_return, (reward, done))
    updated = statistics.update(state.statistics, seen)
    deviation = jnp.sqrt(updated.variance + 1e-8)
    return jnp.clip(reward / deviation, -10.0, 10.0), ScalerState(running, updated)


NORMALIZERS = {
    "none": Normalizer(
        lambda observation: (), lambda state, observation: observation, lambda state, observation: state
    ),
    "running": Normalizer(statistics.init, statistics.normalise, statistics.update),
}

REWARD_SCALERS = {
    "none": RewardScaler(lambda num_envs: (), lambda state, reward, done, discount: (reward, state)),
    "running": RewardScaler(
        lambda num_envs: ScalerState(jnp.zeros(num_envs), statistics.init(jnp.float32(0))), _scale
    ),
}
