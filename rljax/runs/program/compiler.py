"""A small compiler: programs by name, traced here, compiled in threads, and what that took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from rljax import backend

SMALL = 2**26  # bytes; what starts a run and makes no more is compiled with little optimisation


class Seconds(NamedTuple):
    """What the programs of a run took so far."""

    trace: float = 0.0  # to trace and lower them, one after the other
    compile: float = 0.0  # to compile them or to read them from the cache, each with a thread of its own
    wait: float = 0.0  # that the run waited for it
    programs: int = 0
    cached: int = 0  # programs that were read from the cache

    def plus(self, other: Seconds) -> Seconds:
        return Seconds(
            self.trace + other.trace,
            self.compile + other.compile,
            self.wait + other.wait,
            self.programs + other.programs,
            self.cached + other.cached,
        )


def startup(spent: Seconds, seconds: float) -> dict[str, float]:
    """What summary.json says of the time before the first iteration, of which this run took `seconds`."""
    imported = backend.importing.take()
    return {
        "seconds": round(imported + seconds, 2),
        "import": round(imported, 2),
        "trace": round(spent.trace, 2),
        "compile": round(spent.wait, 2),
        "programs": spent.programs,
        "cached": spent.cached,
    }


def told(start: dict[str, float]) -> str:
    """How the programs of a run came to be, in words, from its `startup`."""
    seconds = f"{start['trace'] + start['compile']:.1f} s"
    if start["cached"] == start["programs"] > 0:
        return f"compiled before: read from the cache in {seconds}"
    return f"compiled in {seconds}"


class Compiler:
    """Compiles functions over arguments for the devices of one kind.

    `programs` keeps them by name, for later calls and for later compilers that are given the same dict.
    """

    def __init__(self, programs: dict[Any, Any], device: Any, **jit: Any) -> None:
        self.programs, self.device, self.jit = programs, device, jit
        self.seconds = Seconds()
        self.threads = ThreadPoolExecutor(backend.cores(), "compile")

    def start(
        self, name: Any, function: Callable[..., Any], arguments: tuple, donate: tuple[int, ...] = (),
        use: backend.Use = "training",
    ) -> None:  # fmt: skip
        """Trace a program unless it is there, and let a thread compile it for this use."""
        if name in self.programs:
            return
        begun = time.perf_counter()
        traced = jax.jit(function, donate_argnums=donate, **self.jit).trace(*arguments)
        lowered = traced.lower()
        small = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(traced.out_info)) <= SMALL
        options = backend.compiler_options(self.device, "training" if use == "start" and not small else use)
        self.seconds = self.seconds.plus(Seconds(trace=time.perf_counter() - begun))
        self.programs[name] = self.threads.submit(_compile, lowered, options)

    def get(self, name: Any) -> Any:
        """A program that was started, compiled."""
        found = self.programs[name]
        if isinstance(found, Future):
            begun = time.perf_counter()
            program, seconds, cached = found.result()
            waited = time.perf_counter() - begun
            self.programs[name] = program
            self.seconds = self.seconds.plus(Seconds(0.0, seconds, waited, 1, int(cached)))
        return self.programs[name]

    def __call__(self, name: Any, function: Callable[..., Any], arguments: tuple, **how: Any) -> Any:
        """The program, started if it is not there, compiled."""
        self.start(name, function, arguments, **how)
        return self.get(name)


class _Hits(threading.local):
    """How many programs this thread has read from JAX's cache."""

    number = 0


_hits = _Hits()


def _count(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _hits.number += 1


jax.monitoring.register_event_listener(_count)


def _compile(lowered: Any, options: dict[str, Any]) -> tuple[Any, float, bool]:
    """A program, the seconds that it took, and whether it was read from the cache."""
    begun, before = time.perf_counter(), _hits.number
    program = lowered.compile(options)
    return program, time.perf_counter() - begun, _hits.number > before
