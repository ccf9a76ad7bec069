"""Environments without chance, in which all episodes of a greedy policy are one and the same."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from rljax.runs.program.engine import Program
from rljax.runs.reports import statistics
from rljax.types import Env, PyTree, Task

STARTS = 16  # that are compared


def starts_alike(env: Env) -> bool:
    """Whether every episode of an environment begins with the same observation."""
    obs = jax.jit(jax.vmap(lambda key: env.reset(key)[0]))(jax.random.split(jax.random.key(0), STARTS))
    return all(bool((np.asarray(leaf) == np.asarray(leaf)[:1]).all()) for leaf in jax.tree.leaves(obs))


def sampled(
    env: Env | Task, program: Program, states: PyTree, salt: int, found: statistics.Measured
) -> dict[str, Any]:
    """What a summary says beside the return of the greedy policy where its episodes are one: the return of
    the policy that draws its actions, and a note; nothing where episodes differ.
    """
    if isinstance(env, Task) or not found.repeated or not starts_alike(env):
        return {}
    drawn = program.fetch(program.evaluate(states, salt, found.number, False))
    means, number, *_ = statistics.measured("return", False, *drawn)
    note = (
        f"all {found.number} greedy episodes of a seed are alike: {env.name} has nothing random, so their "
        "return is that of one; return_sampled is of the policy that draws its actions"
    )
    return {"return_sampled": statistics.headline(means.tolist(), number), "note": note}
