"""One line for what is wrong with a Config field: what it is, where, what would be right.

Called by every algorithm's `make`, outside the jit with concrete values; inside a trace the same checks skip
tracers. `fields` goes over a whole Config and knows only its types; what range a field has, and which fields
fit together, its algorithm checks after it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import os
import typing
from collections.abc import Callable, Iterable
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

T = TypeVar("T")

INT32 = 2**31 - 1  # the largest count of anything: indices in a program are int32
FLOAT32 = float(np.finfo(np.float32).max)
RATE = 1e3  # no optimizer has a use for a larger learning rate
OUTPUTS = 10_000  # atoms or quantiles of one action value


def algorithm_of(config: Any) -> str:
    """The name of the algorithm whose Config this is."""
    return type(config).__module__.rpartition(".")[2]


def name_of(config: Any, field: str) -> str:
    """How errors call this field: ppo.Config.clip."""
    return f"{algorithm_of(config)}.{type(config).__name__}.{field}"


def complain(config: Any, field: str, right: str) -> NoReturn:
    """Raises: ValueError naming the field and its value; `right` says what it must be."""
    raise ValueError(f"{name_of(config, field)} = {show(getattr(config, field))}: {right}")


def show(value: Any) -> str:
    """A value in one line of at most 80 characters: a number, string or small array as a user would type
    it.
    """
    if isinstance(value, Tracer) or (_is_array(value) and value.size > 8):
        return f"an array of shape {value.shape}"
    if _is_array(value) and value.ndim == 0 and value.dtype.kind in "fiub":
        value = value.item()
    if isinstance(value, int) and value.bit_length() > 60:  # of thousands of digits, perhaps
        return f"{'-' if value < 0 else ''}1e{value.bit_length() * 0.30103:.0f}"
    if isinstance(value, str | bool | int | None):
        text = repr(value)
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:79]}…"


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic | jax.Array)


def is_real(value: Any) -> bool:
    """Whether a value is a number or an array of real numbers; a bool and a string are none."""
    if isinstance(value, bool | np.bool_):
        return False
    if _is_array(value):
        return any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer))
    return isinstance(value, int | float)


def fields(config: T) -> T:
    """The Config with every value in the plain type that its field declares: `make` begins with this.

    A number is real, finite and of shape (), also while it is traced. A count is a Python int from 1 (0 where
    that is the default) to 2³¹ − 1, a choice one of its names, a tuple holds sizes or names. numpy's integers
    become Python's, and lists, which YAML and JSON have in place of tuples, become tuples.

    Raises: ValueError naming a field, its value and what would be right.
    """
    types, found = _types(type(config)), {}
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        value = getattr(config, field.name)
        plain = _field(config, field, types[field.name], value)
        if plain is not value:
            found[field.name] = plain
    return dataclasses.replace(config, **found) if found else config  # pyright: ignore[reportArgumentType]


@functools.cache
def _types(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config)


def _field(config: Any, field: dataclasses.Field, kind: Any, value: Any) -> Any:
    """The value of one field, whose annotation is `kind`, in its plain type."""
    name, origin = field.name, get_origin(kind)
    if origin in (Union, UnionType) and any(get_origin(each) is Callable for each in get_args(kind)):
        return value if is_own(value) else _field(config, field, get_args(kind)[0], value)
    if origin in (Union, UnionType) and NoneType in get_args(kind):
        if value is None:
            return None
        return _field(config, field, get_args(kind)[0], value)
    if kind is float:
        _one_number(config, name, value)
        if isinstance(value, int | np.integer) and abs(value) > INT32:
            return float(value)  # an integer of this size is none in a program
    elif kind is int:
        count(config, name, low=0 if field.default == 0 else 1)
        return int(value)
    elif kind is bool:
        if not isinstance(value, bool):
            complain(config, name, "must be True or False")
    elif kind is str:
        if not isinstance(value, str):
            complain(config, name, "must be a name in quotes")
    elif origin is Literal:
        choice(config, name, get_args(kind))
    elif origin is tuple and get_args(kind)[0] is int:
        sizes(config, name)
        plain = isinstance(value, tuple) and all(type(size) is int for size in value)
        return value if plain else tuple(map(int, value))
    elif origin is tuple and get_args(kind)[0] is str:
        names(config, name)
        return value if isinstance(value, tuple) else tuple(value)
    return value


def _one_number(config: Any, field: str, value: Any) -> None:
    """One finite number, which a float32 can hold; of a traced one only its type and shape are looked at."""
    several = isinstance(value, list | tuple | set | dict) or (_is_array(value) and value.shape != ())
    if several:
        complain(config, field, "must be one number: rljax.sweep tries several, of which each run has one")
    if not is_real(value):
        complain(config, field, "must be a number")
    if isinstance(value, Tracer):
        return
    if not np.isfinite(_wide(value)):
        complain(config, field, "must be a finite number")
    if abs(_wide(value)) > FLOAT32:
        complain(config, field, f"must be at most {FLOAT32:.2g}, the largest number of float32")


def _wide(value: Any) -> Any:
    """Numbers in float64; an integer beyond them as the largest, ±1e308."""
    try:
        return np.asarray(value, np.float64)
    except OverflowError:
        return np.float64(1e308 if value > 0 else -1e308)


def number(
    config: Any, *fields: str, low: float = -np.inf, high: float = np.inf, open_low: bool = False
) -> None:
    """Every value of these leaf fields is a finite number in [low, high] (or (low, high] with `open_low`).

    Traced values are not looked into, nor anything where a bound is traced.
    """
    for field in fields:
        value = getattr(config, field)
        if any(isinstance(each, Tracer) for each in (value, low, high)):
            continue
        if not is_real(value):
            complain(config, field, "must be a number")
        array = _wide(value)
        if not np.all(np.isfinite(array)):
            complain(config, field, "must be a finite number")
        below = (array <= low) if open_low else (array < low)
        if np.any(below | (array > high)):
            bounds = []
            if np.isfinite(low):
                bounds.append(f"{'above' if open_low else 'at least'} {low:g}")
            if np.isfinite(high):
                bounds.append(f"at most {high:g}")
            complain(config, field, f"must be {' and '.join(bounds)}")


def integral(config: Any, field: str) -> None:
    """This leaf field holds whole numbers, although it may be a float."""
    value = getattr(config, field)
    if not isinstance(value, Tracer) and np.any(_wide(value) != np.floor(_wide(value))):
        complain(config, field, "must be a whole number")


def rate(config: Any, *fields: str) -> None:
    """These leaf fields are learning rates: above 0, and no larger than an optimizer has a use for."""
    number(config, *fields, low=0, high=RATE, open_low=True)


def wrong_integer(value: Any, low: int = 0, high: int = INT32) -> str:
    """What keeps a value from being an integer in [low, high]; empty where nothing does."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if is_integer and low <= value <= high:
        return ""
    if is_integer and value > high:
        return f"must be an integer of at most {high}"
    wrong = f"must be an integer of at least {low}"
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return f"{wrong}, without a decimal point"
    return wrong


