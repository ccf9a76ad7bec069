"""docs/ppo_details.md says what the code does, and no algorithm has a Config field that nothing reads.

That a fragment of code stands where a row says shows no behaviour: each row has a test that does.
"""

import ast
import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from rljax import algorithms
from rljax.algorithms import ppo

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "ppo_details.md"
FIELDS = [field.name for field in dataclasses.fields(ppo.Config)]


class Row(NamedTuple):
    number: int
    detail: str
    where: list[tuple[str, str]]  # files and fragments
    config: str


def rows(text: str) -> list[Row]:
    """The table's rows; every code span of "Where" belongs to a pair of file and fragment."""
    found = []
    for line in text.splitlines():
        if not re.match(r"\| \d+ \|", line):
            continue
        number, detail, where, config, _ = (cell.strip() for cell in line.strip("|").split("|"))
        pairs = re.findall(r"`([^`]+)`: `([^`]+)`", where)
        assert 2 * len(pairs) == len(re.findall(r"`[^`]+`", where)), line
        found.append(Row(int(number), detail, pairs, config))
    return found


CONTROL = [name for name in algorithms.NAMES if not algorithms.find(name).text]


def read_fields(*sources: str) -> set[str]:
    """The names that code, not comments or strings, takes from a variable called `config`; a choice is taken
    by `choices.function(config, "name", …)`.
    """
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    chosen = {
        node.args[1].value
        for node in nodes
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "choices.function"
    }
    return chosen | {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config"
    }


BUILDERS = {
    "actor_critic(": "models/actor_critic.py",
    "policy_gain(": "models/layers.py",
    "normalizer(": "models/observations.py",
    "q_network(": "models/q_networks.py",
    "implicit_quantile_network(": "models/q_networks.py",
    "models.critic(": "models/continuous.py",
    "replay.make(": "learning/replay.py",
    "off_policy.": "learning/off_policy.py",
    "deep_q_learning.": "learning/deep_q_learning.py",
    "tables.": "learning/tables.py",
    "algorithms.c51 import": "algorithms/c51.py",
    "algorithms.qrdqn import": "algorithms/qrdqn.py",
}


def sources_of(name: str) -> list[str]:
    """The algorithm's file, and those of the functions to which it hands its Config, and so on."""
    found, waiting = {}, [f"algorithms/{name}.py", "runs/train.py"]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file] = (ROOT / "rljax" / file).read_text()
            waiting += [path for call, path in BUILDERS.items() if call in found[file]]
    return list(found.values())


TABLE = rows(DOCUMENT.read_text())
CYCLES = "updates/test_on_policy.py::test_two_cycles_of_ppo"
MODELS = "algorithms/test_models.py::test"
DISTRIBUTIONS = "math/test_distributions.py::test"
# The test that fails where a detail is not as its row says, below tests/.
NOTICED = {
    1: "envs/test_vector.py::test_episode_accounting_over_several_rollouts",
    2: f"{MODELS}_gains_of_the_layers",
    3: CYCLES,
    4: CYCLES,
    5: CYCLES,
    6: "updates/test_on_policy.py::test_minibatches_of_ppo_are_whitened_and_taken_one_after_the_other",
    7: CYCLES,
    8: CYCLES,
    9: CYCLES,
    10: CYCLES,
    11: CYCLES,
    12: "algorithms/test_probes.py::test_ppo_adds_up_the_gradient_norms_of_all_minibatches",
    13: f"{MODELS}_a_network_takes_any_space_and_any_leading_axes",
    20: "envs/test_wrappers.py::test_stack_frames",
    21: f"{MODELS}_a_cnn_takes_the_images_of_minatar",
    22: "envs/test_wrappers.py::test_mask_observation",
    23: f"{DISTRIBUTIONS}_gaussian_quantities_are_scipys",
    24: f"{MODELS}_a_continuous_network_has_one_log_std_for_all_states",
    25: f"{DISTRIBUTIONS}_gaussian_quantities_are_scipys",
    26: f"{MODELS}_the_network_is_the_formula_of_its_docstring",
    27: f"{MODELS}_a_gaussian_action_is_rescaled_and_clipped_to_the_bounds",
    28: CYCLES,
    29: "math/test_statistics.py::test_normalise_clips_and_starts_as_the_identity",
    30: CYCLES,
    31: CYCLES,
    37: f"{DISTRIBUTIONS}_multi_categorical_is_a_product",
}


def test_there_are_37_details_in_order() -> None:
    assert [row.number for row in TABLE] == list(range(1, 38))
    assert len({row.detail for row in TABLE}) == 37


@pytest.mark.parametrize("row", TABLE, ids=lambda row: str(row.number))
def test_a_row_agrees_with_the_code(row: Row) -> None:
    for file, fragment in row.where:
        assert fragment in (ROOT / file).read_text(), f"{file} has no {fragment}"
    fields = re.findall(r"`([^`]+)`", row.config)
    if fields:
        assert set(fields) <= set(FIELDS), "no such field of ppo.Config"
        assert set(fields) <= read_fields(*sources_of("ppo")), "a field that nothing reads"
        assert re.sub(r"`[^`]+`", "", row.config).strip(", ") == ""
    else:
        assert row.config in ("always", "wrapper") or re.match(r"not here: .{10}", row.config)
    assert bool(row.where) != row.config.startswith("not here")


def test_every_detail_that_is_here_has_a_test_that_notices() -> None:
    assert {row.number for row in TABLE if row.where} == set(NOTICED)
    for file, _, name in (test.partition("::") for test in NOTICED.values()):
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_wrappers_are_named_as_they_are() -> None:
    files = {file for row in TABLE if row.config == "wrapper" for file, _ in row.where}
    assert files == {"rljax/envs/wrappers.py"}


@pytest.mark.parametrize("name", CONTROL)
def test_every_config_field_is_read(name: str) -> None:
    declared = {field.name for field in dataclasses.fields(algorithms.find(name).module.Config)}
    assert declared <= read_fields(*sources_of(name)), f"{name}.Config has fields that nothing reads"


@pytest.mark.parametrize("name", CONTROL)
def test_every_config_field_that_is_read_exists(name: str) -> None:
    module = algorithms.find(name).module
    own = read_fields((ROOT / "rljax" / "algorithms" / f"{name}.py").read_text())
    assert own <= set(dir(module.Config())), f"{name} reads fields that its Config has not"


def test_the_readers_of_this_file_can_fail() -> None:
    source = '"""config.a"""\nx = config.b  # config.c\ny = other.d\nz = f("config.e", config.g.h)\n'
    assert read_fields(source) == {"b", "g"}
    with pytest.raises(AssertionError):
        rows("| 1 | a detail | `file.py`: `one`; `two` | always | |")
    assert rows("| 1 | x | `f.py`: `one` | `clip` | y |") == [Row(1, "x", [("f.py", "one")], "`clip`")]
