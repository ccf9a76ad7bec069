"""Checkpoints: a run that was cut off goes on bit for bit, from the newest checkpoint that is whole."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rljax import algorithms
from rljax.algorithms import ppo
from rljax.runs.folder import checkpoint, files
from rljax.runs.recorder import Result
from tests.runs.tiny import CONFIG, ITERATIONS, Quick, checkpoints, rows, strict

# Trains until it kills itself as a machine would: no handler runs, no buffer is flushed, no file is closed.
KILLED = """
import os, signal, sys
from pathlib import Path
from rljax import algorithms
from rljax.runs import load
from rljax.runs.folder import checkpoint, writers
from rljax.runs.recorder import Options
from rljax.runs.train import train_members
from tests.runs.tiny import CONFIG, WALK

out, seeds, where = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

write_json, write_row = checkpoint.write_json, writers.MetricsFile.write
if where == "inside a checkpoint":
    checkpoint.write_json = lambda path, content: (
        die() if content.get("iteration") == 8 else write_json(path, content)
    )
elif where == "inside a row":
    def half(self, row):
        if row["iteration"] == 7:
            self._file.write('{"iteration": 7, "ste')
            self._file.flush()
            die()
        write_row(self, row)
    writers.MetricsFile.write = half

options = Options(checkpoint_every=2, log_every=1, evaluation_episodes=4, progress=False)
setup = load.setup(algorithms.find("ppo"), WALK, CONFIG, None, {})
train_members(setup, {}, list(range(seeds)), out, options=options)
"""
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("seeds", "where"), [(1, "inside a row"), (3, "inside a checkpoint")])
def test_a_killed_run_goes_on_bit_for_bit(
    quick: Quick, tmp_path: Path, capfd: pytest.CaptureFixture, seeds: int, where: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), str(seeds), where],
        cwd=ROOT,
        timeout=120,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"},
    )
    assert done.returncode == -signal.SIGKILL
    assert checkpoints_whole(tmp_path / "run") == [2, 4, 6]
    members = tuple(range(seeds))
    uninterrupted = quick(tmp_path / "other", members, log_every=1, checkpoint_every=5)
    resumed = quick(tmp_path / "run", members, resume=True, log_every=1, checkpoint_every=2, progress=True)
    assert "resuming at iteration 6" in capfd.readouterr().err
    assert resumed.summary["state_sha256"] == uninterrupted.summary["state_sha256"]
    assert resumed.summary["return"] == uninterrupted.summary["return"]
    assert_same_rows(rows(tmp_path / "run"), rows(tmp_path / "other"))
    assert [row["iteration"] for row in rows(tmp_path / "run")] == list(range(1, ITERATIONS + 1))
    seconds = [row["seconds"] for row in rows(tmp_path / "run", timings=True)]
    assert seconds == sorted(seconds)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def checkpoints_whole(run: Path) -> list[int]:
    folders = (run / "checkpoints").glob("[0-9]*")
    return sorted(int(path.name) for path in folders if checkpoint.problem(path) is None)


def assert_same_rows(found: list[dict], right: list[dict]) -> None:
    """Equal but for the last bits: the clock decides in how many parts the sums of a row are added up."""
    assert [row.keys() for row in found] == [row.keys() for row in right]
    for one, other in zip(found, right, strict=True):
        for key in one:
            np.testing.assert_allclose(
                np.array(one[key], float), np.array(other[key], float), rtol=1e-5, atol=1e-7, err_msg=key
            )


def test_rhythm_changes_no_number(quick: Quick, whole: Result, tmp_path: Path) -> None:
    other = quick(tmp_path / "run", log_every=5, checkpoint_every=3, evaluate_every=4)
    assert other.summary["state_sha256"] == whole.summary["state_sha256"]


@pytest.fixture
def copy(whole: Result, tmp_path: Path) -> Path:
    """A copy of the finished run as it was after iteration 8, with checkpoints 2, 4, 6 and 8."""
    run = tmp_path / "run"
    shutil.copytree(whole.folder, run)
    for iteration in (10, 12):
        shutil.rmtree(run / "checkpoints" / f"{iteration:09d}")
    for name in ("summary.json", "curve.png"):
        (run / name).unlink()
    return run


def test_resume_drops_the_rows_after_the_checkpoint(quick: Quick, whole: Result, copy: Path) -> None:
    resumed = quick(copy, resume=True, log_every=2, checkpoint_every=2)
    assert resumed.summary["state_sha256"] == whole.summary["state_sha256"]
    assert [row["iteration"] for row in resumed.rows] == [10, 12]
    assert_same_rows(rows(copy), rows(whole.folder))
    assert (copy / "curve.png").is_file()


def damage_manifest_away(path: Path) -> None:
    (path / "manifest.json").unlink()


def damage_empty_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("")


def damage_manifest_of_another_kind(path: Path) -> None:
    (path / "manifest.json").write_text("[1]")


def damage_manifest_without_metadata(path: Path) -> None:
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"metadata"', '"metbdata"'))


def damage_iteration_in_manifest(path: Path) -> None:
    text = (path / "manifest.json").read_text()
    assert '"iteration": 8' in text
    (path / "manifest.json").write_text(text.replace('"iteration": 8', '"iteration": 9'))


def damage_not_text(path: Path) -> None:
    (path / "manifest.json").write_bytes(b"\xff\xfe\x00{")


def largest(path: Path) -> Path:
    return max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def damage_truncated(path: Path) -> None:
    with open(largest(path / "state"), "r+b") as file:
        file.truncate(largest(path / "state").stat().st_size // 2)


def damage_bit_flip(path: Path) -> None:
    content = bytearray(largest(path / "state").read_bytes())
    content[len(content) // 2] ^= 1
    largest(path / "state").write_bytes(content)


def damage_lost_file(path: Path) -> None:
    largest(path / "state").unlink()


def damage_no_state(path: Path) -> None:
    shutil.rmtree(path / "state")


DAMAGES = [function for name, function in list(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda function: function.__name__.removeprefix("damage_"))
def test_damage_is_seen(copy: Path, damage) -> None:
    folder, said = copy / "checkpoints", []
    assert checkpoint.latest(folder, said.append) == folder / "000000008"
    assert said == []
    damage(folder / "000000008")
    assert checkpoint.latest(folder, said.append) == folder / "000000006"
    assert len(said) == 1
    assert "passing over checkpoint 000000008: it " in said[0]
    with pytest.raises(ValueError, match=r"checkpoint \S+/000000008 .+; choose another"):
        checkpoint.restore(folder / "000000008")


def test_resume_passes_over_damaged_checkpoints(
    quick: Quick, whole: Result, copy: Path, capfd: pytest.CaptureFixture
) -> None:
    damage_bit_flip(copy / "checkpoints" / "000000008")
    damage_manifest_away(copy / "checkpoints" / "000000006")
    resumed = quick(copy, resume=True, log_every=2, checkpoint_every=3, keep=1, progress=True)
    said = capfd.readouterr().err
    for line in ("passing over checkpoint 000000008: it has a damaged file", "000000006: it has no manifest"):
        assert line in said
    assert "resuming at iteration 4" in said
    assert resumed.summary["state_sha256"] == whole.summary["state_sha256"]
    assert checkpoint.latest(copy / "checkpoints") == copy / "checkpoints" / "000000012"


def test_a_damaged_newer_checkpoint_costs_no_whole_one(tmp_path: Path) -> None:
    """With keep=1 the one just saved stays, though a damaged one has a higher number and a better score."""
    state = {"x": np.ones(3)}
    checkpoint.save(tmp_path, 30, state, {"score": 9.0}, keep=1)
    damage_bit_flip(tmp_path / "000000030")
    checkpoint.save(tmp_path, 20, state, {"score": 2.0}, keep=1)
    checkpoint.save(tmp_path, 25, state, {"score": 1.0}, keep=1)
    assert checkpoint.latest(tmp_path) == tmp_path / "000000025"
    assert checkpoint.best(tmp_path) == tmp_path / "000000020"


def test_resume_without_a_whole_checkpoint_starts_over(
    quick: Quick, whole: Result, copy: Path, capfd: pytest.CaptureFixture
) -> None:
    for path in (copy / "checkpoints").iterdir():
        damage_truncated(path)
    resumed = quick(copy, resume=True, log_every=2, checkpoint_every=2, progress=True)
    assert "no complete checkpoint to resume: starting from the beginning" in capfd.readouterr().err
    assert resumed.summary["state_sha256"] == whole.summary["state_sha256"]
    assert_same_rows(rows(copy), rows(whole.folder))


def test_resume_where_there_is_no_run_starts_one(quick: Quick, whole: Result, tmp_path: Path) -> None:
    resumed = quick(tmp_path / "new" / "run", resume=True)
    assert resumed.summary["state_sha256"] == whole.summary["state_sha256"]


def test_resume_on_another_kind_of_processor_says_so(
    quick: Quick, whole: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole.folder, run)
    told = strict((run / "config.json").read_text())
    told["backend"]["layout"] = "diagonals"
    (run / "config.json").write_text(json.dumps(told))
    quick(run, resume=True, checkpoint_every=2, log_every=2, keep=100, progress=True)
    assert "other rounding than until now: layout diagonals there" in capsys.readouterr().err


def test_resume_of_a_finished_run_changes_no_result(quick: Quick, whole: Result, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole.folder, run)
    again = quick(run, resume=True, checkpoint_every=2, log_every=2, keep=100)
    before, after = strict((whole.folder / "summary.json").read_text()), again.summary
    timed = {"compile_seconds": 0, "startup": {}}
    assert {**before, **timed} == {**after, **timed}
    assert rows(run, timings=True) == rows(whole.folder, timings=True)
    assert checkpoints(run) == checkpoints(whole.folder)
    assert again.rows == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"config": CONFIG.replace(clip=0.3)}, r"clip is 0\.2 there and 0\.3 here"),
        ({"config": CONFIG.replace(total_steps=1000)}, "total_steps is 384 there and 1000 here"),
        ({"config": CONFIG.replace(num_envs=8)}, "num_envs is 4 there and 8 here"),
        ({"config": CONFIG.replace(hidden_sizes=(8, 8))}, r"hidden_sizes is \[8\] there and \[8, 8\] here"),
        ({"config": CONFIG.replace(activation="relu")}, "activation is 'tanh' there and 'relu' here"),
        ({"seeds": (0, 1)}, r"seeds is \[0, 1, 2\] there and \[0, 1\] here"),
        ({"seeds": (1, 2, 3)}, r"seeds is \[0, 1, 2\] there and \[1, 2, 3\] here"),
    ],
)
def test_resume_refuses_another_run(quick: Quick, copy: Path, change: dict, told: str) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=told) as error:
        quick(copy, resume=True, **change)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_field_that_is_newer_than_a_run_has_its_default_there(copy: Path) -> None:
    """Resume after an upgrade: ppo's `torso` stands for the new field, whose default is "separate"."""
    here = files.read(copy)
    there = files.read(copy)
    del there["config"]["torso"]
    assert here["config"]["torso"] == "separate"
    assert files.difference(there, here, algorithms.find("ppo")) is None
    here["config"]["torso"] = "shared"
    told = "torso (newer than this run) is 'separate' there and 'shared' here"
    assert files.difference(there, here, algorithms.find("ppo")) == told
    there["config"]["gone"] = 1
    told = f"gone is a field of rljax {there['versions']['rljax']} there and of none here"
    assert files.difference(there, here, algorithms.find("ppo")) == told


