"""The nouns of the house: every floor above speaks in these types, and they import nothing of ours.

Shape letters, fixed for the whole project: T time, B batch or environments, N prompts, G group, V vocabulary,
A actions, D features, S seeds (members of a sweep).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Key = jax.Array
PyTree = Any


@dataclass(frozen=True)
class Discrete:
    """The integers 0 .. n − 1, as a scalar of `dtype`."""

    n: int
    dtype: Any = np.int32

    @property
    def shape(self) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True)
class MultiDiscrete:
    """A vector of independent integers: component i lies in 0 .. sizes[i] − 1."""

    sizes: tuple[int, ...]
    dtype: Any = np.int32

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.sizes),)


@dataclass(frozen=True, eq=False)
class Box:
    """Real arrays between `low` and `high`, which broadcast to `shape` (±inf: unbounded)."""

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any = np.float32


# A space, or a dict or tuple of spaces for pytree observations.
Space = Discrete | MultiDiscrete | Box | Mapping[str, Any] | tuple


class Env(NamedTuple):
    """A control problem as pure functions over one instance; batch it with `vmap`.

    `step` never resets: its observation is the true next one, also where the episode ends. Environment
    parameters are closed over as leaves, so building an Env inside a traced function sweeps them.
    """

    name: str
    reset: Callable[[Key], tuple[PyTree, PyTree]]  # (key) -> (observation, state)
    step: Callable  # (key, state, action) -> (observation, state, reward, terminated, truncated)
    observation_space: Space
    action_space: Space
    # The time limit: no episode is longer, and none is truncated sooner. None: no limit, a traced one, or
    # truncation for other reasons too.
    max_steps: int | None = None
    host: bool = False  # steps on the host through an ordered io_callback: no sweep, no exact resume
    source: Any = None  # what it was adapted from: (gymnax environment, its parameters), or a tabular.MDP


class Network(NamedTuple):
    """A network as two pure functions: all that an algorithm sees of one."""

    init: Callable[..., PyTree]  # (key, observation) -> params
    apply: Callable[..., Any]  # (params, observation) -> outputs, for any leading batch shape


class Policy(NamedTuple):
    """What evaluation, rendering and serving run, for a batch of B observations."""

    init: Callable[[], PyTree]  # () -> carry, empty for a feed-forward network
    act: Callable  # (key, observation, carry, greedy) -> (action, carry)


class Split(NamedTuple):
    """One cycle as two programs with the host between them, where a reward lives on the host."""

    sample: Callable
    learn: Callable


class Algorithm(NamedTuple):
    """An algorithm is a pair of pure functions over an immutable state pytree."""

    init: Callable[[Key], Any]  # (key) -> State
    step: Callable[
        [Key, Any], tuple[Any, Any]
    ]  # (key, State) -> (State, Metrics): one rollout-and-update cycle
    policy: Callable[[Any], Policy]  # (State) -> Policy
    split: Split | None = None


class Mean(NamedTuple):
    """An average that adds up over time, seeds and devices: the sum of `count` values and their number."""

    total: Array
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]

    @classmethod
    def of(cls, values: Array, where: Array | None = None) -> Mean:
        """The mean of `values`, over the places where `where` holds if it is given."""
        values = jnp.asarray(values, jnp.float32)
        if where is None:
            return cls(values.sum(), jnp.int32(values.size))
        return cls(jnp.where(where, values, 0.0).sum(), where.sum(dtype=jnp.int32))

    @property
    def value(self) -> Array:
        """total / count, NaN where nothing was counted."""
        return jnp.where(self.count > 0, self.total / jnp.maximum(self.count, 1), jnp.nan)
