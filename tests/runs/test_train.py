"""Train: what it writes, what it takes, what it refuses, and what it starts from."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax import algorithms
from rljax.algorithms import dqn, ppo, sac
from rljax.checks import RunError
from rljax.envs import wrappers
from rljax.runs import load
from rljax.runs.folder import checkpoint, files
from rljax.runs.program import layout
from rljax.runs.recorder import Result
from rljax.runs.sweep import SweepResult
from rljax.types import Array, Box, Discrete, Env, Network
from tests.runs.tiny import CONFIG, ITERATIONS, PER_ITERATION, WALK, Quick, checkpoints, rows, strict

ROOT = Path(__file__).parents[2]
SMALL = CONFIG.replace(total_steps=PER_ITERATION, observation_normalization="none", reward_scaling="none")
QUIET: dict[str, Any] = {"evaluation_episodes": 4, "progress": False}


# What a run writes


def test_summary_json(whole: Result) -> None:
    summary = strict((whole.folder / "summary.json").read_text())
    assert summary == whole.summary
    assert list(summary) == [
        "algorithm",
        "env",
        "steps",
        "unit",
        "seeds",
        "headline",
        "return",
        "steps_per_second",
        "compile_seconds",
        "startup",
        "device",
        "state_sha256",
        "finished",
    ]
    assert (summary["algorithm"], summary["env"]) == ("ppo", "Walk")
    assert (summary["steps"], summary["seeds"]) == (ITERATIONS * PER_ITERATION, 3)
    assert (summary["headline"], summary["finished"]) == ("return", True)
    block = summary["return"]
    assert list(block) == ["mean", "iqm", "ci95", "per_seed", "episodes"]
    assert block["mean"] == pytest.approx(np.mean(block["per_seed"]))
    assert len(block["per_seed"]) == 3
    assert block["episodes"] == 4
    assert block["ci95"] is None  # of three seeds
    assert all(0 < each <= 20 for each in block["per_seed"])
    seconds = summary["steps"] * summary["seeds"] / summary["steps_per_second"]
    assert seconds == pytest.approx(rows(whole.folder, timings=True)[-1]["seconds"], abs=0.01)
    assert re.fullmatch("[0-9a-f]{64}", summary["state_sha256"])
    assert summary["state_sha256"] == checkpoint.sha256_of(whole.states)
    last = checkpoint.restore(whole.folder / "checkpoints" / f"{ITERATIONS:09d}")
    assert summary["state_sha256"] == checkpoint.sha256_of(last.leaves)


def test_config_json(whole: Result) -> None:
    told = strict((whole.folder / "config.json").read_text())
    assert list(told) == [
        "algorithm",
        "algorithm_source",
        "unit",
        "env",
        "env_arguments",
        "config",
        "swept",
        "seeds",
        "preset",
        "own",
        "initial_steps",
        "steps_per_iteration",
        "iterations",
        "versions",
        "device",
        "backend",
        "git",
    ]
    assert (told["algorithm"], told["env"], told["env_arguments"]) == ("ppo", "Walk", {})
    assert told["config"].keys() == vars(CONFIG).keys()
    assert told["config"]["hidden_sizes"] == [8]
    assert told["config"]["learning_rate"] == CONFIG.learning_rate
    assert (told["swept"], told["seeds"], told["preset"]) == ([], [0, 1, 2], False)
    assert (told["steps_per_iteration"], told["iterations"]) == (PER_ITERATION, ITERATIONS)
    packages = {"rljax", "jax", "jaxlib", "flax", "optax", "gymnax", "python"}
    assert packages <= told["versions"].keys()
    assert told["versions"]["jax"] == jax.__version__
    assert told["device"]


def test_metrics_jsonl(whole: Result) -> None:
    found = rows(whole.folder, timings=True)
    assert [row["iteration"] for row in found] == list(range(2, ITERATIONS + 1, 2))
    for row in found:
        assert list(row) == [
            *("iteration", "steps", "seconds", "steps_per_second"),
            *ppo.Metrics._fields,
        ]
        assert row["steps"] == row["iteration"] * PER_ITERATION
        assert all(len(row[name]) == 3 for name in ppo.Metrics._fields)
    assert sorted(path.name for path in whole.folder.iterdir()) == [
        *("checkpoints", "config.json", "curve.png", "metrics.jsonl", "summary.json")
    ]


def test_one_seed(quick: Quick, whole: Result) -> None:
    alone = quick(seeds=(1,))
    assert alone.summary["return"]["ci95"] is None
    assert alone.folder is None
    assert len(alone.summary["return"]["per_seed"]) == 1
    for one, three in zip(jax.tree.leaves(alone.states), jax.tree.leaves(whole.states), strict=True):
        assert one.shape == (1, *three.shape[1:])


def test_nothing_is_random_between_runs(quick: Quick, whole: Result) -> None:
    again = quick()
    assert again.summary["state_sha256"] == whole.summary["state_sha256"]
    assert again.summary["return"] == whole.summary["return"]
    other = quick(seeds=(0, 1, 3))
    assert other.summary["state_sha256"] != whole.summary["state_sha256"]


# Options


def test_steps_are_rounded_up_to_whole_iterations(quick: Quick, tmp_path: Path) -> None:
    result = quick(tmp_path / "run", config=CONFIG.replace(total_steps=2 * PER_ITERATION + 1))
    assert result.summary["steps"] == 3 * PER_ITERATION
    told = strict((tmp_path / "run" / "config.json").read_text())
    assert (told["iterations"], told["config"]["total_steps"]) == (3, 2 * PER_ITERATION + 1)
    assert quick(config=CONFIG.replace(total_steps=0.5)).summary["steps"] == PER_ITERATION


def test_a_target_return_stops_early(quick: Quick, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    result = quick(run, target_return=1.0, log_every=1, progress=True)
    reached = result.summary["steps"] // PER_ITERATION
    assert reached < ITERATIONS
    assert "every seed reached a training return of 1 after" in capfd.readouterr().err
    assert checkpoints(run) == [reached]
    assert (run / "summary.json").is_file()
    unreached = quick(target_return=21.0, log_every=1)
    assert unreached.summary["steps"] == ITERATIONS * PER_ITERATION


def test_every_member_has_to_reach_the_target(quick: Quick, whole: Result) -> None:
    """One member above the target is not enough: the run goes on until the worst has reached it."""
    evaluated = quick(evaluate_every=1, log_every=1, evaluation_episodes=8)
    returns = np.array([row["evaluation_return"] for row in evaluated.rows])
    target = float(returns[0].max())
    first = int(np.argmax((returns >= target).all(axis=1))) if (returns >= target).all(axis=1).any() else -1
    assert not (returns[0] >= target).all()
    stopped = quick(evaluate_every=1, log_every=1, evaluation_episodes=8, target_return=target)
    assert stopped.summary["steps"] == (first + 1 if first >= 0 else ITERATIONS) * PER_ITERATION


def test_evaluations_while_training(quick: Quick, tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick(run, evaluate_every=5, log_every=3)
    found = {row["iteration"]: row for row in rows(run)}
    assert sorted(found) == [3, 5, 6, 9, 10, 12]
    assert [i for i, row in found.items() if "evaluation_return" in row] == [5, 10]
    assert all(len(found[i]["evaluation_return"]) == 3 for i in (5, 10))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"keep": 0}, "keep = 0: must be an integer of at least 1"),
        ({"checkpoint_every": -1}, "checkpoint_every = -1: must be an integer of at least 0"),
        ({"log_every": 1.5}, r"log_every = 1\.5: must be an integer"),
        ({"evaluation_episodes": True}, "evaluation_episodes = True"),
        ({"target_return": "high"}, "target_return = 'high': must be a number"),
        ({"checkpoint_evry": 5}, r"train has no option checkpoint_evry; did you mean checkpoint_every\?"),
        ({"seeds": 0}, "seeds = 0: must be an integer of at least 1"),
        ({"seed": -1}, r"seed = -1: must be an integer from 0 to 2\*\*32 - seeds"),
        ({"seed": 2**32}, "seed = 4294967296"),
        ({"seed": 2**32 - 1, "seeds": 2}, "seed = 4294967295"),
        ({"seed": 1.0}, r"seed = 1\.0"),
        ({"steps": 0}, r"ppo\.Config\.total_steps = 0: must be above 0"),
        ({"steps": float("inf")}, r"ppo\.Config\.total_steps = inf"),
        ({"steps": "many"}, r"ppo\.Config\.total_steps = 'many': must be a number"),
        ({"init_member": 1}, "init_member picks a member of init"),
        ({"env_arguments": {"length": 3}}, "env_arguments go with the name of an environment"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        rljax.train("ppo", WALK, SMALL, out=tmp_path / "run", **QUIET | options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_wrong_names_and_configs() -> None:
    with pytest.raises(ValueError, match=r"did you mean ppo\?"):
        rljax.train("pp0", WALK)
    with pytest.raises(ValueError, match=r"no environment 'CartPole-v2'; did you mean CartPole-v1\?"):
        rljax.train("ppo", "CartPole-v2")
    with pytest.raises(ValueError, match=r"config is a rljax\.algorithms\.ppo\.Config: a2c takes a"):
        rljax.train("a2c", WALK, SMALL)


# Where it writes


def test_out_that_cannot_be(quick: Quick, whole: Result, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"--out .*/file is a file: choose a folder"):
        quick(file)
    with pytest.raises(RunError, match=r"cannot write to .*/file/run: Not a directory"):
        quick(file / "run")
    assert file.read_text() == "mine"
    before = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")}
    with pytest.raises(ValueError, match="already holds a run: choose another --out, or continue it with"):
        quick(whole.folder)
    assert {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")} == before


def test_a_tilde_is_the_home_of_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"^{tmp_path}/x already holds a run"):
        rljax.train("ppo", WALK, CONFIG, out="~/x", progress=False)
    with pytest.raises(ValueError, match=f"^{tmp_path}/x already holds a sweep or a run"):
        rljax.sweep("ppo", WALK, {"clip": [0.1]}, CONFIG, out="~/x", progress=False)
    with pytest.raises(FileNotFoundError, match="y is not a run folder"):
        rljax.evaluate("~/y")
    assert files.read("~/x") == {}
    assert not (tmp_path / "~").exists()


def test_a_mistake_does_not_use_up_the_folder(quick: Quick, whole: Result, tmp_path: Path) -> None:
    """After a wrong Config or a wrong --init the same command, mended, may write to the same folder."""
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=r"ppo\.Config\.clip = -1: must be above 0"):
        quick(run, config=CONFIG.replace(clip=-1.0))
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        quick(run, init=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has members 0 to 2"):
        quick(run, init=whole.folder, init_member=3)
    assert not (run / "config.json").exists()
    run.mkdir(exist_ok=True)
    (run / "notes.txt").write_text("a user's own")
    assert quick(run).summary["state_sha256"] == whole.summary["state_sha256"]
    assert (run / "notes.txt").read_text() == "a user's own"


# Starting from another run


def started(quick: Quick, init: Path, **others: Any) -> tuple[dict, dict]:
    """The leaves before the first iteration of a run that starts from `init`, and without it."""
    states, advance = [], rljax.runs.train.loop.advance

    def look(program, state, *arguments, **keywords):
        states.append(checkpoint.leaves(program.fetch(state)))
        return advance(program, state, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rljax.runs.train.loop, "advance", look)
        quick(init=init, **others)
        others.pop("init_member", None)
        quick(**others)
    return states[0], states[1]


@pytest.mark.parametrize("member", [None, 2])
def test_init_takes_parameters_and_statistics_and_nothing_else(
    quick: Quick, whole: Result, member: int | None
) -> None:
    found, fresh = started(quick, whole.folder, seeds=(7, 8, 9), init_member=member)
    there = checkpoint.leaves(whole.states)
    taken = [name for name in there if name.split(".")[0] in ("params", "normalizer")]
    assert any(name.startswith("normalizer") for name in taken)
    for name, leaf in found.items():
        right = there[name] if name in taken else fresh[name]
        if member is not None and name in taken:
            right = np.broadcast_to(right[member], leaf.shape)
        np.testing.assert_array_equal(leaf, right, err_msg=name)


def test_targets_begin_as_copies_of_what_they_track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as they were in the other run, and not as they were drawn."""

    def state(module: Any, params: Any, target: Any, other: float) -> Any:
        parts = {field.name: np.full((2, 1), other) for field in dataclasses.fields(module.State)}
        return module.State(**parts | {"params": params, "target_params": target})

    monkeypatch.setattr(load.files, "read", lambda run: {})
    pair = lambda one, two: sac.Params({"w": np.full((2, 3), one)}, {"w": np.full((2, 3), two)}, np.ones(2))
    whole = lambda value: np.full((2, 3), value)
    targets = {"w": whole(5.0)}
    for name, there, here in (
        ("dqn", state(dqn, whole(4.0), whole(5.0), 6.0), state(dqn, whole(0.0), whole(0.0), 0.0)),
        (
            "sac",
            state(sac, pair(3.0, 4.0), targets, 6.0),
            state(sac, pair(0.0, 0.0), {"w": whole(0.0)}, 0.0),
        ),
    ):
        checkpoint.save(tmp_path / name / "checkpoints", 1, there, {}, 1)
        found = load.transplant(here, tmp_path / name, None)
        for leaf in jax.tree.leaves(found.target_params):
            np.testing.assert_array_equal(leaf, np.full((2, 3), 4.0))
        assert found.worlds.max() == found.iteration.max() == 0
        assert found.normalizer.min() == 6
        assert (jax.tree.leaves(found.params)[0] > 0).all()


