"""What every algorithm promises, one table over all of them: ARCHITECTURE's "What equality means here"."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

import rljax
from rljax import algorithms, envs
from rljax.runs.folder import checkpoint
from rljax.runs.program import engine, host_rewards, layout
from rljax.types import Env, Preferences, Task
from tests.algorithms import tasks


class Row(NamedTuple):
    """An algorithm with a Config that is small enough for a test, and what a sweep varies in it."""

    algorithm: str
    world: str | Callable[[], Task]  # an environment's name, or what makes a Task
    fields: dict[str, Any]
    swept: dict[str, list[float]]
    mapping: layout.Mapping = "vmap"  # of members on a device


ITERATIONS = 3
SEEDS = [5, 6, 7, 8]
TWINS = 1, 3  # members with one Config and different seeds
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


def observations(world: Env | Task) -> Any:
    """What 64 instances of a policy see at one time."""
    if isinstance(world, Task):
        drawn = np.random.default_rng(1).integers(1, world.vocab_size, (64, 4), np.int32)
        valid = (
            np.arange(4)[None] >= np.arange(64)[:, None] % 4
        )  # from one to four tokens, padded on the left
        return jnp.asarray(drawn), jnp.asarray(valid)
    return jax.vmap(world.reset)(jax.random.split(jax.random.key(1), 64))[0]


def steps(config: Any, world: Env | Task) -> int:
    """What one iteration counts: judgements, tokens that are given, completions, or steps."""
    if not isinstance(world, Task):
        return config.num_envs * config.num_steps
    if isinstance(world.learn, Preferences):
        return config.batch_size
    if not world.rewards:
        return config.batch_size * config.length
    return config.num_prompts * config.group_size * getattr(config, "oversampling", 1)


class Compiled(NamedTuple):
    """The program of a sweep of four members, how often its step was traced, and what its members became."""

    program: engine.Program
    traces: list[int]
    first: tuple[Any, Any]  # states and metrics of the first iteration
    chunks: Any  # states after chunks of 1, 0 and 2 iterations
    bad: list[Any]  # the first bad iteration in each of these chunks
    whole: Any  # states after 3 iterations at once
    retried: Any  # the same with the numbers of a second try


def sweep(row: Row) -> dict[str, np.ndarray]:
    """Three values of each swept field, and a member that has the second value again."""
    return {field: np.asarray([*values, values[TWINS[0]]]) for field, values in row.swept.items()}


@pytest.fixture(scope="module")
def compiled(row: Row) -> Compiled:
    module, world, config = parts(row)
    traces: list[int] = []

    def make(*arguments: Any) -> Any:
        algorithm = module.make(*arguments)

        def step(key: Any, state: Any) -> Any:
            traces.append(1)
            return algorithm.step(key, state)

        return algorithm._replace(step=step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "mapping_for", lambda device: row.mapping)
        built = engine.build(make, world, config, sweep(row), SEEDS)
    states, hosted, bad = built.init(), [], []
    for n in (1, 0, 2):
        states, metrics, first_bad = built.advance(states, n)
        hosted.append(built.fetch((states, metrics)))
        bad.append(built.fetch(first_bad))
    whole = built.fetch(built.advance(built.init(), ITERATIONS)[0])
    retried = built.fetch(built.advance(built.init(), ITERATIONS, 1)[0])
    return Compiled(built, traces, hosted[0], hosted[-1][0], bad, whole, retried)


class History(NamedTuple):
    """A single run: its State before the first iteration, and States and metrics of iterations, (I, ...)."""

    start: Any
    states: Any
    metrics: Any


class Single(NamedTuple):
    """`rljax.run` inside a jit, as traced, and what it makes of the Config and seed of each member."""

    traced: Any
    arguments: tuple
    members: list[History]


@pytest.fixture(scope="module")
def single(row: Row) -> Single:
    module, world, config = parts(row)

    def train(frozen: Any, config: Any, seed: Any) -> History:
        algorithm = module.make(world, config, None, frozen)

        def step(key: Any, state: Any) -> tuple[Any, tuple[Any, Any]]:
            state, metrics = algorithm.step(key, state)
            return state, (state, metrics)

        init_key, run_key = jax.random.split(jax.random.key(seed))
        start = algorithm.init(init_key)
        _, (states, metrics) = rljax.run(algorithm._replace(step=step), run_key, start, ITERATIONS)
        return History(start, states, metrics)

    frozen = world.frozen if isinstance(world, Task) else None
    arguments = [
        (frozen, engine.strong(config.replace(**dict(zip(row.swept, map(float, values), strict=True)))), seed)
        for values, seed in zip(zip(*sweep(row).values(), strict=True), map(np.uint32, SEEDS), strict=True)
    ]
    traced = jax.jit(train).trace(*arguments[0])
    run = traced.lower().compile()
    members = [jax.tree.map(np.asarray, engine.hosted(run(*each))) for each in arguments]
    return Single(traced, arguments[0], members)


def test_the_four_names_and_the_shape_of_a_config(row: Row, single: Single) -> None:
    module, world, config = parts(row)
    assert {"Config", "State", "Metrics", "make"} <= set(vars(module))
    assert config.steps_per_iteration == steps(config, world)
    assert config.initial_steps == getattr(config, "learning_starts", 0)
    assert "iteration" in {field.name for field in dataclasses.fields(module.State)}
    start, states, metrics = single.traced.out_info
    before, after = (
        jax.tree.map(lambda x, axes=axes: (x.shape[axes:], x.dtype), state)
        for axes, state in enumerate((start, states))
    )
    assert before == after
    means = host_rewards.means(metrics)
    assert all(mean.total.dtype == jnp.float32 and mean.count.dtype == jnp.int32 for mean in means)


def test_one_compilation_per_run_and_chunk_lengths_change_no_bit(compiled: Compiled) -> None:
    assert all((bad == -1).all() for bad in compiled.bad)
    assert checkpoint.sha256_of(compiled.chunks) == checkpoint.sha256_of(compiled.whole)
    assert len(compiled.traces) <= 2  # eval_shape for the metrics, then the loop


def test_a_whole_sweep_of_leaves_is_traced_once_and_its_members_are_single_runs(
    compiled: Compiled, single: Single
) -> None:
    assert len(compiled.traces) <= 2
    states, metrics = compiled.first
    mapped = checkpoint.leaves(states)
    for member, alone in enumerate(single.members):
        first = jax.tree.map(lambda x: x[0], (alone.states, alone.metrics))
        for name, leaf in checkpoint.leaves(first[0]).items():
            several = mapped[name][member]
            if np.issubdtype(leaf.dtype, np.integer):
                np.testing.assert_array_equal(several, leaf, err_msg=name)
            else:
                scale = np.abs(leaf).max() if leaf.size else 0
                np.testing.assert_allclose(several, leaf, rtol=1e-4, atol=1e-4 * scale + 1e-7, err_msg=name)
        for one, several in zip(host_rewards.means(first[1]), host_rewards.means(metrics), strict=True):
            np.testing.assert_array_equal(several.count[member], one.count)


def test_seeds_differ_from_the_first_iteration(compiled: Compiled) -> None:
    one, other = TWINS
    for name, leaf in checkpoint.leaves(compiled.first[0].params).items():
        # A single number may agree: the first step of Adam is ± the learning rate.
        assert leaf[0].size == 1 or (leaf[one] != leaf[other]).any(), name


def test_a_retry_draws_other_numbers(row: Row, compiled: Compiled) -> None:
    same = checkpoint.sha256_of(compiled.retried) == checkpoint.sha256_of(compiled.whole)
    # without dropout these draw nothing: their States have the order of the rows
    assert same == (row.algorithm in ("sft", *PREFERENCES) and "dropout" not in row.fields)


def test_no_key_is_used_twice(single: Single) -> None:
    """JAX checks keys as it traces a jit: here `init` and the step of all iterations."""
    again = jax.jit(jaxpr_as_fun(single.traced.jaxpr))
    with jax.debug_key_reuse(True):
        again.trace(*jax.tree.leaves(single.arguments))
    np.testing.assert_array_equal(single.members[0].states.iteration, [1, 2, 3])


def test_the_check_of_keys_sees_one_that_is_used_twice() -> None:
    def reuse(key: Any) -> Any:
        draw = lambda total, _: (total + jax.random.normal(key), None)
        return jax.lax.scan(draw, 0.0, length=ITERATIONS)[0]

    key = jax.random.key(0)
    again = jax.jit(jaxpr_as_fun(jax.jit(reuse).trace(key).jaxpr))
    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        again.trace(key)


def test_the_program_holds_no_big_constants(single: Single) -> None:
    assert sum(np.asarray(constant).nbytes for constant in single.traced.jaxpr.consts) < 10_000


def test_run_inside_a_jit_is_the_same_run(compiled: Compiled, single: Single) -> None:
    for member, alone in enumerate(single.members):
        assert {mean.total.shape for mean in host_rewards.means(alone.metrics)} == {(ITERATIONS,)}
        for name, leaf in checkpoint.leaves(alone.states.params).items():
            there = checkpoint.leaves(compiled.whole.params)[name][member]
            np.testing.assert_allclose(leaf[-1], there, rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_greedy_policy_draws_nothing(row: Row, compiled: Compiled) -> None:
    if row.algorithm == "td_lambda":
        pytest.skip("acts with the policy that it is given, greedy or not")
    module, world, config = parts(row)
    states = compiled.program.unhost(compiled.whole)

    @jax.jit
    def act(states: Any, key: Any, greedy: Any) -> Any:
        policy = module.make(world, config).policy(jax.tree.map(lambda x: x[0], states))
        return policy.act(key, observations(world), policy.init(), greedy)[0]

    one, two = jax.random.split(jax.random.key(2))
    np.testing.assert_array_equal(act(states, one, True), act(states, two, True))
    assert (np.asarray(act(states, one, False)) != np.asarray(act(states, two, False))).any()


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
