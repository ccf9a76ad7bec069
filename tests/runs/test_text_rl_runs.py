"""Runs of RL on text: rewards of the host, resume after any end, and the start that a run holds on to."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax import text
from rljax.models.language_models import language_model
from rljax.runs.folder import checkpoint
from rljax.text import rewards
from rljax.types import Array, PyTree
from tests.algorithms import tasks
from tests.algorithms.test_text_algorithms import stop_after
from tests.runs.tiny import rows, strict

SMALL: dict[str, Any] = {**tasks.RL, "total_steps": 6 * 8, "num_epochs": 1}
ROOT = Path(__file__).parents[2]


def letters(prompt: Array, completion: Array, reference: PyTree) -> Array:
    """Of tokens, what `letters_of_text` is of strings."""
    del prompt, reference
    first, second = (tasks.reverse().tokenizer.encode(letter)[0] for letter in "ab")
    return 0.5 * (completion == first).sum() - 0.25 * (completion == second).sum()


def letters_of_text(prompt: str, completion: str, record: Any) -> float:
    assert record["prompt"] == prompt
    return 0.5 * completion.count("a") - 0.25 * completion.count("b")


def afraid_of_c(prompt: str, completion: str, record: Any) -> float:
    if "c" in completion:
        raise RuntimeError("c")
    return letters_of_text(prompt, completion, record)


def problem(reward: Any = None, seed: int = 9) -> text.Problem:
    """With a model to begin with, so that nothing is trained before."""
    whole = tasks.reverse()
    config = rljax.grpo.Config(**tasks.RL)
    model = language_model(whole.tokenizer.vocab_size, config, whole.length)
    given = rewards.of_tokens(letters, "letters") if reward is None else reward
    return whole._replace(rewards=(given,), model=model, params=model.init(jax.random.key(seed)))


def host(function: Any = letters_of_text, **more: Any) -> Any:
    return rewards.of_text(function, "letters", processes=0, **more)


def train(
    problem: text.Problem, out: Path | None = None, algorithm: str = "grpo", seeds: int = 2, **options: Any
) -> Any:
    config = rljax.algorithms.find(algorithm).module.Config(
        **SMALL | options.pop("config", {})
    )  # not the preset
    return rljax.train(algorithm, problem, config, seeds=seeds, out=out, progress=False, **options)


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(problem(host()), tmp_path_factory.mktemp("host") / "run")


def test_a_reward_of_strings_gives_the_run_of_the_same_reward_of_tokens(on_host: Any) -> None:
    inside = train(problem())
    assert len(on_host.rows) == len(inside.rows) == 6
    for one, other in zip(on_host.rows, inside.rows, strict=True):
        for name in ("reward", "rewards/letters", "length", "ratio", "policy_loss"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for one, other in zip(*map(jax.tree.leaves, (on_host.states, inside.states)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert on_host.summary["return"]["per_seed"] == pytest.approx(inside.summary["return"]["per_seed"])


def test_a_stopped_run_with_rewards_of_the_host_goes_on_bit_for_bit(on_host: Any, tmp_path: Path) -> None:
    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        stop_after(4, lambda: train(problem(host()), part))
    again = train(problem(host()), part, resume=True)
    assert again.summary["state_sha256"] == on_host.summary["state_sha256"]
    assert rows(part) == rows(on_host.folder)


def test_failures_of_a_reward_are_counted_and_not_learnt() -> None:
    with pytest.warns(UserWarning, match="reward letters failed for"):
        done = train(problem(host(afraid_of_c)), seeds=1)
    failed = np.array([row["failed"] for row in done.rows])
    assert (failed > 0).any()
    np.testing.assert_array_equal(failed, [row["unscored"] for row in done.rows])
    with pytest.warns(UserWarning, match="reward letters failed for"):
        scored = train(problem(host(afraid_of_c, on_failure=-1.0)), seeds=1)
    assert scored.rows[0]["failed"] == done.rows[0]["failed"]
    assert scored.rows[0]["unscored"] == [0.0]
    assert scored.rows[0]["reward"] < done.rows[0]["reward"]


def afraid_of_ab(prompt: str, completion: str, record: Any) -> float:
    if prompt.startswith("a"):
        raise RuntimeError("a")
    return float(len(completion))


@pytest.mark.filterwarnings("ignore:reward letters failed")
def test_what_could_not_be_scored_is_left_out_and_counted_everywhere(tmp_path: Path) -> None:
    given = problem(host(afraid_of_ab))
    done = train(given, tmp_path / "run", seeds=1)
    prompts = [given.records[int(row)]["prompt"] for row in given.held_out.reference["row"]]
    share = np.mean([prompt.startswith("a") for prompt in prompts])
    assert 0 < share < 1
    found = rljax.evaluate(tmp_path / "run", env=given)
    judged = rljax.judge(tmp_path / "run", given)
    for each in (found, judged):
        assert each["return"]["per_seed"] == pytest.approx(done.summary["return"]["per_seed"])
        assert each["unscored"]["mean"] == pytest.approx(share)


def test_parameters_in_half_precision_are_trained() -> None:
    whole = problem()
    half = whole._replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), whole.params))
    done = train(half, seeds=1, steps=16)
    for leaf, first in zip(*map(jax.tree.leaves, (done.states.params, half.params)), strict=True):
        assert leaf.dtype == jnp.bfloat16
        assert leaf.shape[1:] == first.shape
    moved = [
        np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max()
        for a, b in zip(*map(jax.tree.leaves, (done.states.params, half.params)), strict=True)
    ]
    assert max(moved) > 0


# Trains until it kills itself as a machine would, in the middle of a row.
KILLED = """
import os, signal, sys
from pathlib import Path
from rljax.runs.folder import writers
from tests.runs.test_text_rl_runs import PPO, problem, train

