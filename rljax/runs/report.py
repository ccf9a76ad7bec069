"""Report: what run folders and sweep folders say, as figures and as a table.

Only the folder's files are read: config.json, metrics.jsonl, summary.json, and sweep.json of a sweep. Nothing
is smoothed, and no seed is left out in silence.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rljax.checks import counted
from rljax.runs.folder import files
from rljax.runs.reports import plots
from rljax.runs.reports.statistics import headline

SWEEP = "sweep.json"
_QUANTITIES = {  # of a curve, in the order of preference, with the label of its axis
    "evaluation_return": "return of the greedy policy",
    "episode_return": "return of training episodes",
    "evaluation_loss": "loss of held-out text (nats per token)",
    "reward": "reward of sampled completions",
    "evaluation_accuracy": "accuracy on held-out preferences",
    "accuracy": "accuracy on preferences that are learnt",
    "loss": "loss of the text that is learnt (nats per token)",
}


class RunData(NamedTuple):
    """A run folder as arrays: T rows of S members."""

    folder: Path
    config: dict[str, Any]  # config.json
    rows: dict[str, np.ndarray]  # "steps", "seconds", … (T,); each metric (T, S), NaN where there was none
    summary: dict[str, Any] | None  # summary.json, None where the run has not written it
    notes: tuple[str, ...]  # what is missing or was dropped, one line each

    @property
    def groups(self) -> list[tuple[dict[str, Any], list[int]]]:
        """Members that differ only in the seed: (their swept values, their indices) per configuration."""
        fields = self.config.get("swept", [])
        found: dict[tuple, list[int]] = {}
        for member in range(len(self.config["seeds"])):
            values = tuple(self.config["config"][field][member] for field in fields)
            found.setdefault(values, []).append(member)
        return [(dict(zip(fields, values, strict=True)), members) for values, members in found.items()]


def read_run(run: Path | str) -> RunData:
    """A run folder, finished or not.

    A last line of metrics.jsonl that a kill cut off is dropped, with a note; rows that a resumed run wrote
    again replace the older ones. FileNotFoundError for a missing config.json or metrics.jsonl, ValueError for
    a file that is not what it should be, each one line.
    """
    run = files.at(run)
    config = files.read(run)
    path = run / files.METRICS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the run stopped before its first row; start it again")
    rows, notes = _rows(path, len(config["seeds"]))
    summary = _json(run / files.SUMMARY) if (run / files.SUMMARY).is_file() else None
    if summary is None:
        notes.append(f"{run} has no {files.SUMMARY}: it is running or was stopped")
    return RunData(run, config, rows, summary, tuple(notes))


def report(runs: Path | str | Sequence[Path | str], out: Path | str | None = None) -> list[Path]:
    """Draw runs and sweeps; returns the PNG files.

    All runs go into one figure, a subplot per environment or task: IQM over seeds and its 95 % band over
    environment steps or tokens; evaluations where every run of the subplot has them, else returns of training
    episodes, carried forward over rows in which no episode ended, or losses. A part of a sweep gives a curve
    per configuration. Each sweep folder gives a line over its swept field, a heat-map over two, or one per
    combination of the rest.

    Args:
        runs: folders of `train` or `sweep`.
        out: the folder for the figures. None puts them into the folder they show, and a figure of several
            runs beside them, into the folder that holds them all: curves.png, or where that is taken
            curves-2.png, ….

    Raises: FileNotFoundError and ValueError, one line, for no runs or a file that cannot be read.
    """
    folders = _folders(runs)
    sweeps = [each for each in folders if (each / SWEEP).is_file()]
    single = [read_run(each) for each in folders if each not in sweeps]
    paths = []
    if single:
        paths.append(plots.curves(_panels(single), _place([run.folder for run in single], out)))
    for sweep in sweeps:
        prefix = f"{sweep.resolve().name}-" if out and len(folders) > 1 else ""
        paths += _draw_sweep(sweep, Path(out or sweep), prefix)
    return paths


def _place(runs: list[Path], out: Path | str | None) -> Path:
    """Where the figure of these runs goes; without `out` nothing of another's is overwritten."""
    if len(runs) == 1:
        return Path(out or runs[0]) / "curve.png"
    if out is not None:
        return Path(out) / "curves.png"
    beside = Path(os.path.commonpath([run.resolve().parent for run in runs]))
    names = itertools.chain(["curves.png"], (f"curves-{number}.png" for number in itertools.count(2)))
    return next(beside / name for name in names if not (beside / name).exists())


def draw_curve(run: Path | str) -> Path:
    """RUN/curve.png: the learning curve of one run. Raises as `report`."""
    return report([run])[0]


def table(runs: Path | str | Sequence[Path | str]) -> list[dict[str, Any]]:
    """A row per run and per swept configuration, for printing.

    Each is {"run", "algorithm", "env", "config" (swept values), "seeds", "mean", "iqm", "ci95", "headline"
    (what they are of), "steps" and their "unit", "steps_per_second", "note"}. An unfinished run has those of
    its last row, and a note that says so. Raises as `read_run`.
    """
    rows = []
    for each in _folders(runs):
        rows += _sweep_table(each) if (each / SWEEP).is_file() else _run_table(read_run(each))
    return rows