def test_each_state_says_what_another_run_may_start_from() -> None:
    for name in algorithms.NAMES:
        fields = {
            field.name: field.metadata for field in dataclasses.fields(algorithms.find(name).module.State)
        }
        assert fields["params"]["carried"] == "", name
        for target in (field for field in fields if "target" in field):
            assert fields[target]["carried"].split(".")[0] == "params", name
        assert "carried" in fields.get("normalizer", {"carried": ""}), name


def test_init_from_one_member_starts_all(quick: Quick, tmp_path: Path) -> None:
    one = quick(tmp_path / "one", seeds=(1,))
    found, _ = started(quick, tmp_path / "one")
    for name, leaf in checkpoint.leaves(one.states).items():
        if name.startswith("params"):
            np.testing.assert_array_equal(found[name], np.repeat(leaf, 3, axis=0))


def test_init_that_does_not_fit(quick: Quick, whole: Result, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 3 members and this run 1: pick one with --init-member"):
        quick(seeds=(0,), init=whole.folder)
    with pytest.raises(ValueError, match="has members 0 to 2"):
        quick(init=whole.folder, init_member=-1)
    hosted = jax.tree.map(np.copy, whole.states)
    unfit = {
        "absent": {name: leaf for name, leaf in checkpoint.leaves(hosted).items() if "value" not in name},
        "wider": {
            name: leaf.repeat(1 + (leaf.ndim > 1), -1) for name, leaf in checkpoint.leaves(hosted).items()
        },
        "deeper": checkpoint.leaves(hosted) | {"params.more.kernel": np.zeros((3, 8, 8), np.float32)},
    }
    for name, leaves in unfit.items():
        run = tmp_path / name
        run.mkdir()
        shutil.copy(whole.folder / "config.json", run)
        checkpoint.save(run / "checkpoints", 1, leaves, {}, 1)
        told = rf"--init {run}: (params|normalizer)\.\S+ is .* there and .* here"
        with pytest.raises(ValueError, match=told) as error:
            quick(init=run)
        assert "\n" not in str(error.value)


# Sizes, seeds and shapes


def test_the_smallest_run_with_the_largest_seed() -> None:
    least = {"num_envs": 1, "num_steps": 1, "num_minibatches": 1, "total_steps": 3, "hidden_sizes": ()}
    config = SMALL.replace(**least, advantage_normalization="none")
    result = rljax.train("ppo", WALK, config, seed=2**32 - 1, **QUIET)
    assert result.summary["steps"] == 3
    assert result.rows[-1]["iteration"] == 3


def test_large_seeds_are_all_different(quick: Quick) -> None:
    result = quick(seeds=(2**31 - 1, 2**31, 2**32 - 1), config=CONFIG.replace(total_steps=PER_ITERATION))
    kernels = [leaf for leaf in jax.tree.leaves(result.states.params) if leaf.ndim == 3]
    for kernel in kernels:
        assert len(np.unique(kernel.reshape(3, -1), axis=0)) == 3
    other = quick(seeds=(2**31 - 1, 0, 1), config=CONFIG.replace(total_steps=PER_ITERATION))
    np.testing.assert_array_equal(
        other.states.params["value"]["kernel"][0], result.states.params["value"]["kernel"][0]
    )


def pytree_walk() -> Env:
    """The walk, seen as a dict of a category, an image and a tuple, with an action of two parts."""
    see = lambda obs: {
        "place": jnp.round(obs[0] * 3 + 3).astype(jnp.int32),
        "image": jnp.full((2, 3, 1), obs[1]),
        "pair": (obs, jnp.int32(1)),
    }
    space = {
        "place": Discrete(7),
        "image": Box(0.0, 1.0, (2, 3, 1)),
        "pair": (Box(-1.0, 1.0, (2,)), Discrete(2)),
    }
    env = wrappers.map_observation(WALK, see, space)
    several = rljax.types.MultiDiscrete((2, 3))
    return wrappers.map_action(env, lambda action: action[..., 0], several)._replace(name="PytreeWalk")


@pytest.mark.parametrize("name", ["FrozenLake-misc", "Catch-bsuite", "pytree and MultiDiscrete"])
def test_shapes_of_every_kind(name: str, tmp_path: Path) -> None:
    """Trained, saved, loaded and asked for an action."""
    env = pytree_walk() if name.startswith("pytree") else rljax.envs.make(name)
    result = rljax.train("ppo", env, SMALL, out=tmp_path / "run", **QUIET)
    assert result.summary["steps"] == PER_ITERATION
    loaded = load.load(tmp_path / "run", env=env)
    obs = jax.tree.map(lambda x: x[None], env.reset(jax.random.key(0))[0])
    policy = loaded.algorithm.policy(loaded.state)
    action, _ = policy.act(jax.random.key(0), obs, policy.init(), True)
    assert action.shape == (1, *env.action_space.shape)


def linear(key: Array, observation: Array) -> dict[str, Array]:
    return {"w": jax.random.normal(key, (2, 2)), "v": jnp.zeros(2)}


NETWORK = Network(linear, lambda params, obs: (obs @ params["w"], obs @ params["v"]))


def test_an_environment_and_a_network_of_ones_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = rljax.train("ppo", WALK, SMALL, seeds=2, out=run, network=NETWORK, **QUIET)
    assert {name for name in checkpoint.leaves(result.states) if name.startswith("params")} == {
        *("params.w", "params.v")
    }
    evaluated = rljax.evaluate(run, episodes=4, seed=1, env=WALK, network=NETWORK)
    assert evaluated["return"]["per_seed"] == result.summary["return"]["per_seed"]
    loaded = rljax.load(run, member=1, env=WALK, network=NETWORK)
    np.testing.assert_array_equal(loaded.state.params["w"], result.states.params["w"][1])
    with pytest.raises(ValueError, match="with network= of your own: pass the same network= again") as error:
        rljax.load(run, env=WALK)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="with env= of your own"):
        rljax.evaluate(run, network=NETWORK)


