"""Whatever a field is given, construction returns an algorithm or one line that names the field.

Each algorithm × each Config field × each of VALUES, through `load.setup` and `make`, as `rljax.train`
does, and through `make` alone. The fast suite has a sample of them, `-m slow` the whole table.
"""

from __future__ import annotations

import functools
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax import algorithms, checks, cli, envs
from rljax.algorithms import c51, dqn, grpo, iqn, ppo, reinforce, sac
from rljax.learning import fields, replay, trainable
from rljax.math.aggregation import AGGREGATIONS
from rljax.math.losses import VALUE_LOSSES
from rljax.math.noise import NOISES
from rljax.math.normalizers import REWARD_SCALERS
from rljax.math.schedules import SCHEDULES
from rljax.models.language_models import language_model
from rljax.runs import load, recorder, sweep, train
from rljax.types import Env, Task
from tests.algorithms import tasks

NAMES = algorithms.NAMES
VALUES: dict[str, Any] = {
    "0": 0,
    "-1": -1,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "1e12": 1e12,
    "10**12": 10**12,
    "0.5": 0.5,
    "''": "",
    "'wrong'": "wrong",
    "None": None,
    "True": True,
    "[]": [],
    "()": (),
    "(0,)": (0,),
    "(-1,)": (-1,),
    "[64]": [64],
    "array": np.array([0.5, 0.25]),
}
FAST = 700  # constructions of the sample
INT32 = 2**31 - 1
SECONDS = 20.0  # for one of them: more is a hang


class Case(NamedTuple):
    algorithm: str
    field: fields.Field
    value: str  # of VALUES


@functools.cache
def world(name: str) -> Env | Task:
    """Something that the algorithm can learn; its parameters are zeros, for which nothing is compiled."""
    if not algorithms.find(name).text:
        continuous, tabular = ("ddpg", "td3", "sac"), ("q_learning", "sarsa", "monte_carlo", "td_lambda")
        if name in (*tabular, "expected_sarsa"):
            return envs.make("FrozenLake-tabular")
        return envs.make("Pendulum-v1" if name in continuous else "CartPole-v1")
    learns = algorithms.find(name).learns
    if learns == "text":
        return tasks.text_task()
    if learns == "demonstrations":
        return tasks.rows_task()
    task = tasks.preferences_task() if learns == "preferences" else tasks.rewarded_task()
    model = language_model(task.vocab_size, tasks.tuning(), 32)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return task._replace(params=jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))


def sizes(name: str) -> dict[str, Any]:
    """The fields that make it fit its world."""
    kind = algorithms.find(name)
    if not kind.text:
        return {}
    rows = {"text": tasks.FIELDS, "demonstrations": tasks.FIELDS, "prompts": tasks.RL}
    wanted = rows.get(kind.learns) or (tasks.SCORING if name == "reward_model" else tasks.PREFERRING)
    return {field.name: wanted[field.name] for field in kind.fields() if field.name in wanted}


def whole_table() -> list[Case]:
    return [
        Case(name, field, value)
        for name in NAMES
        for field in algorithms.find(name).fields()
        for value in VALUES
    ]


def set_up(case: Case) -> None:
    """As `rljax.train` constructs."""
    values = sizes(case.algorithm) | {case.field.name: VALUES[case.value]}
    setup = load.setup(algorithms.find(case.algorithm), world(case.algorithm), values, None, {})
    setup.algorithm.module.make(setup.env, setup.config)


def make_alone(case: Case) -> None:
    module = algorithms.find(case.algorithm).module
    values = sizes(case.algorithm) | {case.field.name: VALUES[case.value]}
    module.make(world(case.algorithm), module.Config(**values))


def may_be_accepted(field: fields.Field, value: Any) -> bool:
    """Whether a value has the type of a field at all; what its range is, only the algorithm knows."""
    kind = field.type
    if fields.names_of(kind):
        return False
    if type(None) in get_args(kind) and get_origin(kind) is not Literal:
        if value is None:
            return True
        kind = get_args(kind)[0]
    if value is None or isinstance(value, bool | str):
        return False
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    if kind is int:
        return value == 0 and not isinstance(value, list | tuple | np.ndarray) and field.default == 0
    if get_origin(kind) is tuple and get_args(kind)[0] is int:
        return isinstance(value, list | tuple) and all(size > 0 for size in value)
    return False


