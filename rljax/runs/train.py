"""Train: from names and numbers to a folder with a curve, a summary and a checkpoint to go on from."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from rljax import algorithms, backend
from rljax.algorithms import AlgorithmLike, Definition
from rljax.checks import counted
from rljax.learning import choices
from rljax.runs import load, presets, starting_model, stopping
from rljax.runs.folder import checkpoint, files, restore
from rljax.runs.program import compiler, engine, loop, memory, prefetch
from rljax.runs.program.compiler import Seconds
from rljax.runs.program.engine import Program
from rljax.runs.recorder import Options, Recorder, Result, options_from
from rljax.runs.reports import progress
from rljax.types import Env, Feed, LanguageModel, Network, PyTree, Task

if TYPE_CHECKING:
    from rljax.text import Corpus, Problem


@stopping.stoppable()
def train(
    algorithm: AlgorithmLike,
    env: str | Env | Task | Corpus | Problem,
    config: Any = None,
    *,
    seeds: int = 1,
    seed: int = 0,
    steps: float | None = None,
    out: Path | str | None = None,
    env_arguments: dict[str, Any] | None = None,
    resume: bool = False,
    init: Path | str | None = None,
    init_member: int | None = None,
    model: str = "",
    warm_up: float | None = None,
    reward: Path | str | None = None,
    network: Network | LanguageModel | None = None,
    frozen: PyTree = None,
    **options: Any,
) -> Result:
    """Train `seeds` members, with seeds seed, seed + 1, …, in one compiled program.

    Args:
        algorithm: a module such as `rljax.ppo` or one of your own, the path of its file, or a name: `rljax
            list` has them all.
        env: a name for `envs.make`, or an Env of one's own; of text a name for `text.tasks.make`, a
            text.Problem or a Task, for "pretrain" and "sft" also a Corpus.
        config: the algorithm's Config; None, or a dict of some fields, stands on the preset for this pair,
            else on the defaults.
        steps: replaces config.total_steps.
        out: the run folder; None keeps everything in memory. An existing run is not overwritten.
        env_arguments: constructor arguments and parameters for `envs.make`, or those of a task.
        resume: continue the run in `out` from its newest complete checkpoint, bit for bit.
        init: a run whose final parameters (and observation statistics) this one starts from; `init_member`
            picks one for all. On a task they are also the policy that a KL penalty is towards.
        model: on a task, a folder or a repository of Hugging Face to start from, instead.
        warm_up: on a task, the tokens for which `sft` trains a model of the Config's sizes where there is
            neither `init` nor `model`; None: as many as its preset says.
        reward: on a task, a run of reward_model whose members' mean takes the place of the task's rewards.
        network: a Network of one's own (for actor and critic an ActorCritic), or for a Task a LanguageModel.
        frozen: arrays that the algorithm is given beside the environment: td_lambda's policy.
        options: the fields of `Options`: how often to log, evaluate and save, callbacks, progress.

    Raises: ValueError or FileNotFoundError for what is wrong with the arguments, RunError for what went wrong
    while running,
        KeyboardInterrupt after Ctrl-C or SIGTERM, with a final checkpoint written where there is a folder.
    """
    definition = algorithms.find(algorithm)
    chosen = options_from(options, definition)
    run, init = (None if path is None else files.at(path) for path in (out, init))
    if init_member is not None and init is None:
        raise ValueError("init_member picks a member of init: name the run with init")
    tokenizer = starting_model.written(definition, env, model, init, init_member)
    setup = load.setup(definition, env, config, steps, env_arguments or {}, tokenizer)
    load.check_frozen(definition, frozen)
    numbers = load.numbers(seed, seeds)
    if run is not None:
        choices.check_written(setup.config)
    seed = numbers[0]
    task = isinstance(setup.env, Task) and setup.env.problem is not None
    if not task and (model or warm_up is not None or reward is not None):
        raise ValueError("model, warm_up and reward are of tasks of text: leave them out")
    _free(run, resume)
    cache, spent = {}, Seconds()  # the program is compiled before the model that it begins with is trained

    def check(setup: load.Setup) -> None:
        nonlocal spent
        title = f"{setup.algorithm.name} on {setup.env_name}"
        with progress.Progress(1, title, chosen.progress) as bar:
            given = setup.env, setup.config, {}, numbers, network
            program = engine.build(setup.algorithm.module.make, *given, cache=cache)
            bar.say(f"{title} {memory.told(program, title)}")
            stopping.check()
            spent = program.seconds()

    with files.claimed(run):
        if task:
            start = starting_model.start_of(model, init, init_member, reward)
            setup, init = begin(setup, start, warm_up, seed, run, chosen, check, network), None
            init_member = None
        shared: dict[str, Any] = {"resume": resume, "network": network, "frozen": frozen, "options": chosen}
        shared |= {"init": init, "init_member": init_member, "cache": cache, "spent": spent}
        return train_members(setup, {}, numbers, run, **shared)


def begin(
    setup: load.Setup,
    start: starting_model.Start | None,
    warm_up: float | None,
    seed: int,
    out: Path | str | None,
    options: Options,
    check: Callable[[load.Setup], Any],
    network: Any = None,
) -> load.Setup:
    """A set-up on a problem with the model and parameters that it begins with, trained first where needed.

    `check` is called with the set-up before anything is trained. Raises: what it raises; ValueError.
    """
    from rljax.text import rewards
    from rljax.text.problem import read_back

    assert isinstance(setup.env, Task)
    starting_model.rewarded(setup.algorithm, start.reward if start else "", options.samples_every)
    given, run = read_back(setup.env), None if out is None else Path(out)
    problem = given
    if start is not None:
        setup = setup._replace(config=starting_model.sized(setup.config, start))
        problem = starting_model.started(problem, start, setup.config, None, network)
    rewards.tried(starting_model.world(problem, setup.algorithm, setup.config)[0])
    if starting_model.wants_warm_up(setup.algorithm, problem):
        blank = starting_model.blank(problem, setup.config, network)
        task, config = starting_model.world(blank, setup.algorithm, setup.config)
        check(setup._replace(env=task, config=config))
        if not options.progress:  # it may take minutes
            print(f"{setup.algorithm} on {setup.env_name}: sft trains its model first", file=sys.stderr)
        params = _warm_up(setup, given, warm_up, seed, run, options, network)
        if isinstance(params, starting_model.Start):
            start = params._replace(reward="" if start is None else start.reward)
            problem = starting_model.started(given, start, setup.config, run, network)._replace(
                model=blank.model
            )
        else:
            problem = blank._replace(params=params)
    task, config = starting_model.world(problem, setup.algorithm, setup.config)
    return setup._replace(env=task, config=config, start=start)


def _warm_up(
    setup: load.Setup,
    problem: Problem,
    tokens: float | None,
    seed: int,
    run: Path | None,
    options: Options,
    network: LanguageModel | None,
) -> starting_model.Start | PyTree:
    """`sft` on a problem's demonstrations: the run in RUN/sft to start from, finished already or not;
    without a folder the parameters.

    Raises: ValueError where RUN/sft was trained otherwise.
    """
    from rljax.text.problem import demonstrations

    there = None if run is None else run / starting_model.WARM_UP
    fields = {name: getattr(setup.config, name) for name in (*starting_model.SIZES, "dtype")}
    config = (presets.preset("sft", problem.name) or presets.WARM_UP) | fields
    shown = demonstrations(problem.learn)
    config["batch_size"] = min(config["batch_size"], 0 if shown is None else shown.prompt.shape[0])
    if there is not None and (there / files.SUMMARY).is_file():
        wanted = load.setup(algorithms.find("sft"), problem, config, tokens, {})
        described = files.describe(wanted, {}, [seed], 0, network is not None)
        if isinstance(wanted.env, Task) and (
            wrong := files.difference(
                files.read(there), described | {"frozen": files.sums(wanted.env)}, wanted.algorithm
            )
        ):
            raise ValueError(f"{there} is another model than this run would begin with: {wrong}; remove it")
        return starting_model.Start("run", starting_model.WARM_UP)
    resume = there is not None and (there / files.CONFIG).is_file()
    options = options._replace(
        checkpoint_every=0, evaluate_every=0, target_return=None, samples_every=0, callback=()
    )
    more = options._asdict() | {"network": network, "resume": resume}
    done = train("sft", problem, config, steps=tokens, seed=seed, out=there, **more)
    if there is not None:
        return starting_model.Start("run", starting_model.WARM_UP)
    return jax.tree.map(lambda x: jnp.asarray(x[0]), done.states.params)


@stopping.stoppable()
def train_members(
    setup: load.Setup,
    swept: dict[str, Any],
    seeds: list[int],
    out: Path | str | None = None,
    *,
    resume: bool = False,
    init: Path | str | None = None,
    init_member: int | None = None,
    network: Network | LanguageModel | None = None,
    frozen: PyTree = None,
    options: Options | None = None,
    cache: dict[Any, Any] | None = None,
    spent: Seconds | None = None,
) -> Result:
    """`train` for members that differ in swept[field][i] as well as in seeds[i]. What is in `cache` took
    `spent` to compile, None: nothing.
    """
    begun = time.perf_counter()
    config, env, options = setup.config, setup.env, options or Options()
    per_iteration = config.steps_per_iteration
    total = max(0, math.ceil((float(config.total_steps) - config.initial_steps) / per_iteration))
    judged = setup.algorithm.headline
    if options.target_return is not None and judged != "return":
        raise ValueError(
            f"target_return is of what is rewarded: {setup.algorithm.name} is judged by {judged}"
        )
    run = None if out is None else Path(out)
    description = files.describe(setup, swept, seeds, total, network is not None, frozen)
    if run is not None and isinstance(env, Task):
        description["frozen"] = files.sums(env)
    title = f"{setup.algorithm.name} on {setup.env_name}"
    steps = config.initial_steps + total * per_iteration
    unit = setup.algorithm.unit
    with files.writing(run), progress.Progress(steps, title, options.progress, unit=unit) as bar:
        changed = options.changed_algorithm
        restored = _previous(run, description, resume, bar, setup.algorithm, changed)
        if setup.preset:
            bar.say(f"using the preset for {title}")
        if isinstance(env, Task) and env.counts:
            from rljax.text.corpus import told

            bar.say(told(env.counts))
        stopping.check()
        program = engine.build(setup.algorithm.module.make, env, config, swept, seeds, network, frozen, cache)
        memory.check(program, len(seeds), title)
        program.prepare(restored is None)
        if isinstance(env, Task) and not isinstance(env.learn, Feed):
            bar.say(memory.told(program, title))
        states = _first_states(program, restored, init, init_member)
        stopping.check()
        states, _, _ = program.advance(states, 0)  # compiles
        stopping.check()
        if run is not None:
            run.mkdir(parents=True, exist_ok=True)
        feeder = prefetch.of(env, program, restored, total)
        recorder = Recorder(setup, program, run, description, options, bar, restored, feeder)
        try:
            start = compiler.startup(program.seconds().plus(spent or Seconds()), time.perf_counter() - begun)
            length = f"{counted(total, 'iteration')} of {per_iteration:,} {unit}"
            bar.say(f"{program.mapping}; {length}; {compiler.told(start)}")
            if run is not None:  # not earlier: a folder with a config.json is a run, taken
                if isinstance(env, Task):
                    files.keep(run, env)
                files.write(run, files.CONFIG, description)
            with stopping.stoppable() as stop:
                every = [
                    options.log_every or max(1, total // 100),
                    options.checkpoint_every,
                    options.evaluate_every,
                ]
                chunks = loop.advance(
                    program, states, recorder.iteration, total, every, retry=recorder.retry, stop=stop,
                    stop_on_nan=options.stop_on_nan, tick=recorder.tick, feeder=feeder,
                )  # fmt: skip
                for states, row in chunks:
                    recorder.record(row, states)
                    if recorder.asked_to_stop(states) or recorder.reached_target():
                        break
                stopped = stop.is_set() and recorder.iteration < total
            recorder.save(states)
        except loop.NotFinite as error:
            raise recorder.failure(error) from None
        finally:
            recorder.close()
            if feeder is not None:
                feeder.close()
        if stopped:
            where = f"; checkpoint {recorder.iteration} is in {run}, continue with --resume" if run else ""
            stopping.check(f"stopped at iteration {recorder.iteration} of {total}{where}")
        result = recorder.finish(states, start)
    backend.tidy_cache()
    return result


def _free(run: Path | None, resume: bool) -> bool:
    """Whether there is a run to be resumed. Raises: ValueError where the folder is taken."""
    if run is None:
        return False
    exists = (run / files.CONFIG).is_file()
    if exists and not resume:
        raise files.Taken(f"{run} already holds a run: choose another --out, or continue it with --resume")
    if run.exists() and not run.is_dir():
        raise ValueError(f"--out {run} is a file: choose a folder")
    return exists


def _previous(
    run: Path | None,
    description: dict[str, Any],
    resume: bool,
    bar: progress.Progress,
    algorithm: Definition,
    changed_algorithm: bool,
) -> checkpoint.Restored | None:
    """Where the run in this folder goes on: None for one that begins."""
    if run is None:
        if resume:
            raise ValueError("resume needs a run folder: give --out")
        return None
    restored = None
    if _free(run, resume):
        told = files.read(run)
        if wrong := files.difference(told, description, algorithm):
            raise ValueError(
                f"--resume cannot continue {run}: {wrong}; "
                f"give the same, or start anew from it with --init {run}"
            )
        restore.algorithm_of(run, told, algorithm, changed_algorithm)
        if other := files.moved(told, description):
            bar.say(f"other rounding than until now: {other}")
        newest = checkpoint.latest(run / files.CHECKPOINTS, bar.say)
        restored = checkpoint.restore(newest) if newest else None
    if resume:
        bar.say(
            f"resuming at iteration {restored.iteration}"
            if restored
            else "no complete checkpoint to resume: starting from the beginning"
        )
    if retry := load.retries(run):
        bar.say(f"taken up again after NaN, time {retry}: with other random numbers")
    return restored


def _first_states(
    program: Program, restored: checkpoint.Restored | None, init: Path | str | None, init_member: int | None
) -> PyTree:
    if restored is not None:
        rebuilt = checkpoint.rebuild(program.template(), restored.leaves, restored.path)
        return program.place(program.unhost(rebuilt))
    if init is None:
        return program.init()
    hosted = program.fetch(program.init())
    return program.place(program.unhost(load.transplant(hosted, Path(init or ""), init_member)))


__all__ = ["Options", "Result", "train", "train_members"]
