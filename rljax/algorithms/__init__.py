"""Algorithms as values. Each is one module with the same names: Config, State, Metrics, make; the built-in
ones are listed by name here, and nowhere else.

Imported when first asked for: a list of names should not cost an import of JAX.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from rljax.learning.fields import COMMON, OF_TEXT, Field, fields_of

# The only list of them: the command line, `rljax.NAME`, tables and tests derive from it.
NAMES = (
    "reinforce",
    "a2c",
    "ppo",
    "trpo",
    "dqn",
    "pqn",
    "c51",
    "qrdqn",
    "iqn",
    "rainbow",
    "ddpg",
    "td3",
    "sac",
    "discrete_sac",
    "q_learning",
    "sarsa",
    "expected_sarsa",
    "monte_carlo",
    "td_lambda",
    "pretrain",
    "sft",
    "reward_model",
    "dpo",
    "kto",
    "rlhf_ppo",
    "grpo",
    "rloo",
    "text_reinforce",
)

# What an algorithm may learn from, and what it is then judged by: episodes of an Env, or that part of a Task.
HEADLINES = {
    "episodes": "return",
    "text": "loss",
    "demonstrations": "loss",
    "preferences": "accuracy",
    "prompts": "return",
}


# What the steps of a run are then.
UNITS = {
    "episodes": "environment steps",
    "text": "tokens",
    "demonstrations": "tokens",
    "preferences": "judgements",
    "prompts": "completions",
}


class Definition(NamedTuple):
    """An algorithm as a value: its module, and what the module says of itself.

    A module defines an algorithm if it has `Config`, `State`, `Metrics` and `make(world, config, network,
    frozen)`. It may say `LEARNS`, the part of a Task that it learns from (it acts in an Env if it says
    nothing), and `FROZEN`, what arrays may be given to it as `frozen=`.
    """

    name: str  # in titles, names of folders and config.json
    module: Any
    learns: str  # a name of HEADLINES
    frozen: str  # what frozen= gives; "" takes nothing

    @property
    def text(self) -> bool:
        """Whether it learns from a Task instead of acting in an Env."""
        return self.learns != "episodes"

    @property
    def headline(self) -> str:
        """What it is judged by: return, loss or accuracy."""
        return HEADLINES[self.learns]

    @property
    def unit(self) -> str:
        """What the steps of a run are."""
        return UNITS[self.learns]

    @property
    def built_in(self) -> bool:
        """Whether it is one of NAMES, and not the user's own."""
        return self.module is sys.modules.get(f"rljax.algorithms.{self.name}")

    def unknown(self, name: str) -> ValueError:
        """The error that says of `name`, no field of its Config, what was probably meant."""
        from rljax.learning.foreign_names import hint

        told = hint(name, [field.name for field in self.fields()])
        told = told or f"; `rljax list fields {self.name}` shows them"
        return ValueError(f"{self.name}.Config has no field {name}{told}")

    def fields(self) -> tuple[Field, ...]:
        """The fields of its Config."""
        return fields_of(self.module.Config, COMMON | OF_TEXT if self.text else COMMON)


AlgorithmLike = str | Path | ModuleType | Definition  # what `find` takes


def find(given: AlgorithmLike) -> Definition:
    """The algorithm that is meant: a name of NAMES, the path of a Python file, the dotted name of a module,
    or the module itself (any object with its names will do).

    Raises: ValueError with the nearest name, or saying what a module lacks; FileNotFoundError.
    """
    if isinstance(given, Definition):
        return given
    module: Any = _imported(str(given)) if isinstance(given, str | Path) else given
    missing = [name for name in ("Config", "make") if not callable(getattr(module, name, None))]
    if missing or not dataclasses.is_dataclass(module.Config):
        lacks = f"has no {missing[0]}" if missing else "has a Config that is no dataclass"
        called = getattr(module, "__name__", type(module).__name__)
        wanted = "an algorithm is a name, a file, or a module with Config, State, Metrics and make"
        raise ValueError(f"{called} {lacks}: {wanted}")
    name, known = _name(module), {field.name for field in dataclasses.fields(module.Config)}
    for needed in ("total_steps", "initial_steps", "steps_per_iteration"):
        if needed not in known and not hasattr(module.Config, needed):
            raise ValueError(f"{name}.Config has no {needed}: rljax.ppo.Config shows what runs read of it")
    learns = getattr(module, "LEARNS", "episodes")
    if learns not in HEADLINES:
        raise ValueError(f"{name}.LEARNS = {learns!r}: must be one of {', '.join(HEADLINES)}")
    return Definition(name, module, learns, getattr(module, "FROZEN", ""))


def _imported(name: str) -> Any:
    """The module of a built-in algorithm, of a file, or with a dotted name."""
    if name in NAMES:
        return importlib.import_module(f"rljax.algorithms.{name}")
    if name.endswith(".py"):
        from rljax.learning.choices import from_file

        return from_file(Path(name))
    if "." in name:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"no module {name!r} ({error}): give the path of its file, or its name"
            ) from error
    from rljax.checks import suggest

    own = "; an own one is the path of its file, mine.py"
    raise ValueError(f"no algorithm {name!r} (there are {', '.join(NAMES)}){suggest(name, NAMES) or own}")


def _name(module: Any) -> str:
    """What runs call it: the name of its file, else the last part of the module's name."""
    file = Path(getattr(module, "__file__", None) or "__init__")
    if file.stem != "__init__":
        return file.stem
    return getattr(module, "__name__", "").rpartition(".")[2] or type(module).__name__
