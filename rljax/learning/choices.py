"""Functions that a static Config field chooses: by the name in a table, or the user's own.

A function of one's own is given itself, or as "module:name" or "path/of/file.py:name", which is how
config.json keeps it and how it is found again.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rljax import checks

# Shapes to try a function of the user's with; M is a mask.
SHAPES: dict[str, tuple[int, ...]] = {"1": (), "T": (5,), "B": (5,), "G": (5,), "M": (5,)}


def function(
    config: Any,
    field: str,
    table: Mapping[str, Any],
    wrap: Callable[[Any], Any] | None = None,
    *,
    given: str = "",
    gives: str = "",
) -> Any:
    """What the static field chooses: an entry of `table`, or a function of the user's, in `wrap` if given.

    `given` and `gives` are letters of SHAPES for its arguments and its result, with which a function of the
    user's is tried, without computing anything: "BB1" are two vectors and a number.

    Raises: ValueError naming the field where it is neither, or takes or gives something else.
    """
    value = getattr(config, field)
    if checks.is_own(value):
        try:
            own = value if callable(value) else imported(value)
        except (ValueError, OSError) as error:
            checks.complain(config, field, f"is no function that can be imported: {error}")
        if given:
            _try(config, field, own, given, gives)
        return own if wrap is None else wrap(own)
    checks.choice(config, field, table)
    return table[value]


def _try(config: Any, field: str, own: Callable[..., Any], given: str, gives: str) -> None:
    shaped = lambda axis: jax.ShapeDtypeStruct(SHAPES[axis], bool if axis == "M" else jnp.float32)
    right = f"takes arrays {', '.join(map(str, map(SHAPES.get, given)))} and gives {SHAPES[gives]}"
    try:
        found = jax.eval_shape(own, *map(shaped, given))
    except Exception as error:  # whatever a function of the user's raises
        told = str(error).strip().splitlines() or [type(error).__name__]
        checks.complain(config, field, f"{right} here, and raises {type(error).__name__}: {told[0]}")
    if getattr(found, "shape", None) != SHAPES[gives]:
        checks.complain(config, field, f"{right} here, not {getattr(found, 'shape', found)}")


def written(value: Callable[..., Any]) -> str:
    """Where a function is: "module:name", or "file.py:name" of a script."""
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", repr(value))
    if module == "__main__":
        module = getattr(sys.modules["__main__"], "__file__", None) or module
    return f"{module}:{name}"


def check_written(config: Any) -> None:
    """ValueError where a field of the Config has a function that config.json cannot name."""
    for field, value in vars(config).items():
        if callable(value) and "<" in written(value):
            checks.complain(
                config, field, "must be a function of a module, which the run's folder can name: no lambda"
            )


def imported(where: str) -> Any:
    """The function that is written as "module:name" or "file.py:name".

    Raises: ValueError where there is none; FileNotFoundError.
    """
    place, _, name = where.rpartition(":")
    try:
        module = from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ImportError as error:
        raise ValueError(f"no module {place} ({error})") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{place} has no {name}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{name} of {place} is no function")
    return found


def from_file(path: Path) -> Any:
    """The module in this file, executed once: asked for again, it is the same module.

    Raises: FileNotFoundError; ValueError where the file cannot be executed.
    """
    path = path.expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return module
    name = path.stem if path.stem not in sys.modules else f"{path.stem} of {path.parent}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their types up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        told = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise ValueError(f"{path} cannot be imported: {told}") from error
    return module