def outcome(case: Case, construct: Any) -> str:
    """ "refused", "accepted", or what is wrong with either."""
    begun = time.perf_counter()
    try:
        construct(case)
    except ValueError as error:
        if "\n" in str(error) or len(str(error)) > 400:
            return f"not one line: {str(error)[:200]!r}"
        if not re.search(rf"\b{case.field.name}\b", str(error)):
            return f"does not name the field: {error}"
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]!r}"
    if (spent := time.perf_counter() - begun) > SECONDS:
        return f"took {spent:.0f} s"
    return "accepted" if may_be_accepted(case.field, VALUES[case.value]) else "accepted, and should not be"


def failures(cases: Iterable[Case]) -> list[str]:
    """The constructions that are neither refused nor rightly accepted; prints the counts."""
    wrong, counts = [], Counter()
    for case in cases:
        for construct in (set_up, make_alone):
            found = outcome(case, construct)
            counts[found if found in ("refused", "accepted") else "wrong"] += 1
            if found not in ("refused", "accepted"):
                wrong.append(
                    f"{case.algorithm}.{case.field.name} = {case.value}, {construct.__name__}: {found}"
                )
    print(f"{counts.total()} constructions: {dict(counts)}")
    return wrong


def test_a_sample_of_wrong_values_is_refused_in_one_line() -> None:
    table = random.Random(0).sample(whole_table(), FAST // 2)
    assert failures(table) == []


@pytest.mark.slow
def test_every_wrong_value_is_refused_in_one_line() -> None:
    table = whole_table()
    assert 2 * len(table) >= 10_000
    assert failures(table) == []


SHARED: dict[str, Any] = {  # tables of functions that several algorithms choose from
    "schedule": SCHEDULES,
    "clip_schedule": SCHEDULES,
    "value_loss": VALUE_LOSSES,
    "reward_scaling": REWARD_SCALERS,
    "noise": NOISES,
    "aggregation": AGGREGATIONS,
    "train": trainable.ADAPTATIONS,
    "replay": replay.KINDS,
}
OWN = {  # and those in the module of one
    "loss": "LOSSES",
    "target": "TARGETS",
    "baseline": "BASELINES",
    "optimizer": "OPTIMIZERS",
    "temperature": "TEMPERATURES",
    "traces": "TRACES",
    "advantage": "ADVANTAGES",
    "divergence": "DIVERGENCES",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_choice_declares_the_names_of_its_table(name: str) -> None:
    """`checks.fields` refuses what a field's Literal has not; only a number is a leaf."""
    for field in algorithms.find(name).fields():
        kind = get_args(field.type)[0] if type(None) in get_args(field.type) else field.type
        assert field.leaf == (kind is float)
        names = fields.names_of(kind)
        if not names:
            assert kind in (float, int) or get_origin(kind) is tuple or field.name == "activation"
            continue
        own = getattr(algorithms.find(name).module, OWN.get(field.name, ""), None)
        table = SHARED.get(field.name, own)
        assert table is None or set(names) == set(table)


# through the command line

WORDS = ("0", "-1", "nan", "inf", "1e12", "0.5", "", "wrong", "none", "true", "64x0", "64", "1e400")


class Built(checks.RunError):
    """The construction went through."""


def command_line(number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """So many lines `rljax train … --config.FIELD WORD`: each ends before compiling, with status 2 and a line
    of the library's or the parser's complaint, or is accepted.
    """

    def build(make: Any, world: Any, config: Any, *_: Any, **__: Any) -> Any:
        make(world, config)
        raise Built("built")

    monkeypatch.setattr(train.engine, "build", build)
    monkeypatch.delenv("RLJAX_TRACEBACK", raising=False)
    table = [
        (name, field, word)
        for name in algorithms.NAMES
        if not algorithms.find(name).text
        for field in algorithms.find(name).fields()
        for word in WORDS
    ]
    counts = Counter()
    for name, field, word in random.Random(1).sample(table, number):
        option = f"--config.{field.name.replace('_', '-')}={word}"
        place = str(world(name).name)
        status = cli.main(["train", name, "--env", place, option, "--no-progress"])
        shown = capsys.readouterr().err
        assert status in (1, 2), (name, option, status, shown)
        assert "Traceback" not in shown
        if status == 1:
            assert shown == "rljax: error: built\n", (name, option, shown)
        elif shown.startswith("rljax: error:"):
            assert shown.count("\n") == 1, shown
            assert re.search(rf"\b{field.name}\b", shown), (option, shown)
        else:  # the parser's own, in a box
            assert field.name.replace("_", "-") in " ".join(shown.split()), (option, shown)
        counts[status] += 1
    with capsys.disabled():
        print(f"\n{number} command lines: {counts[2]} refused, {counts[1]} built")


def test_the_command_line_refuses_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    command_line(30, monkeypatch, capsys)


@pytest.mark.slow
def test_the_command_line_refuses_hundreds_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    command_line(500, monkeypatch, capsys)


# the lines themselves


def refusal(function: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (each caller compares the whole line)
        function(*arguments, **keywords)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"learning_rate": [1e-3, 3e-4]},
            "learning_rate = [0.001, 0.0003]: must be one number: rljax.sweep tries several, of which each "
            "run has one",
        ),
        ({"learning_rate": "1e-3"}, "learning_rate = '1e-3': must be a number"),
        ({"learning_rate": True}, "learning_rate = True: must be a number"),
        ({"learning_rate": 1e12}, "learning_rate = 1e+12: must be above 0 and at most 1000"),
        ({"clip": math.nan}, "clip = nan: must be a finite number"),
        ({"clip": math.inf}, "clip = inf: must be a finite number"),
        ({"clip": 1e39}, "clip = 1e+39: must be at most 3.4e+38, the largest number of float32"),
        ({"clip": 10**400}, "clip = 1e400: must be at most 3.4e+38, the largest number of float32"),
        ({"num_envs": 8.0}, "num_envs = 8.0: must be an integer of at least 1, without a decimal point"),
        ({"num_envs": 10**12}, "num_envs = 1000000000000: must be an integer of at most 2147483647"),
        (
            {"num_envs": 2**20, "num_steps": 2**20},
            "num_envs = 1048576: num_envs x num_steps = 1.1e+12 must be at most 2147483647",
        ),
        ({"hidden_sizes": 64}, "hidden_sizes = 64: must be a tuple of positive integers, such as (64, 64)"),
        (
            {"torso": "share"},
            "torso = 'share': must be one of separate, shared; did you mean shared?",
        ),
        ({"torso": ["shared"]}, "torso = ['shared']: must be one of separate, shared"),
        (
            {"num_minibatches": 64 * 128},
            "advantage_normalization = 'minibatch': makes the advantage of a batch of one sample 0, which "
            "teaches nothing: take more, or 'none'",
        ),
    ],
)
def test_the_line_of_ppo(fields: dict[str, Any], line: str) -> None:
    assert refusal(ppo.make, world("ppo"), ppo.Config(**fields)) == f"ppo.Config.{line}"


