"""One line for what is wrong with a Config field: what it is, where, what would be right.

Called by every algorithm's `make`, outside the jit with concrete values; inside a trace the same checks skip
tracers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np
from jax.core import Tracer


def algorithm_of(config: Any) -> str:
    """The name of the algorithm whose Config this is."""
    return type(config).__module__.rpartition(".")[2]


def complain(config: Any, field: str, right: str) -> NoReturn:
    """Raises: ValueError naming the field and its value; `right` says what it must be."""
    name = f"{algorithm_of(config)}.{type(config).__name__}.{field}"
    raise ValueError(f"{name} = {show(getattr(config, field))}: {right}")


def show(value: Any) -> str:
    """A number, string or small array as a user would type it."""
    if isinstance(value, str):
        return repr(value)
    array = np.asarray(value)
    return f"{array.item():g}" if array.ndim == 0 and array.dtype.kind in "fiu" else str(value)


def number(
    config: Any, *fields: str, low: float = -np.inf, high: float = np.inf, open_low: bool = False
) -> None:
    """Every value of these leaf fields is a finite number in [low, high] (or (low, high] with `open_low`)."""
    for field in fields:
        value = getattr(config, field)
        if isinstance(value, Tracer):
            continue
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            complain(config, field, "must be a number")
        below = (array <= low) if open_low else (array < low)
        if not np.all(np.isfinite(array)) or np.any(below | (array > high)):
            bounds = f"{'above' if open_low else 'at least'} {low:g}" if np.isfinite(low) else "finite"
            complain(
                config, field, f"must be {bounds}" + (f" and at most {high:g}" if np.isfinite(high) else "")
            )


def count(config: Any, *fields: str, low: int = 1) -> None:
    """These static fields are integers of at least `low`."""
    for field in fields:
        value = getattr(config, field)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            complain(config, field, f"must be an integer of at least {low}")


def sizes(config: Any, *fields: str) -> None:
    """These static fields are tuples of positive integers."""
    for field in fields:
        value = getattr(config, field)
        if not isinstance(value, tuple) or any(not isinstance(size, int) or size < 1 for size in value):
            complain(config, field, "must be a tuple of positive integers, such as (64, 64)")


def choice(config: Any, field: str, options: Iterable[str]) -> None:
    """This static field is one of the names in `options`."""
    if getattr(config, field) not in options:
        complain(
            config, field, f"must be one of {', '.join(options)}{suggest(getattr(config, field), options)}"
        )


def suggest(name: Any, options: Iterable[str]) -> str:
    """'; did you mean X?' with the nearest of `options`, or nothing."""
    lowered, name = {option.lower(): option for option in options}, str(name).lower()
    near = difflib.get_close_matches(name, lowered, cutoff=0.5)
    # of equally near ones that with the same first letter
    alike = lambda option: (difflib.SequenceMatcher(None, option, name).ratio(), option[:1] == name[:1])
    return f"; did you mean {lowered[max(near, key=alike)]}?" if near else ""


class RunError(RuntimeError):
    """A run that could not go on: what happened, at which iteration, and what can be done."""