def test_resume_refuses_another_environment_or_algorithm(copy: Path) -> None:
    import rljax
    from rljax.algorithms import a2c

    with pytest.raises(ValueError, match="env is Walk there and Truncation-probe here"):
        rljax.train("ppo", "Truncation-probe", CONFIG, seeds=3, out=copy, resume=True, progress=False)
    with pytest.raises(ValueError, match="algorithm is ppo there and a2c here"):
        rljax.train("a2c", "Truncation-probe", a2c.Config(), seeds=3, out=copy, resume=True, progress=False)
    with pytest.raises(ValueError, match="resume needs a run folder"):
        rljax.train("ppo", "Truncation-probe", ppo.Config(), resume=True, progress=False)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    state = {"x": np.ones(3)}
    for iteration, score in enumerate([1.0, 5.0, None, 2.0, 3.0, 4.0], 1):
        checkpoint.save(tmp_path, iteration, state, {"score": score}, keep=2)
        assert (tmp_path / "000000002").is_dir() or iteration < 2
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 5, 6]
    assert checkpoint.best(tmp_path) == tmp_path / "000000002"
    checkpoint.save(tmp_path, 7, state, {"score": 6.0}, keep=2)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [6, 7]


def test_the_best_checkpoint_of_a_run_is_one_that_was_evaluated(quick: Quick, tmp_path: Path) -> None:
    quick(tmp_path / "run", checkpoint_every=1, evaluate_every=5, keep=2)
    kept = checkpoints(tmp_path / "run")
    found = {row["iteration"]: row.get("evaluation_return") for row in rows(tmp_path / "run")}
    means = {iteration: np.mean(values) for iteration, values in found.items() if values}
    best = max(means, key=lambda iteration: means[iteration])
    assert set(means) == {5, 10}
    assert kept == [best, 11, 12]
    for iteration in kept:
        told = json.loads((tmp_path / f"run/checkpoints/{iteration:09d}/manifest.json").read_text())
        assert told["metadata"]["score"] == means.get(iteration)
    assert checkpoint.best(tmp_path / "run" / "checkpoints").name == f"{best:09d}"


