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

from rljax import checks
from rljax.algorithms import Definition
from rljax.runs.folder import files
from rljax.types import LanguageModel, PyTree, Reward, Task

SIZES = ("architecture", "hidden_size", "num_layers", "num_heads")  # of a model that the Config makes
WARM_UP = "sft"  # the folder, in that of a run, of the run that trained its model
SAYABLE = ("name", "max_new_tokens", "model", "params", "generation")  # changes that any tokens can say


class Start(NamedTuple):
    """Where the parameters are from, and the reward model that takes the place of a task's rewards. A run in
    a run's folder is relative to that.
    """

    kind: str  # "run", "model" or "none"
    source: str = ""
    member: int = 0
    reward: str = ""


def named(name: str, arguments: Mapping[str, Any], tokenizer: Any = None) -> Any:
    """The problem of `text.tasks` with this name, in the tokens of a model's `tokenizer` where it can be.

    Raises: ValueError, FileNotFoundError in one line.
    """
    from rljax.text import tasks

    own = tokenizer is None or not spellable(name)
    return tasks.make(name, **arguments, **({} if own else {"tokenizer": tokenizer}))


def written(algorithm: Definition, env: Any, model: str, init: Path | str | None, member: int | None) -> Any:
    """The tokenizer that a task which is named is written with at once: that of the model to begin with."""
    if not isinstance(env, str) or not algorithm.text:
        return None
    return tokenizer_of(start_of(model, init, member, None))


def tokenizer_of(start: Start | None, run: Path | None = None) -> Any:
    """The tokenizer of the model that `start` names; None where there is none."""
    if start is None or start.kind == "none":
        return None
    from rljax.text import load_tokenizer

    if start.kind == "model":
        return load_tokenizer(start.source)
    there = (Path(start.source) if run is None else run / start.source) / files.TOKENIZER
    return load_tokenizer(there) if there.is_dir() else None


def world(problem: Any, algorithm: Definition, config: Any) -> tuple[Task, Any]:
    """The Task that an algorithm learns from a problem, and the Config with the length of the rows it reads.

    Raises: ValueError where the problem has nothing of the kind.
    """
    from rljax.text.problem import task

    learns: Any = algorithm.learns
    found = task(problem, learns)
    return found, config.replace(length=problem.length) if learns == "demonstrations" else config


def started(problem: Any, start: Start | None, config: Any, run: Path | None, network: Any = None) -> Any:
    """The problem with the model and the parameters of `start`, activations in config.dtype. `network` is the
    model of the run that it begins with, where that is one of the user's own.

    Raises: ValueError where the model cannot read the task's tokens; FileNotFoundError.
    """
    if start is None:
        return problem
    from rljax.runs import pretrained

    problem = _begun(problem, start, config, run, network)
    if start.reward:  # the task's own are told, and weigh nothing
        own = tuple(reward._replace(weight=0.0) for reward in problem.rewards)
        problem = problem._replace(rewards=(pretrained.load_reward(start.reward), *own))
    return problem


def _begun(problem: Any, start: Start, config: Any, run: Path | None, network: Any) -> Any:
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
        if network is not None and "network" in files.read(source)["own"]:
            params = pretrained.parameters(source, start.member, network)
            return problem._replace(model=network, params=params)
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
    """The problem in the tokens of a model, with what was changed in it since `tasks.make` made it.

    Raises: ValueError where it has a vocabulary of its own, or a change that only its own tokens can say.
    """
    from rljax.text import tasks
    from rljax.text.problem import changes
    from rljax.text.tokenizer import same_vocabulary

    mine, made = problem.tokenizer, problem.made
    if same_vocabulary(mine, tokenizer):
        return problem
    if made is None or not spellable(made.arguments["name"]):
        raise ValueError(
            f"{source} has the vocabulary of {tokenizer.name}, the task {problem.name} that of {mine.name}: "
            "begin with a model of the task's own"
        )
    again = tasks.make(**made.arguments, tokenizer=tokenizer)
    kept: dict[str, Any] = {}
    for name in changes(problem):
        if name == "rewards":
            kept[name] = tuple(_respelt(reward, problem, again, source) for reward in problem.rewards)
        elif name in SAYABLE or (name == "records" and again.records == made.records):
            kept[name] = getattr(problem, name)
        else:
            raise _unsayable(f"{name} of the task {problem.name} was changed in tokens", made, source)
    return again._replace(**kept)


