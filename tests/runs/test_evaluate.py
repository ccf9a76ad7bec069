"""Evaluation: exactly n complete episodes, so that short ones count no more than long ones."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax import envs
from rljax.runs import alike, load
from rljax.runs.folder import checkpoint, restore
from rljax.runs.program import engine
from rljax.runs.recorder import Result
from rljax.runs.reports import statistics
from rljax.types import Array, Box, Discrete, Env, Key, Policy
from tests.runs.tiny import CONFIG, WALK, Quick

EPISODES = 300


def lengths_at_reset() -> Env:
    """Half of the episodes take 1 step and half 10, as the first observation says; reward 1 per step."""

    def reset(key: Key) -> tuple[Array, Any]:
        length = jnp.where(jax.random.bernoulli(key), 1, 10)
        return jnp.stack([length / 10.0]), (length, jnp.int32(0))

    def step(key: Key, state: Any, action: Array) -> tuple[Array, Any, Array, Array, Array]:
        length, time = state[0], state[1] + 1
        return jnp.stack([length / 10.0]), (length, time), jnp.float32(1), time >= length, jnp.bool_(False)

    return Env("Lengths", reset, step, Box(0.0, 1.0, (1,)), Discrete(2), max_steps=10)


def by_hand(env: Env, policy: Policy, key: Key, episodes: int, greedy: bool) -> tuple[list, list]:
    """Returns and lengths from a plain loop over episodes, each stepped until it ends, with the same keys."""
    reset_key, run_key = jax.random.split(key)
    step, act = jax.jit(env.step), jax.jit(lambda *arguments: policy.act(*arguments, greedy)[0])
    running = [jax.jit(env.reset)(one) for one in jax.random.split(reset_key, episodes)]
    returns, lengths, ended = [0.0] * episodes, [0] * episodes, [False] * episodes
    for time in range(env.max_steps):
        act_key, env_key = jax.random.split(jax.random.fold_in(run_key, time))
        keys = jax.random.split(env_key, episodes)
        obs = jax.tree.map(lambda *x: jnp.stack(x), *[obs for obs, _ in running])
        actions = np.asarray(act(act_key, obs, policy.init()))
        for i in range(episodes):
            if not ended[i]:
                obs, state, reward, terminated, truncated = step(keys[i], running[i][1], actions[i])
                running[i] = (obs, state)
                returns[i] += float(reward)
                lengths[i] += 1
                ended[i] = bool(terminated) or bool(truncated)
    assert all(ended)
    return returns, lengths


@pytest.mark.parametrize("greedy", [True, False])
def test_episodes_equal_a_plain_loop(greedy: bool) -> None:
    """On a slippery walk with a policy that looks at its observation, greedy and sampled."""
    action = lambda key, obs, greedy: jnp.where(
        greedy, obs[..., 0] > 0, jax.random.bernoulli(key, 0.5 + 0.3 * obs[..., 0])
    ).astype(jnp.int32)
    policy = Policy(tuple, lambda key, obs, carry, greedy: (action(key, obs, greedy), carry))
    key = jax.random.key(3)
    run = jax.jit(lambda key: engine.episodes(WALK, policy, key, 40, greedy))
    returns, lengths, complete = run(key)
    right_returns, right_lengths = by_hand(WALK, policy, key, 40, greedy)
    np.testing.assert_array_equal(returns, right_returns)
    np.testing.assert_array_equal(lengths, right_lengths)
    assert complete.all()
    assert len(set(right_lengths)) > 5, "episodes of many lengths are what this test is about"


def test_short_episodes_count_no_more_than_long_ones() -> None:
    """The mean length is (1 + 10) / 2; counting the episodes that end in a window would find about 2."""
    env = lengths_at_reset()
    policy = Policy(tuple, lambda key, obs, carry, greedy: (jnp.zeros(obs.shape[0], jnp.int32), carry))
    returns, lengths, complete = engine.episodes(env, policy, jax.random.key(0), EPISODES, True)
    assert returns.shape == lengths.shape == (EPISODES,)
    assert complete.all()
    np.testing.assert_array_equal(returns, lengths)
    np.testing.assert_array_equal(np.unique(lengths), [1, 10])
    assert abs(float(lengths.mean()) - 5.5) < 4 * 4.5 / EPISODES**0.5


def test_an_episode_that_never_ends_is_said() -> None:
    """Reward goes on to the time limit of the evaluation, and `complete` tells which did not end."""
    env = lengths_at_reset()._replace(max_steps=5)
    policy = Policy(tuple, lambda key, obs, carry, greedy: (jnp.zeros(obs.shape[0], jnp.int32), carry))
    returns, lengths, complete = engine.episodes(env, policy, jax.random.key(0), 50, True)
    np.testing.assert_array_equal(np.unique(lengths), [1, 5])
    np.testing.assert_array_equal(complete, np.asarray(lengths) == 1)
    np.testing.assert_array_equal(returns, lengths)


@pytest.fixture(scope="module")
def evaluated(whole: Result) -> dict[str, Any]:
    return rljax.evaluate(whole.folder, episodes=50, env=WALK)


def test_a_run_is_evaluated(whole: Result, evaluated: dict[str, Any]) -> None:
    assert evaluated["iteration"] == 12
    assert evaluated["greedy"] is True
    for name in ("return", "episode_length"):
        assert set(evaluated[name]) == {"mean", "iqm", "ci95", "per_seed", "episodes"}
        assert evaluated[name]["episodes"] == 50
        assert len(evaluated[name]["per_seed"]) == 3
        assert np.mean(evaluated[name]["per_seed"]) == pytest.approx(evaluated[name]["mean"])
    assert evaluated["return"] == evaluated["episode_length"]  # the reward of the walk is 1
    assert len(set(evaluated["return"]["per_seed"])) > 1


def test_evaluation_is_what_the_loaded_policies_do(whole: Result) -> None:
    """Member 1, sampled, against a plain loop over the policy that `load` gives."""
    found = rljax.evaluate(whole.folder, episodes=6, greedy=False, seed=9, member=1, env=WALK)
    loaded = load.load(whole.folder, member=1, env=WALK)
    run_key = jax.random.split(jax.random.key(loaded.seed))[1]
    key = jax.random.fold_in(jax.random.fold_in(run_key, engine.EVALUATION), 9)
    returns, _ = by_hand(WALK, loaded.algorithm.policy(loaded.state), key, 6, False)
    assert found["return"]["per_seed"] == [pytest.approx(np.mean(returns))]
    assert found["return"]["ci95"] is None
    assert found["greedy"] is False


def test_an_older_checkpoint(whole: Result, evaluated: dict[str, Any]) -> None:
    older = rljax.evaluate(whole.folder, episodes=50, env=WALK, checkpoint_iteration=2)
    assert older["iteration"] == 2
    assert older["return"]["per_seed"] != evaluated["return"]["per_seed"]


def test_the_summary_is_this_evaluation(whole: Result) -> None:
    """`train` evaluates its last policy over complete episodes, greedily: the numbers can be had again."""
    again = rljax.evaluate(whole.folder, episodes=4, seed=12, env=WALK)
    assert again["return"] == whole.summary["return"]


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"episodes": 0}, ValueError, "episodes = 0: must be an integer of at least 1"),
        ({"episodes": 2.5}, ValueError, r"episodes = 2\.5"),
        ({"seed": -1}, ValueError, "seed = -1"),
        ({"member": 3}, ValueError, "member = 3: .* has members 0 to 2"),
        ({"member": -1}, ValueError, "member = -1: .* has members 0 to 2"),
        (
            {"checkpoint_iteration": 3},
            FileNotFoundError,
            "no checkpoint of iteration 3; there is 2, 4, 6, 8, 10, 12",
        ),
        ({"env": None}, ValueError, "trained with env= of your own: pass the same env= again"),
    ],
)
def test_misuse(whole: Result, arguments: dict, error: type, told: str) -> None:
    with pytest.raises(error, match=told) as raised:
        rljax.evaluate(whole.folder, **{"env": WALK} | arguments)
    assert "\n" not in str(raised.value)


def test_no_run_and_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not a run folder: it has no config\.json"):
        rljax.evaluate(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not readable JSON"):
        rljax.evaluate(tmp_path)


def test_episodes_without_an_end(quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk that may go on for ever, where it does: one line, and not a mean over those that ended."""
    endless = WALK._replace(max_steps=None)
    whole_build = engine.build

    def build(*arguments: Any, **keywords: Any) -> engine.Program:
        program = whole_build(*arguments, **keywords)
        totals = np.where(
            np.arange(12).reshape(3, 4) > 1, 1.0, -5.0
        )  # two episodes of the first member go on
        cut = lambda *_: (totals, np.where(totals > 0, 2, 9), totals > 0)
        return program._replace(
            evaluate=cut, fetch=lambda tree: tree if isinstance(tree, tuple) else program.fetch(tree)
        )

    quick(tmp_path / "run", config=CONFIG)
    monkeypatch.setattr(engine, "build", build)
    found = rljax.evaluate(tmp_path / "run", episodes=4, env=endless)
    assert found["return"]["per_seed"] == [-2.0, 1.0, 1.0]  # (−5 − 5 + 1 + 1) / 4: not of the survivors
    assert found["episode_length"]["per_seed"] == [5.5, 2.0, 2.0]
    assert found["note"] == "2 of 12 episodes did not end within 9 steps and count as far as they went"