def _run_table(run: RunData) -> list[dict[str, Any]]:
    if run.summary:
        name, steps, speed = (run.summary[key] for key in ("headline", "steps", "steps_per_second"))
        per_seed = run.summary[name]["per_seed"]
    else:
        name = _quantity([run])
        speed = run.rows["steps_per_second"][-1].item() if len(run.rows["steps"]) else None
        steps = int(run.rows["steps"][-1]) if len(run.rows["steps"]) else 0
        values = _carried(run.rows.get(name, np.zeros((0, 0))))
        per_seed = values[-1].tolist() if len(values) else [None] * len(run.config["seeds"])
    more = {"headline": name, "steps": steps, "steps_per_second": speed, "note": "; ".join(run.notes)}
    return [
        _entry(run.folder, run.config, swept, [per_seed[member] for member in members]) | more
        for swept, members in run.groups
    ]


def _sweep_table(sweep: Path) -> list[dict[str, Any]]:
    content = _read_sweep(sweep)
    rows = []
    for values in itertools.product(*content["grid"].values()):
        swept = dict(zip(content["grid"], values, strict=True))
        members = [member for member in content["members"] if _matches(member, swept)]
        if members:
            path = sweep / members[0]["part"] / files.SUMMARY
            steps = _json(path)["steps"] if path.is_file() else None
            more = {"steps": steps, "steps_per_second": content.get("steps_per_second"), "note": ""}
            name = content.get("headline", "return")
            entry = _entry(sweep, content, swept, [member[name] for member in members])
            rows.append(entry | {"headline": name} | more)
    return rows


def _entry(run: Path, about: dict[str, Any], swept: dict[str, Any], per_seed: list) -> dict[str, Any]:
    names = {"run": str(run), "algorithm": about["algorithm"], "env": files.world(about), "config": swept}
    names |= {"unit": about["unit"]}
    numbers = headline(per_seed, 0)
    return names | {"seeds": len(per_seed)} | {key: numbers[key] for key in ("mean", "iqm", "ci95")}


def _folders(runs: Path | str | Sequence[Path | str]) -> list[Path]:
    folders = [files.at(runs)] if isinstance(runs, str | Path) else [files.at(run) for run in runs]
    if not folders:
        raise ValueError("no runs to report: name folders that `rljax train` or `rljax sweep` wrote")
    return list(dict.fromkeys(folders))


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not readable JSON ({error}); it was cut off or edited") from error


