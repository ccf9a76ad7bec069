"""Sweeps: numbers × seeds in one compilation, static fields in groups, every member an ordinary run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import rljax
from rljax import algorithms
from rljax.checks import RunError
from rljax.runs import load
from rljax.runs import sweep as sweeping
from rljax.runs.program import engine
from rljax.runs.sweep import SweepResult
from tests.runs.tiny import CONFIG, PER_ITERATION, WALK, strict

SHORT = CONFIG.replace(total_steps=PER_ITERATION)
GRID = {"learning_rate": [1e-3, 1e-2], "entropy_coefficient": [0.0, 0.1], "num_epochs": [1, 2]}
QUIET: dict[str, Any] = {"evaluation_episodes": 4, "progress": False}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """Two static combinations of four configurations × two seeds."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    return rljax.sweep("ppo", WALK, GRID, SHORT, seeds=2, seed=5, out=out, **QUIET)


@contextmanager
def watched() -> Iterator[tuple[list[Any], list[engine.Program]]]:
    """What XLA compiles meanwhile, whatever `sweep` says of it, and the programs that are built."""
    compiled, built = [], []
    lower, build = jax.stages.Lowered.compile, engine.build
    with pytest.MonkeyPatch.context() as patch:
        count = lambda self, *a, **k: (compiled.append(self), lower(self, *a, **k))[1]
        patch.setattr(jax.stages.Lowered, "compile", count)
        patch.setattr(engine, "build", lambda *a, **k: (built.append(build(*a, **k)), built[-1])[1])
        yield compiled, built


RATES = {"learning_rate": [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]}


@pytest.fixture(scope="module")
def together() -> tuple[SweepResult, int, int]:
    """Five members in one program, what was compiled for them, and what their program needs in bytes."""
    with watched() as (compiled, built):
        result = rljax.sweep("ppo", WALK, RATES, SHORT, memory_gigabytes=100, **QUIET)
    return result, len(compiled), built[-1].memory_bytes()


def test_one_compilation_for_each_static_combination(swept: SweepResult) -> None:
    assert swept.compilations == 2
    assert [len(part.summary["return"]["per_seed"]) for part in swept.parts] == [8, 8]
    assert {row["part"] for row in swept.members} == {"part-000", "part-001"}


def test_one_compilation_for_any_number_of_numbers(together: tuple[SweepResult, int, int]) -> None:
    result, compiled, _ = together
    assert result.compilations == 1
    assert compiled == 3  # init, advance, evaluate


def test_sweep_json(swept: SweepResult) -> None:
    result = swept
    told = strict((result.folder / "sweep.json").read_text())
    assert set(told) == {
        "algorithm",
        "unit",
        "env",
        "grid",
        "seeds",
        "headline",
        "members",
        "compilations",
        "steps_per_second",
        "device",
    }
    assert (told["algorithm"], told["env"], told["seeds"]) == ("ppo", "Walk", 2)
    assert told["grid"] == GRID
    assert told["compilations"] == 2
    assert told["members"] == result.members
    cells = {
        (m["learning_rate"], m["entropy_coefficient"], m["num_epochs"], m["seed"]) for m in told["members"]
    }
    assert len(told["members"]) == len(cells) == 16
    assert {seed for *_, seed in cells} == {5, 6}
    for row in told["members"]:
        part = strict((result.folder / row["part"] / "config.json").read_text())
        summary = strict((result.folder / row["part"] / "summary.json").read_text())
        assert list(row) == ["part", "member", "seed", *GRID, "return"]
        assert part["swept"] == ["learning_rate", "entropy_coefficient"]
        assert part["seeds"][row["member"]] == row["seed"]
        assert part["config"]["learning_rate"][row["member"]] == row["learning_rate"]
        assert part["config"]["entropy_coefficient"][row["member"]] == row["entropy_coefficient"]
        assert part["config"]["num_epochs"] == row["num_epochs"]
        assert summary["return"]["per_seed"][row["member"]] == row["return"]


