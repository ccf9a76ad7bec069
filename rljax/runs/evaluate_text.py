"""Judge: how well any language model does a task, by the rewards of its completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rljax import checks
from rljax.runs import load, pretrained, starting_model, stopping
from rljax.runs.folder import files
from rljax.runs.program import host_rewards
from rljax.runs.reports import statistics

if TYPE_CHECKING:
    from rljax.text import Pretrained, Problem, Sampling
    from rljax.types import Key, LanguageModel, PyTree


@stopping.stoppable()
def judge(
    model: Path | str,
    task: str | Problem,
    arguments: Mapping[str, Any] | None = None,
    *,
    prompts: int = 128,
    member: int | None = None,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Rewards of `samples` completions of each of the first `prompts` held-out prompts, at most.

    Args:
        model: a run of text, or a folder or a repository of Hugging Face.
        task: a name for `text.tasks.make` with its `arguments`, or a text.Problem.
        member: of a run, only this one; None takes all.
        temperature: of what is drawn with `seed`; 0 takes the most probable completion.

    Returns: {"return": statistics of the weighted sum, "rewards/NAME": of each reward, "length": of tokens,
    "unscored": the share of completions that could not be scored, which the rewards leave out}.

    Raises: ValueError or FileNotFoundError in one line.
    """
    prompts, samples = checks.whole("prompts", prompts, low=1), checks.whole("samples", samples, low=1)
    (seed,) = load.numbers(seed, 1)
    from rljax.text import Sampling

    members: list[int | None] = [None]
    if files.is_run(model):
        members = list(range(len(files.read(model)["seeds"]))) if member is None else [member]
    elif member is not None:
        raise ValueError(f"{model} is no run: member is of runs")
    loaded = _loaded(model, members[0])
    problem = starting_model.named(task, arguments or {}, loaded.tokenizer) if isinstance(task, str) else task
    problem = starting_model.read_by(problem, loaded, str(model))
    drawn = Sampling(temperature=temperature, max_new_tokens=problem.max_new_tokens)
    measure = _measure(loaded.model, problem, prompts, drawn, samples)
    found: dict[str, list[float]] = {}
    number = 0
    for place, each in enumerate(members):
        params = loaded.params if place == 0 else _loaded(model, each).params
        key = jax.random.fold_in(jax.random.key(seed), each or 0)
        rewards, number = measure(params, key)
        for name, values in rewards.items():
            found.setdefault(name, []).append(statistics.means(values[None], np.isfinite(values[None]))[0])
    return {name: statistics.headline(values, number) for name, values in found.items()}


def _loaded(model: Path | str, member: int | None) -> Pretrained:
    if member is not None:
        return pretrained.language_model(model, member)
    from rljax.text import load_pretrained

    return load_pretrained(model)


def _measure(
    model: LanguageModel, problem: Problem, prompts: int, drawn: Sampling, samples: int
) -> Callable[[PyTree, Key], tuple[dict[str, np.ndarray], int]]:
    """(params, key) -> what each completion got, by name, and how many there are: one program for all members
    of a run.
    """
    from rljax.learning import completions
    from rljax.text import rewards
    from rljax.text.problem import task

    world = task(problem, "prompts")
    rewards.check(world)
    some = jax.tree.map(lambda x: x[:prompts], problem.held_out)
    fill = host_rewards.on_host(world)

    @jax.jit
    def written(params: PyTree, key: Key, frozen: PyTree) -> Any:
        rollout = completions.write(model, params, key, some, world, drawn, samples)
        return rollout, completions.score(world, frozen, rollout)

    def measure(params: PyTree, key: Key) -> tuple[dict[str, np.ndarray], int]:
        rollout, scores = jax.device_get(written(params, key, world.frozen))
        if fill is not None:
            one = lambda tree: jax.tree.map(lambda x: x[None], tree)
            scores = jax.tree.map(lambda x: x[0], fill(one(rollout), one(scores)))
        found = {"return": np.asarray(completions.combined(world, jax.tree.map(jnp.asarray, scores)))}
        for column, reward in enumerate(world.rewards):
            found[f"rewards/{reward.name}"] = scores.values[:, column]
        unscored = ~np.isfinite(found["return"])
        return found | {"length": rollout.mask.sum(axis=1), "unscored": unscored}, len(rollout.mask)

    return measure
