"""Data that is read while it is learnt: the block of each iteration, and in a thread the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from rljax.runs.folder.checkpoint import Restored
from rljax.runs.program.engine import Program
from rljax.types import Env, Feed, PyTree, Task


class Feeder:
    """The blocks of a Feed in the order of iterations. It holds where reading stands and two blocks."""

    def __init__(
        self,
        feed: Feed,
        place: Callable[[PyTree], PyTree],
        total: int,
        iteration: int = 0,
        position: Mapping[str, int] | None = None,
    ) -> None:
        """For iterations `iteration` to `total`; `place` puts a block on the devices. `position` is where the
        block of `iteration` begins, None at the start. The first block is read here.
        """
        self.feed, self.place, self.total = feed, place, total
        self.number = iteration // feed.iterations
        self.position = dict(feed.init() if position is None else position)
        self.thread = ThreadPoolExecutor(1)
        self.following, block = feed.next(self.position)
        self.block = place(block)
        self.pending = self._ahead()

    def _ahead(self) -> Future | None:
        needed = self.end(self.number * self.feed.iterations) < self.total
        return self.thread.submit(self.feed.next, self.following) if needed else None

    def end(self, iteration: int) -> int:
        """The iteration at which another block begins than that of `iteration`."""
        return iteration - iteration % self.feed.iterations + self.feed.iterations

    def at(self, iteration: int) -> PyTree:
        """The block that an iteration learns from, on the devices; iterations come in order."""
        if iteration // self.feed.iterations != self.number:
            assert self.pending is not None, "the iteration lies before `total`"
            self.position = self.following
            self.following, block = self.pending.result()
            self.number, self.block = self.number + 1, self.place(block)
            self.pending = self._ahead()
        return self.block

    def begins(self, iteration: int) -> dict[str, int]:
        """Where the block of an iteration begins: of the newest one, or of the one after it."""
        same = iteration // self.feed.iterations == self.number
        return self.position if same else self.following

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)


def of(env: Env | Task, program: Program, restored: Restored | None, total: int) -> Feeder | None:
    """What reads the data of a task while it is learnt, from where the checkpoint says."""
    if not (isinstance(env, Task) and isinstance(env.learn, Feed)):
        return None
    if restored is None:
        return Feeder(env.learn, program.share, total)
    return Feeder(env.learn, program.share, total, restored.iteration, restored.metadata["feed"])
