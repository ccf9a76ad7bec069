"""What a run folder says of itself: config.json, summary.json, failure.json. The README documents every
field.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from rljax import backend
from rljax.algorithms import Definition
from rljax.checks import RunError, counted, show
from rljax.learning import choices
from rljax.runs.folder.checkpoint import sha256_of, write_json
from rljax.types import Feed, Preferences, Prompts, PyTree, Task

CONFIG, SUMMARY, FAILURE, METRICS, CHECKPOINTS = (
    "config.json",
    "summary.json",
    "failure.json",
    "metrics.jsonl",
    "checkpoints",
)
LOCK = ".lock"
TOKENIZER, MODEL = "tokenizer", "model"
FROZEN = {
    "learn": "the text to learn is",
    "held_out": "the held-out text is",
    "params": "the parameters to start from are",
    "rewards": "the reward model is",
    "reward_names": "the names and weights of its rewards are",
    "given": "frozen= is",
}


def at(run: Path | str) -> Path:
    """The folder of a run, ~ being the home of its user."""
    return Path(run).expanduser()


def plain(value: Any) -> Any:
    """A Config value as JSON: numbers, strings, lists; of a function where it is."""
    if callable(value):
        return choices.written(value)
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    return value


def describe(
    setup: Any,
    swept: dict[str, Any],
    seeds: list[int],
    iterations: int,
    own_network: bool,
    frozen: PyTree = None,
) -> dict[str, Any]:
    """The content of config.json for a `load.Setup`; `frozen` is what the user gave."""
    values = {field.name: plain(getattr(setup.config, field.name)) for field in fields(setup.config)}
    begun = setup.start is not None and setup.start.kind != "none"  # with a model that is found again
    own_model = setup.own_env and isinstance(setup.env, Task) and setup.env.model is not None and not begun
    return {
        "algorithm": setup.algorithm.name,
        "algorithm_source": source(setup.algorithm),
        "unit": setup.algorithm.unit,
        **(_task(setup) if isinstance(setup.env, Task) else _env(setup)),
        "config": values | {name: plain(column) for name, column in swept.items()},
        "swept": list(swept),
        "seeds": seeds,
        "preset": setup.preset,
        "own": ["env"] * setup.own_env
        + ["model"] * own_model
        + ["network"] * own_network
        + ["frozen"] * (frozen is not None),
        **given(frozen),
        "initial_steps": setup.config.initial_steps,
        "steps_per_iteration": setup.config.steps_per_iteration,
        "iterations": iterations,
        "versions": versions(),
        "device": device(),
        "backend": backend.described(),
        "git": revision(),
    }


def _env(setup: Any) -> dict[str, Any]:
    arguments = {name: plain(value) for name, value in setup.env_arguments.items()}
    return {"env": setup.env_name, "env_arguments": arguments}


def _task(setup: Any) -> dict[str, Any]:
    task, problem = setup.env, setup.env.problem
    # what was changed is not what its arguments make
    arguments = {} if problem is None or setup.own_env else dict(problem.arguments or {})
    rows = isinstance(task.learn, Prompts | Preferences)
    return {
        "task": task.name,
        "prompt": _prompt(problem),
        "task_arguments": {name: plain(value) for name, value in arguments.items()} or None,
        "start": None if setup.start is None else setup.start._asdict(),
        "corpus": None if task.corpus is None else task.corpus.recorded(),
        "counts": task.counts,
        "vocab_size": task.vocab_size,
        "length": task.learn.tokens.shape[1] + task.max_new_tokens if rows else setup.config.length,
    }


def _prompt(problem: Any) -> Any:
    """The first held-out prompt of a problem, a text or messages, to try a model with; None without one."""
    if problem is None or not problem.records:
        return None
    reference = problem.held_out.reference
    if not isinstance(reference, Mapping) or "row" not in reference:
        return None
    record = problem.records[int(np.asarray(reference["row"])[0])]
    return record.get("prompt") if isinstance(record, Mapping) else None


def sums(task: Task) -> dict[str, str]:
    """The sha256 of each of a task's arrays; of a Feed that of its files; of the names and weights of its
    rewards.
    """
    fed = {"learn": task.learn.sha256} if isinstance(task.learn, Feed) else {}
    found = {name: sha256_of(part) for name, part in task.frozen.items() if name not in fed} | fed
    if task.rewards:
        told = json.dumps([[reward.name, float(reward.weight)] for reward in task.rewards])
        found["reward_names"] = hashlib.sha256(told.encode()).hexdigest()
    return found


def given(frozen: PyTree) -> dict[str, Any]:
    """What config.json says of arrays that the user gave: their sha256."""
    return {} if frozen is None else {"frozen": {"given": sha256_of(jax.tree.map(np.asarray, frozen))}}


def keep(run: Path, task: Task) -> None:
    """Write what a run of a task needs to be talked to: its tokenizer, and what its model is, if it has them.

    A model of the user's own that no checkpoint of Hugging Face can describe is left out.
    """
    if task.tokenizer is not None:
        task.tokenizer.save(run / TOKENIZER)
    if task.model is not None:
        from rljax.models import huggingface

        with suppress(ValueError):
            huggingface.save_config(run / MODEL, task.model, task.generation)


def world(about: dict[str, Any]) -> str:
    """The environment or the task that a config.json, a summary.json or a sweep.json is about."""
    return about.get("env") or about["task"]


def source(algorithm: Definition) -> dict[str, str] | None:
    """What config.json says of an algorithm of the user's own: where it was imported from, and the sha256 of
    its file. None of a built-in one.
    """
    if algorithm.built_in:
        return None
    file = getattr(algorithm.module, "__file__", None)
    module = getattr(algorithm.module, "__name__", "")
    path = None if file is None else Path(file).absolute()
    return {
        "module": "" if module == "__main__" else module,
        "file": "" if path is None else str(path),
        "sha256": "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def difference(old: dict[str, Any], new: dict[str, Any], algorithm: Definition) -> str | None:
    """The first thing that keeps a run of `algorithm` described by `new` from continuing the one described by
    `old`, or None.
    """
    same = "algorithm", "env", "env_arguments", "task", "task_arguments", "start", "vocab_size", "seeds"
    for name in same:
        if old.get(name) != new.get(name):
            return f"{name} is {old.get(name)} there and {new.get(name)} here"
    for name in old["config"]:
        if name not in new["config"]:
            return f"{name} is a field of rljax {old['versions']['rljax']} there and of none here"
    before = {field.name: plain(field.default) for field in algorithm.fields()}
    for name, value in new["config"].items():
        there = old["config"].get(name, before[name])  # without a field a version did what its default does
        if there != value:
            newer = "" if name in old["config"] else " (newer than this run)"
            return f"{name}{newer} is {show(there)} there and {show(value)} here"
    return changed(old, new.get("frozen", {}))


def moved(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """What of the backend is not as it was, so that a resumed run differs in its last bits, or None."""
    there, here = old.get("backend", {}), new["backend"]
    names = [name for name in here if there.get(name) != here[name]]
    return ", ".join(f"{name} {there.get(name)} there and {here[name]} here" for name in names) or None


def changed(old: dict[str, Any], sums: dict[str, str]) -> str | None:
    """The first of a task's arrays that is not what the run described by `old` had, or None."""
    there = old.get("frozen", {})
    names = [name for name in FROZEN if there.get(name) != sums.get(name)]
    return f"{FROZEN[names[0]]} not the same as there (by sha256)" if names else None


