"""Wrappers: each takes an `Env` and returns one, pure as before. Misuse is a ValueError when wrapping.

A wrapper that remembers something puts its environment's state into a `Wrapped`; `unwrapped` takes it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rljax.math import intervals
from rljax.types import Array, Box, Discrete, Env, Key, MultiDiscrete, PyTree, Space


class Wrapped(NamedTuple):
    """The state of an environment inside a wrapper that remembers something."""

    inner: PyTree  # the wrapped environment's own state
    memory: PyTree  # the wrapper's


def unwrapped(state: PyTree) -> PyTree:
    """The innermost environment's state, which its drawing needs."""
    while isinstance(state, Wrapped):
        state = state.inner
    return state


def time_limit(env: Env, max_steps: int) -> Env:
    """Truncates an episode after `max_steps` steps, if the environment has not ended it before.

    Whether the environment truncates by itself before that stays what `env.truncates_early` says.
    """
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"time_limit: max_steps = {max_steps}: must be an integer of at least 1")

    def reset(key: Key) -> tuple[PyTree, Wrapped]:
        observation, inner = env.reset(key)
        return observation, Wrapped(inner, jnp.int32(0))

    def step(key: Key, state: Wrapped, action: PyTree) -> tuple[PyTree, Wrapped, Array, Array, Array]:
        observation, inner, reward, terminated, truncated = env.step(key, state.inner, action)
        time = state.memory + 1
        return observation, Wrapped(inner, time), reward, terminated, truncated | (time >= max_steps)

    limit = max_steps if env.max_steps is None else min(max_steps, env.max_steps)
    return env._replace(reset=reset, step=step, max_steps=limit)


def stack_frames(env: Env, k: int, axis: int = -1) -> Env:
    """Joins the last `k` observations along `axis`, oldest first: (..., C) becomes (..., k·C).

    A new episode starts with k copies of its first observation.
    """
    space = _box("stack_frames", "observation", env.observation_space)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"stack_frames: k = {k}: must be an integer of at least 1")
    if not -len(space.shape) <= axis < len(space.shape):
        raise ValueError(f"stack_frames: axis {axis} does not exist in observations of shape {space.shape}")
    depth = space.shape[axis]
    copies = [k if i == axis % len(space.shape) else 1 for i in range(len(space.shape))]

    def reset(key: Key) -> tuple[Array, Wrapped]:
        observation, inner = env.reset(key)
        frames = jnp.tile(observation, copies)
        return frames, Wrapped(inner, frames)

    def step(key: Key, state: Wrapped, action: PyTree) -> tuple[Array, Wrapped, Array, Array, Array]:
        observation, inner, reward, terminated, truncated = env.step(key, state.inner, action)
        newer = jax.lax.slice_in_dim(state.memory, depth, None, axis=axis)
        frames = jnp.concatenate([newer, observation], axis=axis)
        return frames, Wrapped(inner, frames), reward, terminated, truncated

    low, high = (np.tile(np.broadcast_to(end, space.shape), copies) for end in (space.low, space.high))
    shape = tuple(size * times for size, times in zip(space.shape, copies, strict=True))
    return env._replace(reset=reset, step=step, observation_space=Box(low, high, shape, space.dtype))


def map_observation(env: Env, function: Callable[[PyTree], PyTree], space: Space) -> Env:
    """`function` of every observation; `space` describes what it returns."""

    def reset(key: Key) -> tuple[PyTree, PyTree]:
        observation, state = env.reset(key)
        return function(observation), state

    def step(key: Key, state: PyTree, action: PyTree) -> tuple[PyTree, PyTree, Array, Array, Array]:
        observation, *others = env.step(key, state, action)
        return function(observation), *others

    return env._replace(reset=reset, step=step, observation_space=space)


def map_action(env: Env, function: Callable[[PyTree], PyTree], space: Space) -> Env:
    """The environment steps with `function` of every action; `space` describes what it takes."""
    step = lambda key, state, action: env.step(key, state, function(action))
    return env._replace(step=step, action_space=space)