def test_minibatches_of_one_sample_are_right_without_whitening() -> None:
    one = {"num_envs": 2, "num_steps": 2, "num_minibatches": 4}
    ppo.make(world("ppo"), ppo.Config(**one, advantage_normalization="batch"))
    line = refusal(ppo.make, world("ppo"), ppo.Config(num_envs=1, num_steps=1, num_minibatches=1))
    assert line.startswith("ppo.Config.advantage_normalization = 'minibatch'")


def test_plain_types_are_python_s() -> None:
    given = ppo.Config(
        num_envs=np.int64(2), num_steps=np.int32(16), hidden_sizes=[np.int64(8), 16], clip=np.float32(0.5)
    )
    found = checks.fields(given)
    assert (found.num_envs, found.num_steps, found.hidden_sizes) == (2, 16, (8, 16))
    assert [type(x) for x in (found.num_envs, found.num_steps, *found.hidden_sizes)] == [int] * 4
    assert found.clip == 0.5
    assert checks.fields(found) is found
    lists = grpo.Config(patterns=["attention/*", "mlp/*"])
    assert checks.fields(lists).patterns == ("attention/*", "mlp/*")
    assert load.numbers(np.int64(3), np.int32(2)) == [3, 4]
    assert {type(seed) for seed in load.numbers(np.int64(3), 2)} == {int}


