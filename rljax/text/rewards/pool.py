"""One function called for many completions in processes that may hang, raise or die without harm."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

ATTEMPTS = 2  # a completion that failed is tried once more
LARGEST = 64  # completions that one worker is given at a time
START = 120.0  # seconds in which a worker must have imported the function's module

Outcome = tuple[str, Any]  # of `worker.outcome`


@dataclass(eq=False)
class Worker:
    """One process, and the calls it was given and has not answered."""

    process: subprocess.Popen
    connection: Connection
    deadline: float
    ready: bool = False
    pending: deque[int] = field(default_factory=deque)


class Pool:
    """`processes` workers, started when they are needed, kept, and ended with the pool or the interpreter.

    `timeout` is in seconds, of one call. Processes are started afresh, not forked: JAX has threads. Each is
    the first of a group of its own, with which whatever the function has started ends.
    """

    def __init__(self, function: Callable[..., Any], name: str, processes: int, timeout: float) -> None:
        self.name, self.processes, self.timeout = name, processes, timeout
        self._begin = (_preparation(function), pickle.dumps(function))
        self._workers: list[Worker] = []
        # also at exit; holds the list, not the pool
        weakref.finalize(self, _close, self._workers)

    def __call__(self, calls: Sequence[tuple]) -> list[Outcome]:
        """("value", a float), ("absent", NaN) or ("error", a line) of each call; those that
        failed were tried `ATTEMPTS` times.

        Raises: TypeError where the function returns no number; RuntimeError where workers cannot start.
        """
        size = min(LARGEST, max(1, len(calls) // (4 * self.processes)))
        waiting = deque(deque(range(i, min(i + size, len(calls)))) for i in range(0, len(calls), size))
        outcomes: dict[int, Outcome] = {}
        failures = [0] * len(calls)

        def failed(index: int, line: str) -> None:
            failures[index] += 1
            if failures[index] < ATTEMPTS:
                waiting.append(deque([index]))
            else:
                outcomes[index] = ("error", line)

        def lost(worker: Worker, line: str) -> None:
            self._workers.remove(worker)
            _close([worker])
            if not worker.ready:
                raise RuntimeError(f"reward {self.name}: a worker process does not start: {line}")
            if worker.pending:
                failed(worker.pending.popleft(), line)
            if worker.pending:
                waiting.appendleft(worker.pending)

        try:
            while len(outcomes) < len(calls):
                while len(self._workers) < min(self.processes, len(calls) - len(outcomes)):
                    self._workers.append(_start(self._begin))
                for worker in [w for w in self._workers if w.ready and not w.pending]:
                    if waiting and not self._send(worker, waiting[0], calls):
                        lost(worker, "it ended")
                    elif waiting:
                        worker.pending = waiting.popleft()
                        worker.deadline = time.monotonic() + self.timeout
                busy = [w for w in self._workers if w.pending or not w.ready]
                left = min((w.deadline for w in busy), default=0.0) - time.monotonic()
                heard = set(wait([w.connection for w in busy], max(0.0, left)))
                for worker in busy:
                    if worker.connection in heard:
                        self._hear(worker, outcomes, failed, lost)
                    elif time.monotonic() >= worker.deadline:
                        lost(worker, f"no result in {self.timeout if worker.ready else START:g} s")
        except BaseException:  # Ctrl-C too: what is still being worked on is of no use
            _close(self._workers)
            raise
        return [outcomes[index] for index in range(len(calls))]

    def _send(self, worker: Worker, indices: Sequence[int], calls: Sequence[tuple]) -> bool:
        """False where the worker is no more. Raises: TypeError where a call cannot be pickled."""
        try:
            worker.connection.send([calls[index] for index in indices])
        except OSError:
            return False
        except Exception as error:  # of whatever is in a record
            raise TypeError(
                f"reward {self.name}: a record cannot be sent to another process ({error}): use plain data, "
                "or processes=0"
            ) from error
        return True

    def _hear(
        self,
        worker: Worker,
        outcomes: dict[int, Outcome],
        failed: Callable[[int, str], None],
        lost: Callable[[Worker, str], None],
    ) -> None:
        try:
            kind, value = worker.connection.recv()
        except (EOFError, OSError):
            lost(worker, "its process ended" if worker.ready else "it ended before it began")
            return
        if kind == "broken":
            raise RuntimeError(f"reward {self.name}: a worker process cannot load the function ({value})")
        if kind == "ready":
            worker.ready = True
            return
        index = worker.pending.popleft()
        worker.deadline = time.monotonic() + self.timeout
        if kind == "type":
            raise wrong_type(self.name, value)
        if kind == "error":
            failed(index, value)
        else:
            outcomes[index] = (kind, value)


def wrong_type(name: str, value: str) -> TypeError:
    """What is said of a function that returns a string or a list."""
    return TypeError(f"reward {name} returned {value}: must be one number or a boolean")


def importable(function: Callable[..., Any]) -> bool:
    """Whether another process finds the function: it has a name in a module that has a file."""
    try:
        _preparation(function)
        pickle.dumps(function)
    except Exception:  # PicklingError, AttributeError, TypeError: by what kind of object it is
        return False
    return True


def _preparation(function: Callable[..., Any]) -> dict[str, Any]:
    """For `multiprocessing.spawn.prepare`: the script is run again, under another name, only where the
    function is in it. Raises: ValueError where it stands in no file.
    """
    found = {"sys_path": sys.path, "sys_argv": sys.argv, "dir": os.getcwd()}
    inner = getattr(function, "func", function)  # of a partial
    if getattr(inner, "__module__", None) != "__main__":
        return found
    main = sys.modules["__main__"]
    if main.__spec__ is not None:  # python -m
        return found | {"init_main_from_name": main.__spec__.name}
    if not os.path.isfile(getattr(main, "__file__", None) or ""):
        raise ValueError("typed at a prompt")
    return found | {"init_main_from_path": os.path.abspath(str(main.__file__))}


def _start(begin: tuple[dict[str, Any], bytes]) -> Worker:
    ours, theirs = Pipe()
    program = Path(__file__).with_name("worker.py")
    process = subprocess.Popen(
        # -P: the folder of the program is no place to import from
        [sys.executable, "-P", str(program), str(theirs.fileno()), str(os.getpid())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},  # a function that uses JAX must not take the accelerator
    )
    theirs.close()
    ours.send(begin)
    return Worker(process, ours, time.monotonic() + START)


def _close(workers: list[Worker]) -> None:
    for worker in workers:
        with suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)  # before `wait`, while its number is still its own
    for worker in workers:
        worker.process.wait()
        worker.connection.close()
    workers.clear()