def sticky_actions(env: Env, probability: float) -> Env:
    """Each step takes the action of the step before again with this probability (Machado et al. 2018,
    arXiv:1709.06009); a first step takes its own.
    """
    if isinstance(probability, bool) or not 0 <= probability <= 1:
        raise ValueError(f"sticky_actions: probability = {probability}: must be from 0 to 1")

    def reset(key: Key) -> tuple[PyTree, Wrapped]:
        observation, inner = env.reset(key)
        space = env.action_space
        last = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), space, is_leaf=_is_leaf)
        return observation, Wrapped(inner, (jnp.bool_(True), last))

    def step(key: Key, state: Wrapped, action: PyTree) -> tuple[PyTree, Wrapped, Array, Array, Array]:
        stick_key, step_key = jax.random.split(key)
        first, last = state.memory
        again = ~first & jax.random.bernoulli(stick_key, probability)
        taken = jax.tree.map(lambda old, new: jnp.where(again, old, new).astype(old.dtype), last, action)
        observation, inner, *rest = env.step(step_key, state.inner, taken)
        return observation, Wrapped(inner, (jnp.bool_(False), taken)), *rest

    return env._replace(reset=reset, step=step)


def clip_actions(env: Env) -> Env:
    """Takes any real action of the right shape, clipped to the environment's bounds."""
    space = _box("clip_actions", "action", env.action_space)
    low, high = _ends(space)
    return map_action(
        env, lambda action: jnp.clip(action, low, high), Box(-np.inf, np.inf, space.shape, space.dtype)
    )


def rescale_actions(env: Env, low: Any = -1.0, high: Any = 1.0) -> Env:
    """Takes actions in [low, high] (numbers or arrays), mapped linearly onto the environment's bounds.

    Where the environment takes integers, each of them gets an equal part of [low, high].
    """
    space = _box("rescale_actions", "action", env.action_space, finite=True)
    new = Box(low, high, space.shape, np.float32 if space.is_integer else space.dtype)
    if not (
        np.isfinite(low).all() and np.isfinite(high).all() and np.all(np.asarray(low) < np.asarray(high))
    ):
        raise ValueError(f"rescale_actions: low = {low} must be below high = {high}, both finite")
    (old_low, old_high), (new_low, new_high) = _ends(space, new.dtype), _ends(new)
    place = intervals.cell if space.is_integer else intervals.between

    def rescale(action: Array) -> Array:
        fraction = (action - new_low) / (new_high - new_low)
        return place(fraction, old_low, old_high).astype(space.dtype)

    return map_action(env, rescale, new)


def discretise_actions(env: Env, bins: int) -> Env:
    """Each component of an action takes one of `bins` values, evenly spaced, both bounds included.

    Integers are rounded, and `bins` may not be more than there are. The action is MultiDiscrete (D,), or
    Discrete where the environment's has only one component.
    """
    space = _box("discretise_actions", "action", env.action_space, finite=True)
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
        raise ValueError(f"discretise_actions: bins = {bins}: must be an integer of at least 2")
    size = int(np.prod(space.shape))
    traced = any(isinstance(end, Tracer) for end in (space.low, space.high))
    if space.is_integer and not traced:
        fewest = int(np.min(np.asarray(space.high, np.int64) - np.asarray(space.low, np.int64))) + 1
        if bins > fewest:
            raise ValueError(f"discretise_actions: bins = {bins}: a component has only {fewest} values")
    low, high = _ends(space, jnp.float32 if space.is_integer else space.dtype)

    def choose(action: Array) -> Array:
        fraction = action.reshape(space.shape).astype(low.dtype) / (bins - 1)
        value = intervals.between(fraction, low, high)
        return jnp.round(value).astype(space.dtype) if space.is_integer else value

    return map_action(env, choose, Discrete(bins) if size == 1 else MultiDiscrete((bins,) * size))