def whole(name: str, value: Any, low: int = 0, high: int = INT32) -> int:
    """The integer `value` of the argument `name` as Python's own. Raises: ValueError naming it."""
    if wrong := wrong_integer(value, low, high):
        raise ValueError(f"{name} = {as_given(value)}: {wrong}")
    return int(value)


def as_given(value: Any) -> str:
    """As `show`, but 8.0 is not 8."""
    return f"{float(value)!r}" if isinstance(value, float | np.floating) else show(value)


def count(config: Any, *fields: str, low: int = 1, high: int = INT32) -> None:
    """These static fields are integers of at least `low`, and at most `high`."""
    for field in fields:
        whole(name_of(config, field), getattr(config, field), low, high)


def product(config: Any, *fields: str) -> int:
    """The product of these counts, of which a program has indices: at most 2³¹ − 1."""
    found = 1
    for field in fields:
        found *= getattr(config, field)
    if found > INT32:
        largest = max(fields, key=lambda field: getattr(config, field))
        complain(config, largest, f"{' x '.join(fields)} = {found:.3g} must be at most {INT32}")
    return found


def whitened(config: Any, size: int) -> None:
    """So many advantages are whitened together, where advantage_normalization asks for it: at least two."""
    if size == 1 and config.advantage_normalization != "none":
        right = "makes the advantage of a batch of one sample 0, which teaches nothing: take more, or 'none'"
        complain(config, "advantage_normalization", right)