def test_numpy_integers_make_an_algorithm_whose_shapes_are_right() -> None:
    config = ppo.Config(
        num_envs=np.int64(2), num_steps=np.int64(4), num_minibatches=np.int64(2), hidden_sizes=[8]
    )
    state = jax.eval_shape(ppo.make(world("ppo"), config).init, jax.random.key(0))
    assert state.worlds.obs.shape == (2, 4)
    kernels = {x.shape for x in jax.tree.leaves(state.params) if x.ndim == 2 and x.shape[1] > 1}
    assert kernels == {(8, 4), (2, 8), (1, 8)}  # (out, in): of both torsos, the policy, the value


def test_a_traced_number_has_no_axis() -> None:
    made = []

    def trace(rate: Any) -> Any:
        made.append(ppo.make(world("ppo"), ppo.Config(learning_rate=rate)))
        return rate

    jax.eval_shape(trace, jnp.float32(0.1))
    jax.eval_shape(jax.vmap(trace), jnp.ones(3))
    assert len(made) == 2
    with pytest.raises(ValueError, match=r"learning_rate = an array of shape \(3,\): must be one number"):
        jax.eval_shape(trace, jnp.ones(3))
    with pytest.raises(ValueError, match=r"learning_rate = an array of shape \(\): must be a number"):
        jax.eval_shape(trace, jnp.bool_(True))


@pytest.mark.parametrize(
    ("make", "name", "config", "line"),
    [
        (
            dqn.make,
            "dqn",
            dqn.Config(buffer_size=INT32),
            "buffer_size = 2147483647: must be below 2147483631",
        ),
        (dqn.make, "dqn", dqn.Config(n_step=1001), "n_step = 1001: must be an integer of at most 1000"),
        (dqn.make, "dqn", dqn.Config(total_steps=1e12), "total_steps = 1e+12: is more than 2147483647 rows"),
        (c51.make, "c51", c51.Config(atoms=10**6), "atoms = 1000000: must be an integer of at most 10000"),
        (
            iqn.make,
            "iqn",
            iqn.Config(num_policy_quantiles=10**9),
            "num_policy_quantiles = 1000000000: must be",
        ),
        (
            sac.make,
            "sac",
            sac.Config(hidden_sizes=(2**20, 2**20)),
            "hidden_sizes = (1048576, 1048576): needs",
        ),
        (grpo.make, "grpo", grpo.Config(**tasks.RL | {"hidden_size": 2**20}), "hidden_size = 1048576: needs"),
        (grpo.make, "grpo", grpo.Config(**tasks.RL, top_k=0.5), "top_k = 0.5: must be a whole number"),
        (
            reinforce.make,
            "reinforce",
            reinforce.Config(num_envs=2**20, num_steps=2**12),
            "num_envs = 1048576: num_envs x num_steps = 4.29e+09 must be at most 2147483647",
        ),
    ],
)
def test_what_int32_or_memory_cannot_hold(make: Any, name: str, config: Any, line: str) -> None:
    assert f"{name}.Config.{line}" in refusal(make, world(name), config)


def test_a_buffer_of_observations_is_measured_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "memory", lambda: 50_000 * 16 - 1)  # an observation of CartPole has 16 bytes
    line = refusal(dqn.make, world("dqn"), dqn.Config(buffer_size=50_000))
    assert line.startswith("dqn.Config.buffer_size = 50000: needs 0.000745 GiB, of which this machine has")
    dqn.make(world("dqn"), dqn.Config(buffer_size=49_000))


@pytest.mark.parametrize(
    ("fields", "lowest"),
    [({"clip": 0.2, "dual_clip": 1.0}, 1.2), ({"clip_high": 0.5, "dual_clip": 1.5}, 1.5)],
)
def test_a_dual_clip_lies_above_the_upper_one(fields: dict[str, float], lowest: float) -> None:
    line = refusal(grpo.make, world("grpo"), grpo.Config(**tasks.RL, **fields))
    told = f"{fields['dual_clip']:g}: must be above {lowest:g}"
    assert line == f"grpo.Config.dual_clip = {told}"
    grpo.make(world("grpo"), grpo.Config(**tasks.RL | fields | {"dual_clip": lowest + 0.01}))


