"""Rows are on the disk when they are written, cut back on resume."""

import json
import struct
import sys
import types

import numpy as np
import pytest

from rljax.runs.folder import writers

DESCRIPTION = {
    "algorithm": "ppo",
    "env": "CartPole-v1",
    "config": {"learning_rate": [1e-3, 1e-4], "clip": 0.2},
    "swept": ["learning_rate"],
    "seeds": [3, 4],
    "initial_steps": 0,
    "steps_per_iteration": 100,
}


def row(iteration, returns=(1.0, 2.0)):
    return {"iteration": iteration, "steps": 100 * iteration, "episode_return": list(returns)}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# metrics.jsonl


def test_each_row_is_on_the_disk_at_once_and_nan_is_null(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with writers.MetricsFile(path) as file:
        file.write(row(1, (np.float32(0.5), float("nan"))) | {"array": np.array([np.inf, 1.0])})
        assert read(path) == [row(1, (0.5, None)) | {"array": [None, 1.0]}]
        file.write(row(2))
        assert [each["iteration"] for each in read(path)] == [1, 2]


def test_a_new_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("something old\n")
    writers.MetricsFile(path).close()
    assert path.read_text() == ""


def test_resume_drops_later_rows_and_a_half_written_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with writers.MetricsFile(path) as file:
        for iteration in (10, 20, 30):
            file.write(row(iteration))
    kept = path.read_text().splitlines(keepends=True)[:2]
    with path.open("a") as file:
        file.write('{"iteration": 40, "epis')
    with writers.MetricsFile(path, resume_at=20) as file:
        assert path.read_text() == "".join(kept)  # to the byte
        file.write(row(30, (7.0, 8.0)))
    assert [each["iteration"] for each in read(path)] == [10, 20, 30]
    assert read(path)[-1]["episode_return"] == [7.0, 8.0]
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resume_keeps_a_whole_last_line_without_its_newline(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(row(1)))
    with writers.MetricsFile(path, resume_at=1) as file:
        file.write(row(2))
    assert read(path) == [row(1), row(2)]


def test_resume_survives_a_crash_while_it_cuts(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(3)))
    before = path.read_text()

    def crash(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(writers.os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        writers.MetricsFile(path, resume_at=1)
    assert path.read_text() == before


def test_resume_refuses_a_broken_line_in_the_middle(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"iter\n{"iteration": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 is not JSON"):
        writers.MetricsFile(path, resume_at=3)


def test_resume_before_the_first_row(tmp_path):
    with writers.MetricsFile(tmp_path / "metrics.jsonl", resume_at=5) as file:
        file.write(row(6))
    assert read(tmp_path / "metrics.jsonl") == [row(6)]


# TensorBoard


def events(folder):
    """(tag, value, step) of every scalar that TensorBoard would read in a folder."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            found += [(each.tag, each.simple_value, event.step) for each in event.summary.value]
    return found


def test_tensorboard_has_a_run_per_seed(tmp_path):
    with writers.TensorBoard(tmp_path, [3, 4]) as writer:
        writer.write(row(1, (1.0, float("nan"))) | {"steps_per_second": 9.0})
        writer.write(row(2, (2.0, 5.0)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-3", "seed-4"]
    first, second = events(tmp_path / "seed-3"), events(tmp_path / "seed-4")
    assert [each for each in first if each[0] == "episode_return"] == [
        ("episode_return", 1.0, 100),
        ("episode_return", 2.0, 200),
    ]
    assert [each for each in second if each[0] == "episode_return"] == [("episode_return", 5.0, 200)]
    assert ("steps_per_second", 9.0, 100) in first


def test_tensorboard_tells_configurations_of_one_seed_apart(tmp_path):
    writers.TensorBoard(tmp_path, [0, 0]).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["member-0-seed-0", "member-1-seed-0"]


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package):
    for module in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    chosen = {"tensorboard": False, "wandb": False, package: True}
    with pytest.raises(ValueError, match=rf'pip install "rljax\[{package}\]"') as error:
        writers.writers(tmp_path, DESCRIPTION, **chosen, resume_at=None)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


# Weights & Biases


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package that remembers its runs."""
    started = []

    class Run:
        def __init__(self, **arguments):
            self.arguments, self.rows, self.finished, self.axis = arguments, [], False, None
            started.append(self)

        def define_metric(self, name, step_metric):
            self.axis = (name, step_metric)

        def log(self, row):
            self.rows.append(row)

        def finish(self):
            self.finished = True

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=Run))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return started


def test_wandb_has_a_run_per_seed_in_one_group(tmp_path, wandb):
    with writers.WeightsAndBiases(tmp_path / "first", DESCRIPTION) as writer:
        writer.write(row(1, (1.0, float("nan"))))
    assert [run.arguments["group"] for run in wandb] == ["first", "first"]
    assert [run.arguments["name"] for run in wandb] == ["first-seed-3", "first-seed-4"]
    assert {run.arguments["reinit"] for run in wandb} == {"create_new"}
    assert [run.arguments["config"]["learning_rate"] for run in wandb] == [1e-3, 1e-4]
    assert [run.arguments["config"]["seed"] for run in wandb] == [3, 4]
    assert wandb[0].rows == [{"iteration": 1, "steps": 100, "episode_return": 1.0}]
    assert wandb[1].rows == [{"iteration": 1, "steps": 100}]
    assert all(run.finished and run.axis == ("*", "steps") for run in wandb)


def test_a_resumed_wandb_run_keeps_its_ids_and_a_new_one_takes_others(tmp_path, wandb):
    for resume_at in (None, 7, None):
        writers.WeightsAndBiases(tmp_path, DESCRIPTION, resume_at).close()
    ids = [run.arguments["id"] for run in wandb]
    assert ids[0:2] == ids[2:4]
    assert len(set(ids)) == 4


# all of them


def test_writers_are_those_that_were_asked_for(tmp_path, wandb):
    names = lambda *arguments: [type(each).__name__ for each in opened(*arguments)]

    def opened(*arguments):
        found = writers.writers(*arguments)
        for each in found:
            each.close()
        return found

    assert names(tmp_path, DESCRIPTION, False, False, None) == ["MetricsFile"]
    assert sorted(names(tmp_path, DESCRIPTION, True, True, None)) == [
        "MetricsFile",
        "TensorBoard",
        "WeightsAndBiases",
    ]
    assert names(None, DESCRIPTION, False, False, None) == []
    with pytest.raises(ValueError, match="run folder"):
        writers.writers(None, DESCRIPTION, True, True, None)
    assert all(run.finished for run in wandb)
