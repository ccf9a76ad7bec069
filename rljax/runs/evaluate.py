"""Evaluate: a trained policy over exactly n complete episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from rljax import algorithms, checks
from rljax.runs import checkpoint, engine, load, statistics, stored
from rljax.types import Env, LanguageModel, Network, Task


def evaluate(
    run: Path | str,
    *,
    episodes: int = 128,
    greedy: bool = True,
    seed: int = 0,
    member: int | None = None,
    checkpoint_iteration: int | None = None,
    env: Env | Task | None = None,
    network: Network | LanguageModel | None = None,
) -> dict[str, Any]:
    """Run the policies of a run for `episodes` complete episodes each, in parallel: no bias towards short
    ones.

    Args:
        run: a folder that `train` wrote.
        greedy: the policy's mode, or a draw from it.
        seed: of the start states and whatever is drawn.
        member: only this one; None takes all.
        checkpoint_iteration: None takes the newest complete checkpoint.
        env, network: where the run was made with ones of your own.

    Returns: {"return", "episode_length": statistics over seeds; "iteration", "greedy"}. Of text that is
    rewarded these are of greedy completions of held-out prompts, at most `episodes`; of other text {"loss"}
    or {"accuracy"} of as many held-out rows takes the place of the first two.

    Raises: ValueError or FileNotFoundError in one line.
    """
    (seed,) = load.numbers(seed, 1)
    episodes = checks.whole("episodes", episodes, low=1)
    told, found, swept = load.description(run, env, network)
    if isinstance(found.env, Task) and not greedy:
        raise ValueError("held-out completions are greedy: leave out --sampled")
    number = len(told["seeds"])
    if member is not None and not 0 <= member < number:
        raise ValueError(f"member = {member}: {run} has members 0 to {number - 1}")
    restored = stored.saved(run, checkpoint_iteration)
    chosen = list(range(number)) if member is None else [member]
    varied = {name: np.asarray(column)[chosen] for name, column in swept.items()}
    program = engine.build(
        found.module.make, found.env, found.config, varied, [told["seeds"][i] for i in chosen], network
    )
    arrays = {name: array[chosen] for name, array in restored.leaves.items()}
    states = program.place(program.unhost(checkpoint.rebuild(program.template(), arrays, restored.path)))
    returns, lengths, complete = program.fetch(program.evaluate(states, seed, episodes, greedy))
    headline = algorithms.headline(told["algorithm"])
    if headline != "return":
        means = returns.sum(1, dtype=np.float64) / lengths.sum(1, dtype=np.float64)
        return {
            headline: statistics.headline(means.tolist(), returns.shape[1]),
            "iteration": restored.iteration,
            "device": jax.local_devices()[0].platform,
        }
    if isinstance(found.env, Task) and not complete.all():
        raise checks.RunError(f"{(~complete).sum()} of {complete.size} completions could not be scored")
    if not complete.all():
        raise checks.RunError(
            f"{(~complete).sum()} of {complete.size} episodes of {found.env_name} did not end "
            "within 100,000 steps; give the environment a time limit (rljax.envs.wrappers.time_limit)"
        )
    summarise = lambda values: statistics.headline(values.mean(axis=1).tolist(), values.shape[1])
    return {
        "return": summarise(returns.astype(np.float64)),
        "episode_length": summarise(lengths.astype(np.float64)),
        "iteration": restored.iteration,
        "greedy": greedy,
        "device": jax.local_devices()[0].platform,
    }
