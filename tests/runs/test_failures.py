"""What goes wrong while a run is under way: a full disk, Ctrl-C, NaN. One line each, and nothing is lost."""

import importlib
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax.algorithms import ppo
from rljax.checks import RunError
from rljax.cli.options import in_folder
from rljax.envs import probes
from rljax.runs import train
from rljax.runs.folder import checkpoint, files
from rljax.runs.program import engine, loop
from rljax.runs.recorder import Recorder, Result
from rljax.runs.stopping import signal_of, stoppable
from rljax.types import Env
from tests.runs.tiny import CONFIG, ITERATIONS, PER_ITERATION, WALK, Quick, checkpoints, rows, strict

ROOT = Path(__file__).parents[2]


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


# A full disk


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The operating system refuses to write more than `size` bytes into one file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit(
    quick: Quick,
    whole: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, save = tmp_path / "run", checkpoint.save

    def full(where: Path, iteration: int, *others) -> Path:
        with no_file_above(100 if iteration == 8 else resource.RLIM_INFINITY):
            return save(where, iteration, *others)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        with pytest.raises(RunError, match="checkpoint of iteration 8 could not be written") as error:
            quick(run, checkpoint_every=4)
    assert "the last complete one is 000000004" in one_line(error)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["000000004"]
    assert not (run / "summary.json").exists()
    resumed = quick(run, resume=True, checkpoint_every=4)
    assert resumed.summary["state_sha256"] == whole.summary["state_sha256"]


def test_no_room_for_the_first_checkpoint(tmp_path: Path) -> None:
    with no_file_above(100), pytest.raises(RunError, match="there is no complete one") as error:
        checkpoint.save(tmp_path, 1, {"x": np.random.default_rng(0).normal(size=1000)}, {"score": None}, 3)
    one_line(error)


def test_threads_of_orbax_say_nothing(tmp_path: Path) -> None:
    """They log their own tracebacks, where one line tells it all."""
    noise = np.random.default_rng(0).normal(size=200_000)
    said, handler = [], logging.Handler()
    handler.emit = said.append
    logging.getLogger("absl").addHandler(handler)
    try:
        with no_file_above(100_000), pytest.raises(RunError, match="could not be written"):
            checkpoint.save(tmp_path, 1, {"x": noise}, {"score": None}, 3)
    finally:
        logging.getLogger("absl").removeHandler(handler)
    assert said == []
    assert not logging.getLogger("absl").disabled


@pytest.mark.parametrize("name", ["metrics.jsonl", ".summary.json.partial", ".config.json.partial"])
def test_no_space_left_on_the_device(quick: Quick, whole: Result, tmp_path: Path, name: str) -> None:
    """/dev/full stands for a full disk: every write to it fails with ENOSPC."""
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"cannot write to .*: No space left on device") as error:
        quick(run, checkpoint_every=4)
    one_line(error)
    (run / name).unlink()
    resumed = quick(run, resume=True, checkpoint_every=4, log_every=2)
    assert resumed.summary["state_sha256"] == whole.summary["state_sha256"]


# Ctrl-C


def test_ctrl_c_and_on_again_bit_for_bit(
    quick: Quick, whole: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, record = tmp_path / "run", Recorder.record

    def press(self: Recorder, row, states) -> None:
        record(self, row, states)
        if row.iteration == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Recorder, "record", press)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        quick(run, log_every=1)
    assert signal.getsignal(signal.SIGINT) is before
    iteration = checkpoint.restore(checkpoint.latest(run / "checkpoints")).iteration
    assert 5 <= iteration < ITERATIONS
    assert str(stopped.value) == (
        f"stopped at iteration {iteration} of {ITERATIONS}; "
        f"checkpoint {iteration} is in {run}, continue with --resume"
    )
    assert rows(run)[-1]["iteration"] == iteration
    resumed = quick(run, resume=True, log_every=1)
    assert resumed.summary["state_sha256"] == whole.summary["state_sha256"]
    assert [row["iteration"] for row in rows(run)] == list(range(1, ITERATIONS + 1))


