"""What the benchmarks that time several systems side by side share: processes, rounds, ratios, files.

Each system is a process of its own in its own environment (peers/*.py), pinned to the same cores and kept
alive. They take turns, in the opposite order each second round, so that a slow minute of a shared machine
hits all. Ratios are of medians, with the lowest and the highest of the rounds beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tables

HERE = Path(__file__).parent


class Failure(Exception):
    """A system could not do a case: out of memory, too slow, a wrong environment."""


class Worker:
    """A process that runs one of peers/*.py."""

    def __init__(self, command: list[str], environment: dict[str, str], timeout: float) -> None:
        self.timeout, self.unread = timeout, b""
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the worker)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=environment
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Raises: Failure where the worker answers with an error, ends, or does not answer in time."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise Failure(self.ending()) from None
        limit = time.monotonic() + self.timeout
        while b"\n" not in self.unread:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, limit - time.monotonic()))
            if not ready:
                self.process.kill()
                raise Failure(f"no answer to {do} within {self.timeout:.0f} s")
            received = os.read(self.process.stdout.fileno(), 1 << 16)
            if not received:
                raise Failure(self.ending())
            self.unread += received
        line, _, self.unread = self.unread.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise Failure(answer["error"])
        return answer

    def ending(self) -> str:
        status = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines() or [""]
        return f"the worker ended with status {status}: {lines[-1][:200]}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def start(
    script: str,
    python: Path | None,
    pinned: Sequence[int],
    timeout: float,
    devices: int = 0,
    paths: Sequence[Path] = (),
) -> Worker:
    """A worker that runs peers/`script`, pinned to cores; none is an accelerator, unpinned.

    Without a `python` of its own it is rljax's: this interpreter and this checkout. `devices` are the host
    devices to show (0: the system's own choice), `paths` come before its sys.path.
    """
    command = [str(python or sys.executable), str(HERE / "peers" / script)]
    if pinned:
        command += ["--cores", ",".join(map(str, pinned))]
    if devices:
        command += ["--devices", str(devices)]
    for path in paths:
        command += ["--path", str(path.resolve())]
    cut = ("PYTHONPATH", "JAX_COMPILATION_CACHE_DIR", "JAX_NUM_CPU_DEVICES", "RLJAX_HOST_DEVICES")
    environment = {key: value for key, value in os.environ.items() if key not in cut}
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = (
        "false"  # several processes share an accelerator, and its peak tells
    )
    if pinned:
        environment["JAX_PLATFORMS"] = "cpu"
    if python is None:
        environment["PYTHONPATH"] = str(HERE.parent)
    return Worker(command, environment, timeout)


class Contest:
    """The systems of one case, each with its worker. One that fails drops out, and `found` says why."""

    def __init__(self, names: Sequence[str], titles: dict[str, str]) -> None:
        self.names, self.titles = list(names), titles
        self.workers: dict[str, Worker] = {}
        self.found: dict[str, dict[str, Any]] = {name: {} for name in names}
        self.described: dict[str, Any] = {}

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *_: Any) -> None:
        for worker in self.workers.values():
            worker.close()

    @property
    def running(self) -> list[str]:
        return [name for name in self.names if "error" not in self.found[name]]

    def start(self, worker: Callable[[str], Worker]) -> None:
        for name in self.names:  # all at once: nothing compiles before each has answered
            self.workers[name] = worker(name)
        for name in self.names:
            if answer := self.attempt(name, "describe"):
                self.described[name] = answer

    def attempt(self, name: str, do: str, **more: Any) -> dict[str, Any] | None:
        """The worker's answer, None where it fails or failed before."""
        if "error" in self.found[name]:
            return None
        try:
            return self.workers[name].ask(do, **more)
        except Failure as failure:
            self.found[name]["error"] = str(failure)
            print(f"  {self.titles[name]}: {failure}", flush=True)
            self.workers[name].close()
            return None

    def compile(self, name: str, **case: Any) -> None:
        if answer := self.attempt(name, "compile", **case):
            self.found[name].setdefault("compile_seconds", []).append(round(answer["seconds"], 2))

    def rounds(
        self, count: int, after: Callable[[], None] | None = None, fewer: dict[str, int] | None = None
    ) -> None:
        """Time each system in turn, `count` times or as often as `fewer` says; call `after` once a round."""
        for number in range(count):
            due = [name for name in self.names if number < (fewer or {}).get(name, count)]
            for name in due if number % 2 == 0 else due[::-1]:
                if answer := self.attempt(name, "time"):
                    self.found[name].setdefault("seconds", []).append(round(answer["seconds"], 4))
            if after:
                after()
            seconds = "  ".join(
                f"{name} {self.found[name]['seconds'][-1]:.2f} s" for name in due if name in self.running
            )
            print(f"  round {number + 1}: {seconds}", flush=True)

    def where(self, pinned: Sequence[int]) -> tuple[str, str, list[int] | None]:
        """Hardware, its width and the cores, as the first system saw. Raises: Failure if none started."""
        if not self.described:
            raise Failure("no system could start")
        first = next(iter(self.described.values()))
        width = f"{len(pinned)} core{'s' * (len(pinned) > 1)}" if pinned else f"x {first['devices']}"
        return first["device"], width, first["affinity"]


def summarise(
    found: dict[str, dict[str, Any]], described: dict[str, Any], steps: int | dict[str, int]
) -> dict[str, Any]:
    """What each system's timings of `steps` (its own, where they differ) come to: medians, and rljax's speed
    over each peer's, by round too.
    """
    ours = found.get("rljax", {})
    done = lambda name: steps if isinstance(steps, int) else steps[name]
    systems = {}
    for name, each in found.items():
        each = dict(each)
        if "error" not in each:
            each["steps_per_second"] = round(done(name) / statistics.median(each["seconds"]), 1)
            if name != "rljax" and "seconds" in ours and "error" not in ours:
                more = done("rljax") / done(name)
                pairs = zip(each["seconds"], ours["seconds"], strict=False)
                rounds = [more * theirs / own for theirs, own in pairs]
                whole = more * statistics.median(each["seconds"]) / statistics.median(ours["seconds"])
                each["rljax_is_faster_by"] = {
                    "medians": round(whole, 3),
                    "rounds": [round(x, 3) for x in rounds],
                }
        systems[name] = each | {
            key: described[name][key]
            for key in ("threads", "devices", "affinity", "versions")
            if key in described.get(name, {})
        }
    return systems


def keep(path: Path | None, benchmark: str, hardware: str, name: str, result: dict[str, Any]) -> Path:
    """Write a case's result beside those already in the file (default: one per benchmark and hardware).

    Raises: ValueError where the file holds another hardware's results.
    """
    path = path or tables.RESULTS / f"{benchmark}_{tables.slug(hardware)}.json"
    content = tables.read(path) if path.is_file() else {"benchmark": benchmark, "cases": {}}
    if content.setdefault("hardware", hardware) != hardware:
        raise ValueError(
            f"{path} holds results of {content['hardware']}, not of {hardware}: name another --out"
        )
    content["cases"][name] = result
    tables.write(path, content)
    return path


def revision(checkout: Path) -> str | None:
    """The git revision of a checkout, with a + where it has uncommitted changes, or None without git."""
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def ratio(found: dict[str, Any] | None) -> str:
    if not found:
        return "–"
    return f"**{found['medians']:.2f}** ({min(found['rounds']):.2f}–{max(found['rounds']):.2f})"


def counts(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of counts, such as 1,8")
    return [int(part) for part in text.split(",")]


def cores(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of cores, such as 0,1")
    return sorted({int(part) for part in text.split(",")})


def options(parser: argparse.ArgumentParser) -> None:
    """What every such benchmark can be asked."""
    parser.add_argument(
        "--cores", type=cores, metavar="N,...", help="pin all systems to these; default on a GPU: none"
    )
    parser.add_argument("--gpu", action="store_true", help="measure on the accelerator, unpinned")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each system; default: 5")
    parser.add_argument(
        "--rejax-python",
        type=Path,
        metavar="PATH",
        help="the Python of an environment with Rejax 0.1.3 and gymnax 0.0.9",
    )
    parser.add_argument(
        "--timeout", type=float, default=900.0, help="seconds for one answer of a system; default: 900"
    )
    parser.add_argument(
        "--out", type=Path, help="the results file; default: one per hardware in benchmarks/results"
    )
    parser.add_argument(
        "--table", type=Path, metavar="JSON", help="print the table of a results file, and measure nothing"
    )
    parser.add_argument(
        "--write-readme",
        action="store_true",
        help="put the tables of all results files into README.md, and measure nothing",
    )
