"""Functions of the user's where a static field chooses one of ours."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax import algorithms, dqn, grpo, ppo, reinforce
from rljax.learning import choices
from rljax.math import aggregation, groups, losses, preferences, returns
from tests.algorithms import tasks
from tests.runs.tiny import CONFIG, WALK, strict

FILE = Path(__file__).parents[1] / "experiments" / "own_functions.py"
QUIET: dict[str, Any] = {"evaluation_episodes": 4, "progress": False}


def gae_again(reward: Any, discount: Any, value: Any, next_value: Any, trace: Any) -> Any:
    return returns.gae(reward, discount, value, next_value, trace)


def clipped_again(new: Any, old: Any, advantage: Any, clip: Any) -> Any:
    return losses.clipped_surrogate(new, old, advantage, clip)


def standardised_again(reward: Any, scored: Any) -> Any:
    return groups.standardised(reward, scored)


def hinge_again(s: Any, config: Any) -> Any:
    return preferences.hinge(s[:, 0] - s[:, 1], config.beta)


def two(reward: Any, scored: Any) -> Any:
    return reward


def stepped(module: Any, world: Any, config: Any) -> Any:
    """The parameters after one step."""
    algorithm = module.make(world, config)

    @jax.jit
    def run(key: Any) -> Any:
        return algorithm.step(key, algorithm.init(key))[0].params

    return run(jax.random.key(0))


def test_ours_as_the_users_own_is_the_same_run(tmp_path: Path) -> None:
    own = CONFIG.replace(advantage=gae_again, policy_loss=clipped_again)
    named = rljax.train(ppo, WALK, CONFIG, **QUIET)
    given = rljax.train(ppo, WALK, own, out=tmp_path / "run", **QUIET)
    assert given.summary["state_sha256"] == named.summary["state_sha256"]
    told = strict((tmp_path / "run" / "config.json").read_text())["config"]
    assert told["advantage"] == "tests.test_own_functions:gae_again"
    loaded = rljax.load(tmp_path / "run", env=WALK)
    assert choices.imported(loaded.config.advantage) is gae_again
    again = rljax.train(ppo, WALK, own, out=tmp_path / "run", resume=True, **QUIET)
    assert again.summary["state_sha256"] == named.summary["state_sha256"]


def test_another_advantage_is_another_run_and_may_be_named_by_its_file() -> None:
    own = f"{FILE}:monte_carlo"
    one, other = (stepped(ppo, WALK, CONFIG.replace(advantage=each)) for each in ("gae", own))
    assert any((x != y).any() for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True))
    monte_carlo = choices.imported(own)
    draw = np.random.default_rng(0)
    reward, value, next_value = draw.normal(size=(3, 6)).astype(np.float32)
    discount, trace = np.full(6, 0.9, np.float32), np.array([1, 1, 0, 1, 1, 1], np.float32)
    expected = [0.0] * 6
    later = next_value[-1]
    for t in reversed(range(6)):
        later = reward[t] + 0.9 * (later if trace[t] else next_value[t])
        expected[t] = later - value[t]
    np.testing.assert_allclose(monte_carlo(reward, discount, value, next_value, trace), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "fields", "own"),
    [
        ("grpo", {"advantage": "standardised"}, {"advantage": standardised_again}),
        ("grpo", {"aggregation": "token_mean"}, {"aggregation": aggregation.token_mean}),
        ("grpo", {"loss": "token"}, {"loss": grpo.LOSSES["token"]}),
        ("dpo", {"loss": "hinge"}, {"loss": hinge_again}),
    ],
)
def test_ours_as_the_users_own_is_the_same_step_on_text(name: str, fields: Any, own: Any) -> None:
    module = algorithms.find(name).module
    small = tasks.RL if name == "grpo" else tasks.PREFERRING
    world = tasks.rewarded_task() if name == "grpo" else tasks.started_task(2)
    one, other = (stepped(module, world, module.Config(**small | each)) for each in (fields, own))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_what_does_not_fit_is_told_before_anything_is_compiled(tmp_path: Path) -> None:
    right = r"takes arrays \(5,\), \(5,\), \(5,\), \(5,\), \(5,\) and gives \(5,\) here"
    nowhere = lambda *given: jnp.float32(0)
    with pytest.raises(ValueError, match=rf"^ppo\.Config\.advantage = .*{right}, and raises TypeE") as error:
        ppo.make(WALK, CONFIG.replace(advantage=two))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=rf"{right}, not \(\)"):
        ppo.make(WALK, CONFIG.replace(advantage=nowhere))
    with pytest.raises(ValueError, match="is no function that can be imported: no module nowhere"):
        ppo.make(WALK, CONFIG.replace(advantage="nowhere:mine"))
    with pytest.raises(ValueError, match=r"has no none"):
        ppo.make(WALK, CONFIG.replace(advantage=f"{FILE}:none"))
    with pytest.raises(ValueError, match=r"advantage = .*: must be a function of a module, .*: no lambda"):
        rljax.train(ppo, WALK, CONFIG.replace(advantage=nowhere), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="must be one of none, mean, learned"):
        reinforce.make(WALK, reinforce.Config(baseline="nome"))
    with pytest.raises(ValueError, match=r"dqn\.Config\.loss .* gives \(5,\) here, not \(\)"):
        dqn.make(WALK, dqn.Config(loss=jnp.mean))