def test_odd_arrays_survive(tmp_path: Path) -> None:
    """Names as other libraries have them, every kind of number, and arrays without an element."""
    import ml_dtypes

    state = {
        "mlp/~/linear_0": {"w b": np.arange(6.0).reshape(2, 3)},
        "flags": np.array([True, False]),
        "bytes": np.arange(4, dtype=np.uint8),
        "keys": np.array([2**32 - 1], np.uint32),
        "half": np.ones((2, 2), ml_dtypes.bfloat16),
        "nothing": np.zeros((1, 0, 3), np.float32),
        "broken": np.array([np.nan, np.inf, -0.0], np.float32),
    }
    restored = checkpoint.restore(checkpoint.save(tmp_path, 1, state, {"score": None}, keep=1))
    back = checkpoint.rebuild(state, restored.leaves, restored.path)
    assert checkpoint.sha256_of(back) == checkpoint.sha256_of(state)


def test_the_sum_sees_every_bit_shape_type_and_name() -> None:
    state = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.int32)}
    others = [
        state | {"a": -state["a"]},
        state | {"a": state["a"].reshape(3, 2)},
        state | {"b": state["b"].astype(np.uint32)},
        {"a": state["a"], "c": state["b"]},
    ]
    sums = {checkpoint.sha256_of(each) for each in [state, *others]}
    assert len(sums) == 5
    assert checkpoint.sha256_of(dict(reversed(state.items()))) == checkpoint.sha256_of(state)
