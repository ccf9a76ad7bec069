"""Every Config field of every algorithm changes what is learnt, or its row says in words why it does not.

Leaves: one program per row runs three iterations of a Config whose leaves are all in force, and of one Config
more for each leaf, which is halved in it: one after the other, so that all are computed alike to a bit.
Static fields: the program, or the shapes that it makes, must differ. That what changes is right is shown by
tests/updates; a field that is ignored is shown here.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax import algorithms, envs
from rljax.learning.fields import Field, names_of
from rljax.models.language_models import language_model
from rljax.runs.folder import checkpoint
from rljax.runs.program import engine
from rljax.text import rewards
from rljax.text.data import Packed
from rljax.types import Box, Discrete, Env, Preferences, Prompts, Task
from tests.algorithms import tasks
from tests.updates.bigram import MODEL, START, V

ITERATIONS = 3


def walk(continuous: bool) -> Env:
    """A walk on a line that is paid for being near 0, ends beyond ±1.5 and is cut after 6 steps."""

    def reset(key: Any) -> Any:
        place = jax.random.uniform(key, (2,), minval=-0.5, maxval=0.5)
        return place, (place, jnp.int32(0))

    def step(key: Any, state: Any, action: Any) -> Any:
        place, time = state
        push = action[0] if continuous else action.astype(jnp.float32) - 1
        place = place + jnp.stack([0.5 * push, 0.1 * jax.random.normal(key)])
        over = jnp.abs(place).max() > 1.5
        return place, (place, time + 1), 1 - jnp.square(place[0]), over, time + 1 >= 6

    actions = Box(-1.0, 1.0, (1,)) if continuous else Discrete(3)
    return Env("walk", reset, step, Box(-10.0, 10.0, (2,)), actions, max_steps=6)


def table() -> Env:
    return envs.make("RandomMDP-tabular", seed=3, num_states=4, num_actions=3, termination=0.2, max_steps=4)


def text() -> Task:
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, V, 24), jnp.int32)
    return Task("made", V, tokens, tokens, params=START)


def rows() -> Task:
    rng = np.random.default_rng(1)
    tokens, mask = rng.integers(0, V, (6, 6)).astype(np.int32), rng.random((6, 6)) < 0.5
    mask[:, 0] = False
    packed = Packed(*map(jnp.asarray, (tokens, np.ones_like(tokens), mask)))
    return Task("made", V, packed, packed, params=START)


def judgements(number: int = 2) -> Task:
    rng = np.random.default_rng(2)
    prompt, length = rng.integers(0, V, (4, 2)), rng.integers(1, 4, (4, number, 1))
    completion = np.where(np.arange(3) < length, rng.integers(1, V, (4, number, 3)), -1)
    numbers = rng.uniform(0.5, 1.5, 4).astype(np.float32), rng.uniform(0, 1, 4).astype(np.float32)
    arrays = prompt.astype(np.int32), np.ones((4, 2), bool), completion.astype(np.int32), *numbers
    learn = Preferences(*map(jnp.asarray, arrays))
    return Task("made", V, learn, learn, params=START, max_new_tokens=3, stop_ids=(0,))


def prompts() -> Task:
    """Rewards grow with the tokens, so that those of a group differ; ends are paid, too."""

    def paid(prompt: Any, completion: Any, reference: Any) -> Any:
        return (
            jnp.sum(completion * jnp.array([0.5, 0.3, 0.2])[: completion.size])
            + 0.3 * (completion == 1).any()
        )

    def long(prompt: Any, completion: Any, reference: Any) -> Any:
        return (completion >= 0).sum().astype(jnp.float32)

    tokens = jnp.array([[0, 2], [3, 4], [1, 1], [2, 3]], jnp.int32)
    shown = jnp.array([[1, 3, 0], [2, 0, -1], [4, 4, 0], [3, 0, -1]], jnp.int32)
    learn = Prompts(tokens, jnp.ones((4, 2), bool), None, shown)
    both = rewards.of_tokens(paid), rewards.of_tokens(long, weight=0.3)
    return Task("made", V, learn, learn, params=START, rewards=both, max_new_tokens=3, stop_ids=(1,))


class Row(NamedTuple):
    """A Config in which leaves are in force, but those that are `idle`: these must change nothing."""

    algorithm: str
    world: Callable[[], Env | Task]
    fields: dict[str, Any]
    idle: dict[str, str] = {}  # noqa: RUF012  (why a leaf is not read by this row)
    values: dict[str, float] = {}  # noqa: RUF012  (of leaves that cannot be halved)
    network: Any = None


SMALL = {"hidden_sizes": (4,), "num_envs": 4, "num_steps": 4}
ON_POLICY = {
    **SMALL, "total_steps": 64.0, "learning_rate": 0.05, "discount": 0.9, "entropy_coefficient": 0.1,
    "observation_normalization": "running", "policy_gain": 0.5,
}  # fmt: skip
REPLAY = {
    **SMALL, "num_envs": 2, "total_steps": 60.0, "learning_starts": 16, "batch_size": 4, "buffer_size": 48,
    "train_every": 2, "discount": 0.9, "learning_rate": 0.05, "target_rate": 0.5, "replay": "prioritized",
    "schedule": "linear",
}  # fmt: skip
VALUED = {
    **REPLAY, "target_every": 1, "epsilon_start": 0.9, "epsilon_end": 0.3, "exploration_fraction": 0.9,
    "num_steps": 8, "total_steps": 100.0, "max_grad_norm": 0.1, "adam_epsilon": 0.01,
}  # fmt: skip
CONTINUOUS = {"noise": "ornstein-uhlenbeck", "policy_gain": 0.5}
MUNCHAUSEN = {"target": "munchausen", "entropy_temperature": 0.5, "munchausen_low": -0.3}
TABULAR = {
    "num_envs": 2, "num_steps": 8, "total_steps": 60.0, "discount": 0.9, "initial_value": 0.4,
    "step_size_decay": 0.5,
}  # fmt: skip
EXPLORING = {**TABULAR, "epsilon_start": 0.9, "epsilon_end": 0.4, "exploration_fraction": 0.9}
LANGUAGE = {
    "total_steps": 100.0, "learning_rate": 0.1, "warmup_fraction": 0.9, "weight_decay": 0.2,
    "adam_epsilon": 0.01, "max_grad_norm": 0.1, "schedule": "linear",
}  # fmt: skip
ROWS_OF_TEXT = {**LANGUAGE, "batch_size": 2, "length": 6, "total_steps": 72.0, "dropout": 0.2}
JUDGED = {**LANGUAGE, "batch_size": 2, "total_steps": 12.0, "beta": 0.5}
WRITTEN = {
    **LANGUAGE, "num_prompts": 2, "group_size": 3, "total_steps": 36.0, "kl": 0.3, "top_k": 4.0, "top_p": 0.9,
    "min_p": 0.2, "temperature": 0.8,
}  # fmt: skip
PASSES = {"num_epochs": 3, "clip": 0.02, "learning_rate": 0.3}
ADAPTERS = {"alpha": "scales an adapter, and here all parameters are trained"}
LENGTH = {"total_steps": "the length of a run: without a schedule nothing else depends on it"}
TABLE = {
    "reinforce": Row("reinforce", lambda: walk(True), {**ON_POLICY, "num_steps": 6, "total_steps": 96.0}),
    "a2c": Row("a2c", lambda: walk(True), {**ON_POLICY, "trace_decay": 0.8, "max_grad_norm": 0.1}),
    "ppo": Row(
        "ppo",
        lambda: walk(True),
        {
            **ON_POLICY, "num_epochs": 2, "num_minibatches": 2, "clip": 0.05, "max_grad_norm": 0.1,
            "adam_epsilon": 0.01, "reward_scaling": "running",
        },
    ),
    "trpo": Row(
        "trpo",
        lambda: walk(True),
        {
            **{name: value for name, value in ON_POLICY.items() if name != "learning_rate"},
            "max_kl": 0.5, "damping": 0.01, "num_value_epochs": 1, "num_minibatches": 2,
        },
        LENGTH,
    ),
    "pqn": Row(
        "pqn",
        lambda: walk(False),
        {
            **SMALL, "total_steps": 60.0, "learning_rate": 0.05, "discount": 0.9, "max_grad_norm": 0.01,
            "epsilon_start": 0.9, "epsilon_end": 0.4, "exploration_fraction": 0.9, "num_epochs": 2,
            "num_minibatches": 4,
        },
    ),
    "dqn": Row("dqn", lambda: walk(False), {**VALUED, **MUNCHAUSEN}),
    "c51": Row("c51", lambda: walk(False), {**VALUED, "atoms": 5, "value_low": -2.0, "value_high": 3.0}),
    "rainbow": Row(
        "rainbow", lambda: walk(False), {**VALUED, "atoms": 5, "value_low": -2.0, "value_high": 3.0}
    ),
    "qrdqn": Row("qrdqn", lambda: walk(False), {**VALUED, **MUNCHAUSEN, "quantiles": 3, "kappa": 0.5}),
    "iqn": Row(
        "iqn",
        lambda: walk(False),
        {
            **VALUED, **MUNCHAUSEN, "num_quantiles": 3, "num_target_quantiles": 3, "kappa": 0.5,
            "hidden_sizes": (4, 4),
        },
    ),
    "ddpg": Row("ddpg", lambda: walk(True), {**REPLAY, **CONTINUOUS}),
    "td3": Row(
        "td3",
        lambda: walk(True),
        {**REPLAY, **CONTINUOUS, "target_noise": 0.6, "target_noise_clip": 0.4},
    ),
    "sac": Row("sac", lambda: walk(True), {**REPLAY, **CONTINUOUS}),
    "discrete_sac": Row("discrete_sac", lambda: walk(False), REPLAY),
    "q_learning": Row("q_learning", table, EXPLORING),
    "sarsa": Row("sarsa", table, EXPLORING),
    "expected_sarsa": Row("expected_sarsa", table, EXPLORING),
    "monte_carlo": Row("monte_carlo", table, EXPLORING),
    "td_lambda": Row("td_lambda", table, TABULAR, LENGTH),
    "pretrain": Row("pretrain", text, ROWS_OF_TEXT, network=MODEL),
    "sft": Row("sft", rows, ROWS_OF_TEXT, ADAPTERS, network=MODEL),
    "sft-lora": Row(
        "sft",
        tasks.adapting_task,
        {**tasks.FIELDS, **LANGUAGE, "train": "lora", "rank": 2, "total_steps": 480.0},
    ),
    "dpo": Row(
        "dpo",
        judgements,
        {**JUDGED, "label_smoothing": 0.2},
        {**ADAPTERS, "margin": "of simpo", "odds_weight": "of orpo"},
        network=MODEL,
    ),
    "dpo-simpo": Row(
        "dpo",
        judgements,
        {**JUDGED, "loss": "simpo"},
        {**ADAPTERS, "label_smoothing": "of sigmoid", "odds_weight": "of orpo"},
        network=MODEL,
    ),
    "dpo-orpo": Row(
        "dpo",
        judgements,
        {**LANGUAGE, "batch_size": 2, "total_steps": 12.0, "loss": "orpo"},
        {**ADAPTERS, "label_smoothing": "of sigmoid", "margin": "of simpo", "beta": "of all others"},
        network=MODEL,
    ),
    "kto": Row("kto", judgements, JUDGED, ADAPTERS, network=MODEL),
    "reward_model": Row(
        "reward_model",
        judgements,
        {**LANGUAGE, "batch_size": 2, "total_steps": 12.0, "centring": 0.1, "normalization_samples": 4},
        ADAPTERS,
        network=MODEL,
    ),
    "grpo": Row(
        "grpo",
        prompts,
        {
            **WRITTEN, **PASSES, "learning_rate": 3.0, "clip": 0.3, "clip_high": 0.5,
            "overlong": "penalty", "overlong_buffer": 2.0,
        },
        ADAPTERS,
        {"clip": 0.05, "clip_high": 0.1},
        network=MODEL,
    ),
    "rloo": Row("rloo", prompts, {**WRITTEN, **PASSES}, ADAPTERS, network=MODEL),
    "rlhf_ppo": Row(
        "rlhf_ppo",
        prompts,
        {
            **WRITTEN, **PASSES, "clip": 0.3, "value_clip": 0.5, "value_coefficient": 0.5, "discount": 0.9,
            "missing_end": 0.5, "kl_controller": "adaptive", "kl_target": 5.0, "kl_horizon": 8.0,
        },
        ADAPTERS,
        {"value_clip": 0.05, "clip": 0.05, "kl_target": 1e-4},
        network=MODEL,
    ),
    "text_reinforce": Row(
        "text_reinforce",
        prompts,
        {**WRITTEN, "baseline": "moving", "mixing": 0.3},
        ADAPTERS,
        network=MODEL,
    ),
}  # fmt: skip
# Leaves that no run of three iterations is sure to feel.
ELSEWHERE = {
    ("grpo", "dual_clip"): "a bad token must become much likelier: dr. grpo of tests/updates/test_text.py",
}
# What of the State `init` makes of a leaf.
AT_THE_START = {
    "initial_log_std": ("params",),
    "policy_gain": ("params", "target_params"),
    "initial_temperature": ("params",),
    "initial_value": ("params",),
    "epsilon_start": ("action",),  # of SARSA, which chooses before it acts
    "kl": ("kl_coefficient",),
    "temperature": ("gain", "bias", "samples"),  # of what a reward model is normalised on
}


def leaves(row: Row) -> list[str]:
    """The leaf fields that are numbers in this row."""
    config = algorithms.find(row.algorithm).module.Config(**row.fields)
    found = [field.name for field in algorithms.find(row.algorithm).fields() if field.leaf]
    return [name for name in found if getattr(config, name) is not None]


def test_every_leaf_is_in_force_in_some_row() -> None:
    for name in algorithms.NAMES:
        rows = [row for row in TABLE.values() if row.algorithm == name]
        read = {leaf for row in rows for leaf in leaves(row) if leaf not in row.idle}
        known = {field.name for field in algorithms.find(name).fields() if field.leaf}
        assert all(set(row.idle) <= known for row in rows), name
        words = set.intersection(*(set(row.idle) for row in rows))  # no row reads them, and each says why
        words |= {leaf for algorithm, leaf in ELSEWHERE if algorithm == name}
        assert known - words <= read, f"{name}: no row has a number for {sorted(known - words - read)}"


@pytest.mark.parametrize("name", TABLE)
def test_a_leaf_changes_what_is_learnt(name: str) -> None:
    row = TABLE[name]
    module, world = algorithms.find(row.algorithm).module, row.world()
    config, fields = module.Config(**row.fields), leaves(row)
    changed = {field: row.values.get(field, 0.5 * getattr(config, field) or 0.5) for field in fields}
    for field, value in list(changed.items()):  # checked as a user's are
        other = config.replace(**{field: value})
        if field in row.idle and algorithms.find(row.algorithm).text:
            with pytest.raises(
                ValueError, match=rf"\.{field} = .* is read with .* alone: choose it, or leave"
            ):
                module.make(world, other, row.network)
            del changed[field]
        else:
            module.make(world, other, row.network)
    fields = list(changed)
    members = [config, *(config.replace(**{field: value}) for field, value in changed.items())]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(engine.strong, members))

    @jax.jit
    def run(configs: Any) -> Any:
        def one(config: Any) -> Any:
            algorithm = module.make(world, config, row.network)
            start = algorithm.init(jax.random.key(0))
            end = rljax.run(algorithm, jax.random.key(1), start, ITERATIONS)[0]
            return engine.hosted((start, end))

        return jax.lax.map(one, configs)

    start, end = (checkpoint.leaves(jax.tree.map(np.asarray, part)) for part in run(stacked))
    assert all(np.isfinite(leaf).all() for leaf in end.values() if leaf.dtype.kind == "f")
    differ = lambda state, i: {name for name, leaf in state.items() if (leaf[i] != leaf[0]).any()}
    for i, field in enumerate(fields, 1):
        moved = {part for part in differ(end, i) if part.startswith("params")}
        if field in row.idle:
            assert not differ(end, i), f"{field} is said to be idle: {row.idle[field]}"
        else:
            assert moved, f"{name}: {field} = {changed[field]} instead of {getattr(config, field)} is ignored"
        begun = {part for part in differ(start, i) if not part.startswith(AT_THE_START.get(field, ("-",)))}
        assert not begun, f"{name}: {field} changes the start: {begun}"


# Static fields.

MODEL_FIELDS = {  # of a model that the Config describes, with what they need
    "architecture": {},
    "hidden_size": {},
    "num_layers": {},
    "num_heads": {},
    "dtype": {},
    "train": {},
    "rank": {"train": "lora"},
    "prefix_length": {"train": "prefix"},
    "patterns": {"train": "lora"},
}
NEEDS: dict[str, dict[str, Any]] = {  # other fields, to be in force, or at their defaults where they are not
    "oversampling": {"groups": "resampled"},
    "overlong": {"overlong": "masked", "overlong_buffer": 16.0},
    "kl_controller": {"kl_target": 6.0, "kl_horizon": 10_000.0},
    "value_loss": {"value_clip": 0.2},
    "normalization": {"normalization_samples": 256},
    "loss": {"label_smoothing": 0.0},
}
OTHERS: dict[str, list[Any]] = {  # values to try where a type does not say them
    "hidden_sizes": [(6,), (6, 6)],
    "activation": ["elu"],
    "patterns": [("attention/query",)],
    "max_new_tokens": [2],
    "num_micro": [2],
    "chunk": [2],
    "normalization_samples": [2],
}
WORDS = {
    "architecture": "a cnn needs images: tests/algorithms/test_models.py",
    "length": "of sft it must be that of the rows, which is checked",
}


# Functions in place of what has one name only.
OWN = {
    "advantage": lambda reward, discount, value, next_value, trace: reward - value,
    "policy_loss": lambda new, old, advantage, clip: -new * advantage,
}


def others(field: Field, value: Any) -> list[Any]:
    """Values to put in place of `value`."""
    if field.name in OTHERS:
        return OTHERS[field.name]
    if names := names_of(field.type):
        return [name for name in names if name != value] or [OWN[field.name]]
    return [2 * value, value + 1, value // 2, value - 1]


def text_of(function: Callable[..., Any], *arguments: Any) -> str:
    """A function as traced, without the addresses of functions in it."""
    return re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(function)(*arguments)))


def program(part: str, module: Any, world: Any, config: Any, network: Any) -> str:
    """`init` or `step`."""
    algorithm, key = module.make(world, config, network), jax.random.key(0)
    if part == "init":
        return text_of(algorithm.init, key)
    return text_of(algorithm.step, key, jax.eval_shape(algorithm.init, key))


def accepted(module: Any, world: Any, config: Any, network: Any) -> bool:
    try:
        module.make(world, config, network)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", algorithms.NAMES)
def test_a_static_field_changes_the_program(name: str) -> None:
    row, module, traced = TABLE[name], algorithms.find(name).module, {}
    fields = [f for f in algorithms.find(name).fields() if not f.leaf]
    if algorithms.find(name).text:
        fields = [field for field in fields if field.name not in MODEL_FIELDS]
    world, config = row.world(), module.Config(**row.fields)

    def of(part: str, config: Any) -> str:
        if (part, config) not in traced:
            traced[part, config] = program(part, module, world, config, row.network)
        return traced[part, config]

    assert program("step", module, world, config, row.network) == of("step", config)
    for field in fields:
        needs = NEEDS.get(field.name, {})
        base = config.replace(**{key: value for key, value in needs.items() if hasattr(config, key)})
        values = others(field, getattr(base, field.name))
        changed = [base.replace(**{field.name: value}) for value in values]
        changed = [each for each in changed if accepted(module, world, each, row.network)]
        if not changed:
            assert field.name in WORDS, f"{name}.{field.name}: none of {values} is accepted"
            continue
        differs = any(of(part, each) != of(part, base) for part in ("init", "step") for each in changed[:1])
        assert differs, f"{name}.{field.name} is ignored"


@pytest.mark.parametrize("name", [name for name in algorithms.NAMES if algorithms.find(name).text])
def test_a_field_of_the_model_changes_it(name: str) -> None:
    """What `init` makes and `policy` does, from parameters of the model that the Config describes."""
    module, row = algorithms.find(name).module, TABLE[name]
    known = {field.name: field for field in algorithms.find(name).fields()}
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "normalization": "none"}
    sizes |= {"normalization_samples": 256}  # which nothing then reads
    base = module.Config(**row.fields).replace(**{key: sizes[key] for key in sizes if key in known})
    task, tokens, key = row.world(), jnp.zeros((1, 2), jnp.int32), jax.random.key(0)

    def first_token(config: Any) -> str:
        model = language_model(V, config, 8)

        def act(params: Any, key: Any) -> Any:
            algorithm = module.make(task._replace(params=params), config)
            observation = tokens, tokens == 0
            return algorithm.policy(algorithm.init(key)).act(key, observation, (), False)

        return text_of(act, jax.eval_shape(model.init, key), key)

    for field, needs in MODEL_FIELDS.items():
        if field not in known:
            assert name == "pretrain", "which trains all of a model"
            continue
        own = base.replace(**needs)
        value = others(known[field], getattr(own, field))[0]
        changed = own.replace(**{field: value})
        assert first_token(own) != first_token(changed), f"{name}.{field} is ignored"
