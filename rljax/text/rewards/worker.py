"""A process that calls one function for `pool`. Run as a script, and made of the standard library alone, so
that it starts in a moment and imports JAX only where the function's own module does.
"""

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.spawn import prepare
from typing import Any

LONGEST = 300  # characters of an error that are told


def outcome(function: Callable[..., Any], call: tuple) -> tuple[str, Any]:
    """("value", a float, NaN where the function has none), ("absent", NaN) of a None, ("error", what it
    raised) or ("type", what it returned instead).
    """
    try:
        value = function(*call)
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            value = value.item()
        if value is None:
            return "absent", float("nan")
        if isinstance(value, bool | int | float):
            return "value", float(value)
        return "type", f"{type(value).__name__} {value!r}"[:LONGEST]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: the function is not ours
        return "error", told(error)


def told(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST]


def serve(connection: Connection) -> None:
    """Calls what comes in, one message per result, until the other end is closed."""
    try:
        preparation, pickled = connection.recv()
        prepare(preparation)
        function = pickle.loads(pickled)
    except BaseException as error:
        connection.send(("broken", told(error)))
        return
    connection.send(("ready", ""))
    while True:
        try:
            calls = connection.recv()
        except EOFError:  # what the function started ends with us
            return os.killpg(0, signal.SIGKILL)
        except BaseException as error:
            connection.send(("broken", told(error)))
            return
        for call in calls:
            connection.send(outcome(function, call))


def watch(parent: int) -> None:
    """Ends this process and all that it started with its parent, also where the function never returns."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes us
    threading.Thread(target=watch, args=(int(sys.argv[2]),), daemon=True).start()
    serve(Connection(int(sys.argv[1])))
