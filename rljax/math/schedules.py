"""Schedules as factors in [0, 1] of a run's progress, to be multiplied by a hyper-parameter that a sweep can
vary.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from rljax.types import Array

SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "constant": jnp.ones_like,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
}


def factor(kind: str, progress: Array) -> Array:
    """The factor at `progress` = iteration / total, a scalar clipped to [0, 1]."""
    return SCHEDULES[kind](jnp.clip(jnp.asarray(progress, jnp.float32), 0.0, 1.0))


def interpolate(start: float | Array, end: float | Array, progress: Array, fraction: float | Array) -> Array:
    """From `start` to `end` in a straight line over the first `fraction` > 0 of a run, and `end` after it.

    `progress` = iteration / total, a scalar. The ε of ε-greedy, and the β of prioritised replay.
    """
    return start + (end - start) * jnp.clip(jnp.asarray(progress / fraction, jnp.float32), 0.0, 1.0)
