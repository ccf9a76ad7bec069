"""Problems that come with rljax, by name.

    problem = text.tasks.make("addition", digits=3)
    rljax.train("grpo", problem)                        or: rljax train grpo --task addition

Those that are generated are functions of their arguments, `seed` among them, and need no file; a prompt that
is held out is never learnt from. The others read files of the user's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rljax import checks
from rljax.text.problem import Problem
from rljax.text.tasks.countdown import countdown
from rljax.text.tasks.gsm8k import gsm8k
from rljax.text.tasks.guess_number import guess_number
from rljax.text.tasks.preferences import preferences
from rljax.text.tasks.randomwalks import randomwalks
from rljax.text.tasks.sentiment_words import sentiment_words
from rljax.text.tasks.strings import addition, reverse, sort
from rljax.text.tasks.translation import translation
from rljax.text.tokenizer import Tokenizer

TASKS: dict[str, Callable[..., Problem]] = {
    function.__name__: function
    for function in (
        *(reverse, sort, addition, countdown, randomwalks, sentiment_words, guess_number),
        *(gsm8k, preferences, translation),
    )
}
NAMES = tuple(TASKS)


def make(name: str, **arguments: Any) -> Problem:
    """The problem of that name; its `arguments` can say all of them but a `tokenizer`, in JSON.

    `tokenizer` is that of a pretrained model, where the task can be written in any.

    Raises: ValueError in one line, naming the nearest task or argument where one is not known.
    """
    if name not in TASKS:
        raise ValueError(
            f"no task is named {name!r}: there are {', '.join(NAMES)}{checks.suggest(name, NAMES)}"
        )
    known = inspect.signature(TASKS[name]).parameters
    options = [argument for argument in known if argument != "tokenizer"]
    for argument, value in arguments.items():
        if argument == "tokenizer" and argument not in known:
            raise ValueError(
                f"the task {name} has a vocabulary of its own and cannot be written in that of another model"
            )
        if argument not in known:
            near = checks.suggest(argument, options)
            raise ValueError(
                f"the task {name} has no argument {argument!r}: it has {', '.join(options)}{near}"
            )
        _check(name, argument, value, known[argument].default)
    if "data" in known and "data" not in arguments:
        raise ValueError(f"the task {name} reads files: pass data=PATH")
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()}
    plain.pop("tokenizer", None)
    made = TASKS[name](**arguments)._replace(arguments={"name": name, **plain})
    return made._replace(made=made)


def _check(name: str, argument: str, value: Any, default: Any) -> None:
    """Raises: ValueError where `value` is not of the kind of `default`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits, what = True, ""
    if argument == "tokenizer":
        fits, what = value is None or isinstance(value, Tokenizer), "a Tokenizer"
    elif isinstance(default, bool):
        fits, what = isinstance(value, bool), "True or False"
    elif isinstance(default, int):
        fits, what = number and isinstance(value, int), "an integer"
    elif isinstance(default, float):
        fits, what = number and math.isfinite(value), "a number"
    else:
        fits, what = isinstance(value, str | Path), "a string"
    if not fits:
        shown = value if isinstance(value, str | int | float) else type(value).__name__
        raise ValueError(f"the task {name}: {argument} = {shown!r}: must be {what}")


__all__ = [
    "NAMES",
    "TASKS",
    "addition",
    "countdown",
    "gsm8k",
    "guess_number",
    "make",
    "preferences",
    "randomwalks",
    "reverse",
    "sentiment_words",
    "sort",
    "translation",
]