def spellable(name: str) -> bool:
    """Whether the task of that name can be written in the tokens of any model."""
    from rljax.text import tasks

    return name in tasks.TASKS and "tokenizer" in inspect.signature(tasks.TASKS[name]).parameters


def _respelt(reward: Reward, problem: Any, again: Any, source: str) -> Reward:
    """A reward of the problem as the same problem in other tokens, `again`, has it."""
    if reward.host or reward.vocabulary is not None:  # of text; or of a vocabulary that is checked later
        return reward
    for own, new in zip(problem.made.rewards, again.rewards, strict=True):
        if own.apply is reward.apply:
            name = new.name if reward.name == own.name else reward.name
            return new._replace(name=name, weight=reward.weight)
    what = f"reward {reward.name} of the task {problem.name} is of tokens"
    raise _unsayable(what, problem.made, source)


def _unsayable(what: str, made: Any, source: str) -> ValueError:
    name = made.arguments["name"]
    return ValueError(
        f"{what} of {made.tokenizer.name}, and {source} has others: change it in the model's own tokens, "
        f"those of text.tasks.make({name!r}, ..., tokenizer=text.load_tokenizer({source!r}))"
    )


def start_of(
    model: str, init: Path | str | None, member: int | None, reward: Path | str | None
) -> Start | None:
    """Raises: ValueError where both model and init are given, or the run has several members and none is
    chosen.
    """
    if model and init is not None:
        raise ValueError("model and init both say what to begin with: give one of them")
    scored = "" if reward is None else str(files.at(reward).absolute())
    if model:
        path = Path(model).expanduser()
        return Start("model", str(path.absolute()) if path.exists() else model, reward=scored)
    if init is None:
        return Start("none", reward=scored) if scored else None
    number = len(files.read(init)["seeds"])
    if member is None and number > 1:
        raise ValueError(f"--init {init} has {number} members: pick one with --init-member")
    if member is not None and not 0 <= member < number:
        raise ValueError(f"--init-member {member}: {init} has members 0 to {number - 1}")
    return Start("run", str(files.at(init).absolute()), member or 0, scored)


def rewarded(algorithm: Definition, reward: str, samples_every: int) -> None:
    """ValueError for options of what writes completions and is rewarded, where the algorithm does not."""
    if algorithm.learns == "prompts":
        return
    for name, value in {"reward": reward, "samples_every": samples_every}.items():
        if value:
            raise ValueError(
                f"{name} is of what is rewarded: {algorithm.name} writes no completions; leave it out"
            )


def sized(config: Any, start: Start) -> Any:
    """The Config with the sizes of the model of the run that it begins with."""
    if start.kind != "run":
        return config
    there = files.read(start.source)["config"]
    return config.replace(**{name: there[name] for name in SIZES if name in there})


def wants_warm_up(algorithm: Definition, problem: Any) -> bool:
    """Whether `sft` is to train a model first."""
    return algorithm.learns in ("prompts", "preferences") and problem.params is None and problem.model is None


def blank(problem: Any, config: Any, network: LanguageModel | None = None) -> Any:
    """The problem with the user's network, or a model of the Config's sizes, all of whose parameters are 0:
    to check a Config with.

    Raises: ValueError naming a field of `config`, or where there is nothing to train a model on.
    """
    from rljax.models.language_models import language_model

    if problem.learn.demonstration is None:
        raise ValueError(
            f"the task {problem.name} has no demonstrations to train a model on: give --model or --init"
        )
    model = network or language_model(problem.tokenizer.vocab_size, config, problem.length)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params: PyTree = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return problem._replace(model=model, params=params)