# what is given in place of an environment, a Config or a keyword


class OfGymnax:
    name = "theirs"

    def reset_env(self) -> None: ...


class OfGymnasium:
    action_space = None
    spec = type("Spec", (), {"id": "CartPole-v1"})

    def reset(self) -> None: ...
    def step(self) -> None: ...


def a_reward(prompt: str, completion: str, record: Any) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("algorithm", "given", "line"),
    [
        ("ppo", OfGymnax(), "is an environment of Gymnax: wrap it in rljax.envs.from_gymnax(env)"),
        (
            "ppo",
            (OfGymnax(), None),
            "is what gymnax.make returns: wrap it in rljax.envs.from_gymnax(env, params)",
        ),
        ("ppo", OfGymnasium(), 'of Gymnasium, in Python: rljax.envs.make("CartPole-v1") is the same in JAX'),
        ("ppo", None, "ppo needs an environment; this is a NoneType"),
        ("ppo", 3, "ppo needs an environment; this is a int"),
        ("grpo", [{"prompt": "a"}], "holds records: rljax.text.problem(name, tokenizer, records, rewards)"),
        ("grpo", a_reward, "is a function: rljax.text.rewards.of_text makes a reward of it"),
    ],
)
def test_objects_of_others_are_named(algorithm: str, given: Any, line: str) -> None:
    assert line in refusal(rljax.train, algorithm, given)


@pytest.mark.parametrize(
    ("keyword", "line"),
    [
        (
            {"learning_rate": 1e-3},
            'train has no option learning_rate: it is of the Config, config={"learning_rate": 0.001}',
        ),
        ({"num_envs": 8}, 'train has no option num_envs: it is of the Config, config={"num_envs": 8}'),
        ({"total_timesteps": 1e5}, "train has no option total_timesteps; did you mean steps?"),
        ({"num_seeds": 3}, "train has no option num_seeds; did you mean seeds?"),
        ({"progres": False}, "train has no option progres; did you mean progress?"),
    ],
)
def test_keywords_of_others_are_named(keyword: dict[str, Any], line: str) -> None:
    assert refusal(rljax.train, "ppo", "CartPole-v1", **keyword) == line


def test_options_take_numpy_s_numbers() -> None:
    found = recorder.options_from(
        {"keep": np.int64(2), "log_every": np.int32(5), "target_return": np.float32(3)}
    )
    assert (found.keep, found.log_every, found.target_return) == (2, 5, 3.0)
    assert [type(x) for x in (found.keep, found.log_every, found.target_return)] == [int, int, float]
    assert refusal(recorder.options_from, {"progress": "no"}) == "progress = 'no': must be True or False"


@pytest.mark.parametrize(
    ("grid", "line"),
    [
        ([1, 2], "grid is [1, 2]: must be a dict of Config fields and lists of values"),
        ({"clip": [np.ones(2)]}, "ppo.Config.clip = [1. 1.]: must be one number"),
        ({"clip": [0.1, True]}, "ppo.Config.clip = True: must be a number"),
        ({"num_envs": [np.ones(2)]}, "ppo.Config.num_envs = [1. 1.]: must be an integer of at least 1"),
        ({"num_envs": [4, 0]}, "ppo.Config.num_envs = 0: must be an integer of at least 1"),
    ],
)
def test_a_grid_of_wrong_values_is_refused(grid: Any, line: str) -> None:
    assert line in refusal(rljax.sweep, "ppo", "CartPole-v1", grid)


def test_a_grid_of_numpy_s_integers_and_lists_is_plain() -> None:
    setup = load.setup(algorithms.find("ppo"), world("ppo"), {}, None, {})
    grid = {
        "num_envs": list(np.array([4, 8])),
        "hidden_sizes": [[8], [8, 8]],
        "clip": list(np.array([0.1, 0.2])),
    }
    parts = sweep.plan(setup, grid, 1, 0)
    configs = [load.with_fields(setup, part.static).config for part in parts]
    assert [(c.num_envs, c.hidden_sizes) for c in configs] == [(4, (8,)), (4, (8, 8)), (8, (8,)), (8, (8, 8))]
    assert {type(c.num_envs) for c in configs} == {int}
