"""Rewards that compare a completion with what a record says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp

from rljax.text.rewards.host import of_text
from rljax.text.rewards.tokens import of_tokens
from rljax.types import Array, PyTree, Reward

# A sign counts where it stands at the beginning: 3-4 holds 3 and 4. Then $, digits with or without commas
# between thousands, a fraction, an exponent.
NUMBER = re.compile(
    r"((?:(?<![\w).])[-+−])?)(?:\$([-+−]?))?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
    r"(?:[eE]([-+]?\d{1,3})(?!\w))?(?:\s?/\s?(\d+(?:\.\d+)?))?"
)
MARK = "####"


def exact_match(field: str = "completion", weight: float = 1.0, *, tokens: bool = False) -> Reward:
    """1 where the completion is `field` of the record, else 0: their texts, blanks at both ends apart.

    With `tokens` their token ids, the stop token included, where either may be the longer array: it is then
    computed in the program, and right of tokenizers that can write a text in one way alone, as in characters.
    """
    if tokens:
        return of_tokens(partial(_same_tokens, field), "exact_match", weight)
    return of_text(partial(_equal, field), "exact_match", weight, processes=0, fields=[field])


def numeric_answer(field: str = "answer", tolerance: float = 1e-6, weight: float = 1.0) -> Reward:
    """1 where the completion's answer is the number in `field` of the record, else 0; see `number`.

    Equal means |a − b| ≤ tolerance · max(1, |b|).
    """
    function = partial(_near, field, tolerance)
    return of_text(function, "numeric_answer", weight, processes=0, fields=[field])


def pattern(regex: str, name: str = "pattern", weight: float = 1.0, *, timeout: float = 0.0) -> Reward:
    """1 where the regular expression is found in the completion, else 0.

    With a `timeout` in seconds it is searched for in processes of its own, for expressions that may take for
    ever: what was not found in time is 0. Raises: ValueError where it is no regular expression.
    """
    try:
        re.compile(regex)
    except re.error as error:
        raise ValueError(f"pattern: {regex!r} is no regular expression ({error})") from error
    function = partial(_found, regex)
    if timeout:
        return of_text(function, name, weight, timeout=timeout, on_failure=0.0)
    return of_text(function, name, weight, processes=0)


def number(text: str) -> float | None:
    """The first number after the last "####" where that mark is, else the last number of the text.

    Reads -3, +3, $1,234.50, 3/4, 2e3, 50% (as 50) and 7. at the end of a sentence; one that is too large for
    a float is infinite. None: there is none.
    """
    _, mark, rest = text.rpartition(MARK)
    found = list(NUMBER.finditer(rest if mark else text))
    if not found:
        return None
    before, after, digits, exponent, below = (found[0] if mark else found[-1]).groups()
    value = float(f"{digits.replace(',', '')}e{exponent or 0}")
    if below is not None and float(below) == 0:
        return None
    value = value / float(below) if below else value
    return -value if (before or after) in ("-", "−") else value


def _same_tokens(field: str, prompt: Array, completion: Array, reference: PyTree) -> Array:
    wanted, size = reference[field], min(completion.size, reference[field].size)
    rest = [jnp.all(tokens[size:] < 0) for tokens in (completion, wanted)]
    return jnp.all(completion[:size] == wanted[:size]) & rest[0] & rest[1]


def _equal(field: str, prompt: str, completion: str, record: Mapping[str, Any]) -> bool:
    return completion.strip() == str(record[field]).strip()


def _near(field: str, tolerance: float, prompt: str, completion: str, record: Mapping[str, Any]) -> bool:
    right, got = number(str(record[field])), number(completion)
    if right is None or not math.isfinite(right):
        raise ValueError(f"{field} of the record holds no finite number: {record[field]!r}")
    return got is not None and abs(got - right) <= tolerance * max(1.0, abs(right))


def _found(regex: str, prompt: str, completion: str, record: Any) -> bool:
    return re.search(regex, completion) is not None