def test_a_member_is_the_run_that_train_makes(swept: SweepResult) -> None:
    """After one iteration, to the tolerance of the house."""
    row = swept.members[3]
    config = SHORT.replace(**{field: row[field] for field in GRID})
    alone = rljax.train("ppo", WALK, config, seed=row["seed"], **QUIET)
    states = swept.parts[int(row["part"][-3:])].states
    for one, all_ in zip(jax.tree.leaves(alone.states), jax.tree.leaves(states), strict=True):
        np.testing.assert_allclose(one[0], all_[row["member"]], rtol=1e-4, atol=1e-7)


def test_members_differ(swept: SweepResult) -> None:
    for part in swept.parts:
        biases = np.concatenate([leaf.reshape(8, -1) for leaf in jax.tree.leaves(part.states.params)], axis=1)
        assert len(np.unique(biases, axis=0)) == 8


def test_a_member_is_an_ordinary_run(swept: SweepResult, tmp_path: Path) -> None:
    """It can be evaluated, loaded, and started from."""
    result = swept
    part = result.folder / "part-001"
    everyone = rljax.evaluate(part, episodes=5, env=WALK)
    alone = rljax.evaluate(part, episodes=5, env=WALK, member=6)
    assert alone["return"]["per_seed"] == everyone["return"]["per_seed"][6:7]
    loaded = load.load(part, member=6, env=WALK)
    row = next(row for row in result.members if (row["part"], row["member"]) == ("part-001", 6))
    assert (loaded.config.learning_rate, loaded.config.entropy_coefficient) == (
        row["learning_rate"],
        row["entropy_coefficient"],
    )
    assert (loaded.config.num_epochs, loaded.seed) == (row["num_epochs"], row["seed"])
    for one, all_ in zip(
        jax.tree.leaves(loaded.state.params), jax.tree.leaves(result.parts[1].states.params), strict=True
    ):
        np.testing.assert_array_equal(one, all_[6])
    on = rljax.train(
        "ppo", WALK, loaded.config, init=part, init_member=6, out=tmp_path / "on", checkpoint_every=1, **QUIET
    )
    assert on.summary["steps"] == PER_ITERATION
    with pytest.raises(ValueError, match=r"is a sweep: name one of its runs, such as .*part-000"):
        rljax.evaluate(result.folder)


