"""Ctrl-C and SIGTERM: one handler notes the first of them, and what computes stops where nothing is lost.

A KeyboardInterrupt in the middle of tracing or compiling can be swallowed by a callback, or can end the
process while threads of XLA still work. So nothing is raised there; `Stop.check` is called between the steps
of a run.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = signal.SIGINT, signal.SIGTERM


def stopped(text: str, signum: int) -> KeyboardInterrupt:
    """What a run raises that was asked to stop and has saved all that it had computed.

    No class of its own: Python ends a script with the status of Ctrl-C for KeyboardInterrupt itself alone.
    """
    error = KeyboardInterrupt(text)
    vars(error)["signum"] = signum
    return error


def signal_of(error: KeyboardInterrupt) -> int:
    """The signal that asked for it."""
    return vars(error).get("signum", signal.SIGINT)


class Stop:
    """A signal handler that notes the first signal. The second one raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.signum = 0

    def __call__(self, signum: int, frame: Any) -> None:
        if self.signum:
            raise KeyboardInterrupt
        self.signum = signum

    def is_set(self) -> bool:
        """Whether a signal has come."""
        return self.signum != 0

    def check(self, text: str) -> None:
        """Raises: KeyboardInterrupt where a signal has come."""
        if self.signum:
            raise stopped(text, self.signum)


def _installed() -> Stop | None:
    handlers = [signal.getsignal(number) for number in SIGNALS]
    return next((handler for handler in handlers if isinstance(handler, Stop)), None)


def check(text: str = "interrupted before training began: nothing is lost") -> None:
    """Raises: KeyboardInterrupt where the block of `stoppable` that this is called in has noted a signal."""
    if (stop := _installed()) is not None:
        stop.check(text)


@contextmanager
def stoppable(finished: str = "interrupted; what was running had come to its end") -> Iterator[Stop]:
    """Within, Ctrl-C and SIGTERM are noted by the Stop that is given, which is that of the outermost block.

    Signals that the process ignores (as under nohup) or handles itself (SIGTERM) are left as they are, and so
    are those of another thread than the main one.

    Raises: KeyboardInterrupt with the text `finished` at the end of the outermost block, where a signal was
    noted and nothing has stopped for it.
    """
    outer = _installed()
    if outer is not None:
        yield outer
        return
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in previous.items():
        if handler is signal.SIG_DFL or (number == signal.SIGINT and handler is not signal.SIG_IGN):
            signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)
    stop.check(finished)
