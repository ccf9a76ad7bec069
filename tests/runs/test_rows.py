"""A row of metrics is the mean over all of its iterations, however they were cut into chunks."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from rljax.runs import loop
from rljax.types import Mean


class Metrics(NamedTuple):
    value: Mean


@pytest.mark.parametrize("pace", [0.0, 1e9])
def test_a_row_is_the_mean_over_all_of_its_chunks(pace: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iteration i of 5 counts i values of i; rows end after 3 and 5. Member 1 has none of them."""
    monkeypatch.setattr(loop, "PACE", pace)
    done, chunks = [0], []

    def advance(states: Any, n: int, retry: int) -> Any:
        numbers = np.arange(done[0] + 1, done[0] + n + 1)
        done[0] += n
        chunks.append(n)
        zero = np.zeros(1)
        total, count = (np.concatenate([[each.sum()], zero]) for each in (numbers**2, numbers))
        return states, Metrics(Mean(total, count)), np.full(2, -1)

    program: Any = SimpleNamespace(advance=advance, fetch=lambda tree: tree)
    rows = [row for _, row in loop.advance(program, (), 0, 5, [3])]
    assert [row.iteration for row in rows] == [3, 5]
    assert chunks == ([1] * 5 if pace == 0 else [1, 2, 2])
    np.testing.assert_allclose([row.metrics["value"] for row in rows], [[14 / 6, np.nan], [41 / 9, np.nan]])
