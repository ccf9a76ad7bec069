"""An algorithm of the user's own: a module, an object or a file has all that the built-in ones have."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import rljax
from rljax import algorithms, ppo
from rljax.runs.folder import files
from tests.runs.tiny import WALK, strict

ROOT = Path(__file__).parents[2]
QUIET = {"evaluation_episodes": 4, "progress": False}
# A whole algorithm: hill climbing on the logits of one policy for all observations.
SOURCE = '''
"""Random search."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rljax.types import Algorithm, Mean, Policy


@struct.dataclass
class Config:
    total_steps: float = 64.0
    scale: float = 0.1  # of the noise
    num_envs: int = struct.field(pytree_node=False, default=4)

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs

    @property
    def initial_steps(self) -> int:
        return 0


@struct.dataclass
class State:
    params: Any
    iteration: jax.Array


class Metrics(NamedTuple):
    norm: Mean


def make(env, config, network=None, frozen=None):
    def init(key):
        return State(jnp.zeros(env.action_space.n), jnp.int32(0))

    def step(key, state):
        params = state.params + config.scale * jax.random.normal(key, state.params.shape)
        norm = jnp.abs(params).sum()
        return State(params, state.iteration + 1), Metrics(Mean(norm, jnp.int32(1)))

    def policy(state):
        def act(key, obs, carry, greedy):
            number = jax.tree.leaves(obs)[0].shape[0]
            return jnp.full(number, jnp.argmax(state.params), env.action_space.dtype), carry

        return Policy(tuple, act)

    return Algorithm(init, step, policy)
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "random_search.py"
    path.write_text(SOURCE)
    return path


def test_a_module_and_its_name_are_the_same_run(tmp_path: Path) -> None:
    fields = {"num_envs": 4, "num_steps": 8, "num_epochs": 1, "hidden_sizes": (8,)}
    named, given = (
        rljax.train(each, WALK, fields, steps=64, out=tmp_path / str(i), **QUIET)
        for i, each in enumerate(("ppo", ppo))
    )
    assert given.summary["state_sha256"] == named.summary["state_sha256"]
    assert [
        strict((each.folder / "config.json").read_text())["algorithm_source"] for each in (named, given)
    ] == [
        None,
        None,
    ]


def test_a_file_has_everything(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = rljax.train(file, "CartPole-v1", {"scale": 0.5}, seeds=2, out=run, **QUIET)
    assert result.summary["algorithm"] == "random_search"
    told = strict((run / "config.json").read_text())["algorithm_source"]
    assert (told["file"], len(told["sha256"])) == (str(file), 64)
    evaluated = rljax.evaluate(run, episodes=4)
    assert len(evaluated["return"]["per_seed"]) == 2
    loaded = rljax.load(run, member=1)
    assert (loaded.state.params == result.states.params[1]).all()
    longer = rljax.train(file, "CartPole-v1", {"scale": 0.5}, seeds=2, out=run, resume=True, **QUIET)
    assert longer.summary["state_sha256"] == result.summary["state_sha256"]
    swept = rljax.sweep(str(file), "CartPole-v1", {"scale": [0.1, 1.0]}, seeds=2, out=tmp_path / "s", **QUIET)
    assert (len(swept.members), swept.compilations) == (4, 1)
    begun = rljax.report(run, out=tmp_path / "plots")
    assert begun


def test_the_command_line_takes_a_file(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", str(file), "--env", "CartPole-v1", "--config.scale", "0.5", "--out", str(run)]
    more = ["--evaluation-episodes", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "rljax", *words, *more], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert strict((run / "config.json").read_text())["config"]["scale"] == 0.5
    assert rljax.evaluate(run, episodes=4)["iteration"] == 16


def test_a_changed_or_a_missing_file(file: Path, tmp_path: Path) -> None:
    own, run = tmp_path / "climbing.py", tmp_path / "run"
    shutil.copy(file, own)
    rljax.train(own, "CartPole-v1", out=run, **QUIET)
    own.write_text(SOURCE + "\n# another\n")
    with pytest.raises(
        ValueError, match=r"^climbing is not the same as when .* allow .* changed_algorithm=True$"
    ):
        rljax.evaluate(run, episodes=4)
    rljax.evaluate(run, episodes=4, changed_algorithm=True)
    with pytest.raises(ValueError, match=r"^climbing is not the same as when"):
        rljax.train(own, "CartPole-v1", out=run, resume=True, **QUIET)
    rljax.train(own, "CartPole-v1", out=run, resume=True, changed_algorithm=True, **QUIET)
    own.unlink()
    del sys.modules["climbing"]
    with pytest.raises(
        ValueError, match=r"climbing, an algorithm of your own \(.*\), which is not there: pass it"
    ):
        rljax.evaluate(run, episodes=4)
    module = algorithms.find(file).module
    with pytest.raises(ValueError, match="was trained with climbing, not random_search: pass that"):
        rljax.evaluate(run, episodes=4, algorithm=module)


def test_a_file_that_is_called_as_another_module_is_found_again(file: Path, tmp_path: Path) -> None:
    own, run = tmp_path / "this.py", tmp_path / "run"
    shutil.copy(file, own)
    rljax.train(own, "CartPole-v1", out=run, **QUIET)
    recorded = strict((run / "config.json").read_text())["algorithm_source"]
    sys.modules.pop(recorded["module"])  # as in another process, where this name is one of Python's own
    assert rljax.load(run).module.__file__ == str(own)


def test_an_object_with_the_names_is_one(file: Path) -> None:
    module = algorithms.find(file).module
    made = SimpleNamespace(Config=module.Config, make=module.make, __name__="mine")
    assert rljax.train(made, "CartPole-v1", **QUIET).summary["algorithm"] == "mine"


def test_wrong_ones_are_one_line(tmp_path: Path) -> None:
    broken, empty = tmp_path / "broken.py", tmp_path / "empty.py"
    broken.write_text("1 / 0\n")
    empty.write_text("")
    table = {
        str(tmp_path / "none.py"): (FileNotFoundError, "none.py: no such file"),
        str(broken): (ValueError, "cannot be imported: ZeroDivisionError: division by zero"),
        str(empty): (ValueError, "empty has no Config: an algorithm is a name, a file, or a module with"),
        "no.such.module": (ValueError, "no module 'no.such.module'"),
        "pppo": (ValueError, "no algorithm 'pppo' .* did you mean ppo?"),
    }
    for given, (kind, told) in table.items():
        with pytest.raises(kind, match=told) as error:
            algorithms.find(given)
        assert "\n" not in str(error.value)
    lacking = ModuleType("lacking")
    lacking.__dict__.update(Config=ppo.Config, make=ppo.make, LEARNS="words")
    with pytest.raises(ValueError, match=r"lacking.LEARNS = 'words': must be one of episodes, text"):
        algorithms.find(lacking)
    assert files.source(algorithms.find("ppo")) is None


def test_the_built_in_ones_are_listed_once() -> None:
    assert set(algorithms.NAMES) <= set(dir(rljax))
    for name in algorithms.NAMES:
        found = algorithms.find(name)
        assert found.built_in
        assert found.name == name
        assert getattr(rljax, name) is found.module
