"""What each `rljax` command does: call one function of the library, and print what it returns."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

import rljax
from rljax.cli.options import (
    Count,
    Flag,
    Folder,
    Optional,
    Training,
    in_folder,
    key_and_value,
    kind,
    typed,
    whole,
)
from rljax.cli.printing import (
    figure,
    measured,
    print_next,
    print_report,
    print_summary,
    print_table,
    rank,
    statistics,
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
    # Resume though the file of your own algorithm is another by now.
    changed_algorithm: Flag = False

    def run(self) -> None:
        world = self.world()
        keywords, given = self.keywords(world), self.values()
        if self.resume and self.out is None:
            raise ValueError("--resume continues the run in a folder: name it with --out")
        keywords |= {"resume": self.resume, "init": self.init, "init_member": self.init_member}
        keywords["changed_algorithm"] = self.changed_algorithm
        result = in_folder(self.out is not None, rljax.train, self.algorithm, world, given, **keywords)
        print_summary(result.summary, result.folder)
        if result.folder is not None:
            folder = shlex.quote(str(result.folder))
            show = "generate" if self.definition().text else "render"
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
        headline = self.definition().headline
        ranked = rank(result.members, list(grid), headline)
        from rljax.checks import counted

        configurations = counted(len(ranked), "configuration")
        seeds, compilations = counted(self.seeds, "seed"), counted(result.compilations, "compilation")
        title = f"{configurations} × {seeds}, {compilations}: best first"
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
    # The file of the run's own algorithm, where it has moved.
    algorithm: Annotated[Path | None, kind(Path, "FILE"), Optional] = None
    # Evaluate though that file is another by now.
    changed_algorithm: Flag = False

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
            rows = name if name in ("loss", "accuracy") else "return"
            noun = measured(rows, bool(self.task), not self.sampled and name != "return_sampled")
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
            algorithm=self.algorithm,
            changed_algorithm=self.changed_algorithm,
        )


@dataclass(kw_only=True)
class Report:
    """Print a table of runs, draw their curves, and print where the pictures are."""

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]", help="Run folders.")]
    # Where the pictures go.
    out: Annotated[Folder, Optional] = None

    def run(self) -> None:
        if not self.folders:
            raise ValueError("report needs a run folder, such as `rljax report runs/ppo-CartPole-v1`")
        from rljax.runs.report import table

        paths = rljax.report(list(self.folders), out=self.out)
        print_report(table(list(self.folders)))
        for path in paths:
            print(f"{'figure':9} {path}")


@dataclass(kw_only=True)
class Render:
    """Draw an episode of a trained policy as a GIF, and print where it is."""

    folder: Run
    # The GIF to write.
    out: Annotated[Path | None, kind(Path, "FILE"), arg(help_behavior_hint="(default: one in RUN)")] = None
    member: Count = 0  # Whose policy.
    seed: Count = 0  # Of the episode.
    # The file of the run's own algorithm, where it has moved.
    algorithm: Annotated[Path | None, kind(Path, "FILE"), Optional] = None
    # Draw though that file is another by now.
    changed_algorithm: Flag = False

    def run(self) -> None:
        own = {"algorithm": self.algorithm, "changed_algorithm": self.changed_algorithm}
        print(rljax.render(self.folder, out=self.out, member=self.member, seed=self.seed, **own))
