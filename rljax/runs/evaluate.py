"""Evaluate: a trained policy over exactly n complete episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from rljax import checks
from rljax.algorithms import AlgorithmLike
from rljax.runs import alike, load, stopping
from rljax.runs.folder import checkpoint, restore
from rljax.runs.program import engine
from rljax.runs.reports import statistics
from rljax.types import Env, LanguageModel, Network, PyTree, Task


@stopping.stoppable()
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
    frozen: PyTree = None,
    algorithm: AlgorithmLike | None = None,
    changed_algorithm: bool = False,
) -> dict[str, Any]:
    """Run the policies of a run for `episodes` complete episodes each, in parallel: no bias towards short
    ones.

    Args:
        run: a folder that `train` wrote.
        greedy: the policy's mode, or a draw from it.
        seed: of the start states and whatever is drawn.
        member: only this one; None takes all.
        checkpoint_iteration: None takes the newest complete checkpoint.
        env, network, frozen: where the run was made with ones of your own.
        algorithm: your own, where it is not found again; `changed_algorithm` allows that its file is another
            by now.

    Returns: {"return", "episode_length": statistics over seeds; "iteration", "greedy"}. Of text that is
    rewarded these are of greedy completions of held-out prompts, at most `episodes`, and "unscored" is the
    share of those that could not be scored, which the return leaves out; of other text {"loss"} or
    {"accuracy"} of as many held-out rows takes the place of the first two. "note" says what was odd. Where
    nothing in an environment is random, all greedy episodes are alike, and "return_sampled" is there too.

    Raises: ValueError or FileNotFoundError in one line.
    """
    (seed,) = load.numbers(seed, 1)
    episodes = checks.whole("episodes", episodes, low=1)
    told, found, swept = load.description(run, env, network, frozen, algorithm, changed_algorithm)
    if isinstance(found.env, Task) and not greedy:
        raise ValueError("held-out completions are greedy: leave out --sampled")
    number = len(told["seeds"])
    if member is not None and not 0 <= member < number:
        raise ValueError(f"member = {member}: {run} has members 0 to {number - 1}")
    restored = restore.saved(run, checkpoint_iteration)
    chosen = list(range(number)) if member is None else [member]
    varied = {name: np.asarray(column)[chosen] for name, column in swept.items()}
    seeds = [told["seeds"][i] for i in chosen]
    program = engine.build(
        found.algorithm.module.make, found.env, found.config, varied, seeds, network, frozen
    )
    arrays = {name: array[chosen] for name, array in restored.leaves.items()}
    stopping.check("interrupted")
    states = program.place(program.unhost(checkpoint.rebuild(program.template(), arrays, restored.path)))
    returns, lengths, complete = program.fetch(program.evaluate(states, seed, episodes, greedy))
    headline = found.algorithm.headline
    text = isinstance(found.env, Task)
    measured = statistics.measured(headline, text, returns, lengths, complete)
    result: dict[str, Any] = {headline: statistics.headline(measured.means.tolist(), measured.number)}
    more = alike.sampled(found.env, program, states, seed, measured) if greedy else {}
    notes = [note for note in (measured.note, more.pop("note", "")) if note]
    result |= more
    if headline == "return":
        steps = lengths.mean(axis=1, dtype=np.float64).tolist()
        result["episode_length"] = statistics.headline(steps, lengths.shape[1])
        if text:
            missing = (~complete).mean(axis=1).tolist()
            result["unscored"] = statistics.headline(missing, lengths.shape[1])
    result["iteration"] = restored.iteration
    if headline == "return":
        result["greedy"] = greedy
    result["device"] = jax.local_devices()[0].platform
    return result | ({"note": "; ".join(notes)} if notes else {})
