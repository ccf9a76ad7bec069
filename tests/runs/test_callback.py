"""Functions of the user's that a run calls at every row of metrics."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import rljax
from tests.runs.tiny import CONFIG, ITERATIONS, WALK, rows

QUIET: dict[str, Any] = {"evaluation_episodes": 4, "progress": False, "log_every": 2}


def test_it_sees_every_row_and_the_states_of_all_members(tmp_path: Path) -> None:
    seen: list[tuple[dict[str, Any], Any]] = []
    result = rljax.train(
        "ppo",
        WALK,
        CONFIG,
        seeds=2,
        out=tmp_path / "run",
        callback=lambda *given: seen.append(given),
        **QUIET,
    )
    assert [row for row, _ in seen] == result.rows
    assert [row["iteration"] for row in rows(tmp_path / "run")] == [row["iteration"] for row, _ in seen]
    assert [row["iteration"] for row, _ in seen] == list(range(2, ITERATIONS + 1, 2))
    row, states = seen[-1]
    np.testing.assert_array_equal(states.iteration, [row["iteration"]] * 2)
    for last, found in zip(
        *(map(np.asarray, jax.tree.leaves(each.params)) for each in (states, result.states)),
        strict=True,
    ):
        np.testing.assert_array_equal(last, found)


def test_true_ends_the_run_with_a_checkpoint_and_a_summary(tmp_path: Path) -> None:
    calls: list[int] = []

    def stop(row: dict[str, Any], states: Any) -> bool:
        calls.append(row["iteration"])
        return row["iteration"] >= 4

    result = rljax.train(
        "ppo", WALK, CONFIG, out=tmp_path / "run", callback=[lambda row, states: None, stop], **QUIET
    )
    assert calls == [2, 4]
    assert result.rows[-1]["iteration"] == 4
    assert result.summary["finished"]
    assert rljax.load(tmp_path / "run", env=WALK).state.iteration == 4


def test_what_is_no_function_is_refused_and_an_error_comes_through() -> None:
    with pytest.raises(ValueError, match=r"^callback = 3: must be a function of \(row, states\), or a list$"):
        rljax.train("ppo", WALK, CONFIG, callback=3, **QUIET)

    def broken(row: dict[str, Any], states: Any) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        rljax.train("ppo", WALK, CONFIG, callback=broken, **QUIET)
