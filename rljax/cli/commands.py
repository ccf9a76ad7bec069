"""What each `rljax` command does: call one function of the library, and print what it returns."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

import rljax
from rljax import algorithms
from rljax.cli.options import (
    ALL,
    Count,
    Flag,
    Folder,
    Optional,
    Training,
    in_folder,
    key_and_value,
    kind,
    one_of,
    typed,
    whole,
)

Run = Annotated[Positional[Path], arg(metavar="RUN", help="A folder that train wrote.")]
Member = Annotated[int | None, kind(whole, "INT")]


@dataclass(kw_only=True)
class Train(Training):
    """Train an algorithm on an environment or a text; `rljax train ALGORITHM --help` shows its Config too."""

    # Continue the run in --out from its newest checkpoint.
    resume: Flag = False
    # Start from the parameters of this run.
    init: Annotated[Path | None, kind(Path, "RUN"), Optional] = None
    # The member of --init that all seeds start from.
    init_member: Annotated[Member, Optional] = None

    def run(self) -> None:
        world = self.world()
        keywords, given = self.keywords(world), self.values()
        if self.resume and self.out is None:
            raise ValueError("--resume continues the run in a folder: name it with --out")
        keywords |= {"resume": self.resume, "init": self.init, "init_member": self.init_member}
        result = in_folder(self.out is not None, rljax.train, self.algorithm, world, given, **keywords)
        print_summary(result.summary, result.folder)
        if result.folder is not None:
            folder = shlex.quote(str(result.folder))
            show = "generate" if self.algorithm in algorithms.TEXT else "render"
            shown = [] if self.algorithm == "reward_model" else [f"rljax {show} {folder}"]
            print_next(f"rljax report {folder}", *shown, f"rljax evaluate {folder}")


@dataclass(kw_only=True)
class Sweep(Training):
    """Train every combination of comma-separated Config values with every seed, in few compilations."""

    # On a task: start from the parameters of this run.
    init: Annotated[Path | None, kind(Path, "RUN"), Optional] = None
    # The member of --init that all start from.
    init_member: Annotated[Member, Optional] = None

    def run(self) -> None:
        world, values = self.world(), self.values()
        keywords = self.keywords(world, "sweep-")
        if self.init is not None:
            keywords |= {"init": self.init, "init_member": self.init_member}
        fixed = {name: column[0] for name, column in values.items() if len(column) == 1}
        grid = {name: column for name, column in values.items() if len(column) > 1}
        if not grid:
            example = "--config.learning-rate 1e-4,1e-3"
            raise ValueError(f"nothing to sweep: give a Config field several values, such as {example}")
        result = in_folder(self.out is not None, rljax.sweep, self.algorithm, world, grid, fixed, **keywords)
        headline = algorithms.headline(self.algorithm)
        ranked = rank(result.members, list(grid), headline)
        compilations = f"{result.compilations} compilation{'s' if result.compilations > 1 else ''}"
        title = f"{len(ranked)} configurations x {self.seeds} seeds, {compilations}: best first"
        columns = [*grid, headline, "seeds"]
        rows = [[*map(typed, values.values()), figure(mean), str(n)] for values, mean, n in ranked[:20]]
        print_table(title, columns, rows)
        print(f"{'folder':9} {result.folder}")
        best = fixed | ranked[0][0]
        fresh = ("--seeds", str(max(self.seeds, 8)), "--seed", str(self.seed + self.seeds))
        print_next(f"rljax report {shlex.quote(str(result.folder))}", self.command(best, *fresh))


@dataclass(kw_only=True)
class Evaluate:
    """Run the trained policies of a run for complete episodes, and print their returns.

    With --task any language model, of a run, a folder or a repository, writes completions of a task's
    held-out prompts, greedy or with --sampled at temperature 1, and their rewards are printed.
    """

    folder: Run
    episodes: Count = 128  # Complete episodes per member.
    # Draw actions from the policy instead of taking its mode.
    sampled: Flag = False
    seed: Count = 0  # Of the first states, and of what is drawn.
    # Only this member.
    member: Annotated[Member, arg(help_behavior_hint="(default: all)")] = None
    # The checkpoint of this iteration.
    checkpoint: Annotated[
        int | None, kind(whole, "ITERATION"), arg(help_behavior_hint="(default: the newest)")
    ] = None

    task: Annotated[str, kind(str, "NAME"), Optional] = ""  # A task of text to judge a model by.
    # An argument of the task, such as digits=3; may be repeated.
    task_argument: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE", help_behavior_hint="(optional)")
    ] = ()

    # The file or folder that the task reads.
    data: Annotated[str, kind(str, "PATH"), Optional] = ""

    def run(self) -> None:
        if self.data and not self.task:
            raise ValueError("--data is what a --task reads: name the task")
        found = self.judged() if self.task else self.evaluated()
        for name, value in found.items():
            noun = MEASURED.get(name, "completions" if self.task else "episodes")
            shown = statistics(value, noun) if isinstance(value, Mapping) else typed(value)
            print(f"{name.replace('_', ' '):15} {shown}")

    def judged(self) -> dict[str, Any]:
        arguments = dict(map(key_and_value, self.task_argument)) | ({"data": self.data} if self.data else {})
        given = {"temperature": float(self.sampled), "seed": self.seed, "member": self.member}
        if self.checkpoint is not None:
            raise ValueError(
                "--checkpoint is of evaluate without --task, which judges the newest: leave it out"
            )
        return rljax.judge(self.folder, self.task, arguments, prompts=self.episodes, **given)

    def evaluated(self) -> dict[str, Any]:
        return rljax.evaluate(
            self.folder,
            episodes=self.episodes,
            greedy=not self.sampled,
            seed=self.seed,
            member=self.member,
            checkpoint_iteration=self.checkpoint,
        )


@dataclass(kw_only=True)
class Report:
    """Draw the curves of runs, and print where the pictures are."""

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]", help="Run folders.")]
    # Where the pictures go.
    out: Annotated[Folder, Optional] = None

    def run(self) -> None:
        if not self.folders:
            raise ValueError("report needs a run folder, such as `rljax report runs/ppo-CartPole-v1`")
        for path in rljax.report(list(self.folders), out=self.out):
            print(path)


@dataclass(kw_only=True)
class Render:
    """Draw an episode of a trained policy as a GIF, and print where it is."""

    folder: Run
    # The GIF to write.
    out: Annotated[Path | None, kind(Path, "FILE"), arg(help_behavior_hint="(default: one in RUN)")] = None
    member: Count = 0  # Whose policy.
    seed: Count = 0  # Of the episode.

    def run(self) -> None:
        print(rljax.render(self.folder, out=self.out, member=self.member, seed=self.seed))


KINDS = ("algorithms", "environments", "tasks", "presets", "fields")


@dataclass(kw_only=True)
class List:
    """Show what there is: algorithms, environments, tasks, presets, or the Config fields of an algorithm."""

    what: Annotated[
        Positional[str | None],
        kind(one_of(KINDS), "{" + ",".join(KINDS) + "}"),
        arg(help_behavior_hint="(default: the first four)"),
    ] = None
    # Only what concerns this algorithm (or the environment, after `environments`).
    name: Annotated[Positional[str | None], kind(str, "NAME"), Optional] = None

    def run(self) -> None:
        if self.what in (None, "algorithms"):
            rows = [[name, _first_line(algorithms.get(name))] for name in ALL]
            print_table("algorithms", ["algorithm", "what it is"], rows)
        if self.what in (None, "environments"):
            _list_environments(self.name)
        if self.what in (None, "tasks"):
            from rljax.text import tasks

            rows = [[name, _first_line(function)] for name, function in tasks.TASKS.items()]
            print_table("tasks of text", ["task", "what it is"], rows)
        if self.what in (None, "presets"):
            _list_presets(self.name)
        if self.what == "fields":
            if self.name is None:
                raise ValueError(f"fields of which algorithm? rljax list fields {'|'.join(ALL)}")
            _list_fields(self.name)


def _first_line(module: Any) -> str:
    return (module.__doc__ or "").partition("\n")[0].rstrip(".")


def _list_environments(name: str | None) -> None:
    from rljax import envs
    from rljax.runs.presets import PRESETS

    if name is not None:
        env = envs.make(name)
        facts = {"observation": env.observation_space, "action": env.action_space}
        rows = [[key, " ".join(str(space).split())] for key, space in facts.items()]
        print_table(name, ["", ""], [*rows, ["time limit", f"{env.max_steps or 'no'} steps"]])
        return
    having = lambda name: ", ".join(algorithm for algorithm, env in PRESETS if env == name)
    rows = [[name, having(name)] for name in envs.names()]
    print_table("environments", ["environment", "presets for"], rows)


def _list_presets(algorithm: str | None) -> None:
    from rljax.runs.presets import PRESETS

    if algorithm is not None:
        algorithms.get(algorithm)
    show = lambda fields: ", ".join(f"{name}={typed(value)}" for name, value in fields.items())
    rows = [[*pair, show(fields)] for pair, fields in PRESETS.items() if algorithm in (None, pair[0])]
    print_table("presets", ["algorithm", "environment", "fields that differ from the defaults"], rows)


def _list_fields(algorithm: str) -> None:
    rows = []
    for field in algorithms.fields(algorithm):
        kind = getattr(field.type, "__name__", str(field.type))
        if kind == "Literal":
            kind = " | ".join(field.type.__args__)
        if kind == "tuple":
            kind = "names, as a+b" if field.type.__args__[0] is str else "sizes, as 64x64"
        together = field.leaf and field.name != "total_steps"  # members of one program run equally long
        rows.append([field.name, typed(field.default), kind, "no" if together else "yes", field.help])
    columns = ["field", "default", "type", "compiled per value", "what it is"]
    print_table(f"fields of {algorithm}.Config", columns, rows)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    print(title)
    table = Table(box=box.SIMPLE_HEAD, show_header=any(columns), show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("field", "environment", "algorithm"))
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def print_summary(summary: Mapping[str, Any], folder: Path | None) -> None:
    """The few numbers that a finished run is about."""
    ended = "" if summary.get("finished", True) else ", not finished"
    world = summary.get("env") or summary["task"]
    print(f"{summary['algorithm']} on {world}: {summary['steps']:,} steps per seed{ended}")
    headline = summary["headline"]
    print(f"{headline:9} {statistics(summary[headline], MEASURED[headline])}")
    speed = summary.get("steps_per_second")
    if speed is not None:
        print(f"{'speed':9} {speed:,.0f} steps/s on {summary['device']}")
    if start := summary.get("startup"):
        parts = ", ".join(f"{name} {start[name]:.1f}" for name in ("import", "trace", "compile"))
        cached = f"{start['cached']} of {start['programs']} programs from the cache"
        print(f"{'start-up':9} {start['seconds']:.1f} s: {parts}; {cached}")
    if folder is not None:
        print(f"{'folder':9} {folder}")


MEASURED = {
    "return": "episodes",
    "loss": "rows",
    "accuracy": "rows",
}  # what the headline is an average of, per seed


def statistics(block: Mapping[str, Any], noun: str = "episodes") -> str:
    """Mean, IQM, confidence interval, and what they are over."""
    number = len(block["per_seed"])
    text = figure(block["mean"])
    if number > 1:
        text += f"  IQM {figure(block['iqm'])}"
    if block.get("ci95"):
        text += "  95% CI {} to {}".format(*map(figure, block["ci95"]))
    seeds = "1 seed" if number == 1 else f"{number} seeds"
    return f"{text}  ({seeds} x {block['episodes']} {noun})" if "episodes" in block else f"{text}  ({seeds})"


def figure(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.5g}"


def rank(
    members: Iterable[Mapping[str, Any]], fields: Sequence[str], headline: str = "return"
) -> list[tuple[dict[str, Any], float | None, int]]:
    """Each configuration of a sweep with the mean headline of its seeds and their number, the best first: the
    highest return, the lowest loss.

    One whose training failed for some seed has the mean None and comes last.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for member in members:
        groups.setdefault(repr([member[field] for field in fields]), []).append(member)
    ranked = []
    for group in groups.values():
        values = [each[headline] for each in group]
        broken = any(value is None or math.isnan(value) for value in values)
        mean = None if broken else sum(values) / len(values)
        ranked.append(({field: group[0][field] for field in fields}, mean, len(group)))
    sign = -1 if headline == "loss" else 1
    return sorted(ranked, key=lambda each: -math.inf if each[1] is None else sign * each[1], reverse=True)


def print_next(*commands: str) -> None:
    print("\nnext:")
    for command in commands:
        print(f"  {command}")
