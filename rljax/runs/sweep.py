"""Sweep: any Config fields × seeds, in as few compilations as the fields allow.

Numbers are arguments of the program, so every combination of them trains side by side in one compilation;
fields that change shapes or control flow (num_envs, hidden_sizes, …) make one compilation per combination.
Each program's run is an ordinary run folder, OUT/part-000, part-001, …: its members can be evaluated, drawn,
and started from like those of `train`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rljax import algorithms, checks
from rljax.algorithms import AlgorithmLike
from rljax.runs import load, recorder, starting_model, stopping
from rljax.runs.folder import files
from rljax.runs.program import engine, layout
from rljax.runs.train import begin, train_members
from rljax.types import Env, LanguageModel, Network, PyTree, Task

if TYPE_CHECKING:
    from rljax.text import Corpus, Problem

LENGTH = "total_steps"  # a number, but members of one program all run equally long


class Part(NamedTuple):
    """The members of one program."""

    static: dict[str, Any]  # the fields that all of them share
    swept: dict[str, list[float]]  # field -> (S,)
    seeds: list[int]  # (S,)


class SweepResult(NamedTuple):
    members: list[dict[str, Any]]  # one row per member: part, member, seed, its fields, return or loss
    folder: Path | None
    parts: list[recorder.Result]
    compilations: int

    def __repr__(self) -> str:
        """A few lines: what each part was is in `parts`."""
        shape = (
            checks.counted(len(self.members), "member")
            + f" in {checks.counted(self.compilations, 'compilation')}"
        )
        parts = [recorder.told(part.summary) for part in self.parts[:3]]
        more = f"\n… and {checks.counted(len(self.parts) - 3, 'part')} more" if len(self.parts) > 3 else ""
        return f"SweepResult({shape}\n" + "\n".join(parts) + f"{more}\n  folder {self.folder})"


@stopping.stoppable()
def sweep(
    algorithm: AlgorithmLike,
    env: str | Env | Task | Corpus | Problem,
    grid: Mapping[str, Iterable[Any]],
    config: Any = None,
    *,
    seeds: int = 1,
    seed: int = 0,
    steps: float | None = None,
    out: Path | str | None = None,
    env_arguments: dict[str, Any] | None = None,
    network: Network | LanguageModel | None = None,
    frozen: PyTree = None,
    init: Path | str | None = None,
    init_member: int | None = None,
    model: str = "",
    warm_up: float | None = None,
    reward: Path | str | None = None,
    memory_gigabytes: float | None = None,
    **options: Any,
) -> SweepResult:
    """Train every combination of the values in `grid` with each of `seeds` seeds.

    Args:
        algorithm: as for `train`.
        grid: Config field -> values. Numbers share a compilation; static fields and total_steps are grouped.
        config: the values of all other fields, as for `train`.
        memory_gigabytes: a program that would need more on a device is split into equal parts, run one after
            the other with the same compilation; None takes 80 % of what is free.
        init, init_member, model, warm_up, reward: on a task, as for `train`; all members begin alike.
        options: as for `train`.

    Raises: ValueError for a field that is none or a value that is wrong, before anything is compiled.
    """
    definition = algorithms.find(algorithm)
    chosen = recorder.options_from({"stop_on_nan": False} | options, definition)
    tokenizer = starting_model.written(definition, env, model, init, init_member)
    setup = load.setup(definition, env, config, steps, env_arguments or {}, tokenizer)
    load.check_frozen(definition, frozen)
    numbers = load.numbers(seed, seeds)
    seed, seeds = numbers[0], len(numbers)
    if not isinstance(grid, Mapping):
        raise ValueError(f"grid is {checks.show(grid)}: must be a dict of Config fields and lists of values")
    for field, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ValueError(f"the sweep of {field} is over {checks.show(values)}: must be a list of values")
    grid = {field: list(values) for field, values in grid.items()}
    run = None if out is None else files.at(out)
    if run is not None and any((run / name).exists() for name in ("sweep.json", "part-000", files.CONFIG)):
        raise files.Taken(f"{run} already holds a sweep or a run: choose another --out")
    with files.claimed(run):
        if isinstance(setup.env, Task) and setup.env.problem is not None:
            start = starting_model.start_of(model, init, init_member, reward)
            check = lambda setup: plan(setup, grid, seeds, seed, network, frozen)
            setup = begin(setup, start, warm_up, seed, run, chosen, check, network)
        elif model or any(each is not None for each in (init, warm_up, reward)):
            raise ValueError(
                "init, model, warm_up and reward of a sweep are of tasks of text: leave them out"
            )
        groups = plan(setup, grid, seeds, seed, network, frozen)
        limit = layout.free_bytes() * 0.8 if memory_gigabytes is None else memory_gigabytes * 2**30
        pieces: list[tuple[Part, dict[Any, Any]]] = []
        compilations = 0
        for group in groups:
            cache: dict[Any, Any] = {}
            parts, compiled = _split(setup, group, limit, network, cache, frozen)
            pieces += [(part, cache) for part in parts]
            compilations += compiled
        results, rows = [], []
        for index, (part, cache) in enumerate(pieces):
            name = f"part-{index:03d}"
            here = load.with_fields(setup, part.static)
            if (
                here.start is not None
                and here.start.kind == "run"
                and here.start.source == starting_model.WARM_UP
            ):
                here = here._replace(start=here.start._replace(source=f"../{starting_model.WARM_UP}"))
            try:
                result = train_members(
                    here,
                    part.swept,
                    part.seeds,
                    run and run / name,
                    network=network,
                    frozen=frozen,
                    options=chosen,
                    cache=cache,
                )
            except KeyboardInterrupt as error:
                done = f"; {name} is a run of its own in {run}" if run else ""
                text = f"sweep stopped in part {index + 1} of {len(pieces)}{done}"
                told = f"{text}; a sweep does not resume: start it again"
                raise stopping.stopped(told, stopping.signal_of(error)) from error
            results.append(result)
            for member, (member_seed, value) in enumerate(
                zip(part.seeds, result.summary[result.summary["headline"]]["per_seed"], strict=True)
            ):
                own = part.static | {field: column[member] for field, column in part.swept.items()}
                values = {field: files.plain(own[field]) for field in grid}
                rows.append({"part": name, "member": member, "seed": member_seed} | values)
                rows[-1][result.summary["headline"]] = value
        if run is not None:
            speeds = [result.summary["steps_per_second"] for result in results]
            content = {
                "algorithm": setup.algorithm.name,
                "unit": setup.algorithm.unit,
                load.kind(setup): setup.env_name,
                "grid": {field: files.plain(values) for field, values in grid.items()},
                "seeds": seeds,
                "headline": results[0].summary["headline"],
                "members": rows,
                "compilations": compilations,
                "steps_per_second": float(np.mean(speeds)),
                "device": files.device(),
            }
            with files.writing(run):
                files.write(run, "sweep.json", content)
        return SweepResult(rows, run, results, compilations)


def plan(
    setup: load.Setup,
    grid: Mapping[str, Sequence[Any]],
    seeds: int,
    seed: int,
    network: Network | LanguageModel | None = None,
    frozen: PyTree = None,
) -> list[Part]:
    """One Part per combination of static values, each with every combination of numbers × seeds.

    Every combination is checked here: `make` is called with it. Raises: ValueError naming the field.
    """
    known = {field.name: field for field in fields(setup.config)}
    for field, column in grid.items():
        if field not in known:
            raise setup.algorithm.unknown(field)
        if not column:
            raise ValueError(f"the sweep of {field} has no values")
    # a number that may be None, which leaves a step out of the program, is one program per value
    whole = lambda field: field == LENGTH or any(value is None for value in grid[field])
    is_static = lambda field: whole(field) or not known[field].metadata.get("pytree_node", True)
    static = [field for field in grid if is_static(field)]
    leaves = [field for field in grid if not is_static(field)]
    parts = []
    for combination in itertools.product(*(grid[field] for field in static)):
        fixed = dict(zip(static, combination, strict=True))
        cells = list(itertools.product(*(grid[field] for field in leaves), range(seed, seed + seeds)))
        columns = list(zip(*cells, strict=True))
        parts.append(
            Part(fixed, {f: list(c) for f, c in zip(leaves, columns, strict=False)}, list(columns[-1]))
        )
    for part in parts:
        here = load.with_fields(setup, part.static)
        for index in range(0, len(part.seeds), seeds):
            own = {field: column[index] for field, column in part.swept.items()}
            setup.algorithm.module.make(here.env, here.config.replace(**own), network, frozen)
    return parts


def _split(
    setup: load.Setup,
    part: Part,
    limit: float,
    network: Network | LanguageModel | None,
    cache: dict[Any, Any],
    frozen: PyTree = None,
) -> tuple[list[Part], int]:
    """The part in as many equal pieces as keep the program of each under `limit` bytes per device, and how
    many were compiled.
    """
    here = load.with_fields(setup, part.static)
    size = number = len(part.seeds)
    compiled = 1
    while size > 1:
        piece = _cut(part, 0, size)
        stopping.check()
        program = engine.build(
            setup.algorithm.module.make,
            here.env,
            here.config,
            piece.swept,
            piece.seeds,
            network,
            frozen,
            cache,
        )
        needed = program.memory_bytes()
        if needed <= limit:
            break
        cache.clear()
        size = max(1, min(size - 1, int(size * limit / needed)))
        compiled += 1
    return [_cut(part, start, size) for start in range(0, number, size)], compiled


def _cut(part: Part, start: int, size: int) -> Part:
    piece = slice(start, start + size)
    return Part(
        part.static, {field: column[piece] for field, column in part.swept.items()}, part.seeds[piece]
    )
