"""Probe environments: so small that the right answer is known, each failing for one kind of mistake.

The first five are Andy Jones' list (Debugging RL, Without the Agonizing Pain, 2021,
https://andyljones.com/posts/rl-debugging.html): the simplest one that fails says where the bug is. γ is the
agent's discount, V the best policy's value. Observations are float32 (1,); no episode exceeds `max_steps`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax.types import Array, Box, Discrete, Env, Key, Space

_Reset = tuple[Array, Array]  # observation, state
_Step = tuple[Array, Array, Array, Array, Array]  # observation, state, reward, terminated, truncated
_OBSERVATION = Box(-1.0, 1.0, (1,))
_CONTINUOUS = Box(-1.0, 1.0, (1,))


def _zero(key: Key) -> Array:
    return jnp.zeros((1,))


def _sign(key: Key) -> Array:
    return jax.random.rademacher(key, (1,), jnp.float32)


def _one_step(
    name: str, actions: Space, observe: Callable[[Key], Array], reward: Callable[[Array, Array], Array]
) -> Env:
    """One observation, one action, `reward(observation, action)` (), end."""

    def reset(key: Key) -> _Reset:
        observation = observe(key)
        return observation, observation

    def step(key: Key, state: Array, action: Array) -> _Step:
        return state, state, jnp.float32(reward(state, action)), jnp.bool_(True), jnp.bool_(False)

    return Env(name, reset, step, _OBSERVATION, actions, max_steps=1, truncates_early=False)


def value_constant() -> Env:
    """One action, one step, observation 0, reward 1: V = 1.

    If it fails: the value loss, its optimiser, or bootstrapping past the end.
    """
    return _one_step("ValueConstant-probe", Discrete(1), _zero, lambda observation, action: jnp.float32(1))


def value_observation() -> Env:
    """One action, one step, observation x = ±1, reward x: V(x) = x.

    If it fails: the network does not learn from its input.
    """
    return _one_step("ValueObservation-probe", Discrete(1), _sign, lambda observation, action: observation[0])


def value_discount() -> Env:
    """One action, two steps, observations 0 then 1, rewards 0 then 1: V(0) = γ, V(1) = 1.

    If it fails: discounting or bootstrapping.
    """

    def reset(key: Key) -> _Reset:
        return jnp.zeros((1,)), jnp.int32(0)

    def step(key: Key, state: Array, action: Array) -> _Step:
        last = state > 0
        return jnp.ones((1,)), state + 1, last.astype(jnp.float32), last, jnp.bool_(False)

    limit = {"max_steps": 2, "truncates_early": False}
    return Env("ValueDiscount-probe", reset, step, _OBSERVATION, Discrete(1), **limit)


def policy_advantage() -> Env:
    """One step, observation 0, reward 1 for action 1 and −1 for action 0: action 1, V = 1.

    If it fails: advantages, the policy loss, or its sign.
    """
    return _one_step(
        "PolicyAdvantage-probe",
        Discrete(2),
        _zero,
        lambda observation, action: jnp.where(action == 1, 1.0, -1.0),
    )


def policy_observation() -> Env:
    """One step, observation x = ±1, reward 1 if the action is (x > 0), else −1: that action, V = 1.

    If it fails: observations and actions are mixed up between the environments of a batch.
    """
    return _one_step(
        "PolicyObservation-probe",
        Discrete(2),
        _sign,
        lambda observation, action: jnp.where((action == 1) == (observation[0] > 0), 1.0, -1.0),
    )


def continuous_advantage(target: float = 0.5) -> Env:
    """One step, observation 0, action a (1,) in [−1, 1], reward −(a − target)²: a = target, V = 0.

    What `policy_advantage` is for discrete actions.
    """
    return _one_step(
        "ContinuousAdvantage-probe",
        _CONTINUOUS,
        _zero,
        lambda observation, action: -jnp.square(action[0] - target),
    )


def continuous_observation() -> Env:
    """One step, observation x = ±1, action a (1,) in [−1, 1], reward −(a − x/2)²: a = x/2, V = 0.

    What `policy_observation` is for discrete actions.
    """
    return _one_step(
        "ContinuousObservation-probe",
        _CONTINUOUS,
        _sign,
        lambda observation, action: -jnp.square(action[0] - observation[0] / 2),
    )


def truncation(max_steps: int = 5) -> Env:
    """Observation 0 and reward 1 at every step, truncated after `max_steps`, never terminated: V = 1/(1 − γ).

    An agent that takes a truncation for an end finds the sum of at most `max_steps` rewards.
    """

    def reset(key: Key) -> _Reset:
        return jnp.zeros((1,)), jnp.int32(0)

    def step(key: Key, state: Array, action: Array) -> _Step:
        return jnp.zeros((1,)), state + 1, jnp.float32(1), jnp.bool_(False), state + 1 >= max_steps

    limit = {"max_steps": _positive(max_steps=max_steps), "truncates_early": False}
    return Env("Truncation-probe", reset, step, _OBSERVATION, Discrete(1), **limit)


def final_observation() -> Env:
    """Observations ±1 alternate, truncated after every step: V(x) = (1 if x > 0 else γ)/(1 − γ²).

    Leaving +1 pays 1, leaving −1 nothing; the first observation is random. An agent that bootstraps from the
    next episode's first observation, not the true final one, finds V(+1) − V(−1) = 1 instead of 1/(1 + γ).
    """

    def reset(key: Key) -> _Reset:
        observation = _sign(key)
        return observation, observation

    def step(key: Key, state: Array, action: Array) -> _Step:
        return -state, -state, jnp.maximum(state[0], 0.0), jnp.bool_(False), jnp.bool_(True)

    limit = {"max_steps": 1, "truncates_early": False}
    return Env("FinalObservation-probe", reset, step, _OBSERVATION, Discrete(1), **limit)


def nan_reward(at: int = 100, max_steps: int = 200, probability: float = 1.0) -> Env:
    """Reward 1, but from step `at` of an episode on NaN with `probability`; truncated after `max_steps`.

    Steps count from 1. For tests of what a run does when its numbers break: with a probability below 1,
    another random key can avoid it.
    """

    def reset(key: Key) -> _Reset:
        return jnp.zeros((1,)), jnp.int32(0)

    def step(key: Key, state: Array, action: Array) -> _Step:
        time = state + 1
        broken = (time >= at) & jax.random.bernoulli(key, probability)
        return (
            jnp.zeros((1,)),
            time,
            jnp.float32(jnp.where(broken, jnp.nan, 1.0)),
            jnp.bool_(False),
            time >= max_steps,
        )

    limit = {"max_steps": _positive(at=at, max_steps=max_steps), "truncates_early": False}
    return Env("NanReward-probe", reset, step, _OBSERVATION, Discrete(2), **limit)


def _positive(**steps: int) -> int:
    """The last of these numbers of steps; ValueError where one is not a positive integer."""
    for name, value in steps.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} = {value}: must be an integer of at least 1")
    return [*steps.values()][-1]


PROBES: dict[str, Callable[..., Env]] = {
    "ValueConstant-probe": value_constant,
    "ValueObservation-probe": value_observation,
    "ValueDiscount-probe": value_discount,
    "PolicyAdvantage-probe": policy_advantage,
    "PolicyObservation-probe": policy_observation,
    "ContinuousAdvantage-probe": continuous_advantage,
    "ContinuousObservation-probe": continuous_observation,
    "Truncation-probe": truncation,
    "FinalObservation-probe": final_observation,
    "NanReward-probe": nan_reward,
}
