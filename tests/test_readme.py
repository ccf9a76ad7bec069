"""The README's examples run as they stand, its tables are complete, and CI runs its test command."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import rljax
from rljax import algorithms

pytestmark = pytest.mark.optimized
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.+?)```", README, re.S))
OWN = ("advantage", "environment", "linen", "nnx", "task")


def test_the_examples_of_what_one_brings_are_short() -> None:
    assert set(OWN) <= set(EXAMPLES)
    for name in OWN:
        assert len([line for line in EXAMPLES[name].splitlines() if line.strip()]) <= 15, name


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    with jax.numpy_rank_promotion("allow"):  # what a user has
        exec(compile(EXAMPLES[name], name, "exec"), scope)
    if name == "environment":
        assert scope["result"].summary["return"]["iqm"] > 0.8  # the goal is worth 1, each step −0.01
    elif name == "advantage":
        assert scope["result"].rows[-1]["episode_return"][0] > 25  # a random policy gets 22
    elif name in ("linen", "nnx", "functions"):
        assert scope["result"].summary["return"]["mean"] > 30  # a random policy gets 22
    elif name == "text":
        assert scope["result"].summary["loss"]["mean"] < 0.3  # of log 13 = 2.6
        assert scope["completion"].tokens.shape == (2, 20)
    elif name == "rlhf":
        sft, ppo, dpo = optimality(scope)
        assert ppo > sft + 0.1  # true optimality, which the reward model only imitates
        assert dpo > sft - 0.1
    elif name == "task":
        assert scope["result"].summary["return"]["mean"] > 0.3  # by chance 0.2
    elif name == "pure":
        assert scope["curves"].shape == (2, 3, 40)
        last = np.nanmean(scope["curves"][:, :, -5:], axis=(1, 2))  # NaN where no episode ended
        assert (last > 40).all()
    else:
        raise AssertionError(f"no check for the example {name}")


def optimality(scope: dict) -> list[float]:
    """True optimality of what the policies of the example on RLHF draw: SFT, PPO, DPO."""
    judge = lambda run: rljax.judge(f"runs/{run}", scope["task"], **scope["drawn"])["return"]["mean"]
    return [judge(run) for run in ("sft", "ppo", "dpo")]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_ppo_beats_sft_with_any_seed(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(EXAMPLES["rlhf"].replace('out="runs/', f'seed={seed}, out="runs/'), scope)
    sft, ppo, _ = optimality(scope)
    assert ppo > sft + 0.1


def test_every_algorithm_has_a_row_with_its_file_and_experiment() -> None:
    for name in algorithms.NAMES:
        assert f"| `{name}` |" in README
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_ci_reads_the_test_command_from_here() -> None:
    block = re.search(r"<!-- test command -->\n```bash\n(.+)\n```", README)
    assert block
    assert "pytest" in block[1]
    assert "test command" in (ROOT / ".ci/run").read_text()


def test_the_first_screen_is_what_it_is_and_two_commands() -> None:
    first = "\n".join(README.splitlines()[:23])
    assert first.count("```bash") == 2
    assert "unrelated" in README
