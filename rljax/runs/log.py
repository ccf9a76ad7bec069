"""What a run writes while it runs: metrics to a file, TensorBoard or Weights & Biases, and a progress bar.

A row is a dict: "iteration", "steps", "seconds" and "steps_per_second" are numbers, each metric is a list
with one number per member. Every writer has `write(row)` and `close()`, and is a context manager.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

Row = Mapping[str, Any]


class Writer(Protocol):
    """Where rows go."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


def writers(
    run: Path | None, description: Mapping[str, Any], tensorboard: bool, wandb: bool, resume_at: int | None
) -> list[Writer]:
    """The writers of a run described by `description`, which is its config.json.

    `resume_at` is the iteration from which the run continues, None for a new one. Without a folder there is
    no metrics file. ValueError where a package is missing or TensorBoard has no folder to write to.
    """
    opened: list[Writer] = []
    try:
        if wandb:
            opened.append(WeightsAndBiases(run, description, resume_at))
        if tensorboard:
            if run is None:
                raise ValueError("tensorboard writes into the run folder: name one with out")
            steps = None
            if resume_at is not None:
                steps = description["initial_steps"] + resume_at * description["steps_per_iteration"]
            opened.append(TensorBoard(run / "tensorboard", description["seeds"], steps))
        if run is not None:
            opened.append(MetricsFile(run / "metrics.jsonl", resume_at))
    except BaseException:
        for writer in opened:
            writer.close()
        raise
    return opened


class _Closing:
    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class MetricsFile(_Closing):
    """metrics.jsonl: one JSON object per row, written out at once; NaN and infinities are null.

    With `resume_at` the rows of later iterations and a half-written last line are dropped first, in one
    atomic step; without it the file starts empty. ValueError where an earlier line is not JSON.
    """

    def __init__(self, path: Path | str, resume_at: int | None = None) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if resume_at is not None and self.path.exists():
            kept = [line + "\n" for line, row in _rows(self.path) if row["iteration"] <= resume_at]
            partial = self.path.with_name(self.path.name + ".partial")
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        self._file = self.path.open("w" if resume_at is None else "a", encoding="utf-8")

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(_plain(row), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a metrics file with their rows, without a last one that was not finished."""
    lines = path.read_bytes().split(b"\n")
    found = []
    for i, line in enumerate(lines):
        if line:
            try:
                found.append((line.decode(), json.loads(line)))
            except ValueError:  # JSON and UTF-8 alike
                if any(lines[i + 1 :]):
                    raise ValueError(
                        f"{path} line {i + 1} is not JSON: mend or delete it to resume"
                    ) from None
    return found


def _plain(value: Any) -> Any:
    """Lists and numbers of Python for those of numpy, None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of_member(row: Row, member: int) -> dict[str, float]:
    """The finite numbers that a row has for one member, and those that are about all of them."""
    row = {key: value[member] if isinstance(value, list) else value for key, value in _plain(row).items()}
    return {key: value for key, value in row.items() if value is not None}


def _labels(seeds: Sequence[int]) -> list[str]:
    """A name for each member: its seed, which two configurations of a sweep may share."""
    unique = len(set(seeds)) == len(seeds)
    return [f"seed-{seed}" if unique else f"member-{i}-seed-{seed}" for i, seed in enumerate(seeds)]


class TensorBoard(_Closing):
    """TensorBoard events, one sub-folder of `folder` per seed, over environment steps.

    With `resume_at`, in environment steps, TensorBoard hides what an earlier process wrote after it.
    ValueError where tensorboardX is not installed.
    """

    def __init__(self, folder: Path | str, seeds: Sequence[int], resume_at: int | None = None) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ValueError('tensorboard needs tensorboardX: pip install "rljax[tensorboard]"') from None
        purge = None if resume_at is None else resume_at + 1
        self._writers = [
            SummaryWriter(str(Path(folder) / label), purge_step=purge) for label in _labels(seeds)
        ]

    def write(self, row: Row) -> None:
        for member, writer in enumerate(self._writers):
            for name, value in _of_member(row, member).items():
                if name != "steps":
                    writer.add_scalar(name, value, int(row["steps"]))
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class WeightsAndBiases(_Closing):
    """One Weights & Biases run per seed, in a group of the run folder's name, over environment steps.

    The project is WANDB_PROJECT or "rljax". The ids are kept in wandb.json of the run folder, so that a
    resumed run continues its curves. ValueError where wandb is not installed.
    """

    def __init__(
        self, run: Path | None, description: Mapping[str, Any], resume_at: int | None = None
    ) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError('wandb needs its package: pip install "rljax[wandb]"') from None
        labels = _labels(description["seeds"])
        ids = {label: uuid.uuid4().hex[:12] for label in labels}
        name = f"{description['algorithm']}-{description.get('env') or description['task']}"
        if run is not None:
            name, kept = run.name, run / "wandb.json"
            if resume_at is not None and kept.exists():
                ids |= json.loads(kept.read_text())
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(ids) + "\n")
        self._runs: list[Any] = []
        for member, label in enumerate(labels):
            started = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "rljax"),
                group=name,
                name=f"{name}-{label}",
                id=ids[label],
                resume="allow",
                reinit="create_new",
                config=_config_of(description, member),
                dir=None if run is None else str(run),
            )
            started.define_metric("*", step_metric="steps")
            self._runs.append(started)

    def write(self, row: Row) -> None:
        for member, run in enumerate(self._runs):
            run.log(_of_member(row, member))

    def close(self) -> None:
        for run in self._runs:
            run.finish()


