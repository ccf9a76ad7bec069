"""Whether a module keeps what every algorithm promises: a check for one's own, which ours pass too.

    from rljax import envs, testing
    import mine
    testing.check_algorithm(mine, envs.make("CartPole-v1"), mine.Config(num_envs=2))

`check_algorithm` trains four members for three iterations, in two ways, and makes all the checks below;
each of them can be called alone with what `trial` gives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from rljax import algorithms
from rljax.algorithms import AlgorithmLike, Definition
from rljax.runs.folder import checkpoint
from rljax.runs.program import engine, host_rewards
from rljax.types import Env, PyTree, Task

ITERATIONS = 3
SEEDS = 5, 6, 7, 8
TWINS = 1, 3  # members with one Config and different seeds
MOST_BYTES = 10_000  # of constants in a program
INSTANCES = 64  # of a policy that acts at one time


class History(NamedTuple):
    """A single run: its State before the first iteration, and States and metrics of iterations, (I, ...)."""

    start: Any
    states: Any
    metrics: Any


class Trial(NamedTuple):
    """What an algorithm did as four members of one program, and as four runs inside a jit."""

    definition: Definition
    world: Env | Task
    config: Any
    program: engine.Program
    traces: list[int]  # one entry for each time that its step was traced
    first: tuple[Any, Any]  # states and metrics of the first iteration
    chunks: Any  # states after chunks of 1, 0 and 2 iterations
    bad: list[Any]  # the first bad iteration in each of these chunks, −1: none
    whole: Any  # states after 3 iterations at once
    retried: Any  # the same with the numbers of a second try
    traced: Any  # `rljax.run` inside a jit
    arguments: tuple  # that it was traced with
    members: list[History]  # what it makes of the Config and seed of each member


def check_algorithm(
    algorithm: AlgorithmLike,
    world: Env | Task,
    config: Any = None,
    *,
    swept: Mapping[str, Sequence[float]] | None = None,
    draws: bool = True,
    explores: bool = True,
) -> None:
    """Check an algorithm against what runs rely on, in some seconds; choose a small Config.

    Args:
        algorithm: what `rljax.train` takes.
        config: its Config; None: the defaults.
        swept: three values of each of some leaves; None: half of, all of and twice the first that is not 0.
        draws: whether a step draws random numbers.
        explores: whether the policy draws its actions where it is not greedy.

    Raises: AssertionError with what is wrong, in one line; whatever the algorithm raises.
    """
    definition = algorithms.find(algorithm)
    config = definition.module.Config() if config is None else config
    made = trial(definition, world, config, some_leaf(config) if swept is None else swept)
    check_shape(made)
    check_chunks(made)
    check_members(made)
    check_seeds(made)
    check_retry(made, draws)
    check_keys(made)
    check_constants(made)
    check_run(made)
    check_policy(made, explores)


def some_leaf(config: Any) -> dict[str, list[float]]:
    """Three values of one number of a Config; none where it has no number but `total_steps`."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        leaf = field.metadata.get("pytree_node", True) and isinstance(value, float | int)
        if leaf and value and field.name != "total_steps":
            return {field.name: [0.5 * value, value, value]}
    return {}


def trial(
    definition: Definition, world: Env | Task, config: Any, swept: Mapping[str, Sequence[float]]
) -> Trial:
    """Train four members: three values of each swept field, and the second of them with another seed."""
    columns = {field: np.asarray([*values, values[TWINS[0]]]) for field, values in swept.items()}
    traces: list[int] = []

    def counted(*arguments: Any) -> Any:
        algorithm = definition.module.make(*arguments)

        def step(key: Any, state: Any) -> Any:
            traces.append(1)
            return algorithm.step(key, state)

        return algorithm._replace(step=step)

    program = engine.build(counted, world, config, columns, list(SEEDS))
    states, hosted, bad = program.init(), [], []
    for n in (1, 0, 2):
        states, metrics, first_bad = program.advance(states, n)
        hosted.append(program.fetch((states, metrics)))
        bad.append(program.fetch(first_bad))
    whole = program.fetch(program.advance(program.init(), ITERATIONS)[0])
    retried = program.fetch(program.advance(program.init(), ITERATIONS, 1)[0])
    traced, arguments, members = _single(definition, world, config, columns)
    return Trial(
        definition,
        world,
        config,
        program,
        traces,
        first=hosted[0],
        chunks=hosted[-1][0],
        bad=bad,
        whole=whole,
        retried=retried,
        traced=traced,
        arguments=arguments,
        members=members,
    )


