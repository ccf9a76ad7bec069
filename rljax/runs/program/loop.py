"""The host loop: compiled chunks of iterations, and between them whatever needs a host.

Chunk lengths follow the clock, so that progress is shown and Ctrl-C answered within about a second; they
change nothing in the result, because the number of iterations is an argument of one program and iteration i
has the same key in any chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from rljax.runs.program import engine
from rljax.runs.program.engine import Program
from rljax.runs.program.prefetch import Feeder
from rljax.runs.stopping import Stop
from rljax.types import PyTree

PACE = 0.7  # seconds that one chunk should take


class Row(NamedTuple):
    """The metrics of the iterations since the last row."""

    iteration: int  # iterations done
    seconds: float  # of training since `start`
    metrics: dict[str, np.ndarray]  # name -> (S,) means, NaN where nothing was counted


class NotFinite(Exception):
    """Some member's metrics or parameters were NaN or infinite: in which iteration (from 1), which, of which
    members.
    """

    def __init__(self, iteration: int, metrics: list[str], members: list[int]) -> None:
        super().__init__(iteration, metrics, members)
        self.iteration, self.metrics, self.members = iteration, metrics, members


def advance(
    program: Program,
    states: PyTree,
    start: int,
    total: int,
    every: list[int],
    *,
    retry: int = 0,
    stop: Stop | None = None,
    stop_on_nan: bool = True,
    tick: Callable[[int, float, dict[str, np.ndarray]], None] = lambda iteration, seconds, metrics: None,
    feeder: Feeder | None = None,
) -> Iterator[tuple[PyTree, Row]]:
    """Iterate from `start` to `total`, yielding states and a Row at each multiple of each number in
    `every`, at the end, and at a stop.

    With a `feeder` a chunk ends where its block does. `tick` is called after each chunk with the metrics of
    the row so far. The states that are yielded are consumed by the next chunk.

    Raises: NotFinite, unless `stop_on_nan` is off.
    """
    iteration, pace, seconds, sums = start, 1, 0.0, {}
    while iteration < total:
        goal = min([total, *(iteration - iteration % n + n for n in every if n)])
        end = goal if feeder is None else min(goal, feeder.end(iteration))
        n = min(end - iteration, pace)
        begun = time.perf_counter()
        block = () if feeder is None else (feeder.at(iteration),)
        states, metrics, bad = program.advance(states, n, retry, *block)
        metrics, bad = program.fetch(metrics), program.fetch(bad)
        spent = time.perf_counter() - begun
        seconds += spent
        iteration += n
        pace = max(1, min(4 * pace, int(n * PACE / max(spent, 1e-6))))
        added = engine.totals(metrics)
        if stop_on_nan and (bad >= 0).any():
            broken = [name for name, (total_, _) in added.items() if not np.isfinite(total_).all()]
            members = np.flatnonzero(bad >= 0).tolist()
            raise NotFinite(int(bad[bad >= 0].min()) + 1, broken or ["parameters"], members)
        sums = {
            name: (t + sums[name][0], c + sums[name][1]) if sums else (t, c) for name, (t, c) in added.items()
        }
        means = {name: np.where(c > 0, t / np.maximum(c, 1), np.nan) for name, (t, c) in sums.items()}
        tick(iteration, seconds, means)
        stopped = stop is not None and stop.is_set()
        if iteration == goal or stopped:
            yield states, Row(iteration, seconds, means)
            sums = {}
        if stopped:
            return
