"""From names to a runnable set-up, and from a run folder back to its trained policy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from rljax import checks, envs
from rljax.algorithms import AlgorithmLike, Definition
from rljax.runs import foreign, presets, starting_model
from rljax.runs.folder import checkpoint, files, restore
from rljax.runs.program import engine
from rljax.types import Algorithm, Env, LanguageModel, Network, PyTree, Task

if TYPE_CHECKING:
    from rljax.text import Corpus, Problem

MOST_SEEDS = 1_000_000  # of one run
# Config fields that decide what is read of a corpus.
READ = ("length", "batch_size", "dtype", "architecture")


class Setup(NamedTuple):
    """What is to be trained, resolved from names."""

    algorithm: Definition
    env_name: str
    env: Env | Task
    env_arguments: dict[str, Any]
    config: Any
    preset: bool
    own_env: bool = False  # an Env or a Task of the user's, which its name does not bring back
    start: starting_model.Start | None = None  # of a problem: where the parameters are from


class Loaded(NamedTuple):
    """One member of a finished run, ready to act: `algorithm.policy(state)` is its policy."""

    algorithm: Algorithm
    env: Env | Task
    state: PyTree
    module: Any  # with Config, State, Metrics and make
    config: Any
    seed: int


def setup(
    algorithm: Definition,
    env: str | Env | Task | Corpus | Problem,
    config: Any,
    steps: float | None,
    env_arguments: dict[str, Any],
    tokenizer: Any = None,
) -> Setup:
    """Resolve names, and read a corpus; None, or a dict of fields, stands on the preset for the pair where
    there is one, else on the defaults. A task that is named is written with `tokenizer`, where it can be.

    Raises: ValueError with the nearest name, or naming the field that is wrong; FileNotFoundError.
    """
    module, text = algorithm.module, algorithm.text
    corpus, problem = _nouns() if text else ((), ())
    _check_world(algorithm, env, (corpus, problem, Task) if text else (Env,))
    if not isinstance(env, str) and isinstance(env, corpus) and not hasattr(module, "read"):
        raise ValueError(
            f"{algorithm.name} needs a task, a rljax.text.Problem or its name; {env.name} is a Corpus"
        )
    own = not isinstance(env, str) and getattr(env, "arguments", None) is None
    if isinstance(env, problem):
        own = own or _changed(env)
    if not isinstance(env, str) and env_arguments:
        raise ValueError("env_arguments go with the name of an environment, not with what is already made")
    if not isinstance(env_arguments, Mapping):
        raise ValueError(f"env_arguments = {checks.show(env_arguments)}: must be a dict of names and values")
    env_arguments = {name: files.plain(value) for name, value in env_arguments.items()}
    try:
        json.dumps(env_arguments, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"env_arguments {env_arguments} cannot be written to config.json ({error}): pass an Env instead"
        ) from error
    world: Any = env
    if isinstance(env, str):
        world = (
            starting_model.named(env, env_arguments, tokenizer) if text else envs.make(env, **env_arguments)
        )
    name = env if isinstance(env, str) else env.name
    preset = False
    if config is None or isinstance(config, Mapping):
        config, preset = presets.config_for(algorithm, name, config or {})
    if not isinstance(config, module.Config):
        raise ValueError(
            f"config is a {type(config).__module__}.{type(config).__name__}: "
            f"{algorithm.name} takes a {module.Config.__module__}.Config, or a dict of its fields"
        )
    if steps is not None:
        config = config.replace(total_steps=steps)
    config = _sound(config)
    if isinstance(world, corpus):
        world, own = module.read(world, config), False
    if isinstance(world, problem):
        world, config = starting_model.world(world, algorithm, config)
    return Setup(algorithm, name, world, env_arguments, config, preset, own)


def _check_world(algorithm: Definition, world: Any, kinds: tuple[Any, ...]) -> None:
    """ValueError where this is neither a name nor what the algorithm learns from, with a hint where it is an
    object of another library.
    """
    if isinstance(world, (str, *kinds)):
        return
    text = algorithm.text
    needs = "a task, a rljax.text.Problem or its name" if text else "an environment"
    if isinstance(world, Env | Task):
        what = f"{world.name} is a {type(world).__name__}"
    elif hint := foreign.hint(world, text):
        what = f"what is given {hint}"
    else:
        what = f"{getattr(world, 'name', 'this')} is a {type(world).__name__}"
    raise ValueError(f"{algorithm.name} needs {needs}; {what}")


def _sound(config: Any) -> Any:
    """The Config in plain types, before anything is computed from it. Raises: ValueError naming a field."""
    config = checks.fields(config)
    checks.number(config, "total_steps", low=0, open_low=True)
    iterations = (config.total_steps - config.initial_steps) / config.steps_per_iteration
    if iterations > checks.INT32:
        right = f"are {iterations:.3g} iterations of {config.steps_per_iteration} steps: must be at most"
        checks.complain(config, "total_steps", f"{right} {checks.INT32}")
    return config


def _nouns() -> tuple[Any, Any]:
    """The types Corpus and Problem, whose import only runs of text pay for."""
    from rljax.text import Corpus, Problem

    return Corpus, Problem


def check_frozen(algorithm: Definition, frozen: PyTree) -> None:
    """ValueError where an algorithm is given arrays that it does not look at."""
    if frozen is not None and not algorithm.frozen:
        raise ValueError(
            f"frozen= is for an algorithm that is given arrays: {algorithm.name} is not, leave it out"
        )


def _changed(problem: Any) -> bool:
    """Whether the arguments of a Problem no longer make it."""
    from rljax.text.problem import changes

    return bool(changes(problem))


def kind(setup: Setup) -> str:
    """What config.json, summary.json and sweep.json call the world of this set-up."""
    return "task" if isinstance(setup.env, Task) else "env"


def with_fields(setup: Setup, static: dict[str, Any]) -> Setup:
    """The set-up with other values of static fields; a corpus is read again where they decide what is read.

    Raises: as `setup`.
    """
    config, env = _sound(setup.config.replace(**static)), setup.env
    same = all(getattr(config, name, None) == getattr(setup.config, name, None) for name in READ)
    if isinstance(env, Task) and env.corpus is not None and not same:
        env = setup.algorithm.module.read(env.corpus, config)
    if isinstance(env, Task) and env.problem is not None and env.model is not None and not same:
        changed = [name for name in (*starting_model.SIZES, "dtype") if name in static]
        if changed:
            raise ValueError(
                f"{setup.algorithm.name}.Config.{changed[0]} is that of the model to begin with: train apart"
            )
    return setup._replace(config=config, env=env)


def numbers(seed: int, seeds: int) -> list[int]:
    """The seeds `seed`, `seed` + 1, …, as many as `seeds`: integers from 0 to 2³² − 1."""
    seeds = checks.whole("seeds", seeds, low=1, high=MOST_SEEDS)
    if checks.wrong_integer(seed, 0, 2**32 - seeds):
        right = f"must be an integer from 0 to 2**32 - seeds = {2**32 - seeds}"
        raise ValueError(f"seed = {checks.as_given(seed)}: {right}")
    return list(range(int(seed), int(seed) + seeds))


def description(
    run: Path | str,
    env: Env | Task | Problem | None = None,
    network: Network | LanguageModel | None = None,
    frozen: PyTree = None,
    algorithm: AlgorithmLike | None = None,
    changed_algorithm: bool = False,
) -> tuple[dict[str, Any], Setup, dict[str, Any]]:
    """A run's config.json, its set-up, and what differs between its members (field -> list).

    Raises: ValueError where the run was made with an Env, Network or arrays of the user's own that are not
    given, or where these arrays, the text of a task or the parameters that it starts from are no longer the
    same; FileNotFoundError.
    """
    from rljax.text import Problem
    from rljax.text.problem import read_back

    told = files.read(run)
    definition = restore.algorithm_of(run, told, algorithm, changed_algorithm)
    check_frozen(definition, frozen)
    for name, given in (("env", env), ("network", network), ("frozen", frozen)):
        if name in told["own"] and given is None:
            raise ValueError(
                f"{run} was trained with {name}= of your own: pass the same {name}= again, from Python"
            )
    config, swept = restore.configured(run, told, definition)
    start = starting_model.Start(**told["start"]) if told.get("start") else None
    world = (
        _world(told, definition.module, config, starting_model.tokenizer_of(start, Path(run)))
        if env is None
        else env
    )
    told = dict(told)
    if isinstance(world, Task) and world.problem is not None:
        world = read_back(world)
    if isinstance(world, Problem):
        begun = start
        if env is not None and start is not None and start.reward:  # judged by the rewards that are given
            begun = start._replace(reward="")
            told["frozen"] = {name: sum_ for name, sum_ in told["frozen"].items() if name != "rewards"}
        world = starting_model.started(world, begun, config, files.at(run), network)
        world, config = starting_model.world(world, definition, config)
    if isinstance(world, Task) != ("task" in told):
        raise ValueError(f"{run} learnt {files.world(told)}, not {world.name}: pass what it was trained on")
    if not isinstance(world, Task) and (wrong := files.changed(told, files.given(frozen).get("frozen", {}))):
        raise ValueError(f"{run} cannot go on with other arrays: {wrong}; give the same")
    if isinstance(world, Task):
        sums = files.sums(world)
        if env is not None and "frozen" in told:  # judged by the rewards that are given
            told["frozen"] = told["frozen"] | {"reward_names": sums.get("reward_names")}
        if wrong := files.changed(told, sums):
            raise ValueError(f"{run} cannot go on with other data: {wrong}; give the same")
    arguments = told.get("env_arguments", {})
    found = Setup(definition, files.world(told), world, arguments, config, told["preset"], start=start)
    return told, found, swept


def _world(told: dict[str, Any], module: Any, config: Any, tokenizer: Any) -> Any:
    """What a run was trained on, made or read again."""
    if told.get("task_arguments"):
        arguments = dict(told["task_arguments"])
        return starting_model.named(arguments.pop("name"), arguments, tokenizer)
    if "task" in told:
        from rljax.text import Corpus

        return module.read(Corpus(**told["corpus"]), config)
    return envs.make(told["env"], **told["env_arguments"])


def load(
    run: Path | str,
    member: int = 0,
    checkpoint_iteration: int | None = None,
    env: Env | Task | Problem | None = None,
    network: Network | LanguageModel | None = None,
    frozen: PyTree = None,
    algorithm: AlgorithmLike | None = None,
    changed_algorithm: bool = False,
) -> Loaded:
    """One member of a run.

    Args:
        env, network, frozen: where the run was made with ones of your own.
        algorithm: your own, where it is not found again; `changed_algorithm` allows that its file is another
            by now.

    Raises: ValueError or FileNotFoundError in one line.
    """
    told, found, swept = description(run, env, network, frozen, algorithm, changed_algorithm)
    number = len(told["seeds"])
    if not 0 <= member < number:
        raise ValueError(f"member = {member}: {run} has members 0 to {number - 1}")
    config = found.config.replace(**{name: column[member] for name, column in swept.items()})
    made = found.algorithm.module.make(found.env, engine.strong(config), network, frozen)
    restored = restore.saved(run, checkpoint_iteration)
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    template = jax.tree.map(
        lambda x: np.empty((number, *x.shape), x.dtype), jax.eval_shape(engine.hosted, shapes)
    )
    states = checkpoint.rebuild(template, restored.leaves, restored.path)
    state = jax.tree.map(lambda array, like: engine.unhosted(array[member], like), states, shapes)
    return Loaded(made, found.env, state, found.algorithm.module, config, told["seeds"][member])


def transplant(states: PyTree, run: Path, member: int | None) -> PyTree:
    """Fresh hosted states (S, ...) with what their State says is carried over from another run: parameters
    and observation statistics, and targets as copies of the parameters that they track.

    Raises: ValueError where shapes differ, the runs' members do not match, or the State names no such part.
    """
    files.read(run)
    restored = restore.saved(run)
    here = checkpoint.leaves(states)
    number = next(iter(here.values())).shape[0]
    there = next(iter(restored.leaves.values())).shape[0]
    if member is not None and not 0 <= member < there:
        raise ValueError(f"--init-member {member}: {run} has members 0 to {there - 1}")
    if member is None and there not in (1, number):
        raise ValueError(
            f"--init {run} has {there} members and this run {number}: pick one with --init-member"
        )
    sources = carried_parts(states)
    if not sources:
        raise ValueError(f"--init {run}: {type(states).__name__} has no field that is carried over")
    shape = lambda arrays, name: list(arrays[name].shape[1:]) if name in arrays else "absent"
    wanted = {}  # names of leaves here -> where they are there
    for name in here:
        part, dot, rest = name.partition(".")
        if part in sources:
            wanted[name] = sources[part] + dot + rest
    own = [part for part, source in sources.items() if part == source]
    wanted |= {name: name for name in restored.leaves if name.partition(".")[0] in own}
    for name, source in sorted(wanted.items()):
        if shape(here, name) != shape(restored.leaves, source):
            told = f"{name} is {shape(restored.leaves, source)} there and {shape(here, name)} here"
            raise ValueError(f"--init {run}: {told}")
        old = restored.leaves[source] if member is None else restored.leaves[source][member : member + 1]
        here[name] = np.broadcast_to(old, here[name].shape)
    return checkpoint.rebuild(states, here, run)


def carried_parts(state: PyTree) -> dict[str, str]:
    """The fields of a State that another run's states are carried into, and the parts there that they become
    (a path of names with dots): see `rljax.types.CARRIED`.
    """
    if not dataclasses.is_dataclass(state):
        return {}
    marked = {each.name: each.metadata.get("carried") for each in dataclasses.fields(state)}
    return {name: source or name for name, source in marked.items() if source is not None}


def retries(run: Path) -> int:
    """How often this run has been taken up again after NaN: every random number of a retry is another."""
    try:
        return int(json.loads((run / files.FAILURE).read_text())["retry"])
    except (OSError, ValueError, KeyError):
        return 0
