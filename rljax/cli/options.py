"""The options of `rljax train` and `rljax sweep`, those of an algorithm's Config among them."""

from __future__ import annotations

import ast
import dataclasses
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro
from tyro.conf import Positional, Suppress, UseAppendAction, arg

from rljax import algorithms
from rljax.learning.fields import Field, fields_of


def kind(parse: Callable[[str], Any], metavar: str) -> Any:
    """How tyro reads one word of the command line."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: parse(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [typed(value)],
    )


def real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def whole(text: str) -> int:
    """An integer, also as 5e5 or 500_000."""
    try:
        return int(text)
    except ValueError:
        number = real(text)
        if not number.is_integer():  # neither are infinity and NaN
            raise ValueError(f"{text!r} is not a whole number") from None
        return int(number)


def one_of(options: Iterable[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in options:
            from rljax.checks import suggest

            raise ValueError(f"{text!r} is not one of {', '.join(options)}{suggest(text, options)}")
        return text

    return parse


def typed(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, tuple | list):
        return ("+" if any(isinstance(item, str) for item in value) else "x").join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower() if isinstance(value, bool | None) else str(value)
    return f"{int(value)}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:g}"


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(whole(size) for size in text.split("x")) if text else ()


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split("+")) if text else ()


def _reader(annotation: Any) -> tuple[Callable[[str], Any], str]:
    """What reads a value of a field of this type, and how help shows it."""
    if get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation):
        parse, metavar = _reader(get_args(annotation)[0])
        return lambda text: None if text == "none" else parse(text), f"{{{metavar},none}}"
    if get_origin(annotation) in (Union, UnionType):  # a name of a table, or a function of one's own
        parse, metavar = _reader(get_args(annotation)[0])
        return lambda text: text if ":" in text else parse(text), f"{metavar[:-1]},FILE.py:FUNCTION}}"
    if get_origin(annotation) is Literal:
        options = get_args(annotation)
        return one_of(options), "{" + ",".join(options) + "}"
    if get_origin(annotation) is tuple:
        return (_names, "NAME+NAME") if get_args(annotation)[0] is str else (_sizes, "64x64")
    if annotation is bool:
        return lambda text: one_of(("true", "false"))(text) == "true", "{true,false}"
    return {float: (real, "FLOAT"), int: (whole, "INT")}.get(annotation, (str, "NAME"))


def config_options(algorithm: algorithms.Definition, env: str, several: bool) -> type:
    """A dataclass with the Config fields of `algorithm`, all None where the command line does not give them.

    Args:
        env: the environment whose preset help shows.
        several: each option takes a comma list of values.
    """
    from rljax.runs.presets import preset

    found = (preset(algorithm.name, env) if algorithm.built_in else None) or {}
    options = []
    for field in algorithm.fields():
        parse, metavar = _reader(field.type)
        if several:
            parse = lambda text, one=parse: [one(word) for word in text.split(",")]
            metavar = f"{metavar},…"
        default = f"(default: {typed(field.default)})"
        if field.name in found:
            default = f"(preset for {env}: {typed(found[field.name])}; default: {typed(field.default)})"
        shown = arg(help=field.help, help_behavior_hint=default)
        options.append((field.name, Annotated[Any, kind(parse, metavar), shown], None))
    return dataclasses.make_dataclass("Config", options)


def corpus_options() -> type:
    """A dataclass with the fields of `text.Corpus`, None or empty where they are not given."""
    from rljax.text import Corpus

    options: list[Any] = []
    for field in fields_of(Corpus):
        shown = arg(help=field.help, help_behavior_hint=_default(field))
        if field.name in FILES:
            shown = arg(help=f"{field.help}; may be repeated", metavar="FILE", help_behavior_hint="")
            options.append((field.name, Annotated[UseAppendAction[tuple[str, ...]], shown], ()))
        elif field.type is bool:
            options.append((field.name, Annotated[bool, shown], False))
        else:
            options.append((field.name, Annotated[Any, kind(*_reader(field.type)), shown], None))
    return dataclasses.make_dataclass("Corpus", options)


FILES = ("data", "held_out")  # fields of a corpus that are several files


def _default(field: Field) -> str:
    return "(optional)" if field.default in ("", False, None) else f"(default: {typed(field.default)})"


Count = Annotated[int, kind(whole, "INT")]
Folder = Annotated[Path | None, kind(Path, "FOLDER")]
Number = Annotated[float | None, kind(real, "FLOAT")]
Optional = arg(help_behavior_hint="(optional)")
Flag = Annotated[bool, arg(help_behavior_hint="")]


KNOWN = f"{', '.join(algorithms.NAMES)}; or the file of your own, mine.py"


@dataclass(kw_only=True)
class Training:
    """What training one configuration and sweeping over many have in common."""

    algorithm: Annotated[Positional[str], arg(metavar="ALGORITHM", help=KNOWN)]
    # The environment; `rljax list environments` shows them. The help of pretrain and sft has --data instead.
    env: Annotated[str, kind(str, "NAME"), arg(help_behavior_hint="(required)")] = ""
    # A constructor argument or parameter of the environment, such as length=0.7; may be repeated.
    env_argument: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE", help_behavior_hint="(optional)")
    ] = ()
    # Steps (of the environment, or tokens) per seed, instead of --config.total-steps.
    steps: Annotated[Number, Optional] = None
    seeds: Count = 1  # How many seeds train side by side.
    seed: Count = 0  # The first seed; the others follow it.
    # The folder to write.
    out: Annotated[Folder, arg(help_behavior_hint="(default: a new one in ./runs)")] = None
    checkpoint_every: Count = 0  # Iterations between checkpoints; 0: only one at the end.
    keep: Count = 3  # Newest checkpoints to keep, besides the best.
    # Stop when the current return of every seed has reached this.
    target_return: Annotated[Number, Optional] = None
    evaluate_every: Count = 0  # Iterations between evaluations; 0: only one at the end.
    evaluation_episodes: Count = 128  # Complete episodes (or held-out rows) of each evaluation, per seed.
    log_every: Count = 0  # Iterations between rows of metrics; 0: about a hundred rows.
    tensorboard: Flag = False  # Write TensorBoard events too, one run per seed.
    wandb: Flag = False  # Log to Weights & Biases too, one run per seed.
    progress: Flag = True  # Show no progress.

    def values(self) -> dict[str, Any]:
        """The Config fields that the command line gives."""
        config = getattr(self, "config", None)
        given = {} if config is None else dataclasses.asdict(config)
        return {name: value for name, value in given.items() if value is not None}

    def definition(self) -> algorithms.Definition:
        """The algorithm, resolved."""
        return algorithms.find(self.algorithm)

    def world(self) -> Any:
        """What is learnt from: the name of an environment or of a task, or a Corpus."""
        if task := getattr(self, "task", ""):
            return task
        if not self.definition().text:
            if not self.env:
                raise ValueError(
                    "which environment? Add --env NAME; `rljax list environments` shows the names"
                )
            return self.env
        given = self.corpus_values()
        if isinstance(self, Rewarded):
            judged = self.definition().learns == "preferences"
            name = "preferences" if judged and self.data else "NAME"
            raise ValueError(f"which task? Add --task {name}; `rljax list tasks` shows the names")
        if "data" not in given:
            told = "--data FILE, plain text (.txt) or JSON lines (.jsonl), or --task NAME"
            raise ValueError(f"which text? Add {told}")
        from rljax.text import Corpus

        return Corpus(**given)

    def corpus_values(self) -> dict[str, Any]:
        """The fields of a corpus that the command line gives."""
        corpus = getattr(self, "corpus", None)
        given = {} if corpus is None else dataclasses.asdict(corpus)
        return {
            name: value
            for name, value in given.items()
            if value is not None and value is not False and value != ()
        }

    def keywords(self, world: Any, prefix: str = "") -> dict[str, Any]:
        """The arguments that rljax.train and rljax.sweep share."""
        names = [each.name for each in dataclasses.fields(Training)]
        shared = {
            name: getattr(self, name) for name in names if name not in ("algorithm", "env", "env_argument")
        }
        name = world if isinstance(world, str) else world.name
        shared["out"] = self.out or Path("runs") / f"{prefix}{self.definition().name}-{name}"
        shared["env_arguments"] = dict(map(key_and_value, self.env_argument))
        return shared | (self.of_task() if isinstance(self, OfTask) and self.task else {})

    def command(self, values: Mapping[str, Any], *more: str) -> str:
        """The command line that trains this problem with these Config fields."""
        words = ["rljax", "train", self.algorithm, *(["--env", self.env] if self.env else [])]
        words += self.task_words() if isinstance(self, OfTask) else []
        for name, value in self.corpus_values().items():
            option = f"--{name.replace('_', '-')}"
            for each in value if name in FILES else [value]:
                words += [option] if each is True else [option, typed(each)]
        words += [word for text in self.env_argument for word in ("--env-argument", text)]
        words += [] if self.steps is None else ["--steps", typed(self.steps)]
        for name, value in values.items():
            words += [f"--config.{name.replace('_', '-')}", typed(value)]
        return shlex.join([*words, *more])


@dataclass(kw_only=True)
class WithoutEnv:
    """The options of an environment, taken from what learns text."""

    env: Annotated[str, kind(str, "NAME"), Suppress] = ""
    env_argument: Annotated[UseAppendAction[tuple[str, ...]], Suppress] = ()


@dataclass(kw_only=True)
class OfTask:
    """The options of a task of text."""

    # A task with prompts, demonstrations and rewards; `rljax list tasks` shows them.
    task: Annotated[str, kind(str, "NAME"), Optional] = ""
    # An argument of the task, such as digits=3; may be repeated.
    task_argument: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE", help_behavior_hint="(optional)")
    ] = ()

    def arguments(self) -> dict[str, Any]:
        """Those of the task; what files it reads is `data`."""
        found = dict(map(key_and_value, self.task_argument))
        files = getattr(getattr(self, "corpus", self), "data", None) or ()
        if isinstance(files, tuple) and len(files) > 1:
            raise ValueError(f"--task {self.task} reads one --data, not {len(files)}")
        return found | ({"data": files[0] if isinstance(files, tuple) else files} if files else {})

    def of_task(self) -> dict[str, Any]:
        """Arguments of rljax.train and rljax.sweep."""
        model = getattr(getattr(self, "corpus", self), "model", None)
        return {"env_arguments": self.arguments(), **({"model": str(model)} if model else {})}

    def task_words(self) -> list[str]:
        """These options as one would type them."""
        words = ["--task", self.task] if self.task else []
        return words + [word for text in self.task_argument for word in ("--task-argument", text)]


@dataclass(kw_only=True)
class Rewarded(OfTask):
    """The options of what begins with a model that can do a little of its task already."""

    # The file or folder that a task reads, such as gsm8k.
    data: Annotated[str, kind(str, "PATH"), Optional] = ""
    # A folder or a repository of Hugging Face to begin with.
    model: Annotated[str, kind(str, "NAME"), Optional] = ""
    # Tokens for which sft trains a model first, where there is neither --model nor --init.
    warm_up: Annotated[Number, arg(help_behavior_hint="(default: as its preset says)")] = None
    # A run of reward_model whose reward takes the place of the task's.
    reward: Annotated[Path | None, kind(Path, "RUN"), Optional] = None
    samples_every: Count = 0  # Iterations between tables of sampled completions; 0: none.
    samples: Count = 4  # Completions in such a table.

    def of_task(self) -> dict[str, Any]:
        shown = {"samples_every": self.samples_every, "samples": self.samples}
        return super().of_task() | {"warm_up": self.warm_up, "reward": self.reward} | shown

    def task_words(self) -> list[str]:
        words = super().task_words()
        for name in ("data", "model", "warm_up", "reward"):
            if value := getattr(self, name):
                words += [f"--{name.replace('_', '-')}", typed(value)]
        return words


def key_and_value(text: str) -> tuple[str, Any]:
    """length=0.7 as ("length", 0.7): a Python literal where it is one, else a string."""
    key, equals, value = text.partition("=")
    if not (equals and key):
        raise ValueError(f"--env-argument {text}: must be KEY=VALUE, such as length=0.7")
    try:
        return key.replace("-", "_"), ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return key.replace("-", "_"), value


def in_folder(named: bool, function: Callable[..., Any], *arguments: Any, out: Path, **keywords: Any) -> Any:
    """`function` with this folder where it was named, else with the first free one of it, folder-2, folder-3,
    …: another process may claim one that was free a moment ago.
    """
    from rljax.runs.folder.files import Taken

    number, free = 1, out
    while True:
        while not named and free.exists():
            number += 1
            free = out.with_name(f"{out.name}-{number}")
        try:
            return function(*arguments, out=free, **keywords)
        except Taken:
            if named:
                raise
