"""What a run folder keeps: the Config of its members, and their states."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

from rljax import algorithms
from rljax.runs.folder import checkpoint, files


def saved(run: Path | str, which: int | None = None) -> checkpoint.Restored:
    """The newest complete checkpoint of a run, or that of iteration `which`.

    Raises: ValueError or FileNotFoundError saying what there is instead.
    """
    where = files.at(run) / files.CHECKPOINTS
    if which is not None:
        path = where / f"{which:09d}"
        if not path.is_dir():
            there = ", ".join(str(int(p.name)) for p in sorted(where.glob("[0-9]" * 9))) or "none"
            raise FileNotFoundError(f"{run} has no checkpoint of iteration {which}; there is {there}")
        return checkpoint.restore(path)
    newest = checkpoint.latest(where)
    if newest is None:
        raise FileNotFoundError(
            f"{run} has no complete checkpoint: train it first, or to its end with --resume"
        )
    return checkpoint.restore(newest)


def configured(run: Path | str, told: dict[str, Any]) -> tuple[ModuleType, Any, dict[str, Any]]:
    """The algorithm of a run, the Config of its first member, and what differs between members.

    Raises: ValueError naming a field that there is no longer.
    """
    module = algorithms.get(told["algorithm"])
    known = {field.name for field in fields(module.Config)}
    if unknown := sorted(set(told["config"]) - known):
        raise ValueError(
            f"{run}: {told['algorithm']}.Config has no field {unknown[0]}; it was written by another version"
        )
    swept = {name: told["config"][name] for name in told["swept"]}
    values = {name: _frozen(value) for name, value in told["config"].items() if name not in swept}
    return module, module.Config(**values | {name: column[0] for name, column in swept.items()}), swept


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