def mask_observation(env: Env, keep: Sequence[int] | Sequence[bool] | np.ndarray) -> Env:
    """Only some components of a flat observation (D,): a mask of D booleans, or indices, in their order."""
    space = _box("mask_observation", "observation", env.observation_space)
    if len(space.shape) != 1:
        raise ValueError(
            f"mask_observation: observations have shape {space.shape}, not (D,); flatten_observation first"
        )
    size, chosen = space.shape[0], np.asarray(keep)
    if chosen.dtype == bool and chosen.shape == (size,):
        chosen = np.flatnonzero(chosen)
    valid = chosen.ndim == 1 and chosen.size > 0 and np.issubdtype(chosen.dtype, np.integer)
    if not valid or chosen.min() < 0 or chosen.max() >= size or len(set(chosen.tolist())) < chosen.size:
        raise ValueError(
            f"mask_observation: keep must be {size} booleans, or different indices from 0 to {size - 1}"
        )
    low, high = (np.broadcast_to(end, space.shape)[chosen] for end in (space.low, space.high))
    return map_observation(
        env, lambda observation: observation[chosen], Box(low, high, chosen.shape, space.dtype)
    )


def flatten_observation(env: Env) -> Env:
    """Any observation as one float32 (D,): integers one-hot, arrays row by row, dicts by sorted keys."""
    space = env.observation_space
    low, high = _flat_bounds(space)
    return map_observation(env, lambda observation: _flat(space, observation), Box(low, high, low.shape))


def _flat(space: Space, observation: PyTree) -> Array:
    if isinstance(space, Discrete):
        return jax.nn.one_hot(observation, space.n, dtype=jnp.float32)
    if isinstance(space, MultiDiscrete):
        return jnp.concatenate([_flat(Discrete(n), observation[i]) for i, n in enumerate(space.sizes)])
    if isinstance(space, Box):
        return observation.reshape(-1).astype(jnp.float32)
    return jnp.concatenate([_flat(each, part(observation, key)) for key, each in _children(space)])


def _flat_bounds(space: Space) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(space, Box):
        low, high = (
            np.broadcast_to(np.asarray(end, np.float32), space.shape) for end in (space.low, space.high)
        )
        return low.reshape(-1), high.reshape(-1)
    if isinstance(space, Discrete | MultiDiscrete):
        size = space.n if isinstance(space, Discrete) else sum(space.sizes)
        return np.zeros(size, np.float32), np.ones(size, np.float32)
    lows, highs = zip(*(_flat_bounds(each) for _, each in _children(space)), strict=True)
    return np.concatenate(lows), np.concatenate(highs)


def _children(space: Mapping[str, Any] | tuple) -> list[tuple[Any, Space]]:
    return sorted(space.items()) if isinstance(space, Mapping) else list(enumerate(space))


def _is_leaf(space: Any) -> bool:
    return isinstance(space, Box | Discrete | MultiDiscrete)


def part(observation: PyTree, key: Any) -> PyTree:
    """A part of an observation that is a dict or tuple, or a dataclass or named tuple with that field."""
    return (
        getattr(observation, key)
        if isinstance(key, str) and not isinstance(observation, Mapping)
        else observation[key]
    )


def _ends(space: Box, dtype: Any = None) -> tuple[Array, Array]:
    """Both bounds as arrays of the space's shape, and of its dtype unless told otherwise."""
    low, high = (
        jnp.broadcast_to(jnp.asarray(end, dtype or space.dtype), space.shape)
        for end in (space.low, space.high)
    )
    return low, high


def _box(wrapper: str, what: str, space: Space, finite: bool = False) -> Box:
    """`space`, which this wrapper needs to be a Box (a traced bound passes as finite)."""
    if not isinstance(space, Box):
        raise ValueError(f"{wrapper}: needs a Box {what} space, not {type(space).__name__}")
    traced = any(isinstance(end, Tracer) for end in (space.low, space.high))
    if finite and not traced and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(f"{wrapper}: needs finite bounds of the {what}, not [{space.low}, {space.high}]")
    return space