def test_memory_splits_a_sweep(together: tuple[SweepResult, int, int]) -> None:
    """Five members that do not fit together: pieces of one program, the same numbers."""
    whole, _, needed = together
    with watched() as (compiled, _):
        room = needed / 2**30 * 0.99
        split = rljax.sweep("ppo", WALK, RATES, SHORT, memory_gigabytes=room, **QUIET)
    assert [len(part.summary["return"]["per_seed"]) for part in split.parts] == [4, 1]
    assert split.compilations == 2  # the one that did not fit, and the one for both pieces
    assert len(compiled) == split.compilations + 2  # init and evaluate
    without = lambda rows: [{key: row[key] for key in ("learning_rate", "seed")} for row in rows]
    assert without(split.members) == without(whole.members)
    parts = zip(*(jax.tree.leaves(part.states) for part in split.parts), strict=True)
    for pieces, right in zip(parts, jax.tree.leaves(whole.parts[0].states), strict=True):
        np.testing.assert_allclose(np.concatenate(pieces), right, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("limit", "sizes", "tried"), [(100, [5], 1), (49, [4, 1], 2), (21, [2, 2, 1], 2), (5, [1] * 5, 2)]
)
def test_pieces_are_as_large_as_fit(
    monkeypatch: pytest.MonkeyPatch, limit: float, sizes: list[int], tried: int
) -> None:
    """Where a member needs 10 bytes; the last program, of one member, is not tried beforehand."""
    program = lambda *arguments, **_: SimpleNamespace(memory_bytes=lambda: 10 * len(arguments[4]))
    monkeypatch.setattr(engine, "build", program)
    part = sweeping.Part({}, {"clip": [0.1, 0.2, 0.3, 0.4, 0.5]}, [1, 2, 3, 4, 5])
    setup = load.setup(algorithms.find("ppo"), WALK, SHORT, None, {})
    pieces, compiled = sweeping._split(setup, part, limit, None, {})
    assert [len(piece.seeds) for piece in pieces] == sizes
    assert [seed for piece in pieces for seed in piece.seeds] == part.seeds
    assert [value for piece in pieces for value in piece.swept["clip"]] == part.swept["clip"]
    assert compiled == tried


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ({"learning_rat": [1e-3]}, r"ppo\.Config has no field learning_rat; did you mean learning_rate\?"),
        ({"learning_rate": []}, "the sweep of learning_rate has no values"),
        ({"learning_rate": 1e-3}, r"the sweep of learning_rate is over 0\.001: must be a list of values"),
        ({"activation": "tanh"}, "the sweep of activation is over 'tanh': must be a list of values"),
        ({"learning_rate": [1e-3, -1.0]}, r"learning_rate = -1: must be above 0"),
        ({"learning_rate": [1e-3, float("nan")]}, r"learning_rate = nan: must be a finite number"),
        ({"learning_rate": [1e-3, "fast"]}, r"learning_rate = 'fast': must be a number"),
        (
            {"learning_rate": [1e-3], "num_epochs": [1, 0]},
            r"num_epochs = 0: must be an integer of at least 1",
        ),
        ({"num_minibatches": [1, 5]}, "num_minibatches = 5: must divide"),
        ({"hidden_sizes": [(8,), 8]}, r"hidden_sizes = 8: must be a tuple"),
        ({"activation": ["tanh", "rleu"]}, r"activation = 'rleu': .*did you mean relu\?"),
        ({"total_steps": [64, 0]}, r"total_steps = 0: must be above 0"),
        ({"total_steps": [64, float("inf")]}, r"total_steps = inf: must be a finite number"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: dict, told: str
) -> None:
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_, **__: pytest.fail("compiled"))
    with pytest.raises(ValueError, match=told) as error:
        rljax.sweep("ppo", WALK, grid, SHORT, seeds=2, out=tmp_path / "out", **QUIET)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seeds": 0}, "seeds = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"keep": 0}, "keep = 0: must be an integer of at least 1"),
        ({"resume": True}, "no option resume"),
    ],
)
def test_wrong_options_are_refused(change: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        rljax.sweep("ppo", WALK, {"clip": [0.1]}, SHORT, **QUIET | change)


def test_a_folder_in_use(swept: SweepResult) -> None:
    folder = swept.folder
    for out in (folder, folder / "part-000"):
        with pytest.raises(ValueError, match="already holds a sweep or a run: choose another --out"):
            rljax.sweep("ppo", WALK, {"clip": [0.1]}, SHORT, out=out, **QUIET)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps train nothing: each member's return is its seed."""

    def result(setup: load.Setup, swept: dict, seeds: list[int], *_, **__) -> Any:
        steps = float(setup.config.total_steps)
        summary = {"headline": "return", "return": {"per_seed": seeds}, "steps_per_second": steps}
        return SimpleNamespace(summary=summary)

    monkeypatch.setattr(sweeping, "train_members", result)
    monkeypatch.setattr(sweeping, "_split", lambda setup, part, *_: ([part], 1))


def test_values_may_come_from_numpy_or_a_generator(untrained: None, tmp_path: Path) -> None:
    """And members of one program run equally long: total_steps is grouped like a static field."""
    grid = {"clip": np.array([0.125, 0.25]), "total_steps": (steps for steps in (32, 64))}
    result = rljax.sweep("ppo", WALK, grid, SHORT, out=tmp_path, seeds=2, **QUIET)
    told = strict((tmp_path / "sweep.json").read_text())
    assert told["grid"] == {"clip": [0.125, 0.25], "total_steps": [32, 64]}
    assert [part.summary["steps_per_second"] for part in result.parts] == [32, 64]
    assert told["members"] == result.members
    cells = [(row["part"], row["member"], row["seed"], row["clip"]) for row in told["members"]]
    assert cells == [
        (part, 2 * i + seed, seed, clip)
        for part in ("part-000", "part-001")
        for i, clip in enumerate((0.125, 0.25))
        for seed in (0, 1)
    ]


def test_sweep_json_on_a_full_disk(untrained: None, tmp_path: Path) -> None:
    (tmp_path / ".sweep.json.partial").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"cannot write to .*No space left"):
        rljax.sweep("ppo", WALK, {"clip": [0.1]}, SHORT, out=tmp_path, **QUIET)
