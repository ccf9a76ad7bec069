"""The `rljax` command as a process of its own, also as `python -m rljax`."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from rljax.cli import main


def command() -> NoReturn:
    """Run the command line, and end the process with its exit status.

    What the run had to save is saved by then, so Ctrl-C and SIGTERM are ignored while the interpreter cleans
    up: there they would end the process with a status of their own.
    """
    status = main()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


if __name__ == "__main__":
    command()
