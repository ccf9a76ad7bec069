"""A tiny problem and what reads the files of a run: most tests here are about files and signals, not about
learning.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rljax.algorithms import ppo
from rljax.runs.recorder import Result
from rljax.types import Array, Box, Discrete, Env, Key

PER_ITERATION = 32
ITERATIONS = 12
CONFIG = ppo.Config(
    total_steps=ITERATIONS * PER_ITERATION,
    num_envs=4,
    num_steps=8,
    num_epochs=1,
    num_minibatches=2,
    hidden_sizes=(8,),
    observation_normalization="running",
    reward_scaling="running",
)


def walk() -> Env:
    """A slippery walk of up to 20 steps that ends at ±3, with reward 1 per step: long and short episodes."""

    def reset(key: Key) -> tuple[Array, Any]:
        state = (jax.random.randint(key, (), -2, 3), jnp.int32(0))
        return observe(state), state

    def observe(state: Any) -> Array:
        return jnp.stack([state[0] / 3.0, state[1] / 20.0])

    def step(key: Key, state: Any, action: Array) -> tuple[Array, Any, Array, Array, Array]:
        right = jnp.logical_xor(action == 1, jax.random.bernoulli(key, 0.2))
        state = (state[0] + jnp.where(right, 1, -1), state[1] + 1)
        return observe(state), state, jnp.float32(1), jnp.abs(state[0]) >= 3, state[1] >= 20

    return Env("Walk", reset, step, Box(-1.0, 1.0, (2,)), Discrete(2), max_steps=20)


WALK = walk()
Quick = Callable[..., Result]


def strict(text: str) -> Any:
    """JSON as the standard has it: NaN and Infinity are refused."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def rows(run: Path, timings: bool = False) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without what depends on the clock."""
    found = [strict(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = () if timings else ("seconds", "steps_per_second")
    return [{key: value for key, value in row.items() if key not in clock} for row in found]


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())
