"""What a run folder keeps: the Config of its members, and their states."""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
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


def algorithm_of(
    run: Path | str, told: dict[str, Any], given: Any = None, changed: bool = False
) -> algorithms.Definition:
    """The algorithm of the run that `told`, its config.json, describes: `given` by the user, or found again.

    Raises: ValueError where an algorithm of the user's own is not found, is another one, or its file is no
    longer the same and this is not allowed by `changed`.
    """
    recorded = told.get("algorithm_source")
    if given is not None:
        found = algorithms.find(given)
        if found.name != told["algorithm"]:
            raise ValueError(f"{run} was trained with {told['algorithm']}, not {found.name}: pass that")
    elif recorded is None:
        return algorithms.find(told["algorithm"])
    else:
        found = _imported_again(run, told["algorithm"], recorded)
    now = files.source(found)
    if not changed and (now or {}).get("sha256") != (recorded or {}).get("sha256"):
        what = f"{told['algorithm']} is not the same as when {run} was trained (by sha256)"
        raise ValueError(f"{what}: restore it, or allow the change with changed_algorithm=True")
    return found


def _imported_again(run: Path | str, name: str, recorded: dict[str, str]) -> algorithms.Definition:
    """The user's algorithm by the name of its module, or from its file.

    Another module of that name is not taken while the file is there.
    """
    there, spec = Path(recorded["file"]).is_file(), None
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(recorded["module"])
    if spec is not None and (spec.origin == recorded["file"] or not there):
        return algorithms.find(importlib.import_module(recorded["module"]))
    if there:
        return algorithms.find(recorded["file"])
    where = recorded["file"] or recorded["module"] or "in no file"
    raise ValueError(
        f"{run} was trained with {name}, an algorithm of your own ({where}), which is not there: "
        "pass it with algorithm="
    )


def configured(
    run: Path | str, told: dict[str, Any], algorithm: algorithms.Definition
) -> tuple[Any, dict[str, Any]]:
    """The Config of the first member of a run, and what differs between members.

    Raises: ValueError naming a field that there is no longer.
    """
    module = algorithm.module
    known = {field.name for field in fields(module.Config)}
    if unknown := sorted(set(told["config"]) - known):
        raise ValueError(
            f"{run}: {told['algorithm']}.Config has no field {unknown[0]}; it was written by another version"
        )
    swept = {name: told["config"][name] for name in told["swept"]}
    values = {name: _frozen(value) for name, value in told["config"].items() if name not in swept}
    return module.Config(**values | {name: column[0] for name, column in swept.items()}), swept


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