def _config_of(description: Mapping[str, Any], member: int) -> dict[str, Any]:
    """What config.json says of one member: its seed, and its value of each swept field."""
    config = dict(description["config"])
    config |= {field: config[field][member] for field in description.get("swept", ())}
    rest = {key: value for key, value in description.items() if key not in ("config", "swept", "seeds")}
    return {**rest, **config, "seed": description["seeds"][member]}


class Progress(_Closing):
    """How far a run is: a bar on a terminal; elsewhere a line at once, one every five seconds, and the last.

    Writes to stderr (or `stream`), so that stdout keeps what the command prints; nothing without `enabled`.
    """

    EVERY = 5.0  # seconds between two lines where there is no terminal

    def __init__(
        self, total_steps: int, description: str, enabled: bool = True, *, stream: TextIO | None = None
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total, self._description, self._enabled = total_steps, description, enabled
        self._began, self._first, self._last = time.monotonic(), None, None
        self._printed, self._pending = self._began, False
        self._figures: tuple[str, str] = ("", "")  # steps per second, return
        self._live: Any = None
        if not enabled:
            return
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream)
            self._live = Live(self, console=console, refresh_per_second=5)
            self._live.start(refresh=True)
        else:
            self._print(f"{description}: compiling…")

    def update(
        self, steps: int, steps_per_second: float, value: float | None, headline: str = "return"
    ) -> None:
        """`steps` of the total are done, at this speed, with this current return (None or NaN: unknown)."""
        self._last = (time.monotonic(), steps)
        self._first = self._first or self._last
        known = value is not None and math.isfinite(value)
        self._figures = (
            f"{short(steps_per_second)} steps/s",
            f"{headline} {value:.5g}" if known else f"{headline} –",
        )
        self._pending = True
        if self._enabled and self._live is None and self._last[0] - self._printed >= self.EVERY:
            self._line()

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._enabled:
            self._print(text)

    def show(self, renderable: Any) -> None:
        """Something of `rich`, above the bar."""
        from rich.console import Console

        if self._live is not None:
            self._live.console.print(renderable)
        elif self._enabled:
            Console(file=self._stream, width=120).print(renderable)

    def close(self) -> None:
        """Draws the last state. A second call does nothing."""
        if self._live is not None:
            self._live.stop()
        elif self._enabled and self._pending:
            self._line()
        self._enabled, self._live = False, None

    def remaining(self) -> float | None:
        """Seconds to go at the average speed since the first update, None before there is one."""
        if self._first is None or self._last is None or self._last[1] <= self._first[1]:
            return None
        pace = (self._last[0] - self._first[0]) / (self._last[1] - self._first[1])
        return max(0.0, pace * (self._total - self._last[1]) - (time.monotonic() - self._last[0]))

    def _line(self) -> None:
        done = 0 if self._last is None else self._last[1]
        share = f"{done:,}/{self._total:,} steps ({done / max(self._total, 1):.0%})"
        self._print(f"{self._description}: " + "  ".join([share, *self._figures, self._clock()]))
        self._printed, self._pending = time.monotonic(), False

    def _print(self, text: str) -> None:
        try:
            print(text, file=self._stream, flush=True)
        except UnicodeEncodeError:
            print(text.encode("ascii", "replace").decode(), file=self._stream, flush=True)

    def _clock(self) -> str:
        left = self.remaining()
        return f"{clock(time.monotonic() - self._began)} so far" + (f", {clock(left)} to go" if left else "")

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """The bar as it is now; rich draws it five times a second."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 1), expand=True)
        for column in range(6):
            grid.add_column(no_wrap=True, ratio=1 if column == 1 else None, overflow="ellipsis")
        elapsed, left = clock(time.monotonic() - self._began), self.remaining()
        title = self._description if options.max_width >= 80 else ""
        if self._last is None:
            grid.add_row(title, ProgressBar(pulse=True), f"compiling… {elapsed}", "", "", "")
        else:
            done, end = self._last[1], "–" if left is None else clock(left)
            bar = ProgressBar(total=max(self._total, 1), completed=done)
            rate, value = self._figures
            ending = f"in {elapsed}" if done >= self._total else f"ETA {end}"
            grid.add_row(title, bar, f"{short(done)}/{short(self._total)}", rate, value, ending)
        yield grid


def short(number: float) -> str:
    """Three digits and a letter: 950, 12.3k, 1.5M, 2G."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: 0:07, 12:30, 3:00:00."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
