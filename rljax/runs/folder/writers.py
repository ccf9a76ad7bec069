"""What a run writes while it runs: metrics to a file, TensorBoard or Weights & Biases.

A row is a dict: "iteration", "steps", "seconds" and "steps_per_second" are numbers, each metric is a list
with one number per member. Every writer has `write(row)` and `close()`, and is a context manager.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

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
