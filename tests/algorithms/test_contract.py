"""What every algorithm promises, one table over all of them: ARCHITECTURE's "What equality means here"."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from rljax import algorithms, envs, testing
from rljax.runs.program import layout
from rljax.types import Env, Preferences, Task
from tests.algorithms import tasks


class Row(NamedTuple):
    """An algorithm with a Config that is small enough for a test, and what a sweep varies in it."""

    algorithm: str
    world: str | Callable[[], Task]  # an environment's name, or what makes a Task
    fields: dict[str, Any]
    swept: dict[str, list[float]]
    mapping: layout.Mapping = "vmap"  # of members on a device


PREFERENCES = [name for name in algorithms.NAMES if algorithms.find(name).learns == "preferences"]
REPLAY = {"num_envs": 2, "num_steps": 8, "learning_starts": 32, "batch_size": 8, "buffer_size": 64}
TABULAR = {"num_envs": 4, "num_steps": 32}
TABLE = {
    "reinforce": Row("reinforce", "CartPole-v1", {"num_envs": 4}, {"learning_rate": [1e-3, 1e-2, 3e-2]}),
    "a2c": Row("a2c", "CartPole-v1", {"num_envs": 4, "num_steps": 8}, {"learning_rate": [1e-4, 1e-3, 1e-2]}),
    "ppo": Row(
        "ppo",
        "CartPole-v1",
        {"num_envs": 4, "num_steps": 16, "num_epochs": 2, "num_minibatches": 2},
        {"learning_rate": [1e-4, 1e-3, 1e-2], "clip": [0.1, 0.2, 0.3]},
    ),
    "ppo-continuous": Row(
        "ppo",
        "Pendulum-v1",
        {
            "num_envs": 4,
            "num_steps": 16,
            "num_epochs": 2,
            "num_minibatches": 2,
            "observation_normalization": "running",
            "reward_scaling": "running",
            "action_distribution": "tanh",
        },
        {"learning_rate": [1e-4, 1e-3, 1e-2], "discount": [0.9, 0.95, 0.99]},
    ),
    "trpo": Row(
        "trpo",
        "CartPole-v1",
        {"num_envs": 4, "num_steps": 16, "num_value_epochs": 2, "num_minibatches": 2},
        {"max_kl": [3e-3, 1e-2, 3e-2], "value_learning_rate": [1e-4, 1e-3, 1e-2]},
    ),
    "trpo-continuous": Row(
        "trpo",
        "Pendulum-v1",
        {
            "num_envs": 4,
            "num_steps": 16,
            "num_value_epochs": 2,
            "num_minibatches": 2,
            "conjugate_gradient_iterations": 4,  # each multiplies rounding: 10 differ by 5e-4 here, 4 by 1e-5
            "observation_normalization": "running",
            "reward_scaling": "running",
        },
        {"damping": [0.05, 0.1, 0.2], "discount": [0.9, 0.95, 0.99]},
    ),
    "dqn": Row(
        "dqn",
        "CartPole-v1",
        {**REPLAY, "target_every": 3, "train_every": 2, "num_updates": 2},
        {"learning_rate": [1e-4, 1e-3, 1e-2], "epsilon_end": [0.01, 0.05, 0.1]},
    ),
    "dqn-prioritized": Row(
        "dqn",
        "CartPole-v1",
        {**REPLAY, "replay": "prioritized", "target": "munchausen", "n_step": 3, "head": "dueling"},
        {"discount": [0.9, 0.95, 0.99], "priority_exponent": [0.4, 0.6, 0.8]},
    ),
    "pqn": Row(
        "pqn",
        "CartPole-v1",
        {"num_envs": 4, "num_steps": 16, "num_epochs": 2, "num_minibatches": 2},
        {"learning_rate": [1e-4, 1e-3, 1e-2], "trace_decay": [0.0, 0.65, 0.95]},
    ),
    "c51": Row(
        "c51",
        "CartPole-v1",
        {**REPLAY, "atoms": 11, "value_low": 0.0, "value_high": 100.0},
        {"learning_rate": [1e-4, 1e-3, 1e-2], "value_high": [50.0, 100.0, 200.0]},
    ),
    "qrdqn": Row(
        "qrdqn",
        "CartPole-v1",
        {**REPLAY, "quantiles": 5, "target": "munchausen"},
        {"kappa": [0.5, 1.0, 2.0], "learning_rate": [1e-4, 1e-3, 1e-2]},
    ),
    "iqn": Row(
        "iqn",
        "CartPole-v1",
        {**REPLAY, "hidden_sizes": (8, 8), "num_quantiles": 4, "num_policy_quantiles": 3},
        {"discount": [0.9, 0.95, 0.99], "epsilon_end": [0.01, 0.05, 0.1]},
    ),
    "rainbow": Row(
        "rainbow",
        "CartPole-v1",
        {**REPLAY, "atoms": 11, "value_low": 0.0, "value_high": 100.0},
        {"learning_rate": [1e-4, 1e-3, 1e-2], "priority_exponent": [0.4, 0.5, 0.6]},
    ),
    "ddpg": Row(
        "ddpg",
        "Pendulum-v1",
        {**REPLAY, "noise": "ornstein-uhlenbeck", "observation_normalization": "running"},
        {"learning_rate": [1e-4, 1e-3, 1e-2], "noise_scale": [0.1, 0.2, 0.5]},
    ),
    "td3": Row(
        "td3", "Pendulum-v1", REPLAY, {"learning_rate": [1e-4, 1e-3, 1e-2], "target_noise": [0.0, 0.2, 0.4]}
    ),
    "sac": Row(
        "sac",
        "Pendulum-v1",
        REPLAY,
        {"learning_rate": [1e-4, 1e-3, 1e-2], "discount": [0.9, 0.95, 0.99]},
    ),
    "sac-prioritized": Row(
        "sac",
        "Pendulum-v1",
        {**REPLAY, "replay": "prioritized", "n_step": 2, "observation_normalization": "running"},
        {"learning_rate": [1e-4, 1e-3, 1e-2], "importance_exponent": [0.2, 0.4, 0.6]},
    ),
    "discrete_sac": Row(
        "discrete_sac",
        "CartPole-v1",
        REPLAY,
        {"learning_rate": [1e-4, 1e-3, 1e-2], "target_entropy_ratio": [0.3, 0.5, 0.9]},
    ),
    "q_learning": Row(
        "q_learning",
        "RandomMDP-tabular",
        TABULAR,
        {"step_size": [0.1, 0.5, 1.0], "discount": [0.9, 0.95, 1.0]},
    ),
    "q_learning-double": Row(
        "q_learning",
        "RandomMDP-tabular",
        {**TABULAR, "target": "double"},
        {"step_size_decay": [0.0, 0.5, 1.0]},
    ),
    "sarsa": Row("sarsa", "RandomMDP-tabular", TABULAR, {"epsilon_start": [0.2, 0.5, 1.0]}),
    "expected_sarsa": Row("expected_sarsa", "RandomMDP-tabular", TABULAR, {"epsilon_end": [0.0, 0.1, 0.2]}),
    "monte_carlo": Row("monte_carlo", "RandomMDP-tabular", TABULAR, {"step_size": [0.1, 0.5, 1.0]}),
    "td_lambda": Row(
        "td_lambda",
        "RandomMDP-tabular",
        TABULAR,
        {"trace_decay": [0.0, 0.5, 1.0], "step_size": [0.1, 0.2, 0.5]},
    ),
    "pretrain": Row(
        "pretrain",
        tasks.text_task,
        tasks.FIELDS,
        {"learning_rate": [1e-3, 1e-2, 3e-2], "weight_decay": [0.0, 0.1, 0.2]},
    ),
    "sft-t5": Row(
        "sft",
        tasks.pairs_task,
        {**tasks.FIELDS, "architecture": "t5", "dropout": 0.1},
        {"learning_rate": [1e-3, 1e-2, 3e-2], "dropout": [0.0, 0.1, 0.3]},
    ),
    "sft": Row(
        "sft",
        tasks.rows_task,
        {**tasks.FIELDS, "num_micro": 2},
        {"learning_rate": [1e-3, 1e-2, 3e-2], "warmup_fraction": [0.01, 0.05, 0.1]},
    ),
    "sft-lora": Row(
        "sft",
        tasks.adapting_task,
        {**tasks.FIELDS, "train": "lora", "rank": 2},
        {"learning_rate": [1e-3, 1e-2, 3e-2], "alpha": [4.0, 16.0, 32.0]},
    ),
    "reward_model": Row(
        "reward_model",
        tasks.preferences_task,
        {**tasks.SCORING, "normalization_samples": 8, "centring": 0.01},
        {"learning_rate": [1e-3, 1e-2, 3e-2], "centring": [0.0, 0.01, 0.1]},
    ),
    "reward_model-lora": Row(
        "reward_model",
        tasks.started_task,
        {**tasks.SCORING, "normalization_samples": 8, "loss": "choice", "train": "lora", "rank": 2},
        {"learning_rate": [1e-3, 1e-2, 3e-2], "alpha": [4.0, 16.0, 32.0]},
    ),
    "dpo": Row(
        "dpo",
        tasks.started_task,
        tasks.PREFERRING,
        {"learning_rate": [1e-3, 1e-2, 3e-2], "beta": [0.05, 0.1, 0.5]},
    ),
    "dpo-orpo": Row(
        "dpo",
        tasks.preferences_task,
        {**tasks.PREFERRING, "loss": "orpo"},
        {"learning_rate": [1e-3, 1e-2, 3e-2], "odds_weight": [0.05, 0.1, 0.5]},
    ),
    "kto-lora": Row(
        "kto",
        tasks.started_task,
        {**tasks.PREFERRING, "train": "lora", "rank": 2},
        {"learning_rate": [1e-3, 1e-2, 3e-2], "desirable_weight": [0.5, 1.0, 1.5]},
    ),
    "grpo": Row(
        "grpo",
        tasks.rewarded_task_with_a_model,
        {**tasks.RL, "kl": 0.1, "num_epochs": 2, "num_minibatches": 2, "num_micro": 2},
        {"learning_rate": [1e-3, 1e-2, 3e-2], "kl": [0.0, 0.1, 0.5]},
    ),
    "grpo-t5": Row(
        "grpo",
        tasks.rewarded_task,
        {**tasks.RL, "architecture": "t5", "loss": "sequence", "groups": "resampled", "oversampling": 2},
        {"temperature": [0.7, 1.0, 1.3], "clip": [3e-4, 1e-2, 0.2]},
    ),
    "rlhf_ppo": Row(
        "rlhf_ppo",
        tasks.rewarded_task_with_a_model,
        {
            **tasks.RL,
            "critic": "separate",
            "kl": 0.1,
            "kl_controller": "adaptive",
            "reward_whitening": "scale",
            "num_epochs": 2,
            "num_minibatches": 2,
        },
        {"kl_target": [0.1, 1.0, 6.0], "trace_decay": [0.0, 0.5, 0.95]},
    ),
    "rlhf_ppo-lora": Row(
        "rlhf_ppo",
        tasks.rewarded_task_with_a_model,
        {**tasks.RL, "train": "lora", "rank": 2, "missing_end": 1.0, "num_epochs": 1},
        {"alpha": [4.0, 16.0, 32.0], "missing_end": [0.0, 0.5, 1.0]},
    ),
    "rloo-gru": Row(
        "rloo",
        tasks.rewarded_task,
        {**tasks.RL, "architecture": "gru", "num_minibatches": 2, "top_p": 0.9},
        {"learning_rate": [1e-3, 1e-2, 3e-2], "top_p": [0.7, 0.8, 0.9]},
    ),
    "text_reinforce": Row(
        "text_reinforce",
        tasks.rewarded_task_with_a_model,
        {**tasks.RL, "baseline": "greedy", "mixing": 0.3, "kl": 0.1, "num_micro": 4},
        {"mixing": [0.0, 0.3, 1.0], "kl": [0.0, 0.1, 0.5]},
    ),
}


# One algorithm of each kind; the others' members are mapped one after the other in `-m slow`.
ALSO_IN_TURN = ("reinforce", "dqn", "ddpg", "td_lambda", "sft", "rloo-gru")
ROWS = [
    *[pytest.param(row, id=name) for name, row in TABLE.items()],
    *[
        pytest.param(
            row._replace(mapping="map"),
            id=f"{name}-map",
            marks=() if name in ALSO_IN_TURN else pytest.mark.slow,
        )
        for name, row in TABLE.items()
    ],
]


def test_every_algorithm_has_a_row() -> None:
    assert {row.algorithm for row in TABLE.values()} == set(algorithms.NAMES)


@pytest.fixture(params=ROWS, scope="module")
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def parts(row: Row) -> tuple[Any, Any, Any]:
    module = algorithms.find(row.algorithm).module
    small = {"hidden_sizes": (8,)} if hasattr(module.Config, "hidden_sizes") else {}
    world = envs.make(row.world) if isinstance(row.world, str) else row.world()
    return module, world, module.Config(**small | row.fields)


def steps(config: Any, world: Env | Task) -> int:
    """What one iteration counts: judgements, tokens that are given, completions, or steps."""
    if not isinstance(world, Task):
        return config.num_envs * config.num_steps
    if isinstance(world.learn, Preferences):
        return config.batch_size
    if not world.rewards:
        return config.batch_size * config.length
    return config.num_prompts * config.group_size * getattr(config, "oversampling", 1)


@pytest.fixture(scope="module")
def made(row: Row) -> testing.Trial:
    module, world, config = parts(row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "mapping_for", lambda device: row.mapping)
        return testing.trial(algorithms.find(module), world, config, row.swept)


def test_the_four_names_and_the_shape_of_a_config(row: Row, made: testing.Trial) -> None:
    _, world, config = parts(row)
    testing.check_shape(made)
    assert config.steps_per_iteration == steps(config, world)
    assert config.initial_steps == getattr(config, "learning_starts", 0)


def test_one_compilation_per_run_and_chunk_lengths_change_no_bit(made: testing.Trial) -> None:
    testing.check_chunks(made)


def test_members_of_a_sweep_of_leaves_are_single_runs(made: testing.Trial) -> None:
    testing.check_members(made)


def test_seeds_differ_from_the_first_iteration(made: testing.Trial) -> None:
    testing.check_seeds(made)


def test_a_retry_draws_other_numbers(row: Row, made: testing.Trial) -> None:
    # without dropout these draw nothing: their States have the order of the rows
    testing.check_retry(made, row.algorithm not in ("sft", *PREFERENCES) or "dropout" in row.fields)


def test_no_key_is_used_twice(made: testing.Trial) -> None:
    testing.check_keys(made)


def test_the_program_holds_no_big_constants(made: testing.Trial) -> None:
    testing.check_constants(made)


def test_run_inside_a_jit_is_the_same_run(made: testing.Trial) -> None:
    testing.check_run(made)


def test_the_greedy_policy_draws_nothing(row: Row, made: testing.Trial) -> None:
    if row.algorithm == "td_lambda":
        pytest.skip("acts with the policy that it is given, greedy or not")
    testing.check_policy(made)


def test_wrong_fields_are_one_line_that_names_them(row: Row) -> None:
    module, world, config = parts(row)
    for field, value in {
        "learning_rate": -1.0,
        "discount": 1.5,
        "entropy_coefficient": float("nan"),
        "num_envs": 0,
        "num_steps": 2.5,
        "hidden_sizes": [64, 0],
        "activation": "tahn",
        "schedule": "liner",
        "architecture": "cnn",
        "total_steps": 0.0,
        "step_size": 2.0,
        "step_size_decay": -0.5,
        "initial_value": float("nan"),
        "epsilon_start": -0.1,
        "exploration_fraction": 0.0,
        "target_rate": 0.0,
        "learning_starts": 1,
        "buffer_size": 4,
        "batch_size": 0,
        "length": 1,
        "num_micro": 5,
        "chunk": 0,
        "warmup_fraction": 0.0,
        "weight_decay": -0.1,
        "beta2": 1.5,
        "max_grad_norm": 0.0,
        "dtype": "float16",
        "num_heads": 5,
        "train": "lroa",
        "rank": 0,
        "alpha": 0.0,
        "temperature": 0.0,
        "top_k": -1.0,
        "top_p": 1.5,
        "min_p": -0.1,
        "num_prompts": 1_000,
        "group_size": 0,
        "num_minibatches": 3,
        "max_new_tokens": 0,
        "kl": -0.1,
        "clip": 0.0,
        "loss": "seqence",
        "baseline": "greedly",
        "old_log_prob": "recomputd",
    }.items():
        recurrent = getattr(config, "architecture", None) in ("gru", "lstm")
        if field not in config.__dataclass_fields__ or field in tasks.NOT_READ[recurrent]:
            continue
        with pytest.raises(ValueError, match=r".") as caught:
            module.make(world, config.replace(**{field: value}))
        assert "\n" not in str(caught.value)
        assert field in str(caught.value) or field == "architecture", str(caught.value)
