"""What `rljax list` shows: algorithms, environments, tasks, presets and Config fields."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from rljax import algorithms
from rljax.cli.options import Optional, kind, one_of, typed
from rljax.cli.printing import print_table
from rljax.learning.fields import names_of, takes_function

KINDS = ("algorithms", "environments", "tasks", "presets", "fields")


@dataclass(kw_only=True)
class List:
    """Show what there is: algorithms, environments, tasks, presets, or the Config fields of an algorithm."""

    what: Annotated[
        Positional[str | None],
        kind(one_of(KINDS), "{" + ",".join(KINDS) + "}"),
        arg(help_behavior_hint="(default: the first four)"),
    ] = None
    # Only what concerns this algorithm (or the environment, after `environments`).
    name: Annotated[Positional[str | None], kind(str, "NAME"), Optional] = None

    def run(self) -> None:
        if self.what in (None, "algorithms"):
            rows = [[name, first_sentence(algorithms.find(name).module)] for name in algorithms.NAMES]
            print_table("algorithms", ["algorithm", "what it is"], rows)
        if self.what in (None, "environments"):
            _list_environments(self.name)
        if self.what in (None, "tasks"):
            from rljax.text import tasks

            rows = [[name, first_sentence(function)] for name, function in tasks.TASKS.items()]
            print_table("tasks of text", ["task", "what it is"], rows)
        if self.what in (None, "presets"):
            _list_presets(self.name)
        if self.what == "fields":
            if self.name is None:
                raise ValueError(f"fields of which algorithm? rljax list fields {'|'.join(algorithms.NAMES)}")
            _list_fields(self.name)


def first_sentence(documented: Any) -> str:
    """The first sentence of a docstring, on one line; the dot of "et al." ends none."""
    paragraph = " ".join((documented.__doc__ or "").partition("\n\n")[0].split())
    return re.split(r"(?<!\bal)\. (?=[A-Z])", paragraph)[0].rstrip(".")


def _list_environments(name: str | None) -> None:
    from rljax import envs
    from rljax.runs.presets import PRESETS

    if name is not None:
        env = envs.make(name)
        facts = {"observation": env.observation_space, "action": env.action_space}
        rows = [[key, " ".join(str(space).split())] for key, space in facts.items()]
        print_table(name, ["", ""], [*rows, ["time limit", f"{env.max_steps or 'no'} steps"]])
        return
    having = lambda name: ", ".join(algorithm for algorithm, env in PRESETS if env == name)
    rows = [[name, *envs.kinds(name), having(name)] for name in envs.names()]
    print_table("environments", ["environment", "observations", "actions", "presets for"], rows)


def _list_presets(algorithm: str | None) -> None:
    from rljax.runs.presets import PRESETS

    if algorithm is not None:
        algorithms.find(algorithm)
    show = lambda fields: ", ".join(f"{name}={typed(value)}" for name, value in fields.items())
    rows = [[*pair, show(fields)] for pair, fields in PRESETS.items() if algorithm in (None, pair[0])]
    print_table("presets", ["algorithm", "environment", "fields that differ from the defaults"], rows)


def _list_fields(algorithm: str) -> None:
    rows = []
    for field in algorithms.find(algorithm).fields():
        kind = getattr(field.type, "__name__", str(field.type))
        if names := names_of(field.type):
            kind = " | ".join([*names, *["a function"] * takes_function(field.type)])
        if kind == "tuple":
            kind = "names, as a+b" if field.type.__args__[0] is str else "sizes, as 64x64"
        together = field.leaf and field.name != "total_steps"  # members of one program run equally long
        rows.append([field.name, typed(field.default), kind, "no" if together else "yes", field.help])
    columns = ["field", "default", "type", "compiled per value", "what it is"]
    print_table(f"fields of {algorithm}.Config", columns, rows)