write_row = writers.MetricsFile.write

def half(self, row):
    if row["iteration"] == 5:
        self._file.write('{"iteration": 5, "ste')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write_row(self, row)

writers.MetricsFile.write = half
train(problem(), Path(sys.argv[1]), "rlhf_ppo", checkpoint_every=2, config=PPO)
"""
PPO: dict[str, Any] = {
    "critic": "separate",
    "kl": 0.1,
    "kl_controller": "adaptive",
    "kl_target": 0.01,
    "kl_horizon": 50.0,
    "num_epochs": 2,
    "num_minibatches": 2,
}


def test_a_killed_run_goes_on_bit_for_bit_and_keeps_its_start(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(run)],
        cwd=ROOT,
        timeout=600,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"},
    )
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[-1] == f"{4:09d}"
    frozen = strict((run / "config.json").read_text())["frozen"]
    assert frozen["params"] == checkpoint.sha256_of(problem().params)
    with pytest.raises(ValueError, match="the parameters to start from are not the same") as caught:
        train(problem(seed=10), run, "rlhf_ppo", resume=True, config=PPO)
    assert "\n" not in str(caught.value)

    resumed = train(problem(), run, "rlhf_ppo", resume=True, config=PPO)
    whole = train(problem(), tmp_path / "whole", "rlhf_ppo", config=PPO)
    there, here = (checkpoint.leaves(jax.tree.map(np.asarray, hosted(each))) for each in (resumed, whole))
    assert {name.split(".")[0] for name in there} == {
        "params",
        "opt_state",
        "kl_coefficient",
        "order",
        "iteration",
    }
    for name, leaf in there.items():
        np.testing.assert_array_equal(leaf, here[name], err_msg=name)
    assert resumed.summary["state_sha256"] == whole.summary["state_sha256"]
    found = np.array([row["kl_coefficient"] for row in rows(tmp_path / "whole")])
    np.testing.assert_allclose(found[0], 0.1, rtol=1e-6)
    np.testing.assert_allclose(found[1], 0.1 * (1 - 0.2 * 8 / 50), rtol=1e-6)  # at no distance at first
    assert (found[-1] > found[1]).all()
    np.testing.assert_allclose([row["kl_coefficient"] for row in rows(run)], found, rtol=1e-6)


def hosted(result: Any) -> Any:
    from rljax.runs.program import engine

    return engine.hosted(result.states)
