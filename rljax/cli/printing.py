"""What the `rljax` commands print: tables, and the few numbers that a run is about."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rljax.cli.options import typed


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
    unit = summary["unit"]
    print(f"{summary['algorithm']} on {world}: {summary['steps']:,} {unit} per seed{ended}")
    headline = summary["headline"]
    print(f"{headline:9} {statistics(summary[headline], measured(headline, 'task' in summary))}")
    if "return_sampled" in summary:
        noun = measured(headline, text=False, greedy=False)
        print(f"{'sampled':9} {statistics(summary['return_sampled'], noun)}")
    if "note" in summary:
        print(f"{'note':9} {summary['note']}")
    speed = summary.get("steps_per_second")
    if speed is not None:
        print(f"{'speed':9} {speed:,.0f} {unit}/s on {summary['device']}")
    if start := summary.get("startup"):
        parts = ", ".join(f"{name} {start[name]:.1f}" for name in ("import", "trace", "compile"))
        cached = f"{start['cached']} of {start['programs']} programs from the cache"
        print(f"{'start-up':9} {start['seconds']:.1f} s: {parts}; {cached}")
    if folder is not None:
        print(f"{'folder':9} {folder}")


def measured(headline: str, text: bool, greedy: bool = True) -> str:
    """What a headline is an average of, per seed."""
    if headline != "return":
        return "held-out rows"
    return f"{'greedy' if greedy else 'sampled'} {'completions' if text else 'episodes'}"


def statistics(block: Mapping[str, Any], noun: str = "episodes") -> str:
    """Mean, IQM, confidence interval, and what they are over."""
    from rljax.checks import counted  # not above: it imports JAX, which help does without

    number = len(block["per_seed"])
    text = figure(block["mean"])
    if number > 1:
        text += f"  IQM {figure(block['iqm'])}"
    if block.get("ci95"):
        text += "  95% CI {} to {}".format(*map(figure, block["ci95"]))
    seeds = counted(number, "seed")
    return f"{text}  ({seeds} × {block['episodes']} {noun})" if "episodes" in block else f"{text}  ({seeds})"


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


def print_report(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each run and each configuration of a sweep: `runs.report.table`."""
    columns = ["run", "algorithm", "world", "configuration", "headline", "mean", "IQM", "95% CI", "seeds"]
    columns.append("steps")
    lines = []
    for row in rows:
        swept = ", ".join(f"{name}={typed(value)}" for name, value in row["config"].items())
        interval = "–" if row["ci95"] is None else "{} to {}".format(*map(figure, row["ci95"]))
        names = [row["run"], row["algorithm"], row["env"], swept, row["headline"].replace("_", " ")]
        numbers = [figure(row["mean"]), figure(row["iqm"]), interval, str(row["seeds"])]
        steps = "–" if row["steps"] is None else f"{row['steps']:,} {row['unit']}"
        lines.append([*names, *numbers, steps])
    print_table("runs", columns, lines)
    for note in dict.fromkeys(row["note"] for row in rows if row["note"]):
        print(f"{'note':9} {note}")


def print_next(*commands: str) -> None:
    print("\nnext:")
    for command in commands:
        print(f"  {command}")
