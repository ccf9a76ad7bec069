"""How far a run is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO


class Progress:
    """How far a run is: a bar on a terminal; elsewhere a line at once, one after five seconds, after ten
    more, after twenty more, …, one a minute from then on, and the last.

    Writes to stderr (or `stream`), so that stdout keeps what the command prints; nothing without `enabled`.
    `unit` is what the steps are.
    """

    FIRST, LONGEST = (
        5.0,
        60.0,
    )  # seconds between two lines where there is no terminal, at first and in the end

    def __init__(
        self,
        total_steps: int,
        description: str,
        enabled: bool = True,
        *,
        unit: str = "steps",
        stream: TextIO | None = None,
    ) -> None:
        self._unit, self._wait = unit, self.FIRST
        self._stream = sys.stderr if stream is None else stream
        self._total, self._description, self._enabled = total_steps, description, enabled
        self._began, self._first, self._last = time.monotonic(), None, None
        self._printed, self._pending = self._began, False
        self._figures: tuple[str, str] = ("", "")  # the rate, and the headline
        self._live: Any = None
        if not enabled:
            return
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream)
            self._live = Live(self, console=console, refresh_per_second=5)
            self._live.start(refresh=True)
        else:
            self._print(f"{description}: compiling…")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, steps: int, steps_per_second: float, value: float | None, label: str = "return") -> None:
        """`steps` of the total are done, at this speed; `label` says what `value` is (None: unknown)."""
        self._last = (time.monotonic(), steps)
        self._first = self._first or self._last
        known = value is not None and math.isfinite(value)
        self._figures = (
            f"{short(steps_per_second)} {self._unit.rpartition(' ')[2]}/s",
            f"{label} {value:.5g}" if known else f"{label} –",
        )
        self._pending = True
        if self._enabled and self._live is None and self._last[0] - self._printed >= self._wait:
            self._line()
            self._wait = min(2 * self._wait, self.LONGEST)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._enabled:
            self._print(text)

    def show(self, renderable: Any) -> None:
        """Something of `rich`, above the bar."""
        from rich.console import Console

        if self._live is not None:
            self._live.console.print(renderable)
        elif self._enabled:
            Console(file=self._stream, width=120).print(renderable)

    def close(self) -> None:
        """Draws the last state. A second call does nothing."""
        if self._live is not None:
            self._live.stop()
        elif self._enabled and self._pending:
            self._line()
        self._enabled, self._live = False, None

    def remaining(self) -> float | None:
        """Seconds to go at the average speed since the first update, None before there is one."""
        if self._first is None or self._last is None or self._last[1] <= self._first[1]:
            return None
        pace = (self._last[0] - self._first[0]) / (self._last[1] - self._first[1])
        return max(0.0, pace * (self._total - self._last[1]) - (time.monotonic() - self._last[0]))

    def _line(self) -> None:
        done = 0 if self._last is None else self._last[1]
        share = f"{done:,}/{self._total:,} {self._unit} ({done / max(self._total, 1):.0%})"
        self._print(f"{self._description}: " + "  ".join([share, *self._figures, self._clock()]))
        self._printed, self._pending = time.monotonic(), False

    def _print(self, text: str) -> None:
        try:
            print(text, file=self._stream, flush=True)
        except UnicodeEncodeError:
            print(text.encode("ascii", "replace").decode(), file=self._stream, flush=True)

    def _clock(self) -> str:
        left = self.remaining()
        return f"{clock(time.monotonic() - self._began)} so far" + (f", {clock(left)} to go" if left else "")

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """The bar as it is now; rich draws it five times a second."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 1), expand=True)
        for column in range(6):
            grid.add_column(no_wrap=True, ratio=1 if column == 1 else None, overflow="ellipsis")
        elapsed, left = clock(time.monotonic() - self._began), self.remaining()
        title = self._description if options.max_width >= 80 else ""
        if self._last is None:
            grid.add_row(title, ProgressBar(pulse=True), f"compiling… {elapsed}", "", "", "")
        else:
            done, end = self._last[1], "–" if left is None else clock(left)
            bar = ProgressBar(total=max(self._total, 1), completed=done)
            rate, value = self._figures
            ending = f"in {elapsed}" if done >= self._total else f"ETA {end}"
            grid.add_row(title, bar, f"{short(done)}/{short(self._total)}", rate, value, ending)
        yield grid


def short(number: float) -> str:
    """Three digits and a letter: 950, 12.3k, 1.5M, 2G."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: 0:07, 12:30, 3:00:00."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
