"""Metrics: what a run wrote while it ran, as one long table."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from rljax.runs.report import read_run


class Metric(NamedTuple):
    """One number of one member."""

    iteration: int
    steps: int  # of this member, in the unit of the run
    seconds: float  # of training, without compilation
    member: int
    seed: int  # that of the member, which two configurations of a sweep share
    metric: str
    value: float


def metrics(run: Path | str) -> list[Metric]:
    """Every number in metrics.jsonl of a run, in the order in which it was written; what was not counted, or
    not evaluated at that row, has no entry.

    `pandas.DataFrame(rljax.metrics(run))` is a table with these columns.

    Raises: FileNotFoundError or ValueError in one line.
    """
    found = read_run(run)
    seeds = found.config["seeds"]
    columns = {name: column for name, column in found.rows.items() if column.ndim == 2}
    table = []
    for row, (iteration, steps) in enumerate(zip(found.rows["iteration"], found.rows["steps"], strict=True)):
        when = int(iteration), int(steps), float(found.rows["seconds"][row])
        for name, column in columns.items():
            for member, (seed, value) in enumerate(zip(seeds, column[row], strict=True)):
                if not np.isnan(value):
                    table.append(Metric(*when, member, seed, name, float(value)))
    return table