def _single(
    definition: Definition, world: Env | Task, config: Any, columns: Mapping[str, np.ndarray]
) -> tuple[Any, tuple, list[History]]:
    """`rljax.run` inside a jit: as traced, the arguments of that, and the history of each member."""

    def train(frozen: PyTree, config: Any, seed: Any) -> History:
        algorithm = definition.module.make(world, config, None, frozen)

        def step(key: Any, state: Any) -> tuple[Any, tuple[Any, Any]]:
            state, metrics = algorithm.step(key, state)
            return state, (state, metrics)

        init_key, run_key = jax.random.split(jax.random.key(seed))
        start = algorithm.init(init_key)
        _, (states, metrics) = engine.run(algorithm._replace(step=step), run_key, start, ITERATIONS)
        return History(start, states, metrics)

    frozen = world.frozen if isinstance(world, Task) else None
    arguments = []
    for member, seed in enumerate(SEEDS):
        own = {field: float(column[member]) for field, column in columns.items()}
        arguments.append((frozen, engine.strong(config.replace(**own)), np.uint32(seed)))
    traced = jax.jit(train).trace(*arguments[0])
    run = traced.lower().compile()
    members = [jax.tree.map(np.asarray, engine.hosted(run(*each))) for each in arguments]
    return traced, arguments[0], members


def _claim(holds: Any, told: str) -> None:
    if not holds:
        raise AssertionError(told)


def check_shape(made: Trial) -> None:
    """The module has the four names, its State counts iterations and keeps its shapes, and metrics are Means
    of float32 over int32.
    """
    name, module = made.definition.name, made.definition.module
    for wanted in ("Config", "State", "Metrics", "make"):
        _claim(hasattr(module, wanted), f"{name} has no {wanted}")
    fields = {field.name for field in dataclasses.fields(module.State)}
    _claim("iteration" in fields, f"{name}.State has no field iteration")
    start, states, metrics = made.traced.out_info
    shapes = [
        {leaf: (x.shape[axes:], x.dtype) for leaf, x in checkpoint.leaves(state).items()}
        for axes, state in enumerate((start, states))
    ]
    moved = sorted(set(shapes[0].items()) ^ set(shapes[1].items()), key=str)
    _claim(not moved, f"{name}: a step changes the shape or type of {moved[:1]} of the State")
    for mean in host_rewards.means(metrics):
        told = f"{name}: a metric is a {mean.total.dtype} over a {mean.count.dtype}: Mean(float32, int32)"
        _claim(mean.total.dtype == jnp.float32 and mean.count.dtype == jnp.int32, told)
    counts = made.members[0].states.iteration.tolist()
    _claim(counts == [1, 2, 3], f"{name}: State.iteration after three steps is {counts}, not [1, 2, 3]")


def check_chunks(made: Trial) -> None:
    """One compilation for any number of iterations, whose chunks change no bit, and nothing is NaN."""
    name = made.definition.name
    _claim(all((bad == -1).all() for bad in made.bad), f"{name}: NaN or infinity within three iterations")
    same = checkpoint.sha256_of(made.chunks) == checkpoint.sha256_of(made.whole)
    _claim(same, f"{name}: chunks of 1 and 2 iterations give other bits than 3 at once")
    told = f"{name}: its step was traced {len(made.traces)} times: once for shapes, once for the loop"
    _claim(len(made.traces) <= 2, told)


