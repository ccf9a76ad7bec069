"""Checkpoints: Orbax writes the arrays, a manifest of sha256 sums written last makes them count.

RUN/checkpoints/<iteration>/ holds `state/` (one array per leaf of the State, members first) and
`manifest.json`. A folder without a manifest, or whose files differ from it, was cut off while it was written
or damaged later, and is passed over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rljax.checks import RunError
from rljax.types import PyTree

MANIFEST = "manifest.json"


class Restored(NamedTuple):
    iteration: int
    leaves: dict[str, np.ndarray]
    metadata: dict[str, Any]
    path: Path


def leaves(state: PyTree) -> dict[str, np.ndarray]:
    """Every leaf of a state under its path, as numpy arrays; `state` has no typed keys any more."""
    return {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def sha256_of(state: PyTree) -> str:
    """One sum over the leaves of a state, in the order of their paths."""
    digest = hashlib.sha256()
    for name, leaf in sorted(leaves(state).items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def save(folder: Path, iteration: int, state: PyTree, metadata: dict[str, Any], keep: int) -> Path:
    """Write one checkpoint under `folder`, atomically, then delete all but the `keep` newest and the best.

    The best has the highest metadata["score"]. Raises: RunError where it cannot be written; what was saved
    before stays.
    """
    import orbax.checkpoint as ocp

    target = folder / f"{iteration:09d}"
    partial = folder / f".partial-{iteration:09d}"
    try:
        for leftover in folder.glob(".partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        with _quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            arrays = {
                name: leaf for name, leaf in leaves(state).items() if leaf.size
            }  # Orbax refuses empty ones
            checkpointer.save(partial.absolute() / "state", arrays)
        manifest = {"iteration": iteration, "metadata": metadata, "files": _sums(partial / "state")}
        write_json(partial / MANIFEST, manifest | {"sha256": _sum_of(manifest)})
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except (OSError, ValueError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = latest(folder)
        raise RunError(
            f"checkpoint of iteration {iteration} could not be written to {folder}: {_reason(error)}; "
            + (f"the last complete one is {last.name}" if last else "there is no complete one")
            + "; make room there, then continue with --resume"
        ) from error
    _prune(folder, target, keep)
    return target


def latest(folder: Path, say: Callable[[str], None] = lambda text: None) -> Path | None:
    """The newest complete checkpoint under `folder`; `say` is told of each newer one that is passed over."""
    for path in reversed(_candidates(folder)):
        wrong = problem(path)
        if wrong is None:
            return path
        say(f"passing over checkpoint {path.name}: it {wrong}")
    return None


def best(folder: Path) -> Path | None:
    """The complete checkpoint with the highest score, None where none has one."""
    scored = [(score, path) for path in _candidates(folder) if (score := _score(path)) is not None]
    return next((path for _, path in sorted(scored, reverse=True) if problem(path) is None), None)


def problem(path: Path) -> str | None:
    """Why this checkpoint does not count, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        recorded, intact = manifest["files"], manifest.pop("sha256") == _sum_of(manifest)
    except FileNotFoundError:
        return "has no manifest: it was cut off while it was written"
    except (ValueError, KeyError, TypeError, AttributeError):  # of JSON and UTF-8, or of what stands in it
        return "has an unreadable manifest"
    if not intact:
        return "has a damaged manifest"
    actual = _sums(path / "state")
    if missing := sorted(set(recorded) - set(actual)):
        return f"lacks {missing[0]}"
    if wrong := sorted(name for name in recorded if recorded[name] != actual[name]):
        return f"has a damaged file, {wrong[0]}"
    return None


def restore(path: Path) -> Restored:
    """The arrays of one checkpoint. Raises: ValueError saying what is wrong with it."""
    import orbax.checkpoint as ocp

    if wrong := problem(path):
        raise ValueError(f"checkpoint {path} {wrong}; choose another")
    manifest = json.loads((path / MANIFEST).read_text())
    with _quiet(), ocp.PyTreeCheckpointer() as checkpointer:
        arrays = checkpointer.restore(path.absolute() / "state")
    return Restored(
        manifest["iteration"], {k: np.asarray(v) for k, v in arrays.items()}, manifest["metadata"], path
    )


def rebuild(template: PyTree, arrays: dict[str, np.ndarray], where: Any) -> PyTree:
    """A state of the template's structure, shapes and dtypes (both have members first) from named arrays.
    The template's leaves may be shapes alone.

    Raises: ValueError naming a missing, surplus or misshapen array.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    wanted = {_name(path): leaf for path, leaf in paths}
    empty = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in wanted.items() if not leaf.size}
    arrays = empty | arrays
    for name in sorted(set(wanted) ^ set(arrays)):
        what = "lacks" if name in wanted else "has an array that this Config has no place for:"
        raise ValueError(
            f"checkpoint {where} {what} {name}; it was written by another algorithm, Config or version"
        )
    for name, leaf in wanted.items():
        if arrays[name].shape != leaf.shape or arrays[name].dtype != leaf.dtype:
            found, right = (f"{x.dtype}{list(x.shape)}" for x in (arrays[name], leaf))
            raise ValueError(
                f"checkpoint {where}: {name} is {found}, this Config and environment need {right}"
            )
    return jax.tree.unflatten(structure, [arrays[name] for name in wanted])


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all. Raises: ValueError for NaN and infinities, no JSON."""
    text = json.dumps(content, indent=1, allow_nan=False)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _candidates(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]" * 9) if path.is_dir()) if folder.is_dir() else []


def _score(path: Path) -> float | None:
    try:
        return json.loads((path / MANIFEST).read_text())["metadata"]["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _prune(folder: Path, newest: Path, keep: int) -> None:
    written = [
        path for path in _candidates(folder) if path <= newest
    ]  # one that was passed over may have a higher number
    stay = {*written[-keep:], best(folder)}
    for path in written:
        if path not in stay:
            (path / MANIFEST).unlink(missing_ok=True)  # first: half-deleted must not count
            shutil.rmtree(path, ignore_errors=True)


def _sums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _sum_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs the traceback of each of its threads, where one line of ours will say what is wrong."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _name(path: tuple) -> str:
    return ".".join(
        str(getattr(part, "name", getattr(part, "key", getattr(part, "idx", part)))) for part in path
    )


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (
        "no space left on the disk"
        if "No space left" in text or getattr(error, "errno", 0) == 28
        else text[:200]
    )
