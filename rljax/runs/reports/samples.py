"""Completions to look at: a table on the terminal, and lines of samples.jsonl."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from rljax.runs.program import host_rewards
from rljax.types import Scores, Task

FILE = "samples.jsonl"
STRONG = 2.0  # of an advantage, relative to the largest: colours of the table in two steps


def rows(
    task: Task, rollout: Any, scores: Scores, advantage: np.ndarray, members: list[int], number: int
) -> list[dict[str, Any]]:
    """The first `number` completions of each member, as JSON.

    Rollouts, scores and advantages are numpy arrays (S, B, ...). {"seed", "prompt", "completion", "reward",
    "rewards": {name: number, null where it could not be scored}, "tokens": [[text, advantage, drawn by the
    policy], ...]}; without a tokenizer the ids take the place of text.
    """
    found, total = [], host_rewards.judged(task, rollout, scores)[0]
    for member, seed in enumerate(members):
        for row in range(min(number, rollout.mask.shape[1])):
            mask = rollout.mask[member, row]
            tokens = rollout.completion[member, row][mask].tolist()
            prompt = rollout.prompt[member, row][rollout.valid[member, row]].tolist()
            values = scores.values[member, row].tolist()
            credit = advantage[member, row][mask].tolist()
            drawn = rollout.drawn[member, row][mask].tolist()
            pieces = [_text(task, [token]) for token in tokens]
            found.append(
                {
                    "seed": seed,
                    "prompt": _text(task, prompt),
                    "completion": _text(task, tokens),
                    "reward": plain(float(total[member, row])),
                    "rewards": {r.name: plain(v) for r, v in zip(task.rewards, values, strict=True)},
                    "tokens": [list(each) for each in zip(pieces, map(plain, credit), drawn, strict=True)],
                }
            )
    return found


def plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _text(task: Task, tokens: list[int]) -> str:
    if task.tokenizer is None:
        return " ".join(map(str, tokens))
    return task.tokenizer.decode([token for token in tokens if token < task.tokenizer.vocab_size])


def write(run: Path, iteration: int, content: list[dict[str, Any]]) -> None:
    """Append one line for each completion."""
    with (run / FILE).open("a", encoding="utf-8") as file:
        for row in content:
            file.write(json.dumps({"iteration": iteration, **row}, ensure_ascii=False) + "\n")


def table(iteration: int, content: list[dict[str, Any]]) -> Any:
    """A table for `rich`: tokens that were credited are green, those that were blamed red, the more the
    bolder; those that the world wrote are dim.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = list(content[0]["rewards"]) if content else []
    shown = Table(
        title=f"completions after {iteration} iterations", box=box.SIMPLE_HEAD, title_justify="left"
    )
    for column in ("prompt", "completion"):
        shown.add_column(column, overflow="fold")
    for column in ("reward", *(names if len(names) > 1 else ()), "advantage"):
        shown.add_column(column, justify="right", no_wrap=True)
    largest = max((abs(a or 0.0) for row in content for _, a, _ in row["tokens"]), default=0.0) or 1.0
    for row in content:
        text = Text()
        for piece, advantage, drawn in row["tokens"]:
            text.append(_visible(piece), _style(advantage or 0.0, largest, drawn))
        credits = [advantage or 0.0 for _, advantage, drawn in row["tokens"] if drawn]
        mean = sum(credits) / len(credits) if credits else 0.0
        rewards = [_figure(row["rewards"][name]) for name in names] if len(names) > 1 else []
        shown.add_row(
            Text(_visible(row["prompt"][-200:])), text, _figure(row["reward"]), *rewards, f"{mean:+.3f}"
        )
    return shown


def _visible(text: str) -> str:
    return text.replace("\n", "⏎")


def _style(advantage: float, largest: float, drawn: bool) -> str:
    if not drawn:
        return "dim"
    if abs(advantage) < 1e-6:
        return ""
    colour = "green" if advantage > 0 else "red"
    return f"bold {colour}" if abs(advantage) * STRONG > largest else colour


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