def sizes(config: Any, *fields: str) -> None:
    """These static fields are tuples (or lists) of positive integers, the widths of layers of a network."""
    for field in fields:
        value = getattr(config, field)
        if not isinstance(value, tuple | list) or any(wrong_integer(size, 1) for size in value):
            complain(config, field, "must be a tuple of positive integers, such as (64, 64)")
        weights = sum(int(rows) * int(columns) for rows, columns in itertools.pairwise((1, *value)))
        fits(config, field, 4 * weights)


def names(config: Any, field: str) -> None:
    """This static field is a tuple (or a list) of names, at least one."""
    value = getattr(config, field)
    good = isinstance(value, tuple | list) and value and all(isinstance(x, str) and x for x in value)
    if not good:
        complain(config, field, 'must be a tuple of names, such as ("attention/*",)')


def is_own(value: Any) -> bool:
    """Whether a static choice is the user's own: a function, or where it is, as "module:name"."""
    return callable(value) or (isinstance(value, str) and ":" in value)


def choice(config: Any, field: str, options: Iterable[str]) -> None:
    """This static field is one of the names in `options`."""
    value = getattr(config, field)
    if not isinstance(value, str) or value not in options:
        complain(config, field, f"must be one of {', '.join(options)}{suggest(value, options)}")


def read_by(config: Any, choice: str, readers: Iterable[str], *fields: str) -> None:
    """These fields are read only where the static field `choice` is one of `readers`: where it is another,
    each has its default, as another value would change nothing. Traced values are not looked into.
    """
    readers = tuple(readers)
    chosen = getattr(config, choice)
    if is_own(chosen) or chosen in readers:  # a function of the user's may read any of them
        return
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(config)}
    for field in fields:
        value, default = getattr(config, field), defaults[field]
        if isinstance(value, Tracer) or value is default:
            continue
        if not is_real(default):
            same = value == default
        else:  # a number may have been rounded to float32 on its way
            same = value is not None and np.float32(_wide(value)) == np.float32(default)
        if not same:
            which = " or ".join(f'"{reader}"' for reader in readers)
            complain(
                config, field, f"is read with {choice} {which} alone: choose it, or leave {show(default)}"
            )


def fits(config: Any, field: str, needed: int) -> None:
    """So many bytes, which this field asks for, are no more than a device or this machine has at all."""
    if needed > (there := memory()):
        complain(
            config, field, f"needs {needed / 2**30:.3g} GiB, of which this machine has {there / 2**30:.3g}"
        )


@functools.cache
def memory() -> float:
    """Bytes of a device, or of this machine where the device does not say."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return float(2**40)


def suggest(name: Any, options: Iterable[str]) -> str:
    """'; did you mean X?' with the nearest of `options`, or nothing."""
    if not isinstance(name, str):
        return ""
    lowered, name = {option.lower(): option for option in options}, name.lower()
    near = difflib.get_close_matches(name, lowered, cutoff=0.5)
    # of equally near ones that with the same first letter
    alike = lambda option: (difflib.SequenceMatcher(None, option, name).ratio(), option[:1] == name[:1])
    return f"; did you mean {lowered[max(near, key=alike)]}?" if near else ""


def counted(number: int, noun: str) -> str:
    """A number and what it counts: "1 seed", "8 seeds"; `noun` is one of them."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class RunError(RuntimeError):
    """A run that could not go on: what happened, at which iteration, and what can be done."""