def is_run(path: Path | str) -> bool:
    """Whether this is a folder that train or sweep wrote; a model's has a config.json, too."""
    if (at(path) / "sweep.json").is_file():
        return True
    try:
        told = json.loads((at(path) / CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and {"algorithm", "seeds"} <= told.keys()


def read(run: Path | str) -> dict[str, Any]:
    """config.json of a run folder. Raises: FileNotFoundError or ValueError in one line."""
    path = at(run) / CONFIG
    if (at(run) / "sweep.json").is_file():
        raise ValueError(f"{run} is a sweep: name one of its runs, such as {at(run) / 'part-000'}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} is not a run folder: it has no {CONFIG}; name a folder that `rljax train --out` wrote"
        )
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not readable JSON ({error}); start the run again") from error


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("rljax", "jax", "jaxlib", "flax", "optax", "gymnax", "orbax-checkpoint"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def device() -> str:
    """The hardware that JAX computes on, by name."""
    first = jax.local_devices()[0]
    name = backend.processor().name if first.platform == "cpu" else first.device_kind
    return (
        f"{name} x {jax.local_device_count()}"
        if first.platform != "cpu"
        else f"{name}, {counted(jax.local_device_count(), 'core')}"
    )


def revision() -> str | None:
    """The git revision of the working directory, with a + where it has uncommitted changes."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def write(run: Path, name: str, content: Any) -> None:
    write_json(run / name, content)


class Taken(ValueError):
    """A folder that is another run's."""


@contextmanager
def claimed(run: Path | None) -> Iterator[None]:
    """Within, the folder is there and belongs to this process; nothing of it stays where nothing was written.

    The lock is the operating system's, so it ends with the process however that ends.

    Raises: Taken where another process writes there, naming it; RunError where it cannot be made.
    """
    if run is None:
        yield
        return
    path = run / LOCK
    with writing(run):
        file = _locked(path)
    with suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds a run
            run.rmdir()
        file.close()


def _locked(path: Path) -> TextIO:
    """The lock file, opened and locked. Another process may have removed it, with its folder, meanwhile."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+")
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            right = "choose another --out, or wait until it has ended"
            raise Taken(f"{path.parent} is being written by {holder}: {right}") from None
        except OSError:  # a file system without locks
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


@contextmanager
def writing(run: Path | None) -> Iterator[None]:
    """Whatever the operating system refuses inside is one line about this folder: a RunError."""
    try:
        yield
    except OSError as error:
        if run is None or error.errno is None:  # one of ours, about something that is not there
            raise
        raise RunError(
            f"cannot write to {run}: {error.strerror}; "
            "make room there and continue with --resume, or choose another --out"
        ) from error
