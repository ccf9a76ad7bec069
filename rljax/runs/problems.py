"""What an algorithm of text learns from a problem, and where the parameters that it begins with come from.

RL and preferences begin with a model that can do a little of the task already: that of a run (--init), of a
folder or a repository (--model), or where neither is given, one of the Config's sizes that `sft` trains first
on the task's demonstrations, in the same folder.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import algorithms, checks
from rljax.runs import folder
from rljax.types import PyTree, Task

SIZES = ("architecture", "hidden_size", "num_layers", "num_heads")  # of a model that the Config makes
WARM_UP = "sft"  # the folder, in that of a run, of the run that trained its model


class Start(NamedTuple):
    """Where the parameters are from, and the reward model that takes the place of a task's rewards. A run in
    a run's folder is relative to that.
    """

    kind: str  # "run", "model" or "none"
    source: str = ""
    member: int = 0
    reward: str = ""


def named(name: str, arguments: Mapping[str, Any]) -> Any:
    """The problem of `text.tasks` with this name. Raises: ValueError, FileNotFoundError in one line."""
    from rljax.text import tasks

    return tasks.make(name, **arguments)


def world(problem: Any, algorithm: str, config: Any) -> tuple[Task, Any]:
    """The Task that an algorithm learns from a problem, and the Config with the length of the rows it reads.

    Raises: ValueError where the problem has nothing of the kind.
    """
    from rljax.text.problem import task

    learns: Any = algorithms.TEXT[algorithm].learns
    found = task(problem, learns)
    return found, config.replace(length=problem.length) if learns == "demonstrations" else config


def started(problem: Any, start: Start | None, config: Any, run: Path | None) -> Any:
    """The problem with the model and the parameters of `start`, activations in config.dtype.

    Raises: ValueError where the model cannot read the task's tokens; FileNotFoundError.
    """
    if start is None:
        return problem
    from rljax.runs import pretrained

    problem = _begun(problem, start, config, run)
    if start.reward:  # the task's own are told, and weigh nothing
        own = tuple(reward._replace(weight=0.0) for reward in problem.rewards)
        problem = problem._replace(rewards=(pretrained.load_reward(start.reward), *own))
    return problem


def _begun(problem: Any, start: Start, config: Any, run: Path | None) -> Any:
    """Without the reward model of `start`."""
    from rljax.runs import pretrained

    if start.kind == "none":
        return problem
    checks.choice(config, "dtype", ("float32", "bfloat16"))
    if start.kind == "model":
        from rljax.text import load_pretrained

        loaded = load_pretrained(start.source, dtype=jnp.dtype(config.dtype), param_dtype=jnp.float32)
    else:
        source = Path(start.source) if run is None else run / start.source
        pretrained.whole(source)
        loaded = pretrained.language_model(
            source, start.member, dtype=jnp.dtype(config.dtype), param_dtype=jnp.float32
        )
    problem = read_by(problem, loaded, start.source)
    return problem._replace(model=loaded.model, params=loaded.params, generation=loaded.generation)


def read_by(problem: Any, loaded: Any, source: str) -> Any:
    """The problem as a `text.Pretrained` model reads and writes it: in its tokens, an encoder's prompts with
    the end mark that its tokenizer sets (T5), and a completion ends at the model's own stop tokens too, as of
    a chat's turn.

    Raises: ValueError where the problem has a vocabulary of its own.
    """
    from rljax.models.seq2seq import Seq2SeqConfig

    problem, known = spelt(problem, loaded.tokenizer, source), (*problem.stop_ids, loaded.tokenizer.eos_id)
    more = tuple(stop for stop in loaded.generation.stop_ids if stop not in known)
    problem = problem._replace(stop_ids=problem.stop_ids + more)
    if not isinstance(getattr(loaded.model, "config", None), Seq2SeqConfig):
        return problem
    if (end := loaded.tokenizer.encode("", add_special_tokens=True)[-1:]) != [loaded.tokenizer.eos_id]:
        return problem
    return _marked(problem, end[0])


def _marked(problem: Any, end: int) -> Any:
    """The problem with an end mark after every prompt."""

    def marked(rows: Any) -> Any:
        column = lambda x, value: jnp.pad(jnp.asarray(x), [(0, 0), (0, 1)], constant_values=value)
        return rows._replace(tokens=column(rows.tokens, end), valid=column(rows.valid, True))

    judged = problem.preferences and tuple(map(marked, problem.preferences))
    return problem._replace(
        learn=marked(problem.learn), held_out=marked(problem.held_out), preferences=judged
    )


def spelt(problem: Any, tokenizer: Any, source: str) -> Any:
    """The problem in the tokens of a model. Raises: ValueError where it has a vocabulary of its own."""
    from rljax.text import tasks
    from rljax.text.tokenizer import same_vocabulary

    mine = problem.tokenizer
    if same_vocabulary(mine, tokenizer):
        return problem
    told = problem.arguments
    if told is None or "tokenizer" not in inspect.signature(tasks.TASKS[told["name"]]).parameters:
        raise ValueError(
            f"{source} has the vocabulary of {tokenizer.name}, the task {problem.name} that of {mine.name}: "
            "begin with a model of the task's own"
        )
    return tasks.make(**told, tokenizer=tokenizer)


def start_of(
    model: str, init: Path | str | None, member: int | None, reward: Path | str | None
) -> Start | None:
    """Raises: ValueError where both model and init are given, or the run has several members and none is
    chosen.
    """
    if model and init is not None:
        raise ValueError("model and init both say what to begin with: give one of them")
    scored = "" if reward is None else str(folder.at(reward).absolute())
    if model:
        path = Path(model).expanduser()
        return Start("model", str(path.absolute()) if path.exists() else model, reward=scored)
    if init is None:
        return Start("none", reward=scored) if scored else None
    number = len(folder.read(init)["seeds"])
    if member is None and number > 1:
        raise ValueError(f"--init {init} has {number} members: pick one with --init-member")
    if member is not None and not 0 <= member < number:
        raise ValueError(f"--init-member {member}: {init} has members 0 to {number - 1}")
    return Start("run", str(folder.at(init).absolute()), member or 0, scored)


def rewarded(algorithm: str, reward: str, samples_every: int) -> None:
    """ValueError for options of what writes completions and is rewarded, where the algorithm does not."""
    if algorithms.TEXT[algorithm].learns == "prompts":
        return
    for name, value in {"reward": reward, "samples_every": samples_every}.items():
        if value:
            raise ValueError(
                f"{name} is of what is rewarded: {algorithm} writes no completions; leave it out"
            )


def sized(config: Any, start: Start) -> Any:
    """The Config with the sizes of the model of the run that it begins with."""
    if start.kind != "run":
        return config
    there = folder.read(start.source)["config"]
    return config.replace(**{name: there[name] for name in SIZES if name in there})


def wants_warm_up(algorithm: str, problem: Any) -> bool:
    """Whether `sft` is to train a model first."""
    learns = algorithms.TEXT[algorithm].learns
    return learns in ("prompts", "preferences") and problem.params is None and problem.model is None


def blank(problem: Any, config: Any) -> Any:
    """The problem with a model of the Config's sizes, all of whose parameters are 0: to check a Config with.

    Raises: ValueError naming a field of `config`, or where there is nothing to train a model on.
    """
    from rljax.models.language_models import language_model

    if problem.learn.demonstration is None:
        raise ValueError(
            f"the task {problem.name} has no demonstrations to train a model on: give --model or --init"
        )
    model = language_model(problem.tokenizer.vocab_size, config, problem.length)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params: PyTree = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return problem._replace(model=model, params=params)
