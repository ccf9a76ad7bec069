"""The `rljax` command: parses, calls the library, prints. Slow imports wait until a command needs them."""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, Union

from rljax.runs.stopping import signal_of, stoppable

ABOUT = """Reinforcement learning in JAX: training runs compiled whole, mapped over seeds and configurations.

  rljax train ppo --env CartPole-v1 --seeds 8
  rljax sweep ppo --env CartPole-v1 --seeds 4 --config.learning-rate 1e-4,1e-3
  rljax train pretrain --data shakespeare.txt
  rljax train grpo --task addition
  rljax train ppo --help      the fields of an algorithm's Config, too
  rljax list                  algorithms, environments, tasks, presets
  rljax --version
  RLJAX_TRACEBACK=1 rljax …   where an error comes from"""

MISUSE = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns: the exit status, 0; 1 where a run failed, 2 where the command line is wrong, 130 after Ctrl-C,
    143 after SIGTERM.
    """
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return 0
    except SystemExit as leaving:  # help, or what tyro found wrong and has printed
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except KeyboardInterrupt as error:
        return _complain(error, "rljax: " + (str(error) or "interrupted"), 128 + signal_of(error))
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough: quiet, as rich is
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MISUSE as error:
        return _complain(error, f"rljax: error: {_one_line(error)}", 2)
    except (OSError, RuntimeError) as error:
        from rljax.checks import RunError

        if not isinstance(error, OSError | RunError):
            raise
        return _complain(error, f"rljax: error: {_one_line(error)}", 1)


def _complain(error: BaseException, text: str, status: int) -> int:
    if os.environ.get("RLJAX_TRACEBACK", "0") not in ("", "0"):
        traceback.print_exception(error)
    print(text, file=sys.stderr)
    return status


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} … (RLJAX_TRACEBACK=1 shows the rest)"


def _run(words: list[str]) -> None:
    if words == ["--version"]:
        import rljax

        print(f"rljax {rljax.__version__}")
        return
    with stoppable("interrupted"):
        command = _parsed(words)
    command.run()


def _parsed(words: list[str]) -> Any:
    """The command that these words are, ready to run."""
    import tyro

    from rljax.cli import commands, language, listing

    classes: dict[str, Any] = {
        each.__name__.lower(): each
        for each in (
            commands.Train,
            commands.Sweep,
            commands.Evaluate,
            commands.Report,
            commands.Render,
            listing.List,
            language.Generate,
            language.Convert,
        )
    }
    name = words[0] if words else ""
    if name and not name.startswith("-") and name not in classes:
        from rljax.checks import suggest

        raise ValueError(f"no command {name!r} (there are {', '.join(classes)}){suggest(name, classes)}")
    if name.startswith("--tyro-"):  # a script for tab completion is asked for
        classes |= {key: _with_names(classes[key], key == "sweep") for key in ("train", "sweep")}
    if name in ("train", "sweep"):
        classes[name] = _with_config(classes[name], words[1:], several=name == "sweep")
    choice: Any = Union[tuple(Annotated[each, tyro.conf.subcommand(key)] for key, each in classes.items())]  # noqa: UP007
    return tyro.cli(
        choice,
        prog="rljax",
        description=ABOUT,
        args=words or ["--help"],
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _with_names(command: type, several: bool) -> type:
    """`command` with a subcommand for each algorithm, and names of environments: a shell completes them."""
    from tyro.conf import arg, subcommand

    from rljax import algorithms, envs
    from rljax.cli.options import kind

    names = dataclasses.replace(kind(str, "NAME"), choices=envs.names())
    fields: list[Any] = [("env", Annotated[str, names], "")]
    more = {"__doc__": command.__doc__, "__module__": command.__module__}
    made = lambda fields, bases: dataclasses.make_dataclass(
        command.__name__, fields, bases=bases, kw_only=True, namespace=more
    )
    named = made(fields, (command,))
    each = [
        Annotated[_with_config(named, [name], several), subcommand(name, prefix_name=False)]
        for name in algorithms.NAMES
    ]
    return made([("choice", Annotated[Union[tuple(each)], arg(name="")])], ())  # noqa: UP007


def _with_config(command: type, words: list[str], several: bool) -> type:
    """`command` with an option for every Config field of the algorithm that `words` name, if any; help shows
    those of an environment where it needs one, else those of a corpus.
    """
    from tyro.conf import OmitArgPrefixes

    from rljax import algorithms
    from rljax.cli.options import OfTask, Rewarded, WithoutEnv, config_options, corpus_options

    named = [word for word in words if word in algorithms.NAMES or word.endswith(".py")]
    if words and not words[0].startswith("-"):
        named = [words[0]]
    if not named:
        return command
    algorithm = algorithms.find(named[0])
    known = [field.name for field in algorithm.fields()]
    for word in words:
        name = word.partition("=")[0].removeprefix("--config.").replace("-", "_")
        if word.startswith("--config.") and name not in known:
            raise algorithm.unknown(name)
    env = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in ("--env", "--task"):
            env = value if equals else following
    options = config_options(algorithm, env, several)
    fields: list[Any] = [("config", options, dataclasses.field(default_factory=options))]
    bases: tuple[type, ...] = (command,)
    given = {word.partition("=")[0] for word in words}
    if algorithm.text:
        files = algorithm.learns in ("text", "demonstrations")
        if given & {"--env", "--env-argument"}:
            place = "--data FILE or --task NAME" if files else "--task NAME"
            raise ValueError(f"{algorithm.name} learns text: add {place} in place of --env")
        if files:
            corpus = corpus_options()
            shown = Annotated[corpus, OmitArgPrefixes]
            fields.append(("corpus", shown, dataclasses.field(default_factory=corpus)))
        bases = (WithoutEnv, OfTask if files else Rewarded, command)
    elif wrong := given & {"--data", "--task"}:
        raise ValueError(
            f"{algorithm.name} learns in an environment: add --env NAME in place of {min(wrong)}"
        )
    return dataclasses.make_dataclass(
        command.__name__,  # with this and the module tyro finds the comments in the source
        fields,
        bases=bases,
        kw_only=True,
        namespace={"__doc__": command.__doc__, "__module__": command.__module__},
    )