def test_ctrl_c_without_a_folder(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "reached_target", lambda self: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as second:  # the second one does not wait for anything
        quick(log_every=1)
    assert str(second.value) == ""
    once = iter([signal.SIGINT])
    press = lambda self: [signal.raise_signal(each) for each in once] and None
    monkeypatch.setattr(Recorder, "reached_target", press)
    with pytest.raises(KeyboardInterrupt, match=f"^stopped at iteration 2 of {ITERATIONS}$"):
        quick(log_every=1)


def test_ctrl_c_of_a_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = (
        "import rljax\n"
        f"rljax.train('ppo', 'Truncation-probe', rljax.ppo.Config(num_envs=4, num_steps=8, num_epochs=1, "
        f"hidden_sizes=(8,), total_steps=1e9), out={str(run)!r}, log_every=1, progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 90
        while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=30)[1].strip().splitlines()[-1]
    finally:
        process.kill()
        process.wait()
    iteration = checkpoint.restore(checkpoint.latest(run / "checkpoints")).iteration
    total = 10**9 // PER_ITERATION
    assert told.startswith(f"KeyboardInterrupt: stopped at iteration {iteration} of {total}; checkpoint ")
    assert rows(run)[-1]["iteration"] == iteration


def test_ctrl_c_that_a_callback_swallows_while_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    def importing(name: str) -> Any:
        with suppress(KeyboardInterrupt):  # as the garbage collector does with JAX's callback
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(importlib, "import_module", importing)
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted while importing$"):
        rljax.__getattr__("ppo")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_command_keeps_its_exit_status(signum: int) -> None:
    code = (
        "import atexit, os, sys; from rljax.__main__ import command; sys.argv = ['rljax', 'trian']; "
        f"atexit.register(os.kill, os.getpid(), {int(signum)}); command()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "KeyboardInterrupt" not in done.stderr


@pytest.mark.parametrize("stage", ["build", "prepare", "first states", "compiled"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_training_ends_the_run_and_leaves_no_folder(
    quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, signum: int
) -> None:
    def pressing(function: Callable) -> Callable:
        def call(*arguments: Any, **keywords: Any) -> Any:
            signal.raise_signal(signum)
            return function(*arguments, **keywords)

        return call

    build = engine.build

    def built(*arguments: Any, **keywords: Any) -> Any:
        program = build(*arguments, **keywords)
        if stage == "prepare":
            return program._replace(prepare=pressing(program.prepare))
        return program._replace(advance=pressing(program.advance)) if stage == "compiled" else program

    monkeypatch.setattr(engine, "build", pressing(build) if stage == "build" else built)
    if stage == "first states":
        monkeypatch.setattr(train, "_first_states", pressing(train._first_states))
    with pytest.raises(KeyboardInterrupt, match="interrupted before training began") as stopped:
        rljax.train("ppo", WALK, CONFIG, out=tmp_path / "run", progress=False)
    assert signal_of(stopped.value) == signum
    assert not (tmp_path / "run").exists()


def test_sigterm_leaves_a_checkpoint_like_ctrl_c(
    quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = iter([signal.SIGTERM])
    press = lambda self: [signal.raise_signal(each) for each in once] and None
    monkeypatch.setattr(Recorder, "reached_target", press)
    with pytest.raises(KeyboardInterrupt, match=r"^stopped at iteration 2 of") as stopped:
        quick(tmp_path / "run", log_every=1)
    assert signal_of(stopped.value) == signal.SIGTERM
    assert checkpoint.latest(tmp_path / "run" / "checkpoints").name == "000000002"


def test_a_signal_at_the_very_end_is_not_lost(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script of several runs does not go on with the next one."""
    finish = Recorder.finish
    press = lambda self, *given: [finish(self, *given), signal.raise_signal(signal.SIGINT)][0]
    monkeypatch.setattr(Recorder, "finish", press)
    with pytest.raises(KeyboardInterrupt, match="what was running had come to its end"):
        quick()


def test_a_signal_that_the_process_ignores_stays_ignored(quick: Quick) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGINT, before)


# Two runs, one folder


def test_a_folder_that_is_being_written_names_its_holder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with (
        files.claimed(run),
        pytest.raises(files.Taken, match=rf"run is being written by process {os.getpid()} "),
    ):
        rljax.train("ppo", WALK, CONFIG, out=run, progress=False)
    assert not run.exists()
    with files.claimed(run):
        (run / "note").write_text("kept")
    assert [path.name for path in run.iterdir()] == ["note"]


def test_a_folder_whose_writer_was_killed_is_free(tmp_path: Path) -> None:
    code = (
        "import os, signal, pathlib; from rljax.runs.folder import files\n"
        f"with files.claimed(pathlib.Path({str(tmp_path / 'run')!r})): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=100)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / files.LOCK).exists()
    with files.claimed(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def test_a_default_folder_that_was_taken_meanwhile_becomes_the_next(tmp_path: Path) -> None:
    asked = []

    def start(out: Path) -> Path:
        asked.append(out.name)
        if len(asked) == 1:  # another process was faster
            out.mkdir()
            raise files.Taken("taken")
        return out

    assert in_folder(False, start, out=tmp_path / "run").name == "run-2"
    assert asked == ["run", "run-2"]
    asked.clear()
    with pytest.raises(files.Taken):
        in_folder(True, start, out=tmp_path / "mine")


# Memory


def test_a_replay_that_does_not_fit_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        RunError, match=r"dqn on Walk keeps [\d.]+ GiB, of which .* are free: lower buffer_size"
    ):
        rljax.train(
            "dqn",
            WALK,
            {"hidden_sizes": (8,), "buffer_size": 2 * 10**9},
            out=tmp_path / "run",
            progress=False,
        )
    assert not (tmp_path / "run").exists()


# NaN

PLAIN = CONFIG.replace(observation_normalization="none", reward_scaling="none")


def broken(probability: float = 1.0, at: int = 60) -> Env:
    """Iteration 8 holds steps 57 to 64 of the first episodes, so with `at` 60 the numbers break there."""
    return probes.nan_reward(at=at, max_steps=200, probability=probability)._replace(
        name=f"NaN-{probability}-{at}"
    )


def test_nan_stops_the_run_and_tells_where(quick: Quick, tmp_path: Path) -> None:
    run, env = tmp_path / "run", broken()
    with pytest.raises(RunError) as error:
        quick(run, (4, 5), env, PLAIN, checkpoint_every=3, log_every=1)
    text = one_line(error)
    assert "policy_loss" in text
    assert "entropy" not in text.partition("became")[0].split(", ")[0]
    assert "became NaN or infinite in iteration 8 (seed 4, 5)" in text
    assert str(run / "checkpoints" / "000000006") in text
    assert "--resume" in text
    assert checkpoints(run) == [3, 6]
    assert rows(run)[-1]["iteration"] == 7
    failure = strict((run / "failure.json").read_text())
    assert failure | {"metrics": None} == {
        "iteration": 8,
        "metrics": None,
        "seeds": [4, 5],
        "checkpoint": "000000006",
        "retry": 1,
    }
    assert {"policy_loss", "value_loss", "gradient_norm"} <= set(failure["metrics"])
    arrays = checkpoint.restore(run / "checkpoints" / "000000006").leaves
    assert all(np.isfinite(leaf).all() for name, leaf in arrays.items() if leaf.dtype.kind == "f")
    with pytest.raises(RunError, match="in iteration 8"):  # certain to break: however often it is tried
        quick(run, (4, 5), env, PLAIN, resume=True, checkpoint_every=3, log_every=1)
    assert strict((run / "failure.json").read_text())["retry"] == 2


def test_nan_parameters_behind_finite_metrics_are_noticed() -> None:
    """The third update leaves NaN after its metrics were taken: they break in the fourth only."""

    def make(*arguments: Any) -> Any:
        algorithm = ppo.make(*arguments)

        def step(key: Any, state: Any) -> Any:
            state, metrics = algorithm.step(key, state)
            spoilt = jnp.where(state.iteration == 3, jnp.nan, 0.0)
            return state.replace(params=jax.tree.map(lambda x: x + spoilt, state.params)), metrics

        return algorithm._replace(step=step)

    program = engine.build(make, WALK, PLAIN, {}, [4])
    with pytest.raises(loop.NotFinite) as error:
        list(loop.advance(program, program.init(), 0, 3, [3]))
    assert (error.value.iteration, error.value.metrics, error.value.members) == (3, ["parameters"], [0])


def test_nan_without_a_checkpoint_or_folder(quick: Quick, tmp_path: Path) -> None:
    run, env = tmp_path / "run", broken()
    with pytest.raises(RunError, match="no checkpoint was saved before it; use --checkpoint-every"):
        quick(run, (4, 5), env, PLAIN)
    assert strict((run / "failure.json").read_text())["checkpoint"] is None
    with pytest.raises(RunError, match="lower the learning rate"):
        quick(None, (4, 5), env, PLAIN)


@pytest.mark.parametrize("every", [3, 0])
def test_a_retry_after_nan_draws_other_numbers(
    quick: Quick, tmp_path: Path, capfd: pytest.CaptureFixture, every: int
) -> None:
    """A run that broke by bad luck goes on, from its last checkpoint or from the beginning."""
    run, env = tmp_path / "run", broken(0.01, at=40)
    tried = 0
    while True:
        try:
            result = quick(
                run, (11,), env, PLAIN, resume=tried > 0, checkpoint_every=every, log_every=1, progress=True
            )
            break
        except RunError:
            tried += 1
            assert strict((run / "failure.json").read_text())["retry"] == tried
            assert tried < 30, "the same numbers are drawn again and again"
    assert tried > 0, "take another seed: this one never broke"
    assert f"taken up again after NaN, time {tried}: with other random numbers" in capfd.readouterr().err
    assert not (run / "failure.json").exists()
    assert result.summary["steps"] == ITERATIONS * PER_ITERATION


def test_a_sweep_goes_on_where_a_member_breaks(quick: Quick, tmp_path: Path) -> None:
    """Some seeds meet NaN and some do not: null for those that did, in rows, checkpoints and the summary."""
    run, env = tmp_path / "run", broken(0.005)
    result = quick(
        run, tuple(range(6)), env, PLAIN, stop_on_nan=False, checkpoint_every=4, log_every=1, evaluate_every=6
    )
    finite = [value is not None for value in rows(run)[-1]["policy_loss"]]
    assert any(finite)
    assert not all(finite)
    for path in [*run.glob("*.json"), *run.glob("checkpoints/*/manifest.json")]:
        strict(path.read_text())
    assert result.summary["return"]["mean"] is None  # greedy episodes of 200 steps each meet NaN
    assert result.summary["finished"] is True
    for i, alive in enumerate(finite):  # a broken member stays so, the others are not touched
        leaves = [np.isfinite(leaf[i]).all() for leaf in leaves_of(result)]
        assert all(leaves) == alive


def leaves_of(result: Result) -> list[np.ndarray]:
    import jax

    return jax.tree.leaves(result.states.params)


def test_json_is_refused_rather_than_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_ours_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a run folder"), files.writing(tmp_path):
        files.read(tmp_path)