def test_a_damaged_checkpoint_is_passed_over(whole: Result, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole.folder, run)
    (run / "checkpoints" / "000000012" / checkpoint.MANIFEST).unlink()
    assert restore.saved(run).iteration == 10
    with pytest.raises(ValueError, match="000000012 has no manifest"):
        restore.saved(run, 12)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(FileNotFoundError, match="has no complete checkpoint"):
        restore.saved(run)


def always_the_same() -> Env:
    """Nothing is random: an episode of 5 steps, each worth 1 with action 1."""

    def step(key: Key, time: Array, action: Array) -> tuple[Array, Array, Array, Array, Array]:
        time = time + 1
        return time[None] / 5.0, time, (action == 1).astype(jnp.float32), time >= 5, jnp.bool_(False)

    reset = lambda key: (jnp.zeros(1), jnp.float32(0))
    return Env("Same", reset, step, Box(0.0, 1.0, (1,)), Discrete(2), max_steps=9)


def test_episodes_that_are_one_trajectory_are_said_and_the_sampled_return_is_beside(quick: Quick) -> None:
    """The greedy return of each seed is that of one episode, a whole number; the sampled one is a mean."""
    result = quick(env=always_the_same(), evaluation_episodes=32)
    summary = result.summary
    assert all(each == int(each) for each in summary["return"]["per_seed"])
    drawn = summary["return_sampled"]
    assert (drawn["episodes"], len(drawn["per_seed"])) == (32, 3)
    assert all(0 < each < 5 and each * 32 == int(each * 32) for each in drawn["per_seed"])
    assert any(each != int(each) for each in drawn["per_seed"])
    assert summary["note"].startswith("all 32 greedy episodes of a seed are alike: Same has nothing random")


def test_equal_returns_from_different_starts_are_no_single_trajectory() -> None:
    """CartPole at its limit: every return is the same, and every start another."""
    measured = statistics.measured(
        "return", False, np.full((1, 4), 500.0), np.full((1, 4), 500), np.ones((1, 4), bool)
    )
    assert measured.repeated
    assert not alike.starts_alike(envs.make("CartPole-v1"))
    assert alike.starts_alike(always_the_same())
    apart = statistics.measured("return", False, [[1.0, 2.0]], [[3, 3]], [[True, True]])
    assert not apart.repeated