def _rows(path: Path, members: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """metrics.jsonl as columns, and what had to be dropped."""
    lines = path.read_text().splitlines()
    rows: list[dict[str, Any]] = []
    notes = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            iteration = row["iteration"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines):
                notes.append(f"{path}: the last line was cut off and is left out")
                break
            raise ValueError(f"{path} line {number} is not a row of metrics; delete that line") from error
        while rows and rows[-1]["iteration"] >= iteration:
            rows.pop()
        rows.append(row)
    columns = {}
    names = ("iteration", "steps", "seconds", "steps_per_second", *(name for row in rows for name in row))
    for name in dict.fromkeys(names):
        wide = any(isinstance(row.get(name), list) for row in rows)
        empty = [None] * members if wide else None
        values = [row.get(name, empty) for row in rows]
        if wide and any(not isinstance(value, list) or len(value) != members for value in values):
            raise ValueError(f"{path}: {name} has not one number for each of {members} seeds in every row")
        columns[name] = np.array(values, np.float64).reshape((len(rows), members) if wide else len(rows))
    return columns, notes


def _carried(values: np.ndarray) -> np.ndarray:
    """(T, S) with every NaN replaced by the last number before it, where there is one."""
    last = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    return np.take_along_axis(values, np.maximum.accumulate(last, axis=0), axis=0)


def _quantity(runs: Sequence[RunData]) -> str:
    """The metric to draw: the first that all these runs have, else that some have."""
    known = [name for name in _QUANTITIES if name != "loss" or all("task" in run.config for run in runs)]
    names = [*known, *(run.summary["headline"] for run in runs if run.summary)]
    for enough in (all, any):
        for name in names:
            if enough(np.isfinite(run.rows.get(name, np.nan)).any() for run in runs):
                return name
    return "episode_return"


def _panels(runs: Sequence[RunData]) -> list[plots.Panel]:
    panels = []
    for world in dict.fromkeys(files.world(run.config) for run in runs):
        here = [run for run in runs if files.world(run.config) == world]
        quantity = _quantity(here)
        parts = [(run, *group) for run in here for group in run.groups]
        labels = _labels([(run, swept) for run, swept, _ in parts])
        lines = [
            _line(run, members, quantity, name) for (run, _, members), name in zip(parts, labels, strict=True)
        ]
        label = _QUANTITIES.get(quantity, quantity.replace("_", " "))
        steps = " or ".join(dict.fromkeys(run.config["unit"] for run in here))
        panels.append(plots.Panel(world, label, lines, steps))
    return panels


def _line(run: RunData, members: list[int], quantity: str, name: str) -> plots.Line:
    """The curve of those members that have any number, from the row on in which all of them have one."""
    values = run.rows.get(quantity, np.zeros((0, len(run.config["seeds"]))))[:, members]
    there = (
        np.isfinite(values).any(axis=1) if quantity.startswith("evaluation_") else np.full(len(values), True)
    )
    steps, values = run.rows["steps"][: len(values)][there], _carried(values[there])
    having = np.isfinite(values).any(axis=0)
    ready = np.isfinite(values[:, having]).all(axis=1) & having.any()
    count = f"{having.sum()} of " * (not having.all()) + counted(len(members), "seed")
    return plots.Line(f"{name} ({count})", steps[ready], values[ready][:, having].T)


def _labels(lines: Sequence[tuple[RunData, dict[str, Any]]]) -> list[str]:
    """The algorithm of each line, with what sets it apart from the others: a few fields, else the folder."""
    settings = [run.config["config"] | run.config.get("env_arguments", {}) | swept for run, swept in lines]
    algorithms = [run.config["algorithm"] for run, _ in lines]
    names = []
    for (_, swept), algorithm, own in zip(lines, algorithms, settings, strict=True):
        kin = [each for each, other in zip(settings, algorithms, strict=True) if other == algorithm]
        differing = [key for key in own if any(each.get(key) != own[key] for each in kin)]
        fields = differing if len(differing) <= 3 else list(swept)
        names.append(", ".join([algorithm, *(f"{key} {plots.text(own[key])}" for key in fields)]))
    return [
        name if names.count(name) == 1 else f"{name}, {run.folder.resolve().name}"
        for name, (run, _) in zip(names, lines, strict=True)
    ]


def _read_sweep(sweep: Path) -> dict[str, Any]:
    content = _json(sweep / SWEEP)
    for name in ("algorithm", "task" if "task" in content else "env", "grid", "members"):
        if name not in content:
            raise ValueError(f"{sweep / SWEEP} has no {name!r}: it was not written by `rljax sweep`")
    return content


def _matches(member: dict[str, Any], swept: dict[str, Any]) -> bool:
    return all(_same(member[field], value) for field, value in swept.items())


def _same(one: Any, two: Any) -> bool:
    """Equal, or the same number in single precision."""
    numeric = all(isinstance(each, int | float) for each in (one, two))
    return bool(np.isclose(one, two, rtol=1e-6, atol=0)) if numeric else one == two


def _draw_sweep(sweep: Path, target: Path, prefix: str) -> list[Path]:
    content = _read_sweep(sweep)
    grid = {field: values for field, values in content["grid"].items() if len(values) > 1}
    if not grid:
        raise ValueError(f"{sweep} varies no field: report its parts, such as {sweep / 'part-000'}")

    quantity = content.get("headline", "return")

    def cell(**swept: Any) -> np.ndarray:
        found = [member[quantity] for member in content["members"] if _matches(member, swept)]
        return np.array(found, np.float64)

    title = f"{content['algorithm']} on {files.world(content)}"
    if isinstance(content.get("seeds"), int):
        title += f", {counted(content['seeds'], 'seed')} each"
    if len(grid) == 1:
        ((field, values),) = grid.items()
        cells = [cell(**{field: value}) for value in values]
        return [plots.response(field, values, cells, title, quantity, target / f"{prefix}sweep.png")]

    longest = sorted(grid, key=lambda field: -len(grid[field]))[:2]
    row, column = (field for field in grid if field in longest)
    rest = {field: values for field, values in grid.items() if field not in longest}
    maps = []
    for values in itertools.product(*rest.values()):
        fixed = dict(zip(rest, values, strict=True))
        cells = [[cell(**fixed, **{row: r, column: c}) for c in grid[column]] for r in grid[row]]
        maps.append((fixed, cells))
    limits = _limits(cells for _, cells in maps)
    paths = []
    for fixed, cells in maps:
        words = [f"{field}={plots.text(value)}" for field, value in fixed.items()]
        name = re.sub(r"[^\w.=-]", "_", "-".join([f"{prefix}sweep", *words])) + ".png"
        heading = "\n".join([title, ", ".join(words)]) if words else title
        axes = (grid[row], grid[column])
        label = f"{quantity}, IQM over seeds"
        paths.append(plots.heat_map((row, column), axes, cells, heading, label, target / name, limits))
    return paths


def _limits(maps: Iterable[list[list[np.ndarray]]]) -> tuple[float, float]:
    means = [plots.centre(cell) for cells in maps for row in cells for cell in row]
    found = [mean for mean in means if np.isfinite(mean)]
    return (min(found), max(found)) if found else (0.0, 1.0)