# Devices

ON_ONE_DEVICE = """
import sys
import numpy as np
import jax, rljax
from rljax.runs.folder import checkpoint
from tests.runs.tiny import CONFIG, PER_ITERATION, WALK
assert jax.local_device_count() == int(sys.argv[2])
config = CONFIG.replace(total_steps=PER_ITERATION)
result = rljax.train("ppo", WALK, config, seeds=3, evaluation_episodes=4, progress=False)
np.savez(sys.argv[1], **checkpoint.leaves(result.states))
"""


def test_padded_members_on_two_devices_equal_one_device(tmp_path: Path) -> None:
    """Three seeds on two devices, where a fourth place is padding, after one iteration."""
    found = []
    for devices in ("1", "2"):
        environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
        subprocess.run(
            [sys.executable, "-c", ON_ONE_DEVICE, str(tmp_path / f"{devices}.npz"), devices],
            cwd=ROOT,
            env=environment | {"RLJAX_HOST_DEVICES": devices},
            timeout=150,
            check=True,
        )
        found.append(np.load(tmp_path / f"{devices}.npz"))
    assert sorted(found[0]) == sorted(found[1])
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_importing_train_is_quiet_and_leaves_the_heavy_packages_out() -> None:
    code = (
        "import sys, rljax.runs.train, rljax.runs.sweep, rljax.runs.evaluate\n"
        "print(sorted({'gymnax', 'orbax', 'matplotlib', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_a_result_is_a_few_lines(whole: Result) -> None:
    lines = repr(whole).splitlines()
    returns = ", ".join(f"{each:.5g}" for each in whole.summary["return"]["per_seed"])
    assert lines[0] == "Result(ppo on Walk: 384 environment steps per seed"
    assert lines[1].startswith(f"  return {whole.summary['return']['mean']:.5g}, IQM ")
    assert lines[1].endswith(f"(3 seeds: {returns})")
    assert lines[2:] == [f"  folder {whole.folder})"]
    shown = repr(SweepResult([{}] * 12, None, [whole] * 4, 1)).splitlines()
    assert shown[0] == "SweepResult(12 members in 1 compilation"
    assert shown[-2:] == ["… and 1 part more", "  folder None)"]
    assert len(shown) == 9


def test_members_are_told_as_configurations_and_seeds() -> None:
    device = jax.local_devices()[:1]
    rates = {"learning_rate": [1.0, 1.0, 2.0, 2.0], "clip": [0.1, 0.1, 0.1, 0.1]}
    where = f"map on 1 {device[0].platform} device"
    assert layout.told(rates, [0, 1, 0, 1], "map", device) == f"2 configurations × 2 seeds, {where}"
    assert layout.told(rates, [0, 1, 0, 2], "map", device) == f"4 members, {where}"
    assert layout.told({}, [7], "map", device) == f"1 seed, {where}"


def test_progress_says_whose_return_it_is(quick: Quick, capsys: pytest.CaptureFixture) -> None:
    """Of the policy that explores while it trains, or of the greedy one where it is evaluated."""
    quick(progress=True)
    assert "training return " in capsys.readouterr().err
    quick(progress=True, evaluate_every=4)
    printed = capsys.readouterr().err
    assert "greedy return " in printed
    assert "384/384 environment steps (100%)" in printed