def check_members(made: Trial) -> None:
    """Members of a sweep are single runs: integers equal after one iteration, the rest to 1e-4."""
    states, metrics = made.first
    mapped = checkpoint.leaves(states)
    for member, alone in enumerate(made.members):
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


def check_seeds(made: Trial) -> None:
    """Two members that differ in their seed alone have other parameters after one iteration."""
    one, other = TWINS
    for name, leaf in checkpoint.leaves(made.first[0].params).items():
        # A single number may agree: the first step of Adam is ± the learning rate.
        differs = leaf[0].size == 1 or (leaf[one] != leaf[other]).any()
        _claim(differs, f"{made.definition.name}: {name} is the same for two seeds")


def check_retry(made: Trial, draws: bool = True) -> None:
    """A run that is taken up again after NaN draws other numbers; one that draws none is the same."""
    same = checkpoint.sha256_of(made.retried) == checkpoint.sha256_of(made.whole)
    told = "draws no random number" if same else "draws random numbers"
    _claim(same != draws, f"{made.definition.name}: a step {told}, draws = {draws} says otherwise")


def check_keys(made: Trial) -> None:
    """No key is used twice, as JAX sees it while it traces `init` and the step of all iterations."""
    again = jax.jit(jaxpr_as_fun(made.traced.jaxpr))
    with jax.debug_key_reuse(True):
        try:
            again.trace(*jax.tree.leaves(made.arguments))
        except jax.errors.KeyReuseError as error:
            told = str(error).splitlines()[0]
            raise AssertionError(f"{made.definition.name} uses a key twice: {told}") from error


def check_constants(made: Trial) -> None:
    """Data reach the program as arguments, not as constants in it."""
    size = sum(np.asarray(constant).nbytes for constant in made.traced.jaxpr.consts)
    told = f"{made.definition.name}: its program holds {size:,} bytes of constants: pass arrays as frozen"
    _claim(size < MOST_BYTES, told)


def check_run(made: Trial) -> None:
    """`rljax.run` inside a jit is the same run."""
    for member, alone in enumerate(made.members):
        shapes = {mean.total.shape for mean in host_rewards.means(alone.metrics)}
        _claim(shapes == {(ITERATIONS,)}, f"{made.definition.name}: metrics are no scalars: {shapes}")
        for name, leaf in checkpoint.leaves(alone.states.params).items():
            there = checkpoint.leaves(made.whole.params)[name][member]
            np.testing.assert_allclose(leaf[-1], there, rtol=1e-3, atol=1e-5, err_msg=name)


def check_policy(made: Trial, explores: bool = True) -> None:
    """The greedy policy draws nothing; the other one does where it explores."""
    name, module, states = made.definition.name, made.definition.module, made.program.unhost(made.whole)
    seen = observations(made.world)

    @jax.jit
    def act(states: Any, key: Any, greedy: Any) -> Any:
        policy = module.make(made.world, made.config).policy(jax.tree.map(lambda x: x[0], states))
        return policy.act(key, seen, policy.init(), greedy)[0]

    one, two = jax.random.split(jax.random.key(2))
    same = (np.asarray(act(states, one, True)) == np.asarray(act(states, two, True))).all()
    _claim(same or not explores, f"{name}: the greedy policy depends on its key")
    other = (np.asarray(act(states, one, False)) != np.asarray(act(states, two, False))).any()
    told = (
        f"{name}: the policy {'draws' if other else 'draws no'} actions, explores = {explores} says otherwise"
    )
    _claim(other == explores, told)


def observations(world: Env | Task) -> Any:
    """What 64 instances of a policy see at one time."""
    if isinstance(world, Task):
        drawn = np.random.default_rng(1).integers(1, world.vocab_size, (INSTANCES, 4), np.int32)
        valid = np.arange(4)[None] >= np.arange(INSTANCES)[:, None] % 4  # one to four tokens, padded before
        return jnp.asarray(drawn), jnp.asarray(valid)
    return jax.vmap(world.reset)(jax.random.split(jax.random.key(1), INSTANCES))[0]
