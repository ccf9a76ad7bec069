"""Arithmetic expressions: read by a compiled program from tokens, on the host from text, and written.

    expression = term {("+" | "-") term}    term = factor {("*" | "/") factor}
    factor = number | "(" expression ")"    number = 1 to 8 digits, the first of them not 0

Values are exact fractions. There is no sign before a number: -3+5 is no expression.

One pass needs no stack of operators: at each depth of parentheses it keeps the sum S of the terms that are
over, the sign of the current term, its value P so far, and what is to be done with the next factor.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax.types import Array

PLUS, MINUS, TIMES, OVER, OPEN, CLOSE, STOP, OTHER = range(10, 18)  # kinds of tokens; below: the digits
CHARACTERS = "0123456789+-*/()"
LARGEST = 2**31 - 1
DIGITS = 8  # of a number; a longer one does not wrap into a short one
BEYOND = 10**DIGITS


class Value(NamedTuple):
    """What an expression of tokens says."""

    valid: Array  # () bool: an expression, with its stop token, that divides by nothing that is 0
    numerator: Array  # () int32
    denominator: Array  # () int32, of either sign
    numbers: Array  # (n,) int32, those it is made of in their order, −1 after them; n + 1 and more: not valid


def kinds(tokens: dict[str, int], vocab_size: int, stop_id: int) -> np.ndarray:
    """(V,) int32: the kind of each token id, of the ids of CHARACTERS."""
    table = np.full(vocab_size, OTHER, np.int32)
    for kind, character in enumerate(CHARACTERS):
        table[tokens[character]] = kind
    table[stop_id] = STOP
    return table


class _Level(NamedTuple):
    """One depth of parentheses. Fractions are (numerator, denominator)."""

    sum: Array  # (2,), of the terms that are over
    sign: Array  # (), of the term that is not
    term: Array  # (2,), of its factors
    divides: Array  # () bool: the next factor is divided by


def evaluate(tokens: Array, count: int) -> Value:
    """The value of tokens (T,) of the kinds above, any number below 0 where there is none.

    Made of at most `count` numbers. With a completion that is valid nothing overflows where the product of
    its (number + 1) is below 2^31: |numerator| + |denominator| is never more. (Of a/b and c/d:
    |ad ± cb| + |bd| ≤ (|a| + |b|)(|c| + |d|), and so for their product and quotient.)
    """
    depths = tokens.shape[0] // 2 + 2
    number = lambda x: jnp.asarray(x, jnp.int32)
    fresh = _Level(number([0, 1]), number(1), number([1, 1]), jnp.asarray(False))
    levels = jax.tree.map(lambda x: jnp.broadcast_to(x, (depths, *x.shape)), fresh)
    at = lambda levels, depth: jax.tree.map(lambda x: x[depth], levels)
    put = lambda levels, depth, level: jax.tree.map(lambda x, y: x.at[depth].set(y), levels, level)

    def factor(level: _Level, value: Array, ok: Array) -> tuple[_Level, Array]:
        above, below = jnp.where(level.divides, value[::-1], value)
        return level._replace(term=level.term * jnp.stack([above, below])), ok & (below != 0)

    def total(level: _Level) -> Array:
        (a, b), (c, d) = level.sum, level.term
        return jnp.stack([a * d + level.sign * c * b, b * d])

    def step(carry: tuple, kind: Array) -> tuple[tuple, None]:
        levels, depth, used, many, value, inside, wants, ok, over = carry
        before = carry
        digit = (kind >= 0) & (kind < 10)
        # a number ends before anything but a digit
        ends = inside & ~digit
        level, fine = factor(at(levels, depth), jnp.stack([value, number(1)]), ok)
        level = jax.tree.map(lambda new, old: jnp.where(ends, new, old), level, at(levels, depth))
        ok = jnp.where(ends, fine & (many < count) & (value < BEYOND), ok)
        used = jnp.where(ends, used.at[jnp.minimum(many, count - 1)].set(value), used)
        many, wants = many + ends, wants & ~ends
        # a digit
        ok &= ~digit | jnp.where(inside, True, wants & (kind > 0))
        value = jnp.where(digit, jnp.minimum(jnp.where(inside, value * 10, 0) + kind, BEYOND), value)
        # an operator
        adds, multiplies = (kind == PLUS) | (kind == MINUS), (kind == TIMES) | (kind == OVER)
        ok &= ~(adds | multiplies) | ~wants
        added = _Level(total(level), jnp.where(kind == PLUS, 1, -1), number([1, 1]), jnp.asarray(False))
        level = jax.tree.map(lambda new, old: jnp.where(adds, new, old), added, level)
        level = level._replace(divides=jnp.where(multiplies, kind == OVER, level.divides))
        # parentheses
        opens, closes = kind == OPEN, kind == CLOSE
        ok &= (~opens | wants) & (~closes | (~wants & (depth > 0)))
        levels = put(levels, depth, level)
        outer, fine = factor(at(levels, jnp.maximum(depth - 1, 0)), total(level), ok)
        ok = jnp.where(closes, fine, ok)
        deeper = jnp.where(closes, jnp.maximum(depth - 1, 0), jnp.minimum(depth + opens, depths - 1))
        here = jax.tree.map(lambda a, b, c: jnp.where(opens, a, jnp.where(closes, b, c)), fresh, outer, level)
        levels = put(levels, deeper, here)
        # the end
        stops = kind == STOP
        ok &= ~stops | (~wants & (depth == 0))
        ok &= (kind >= 0) & (kind != OTHER)
        wants = (wants & ~digit) | adds | multiplies | opens
        after = (levels, deeper, used, many, value, digit, wants, ok, over | stops)
        return jax.tree.map(lambda old, new: jnp.where(over, old, new), before, after), None

    none = jnp.full(count, -1, jnp.int32)
    start = (levels, number(0), none, number(0), number(0), *map(jnp.asarray, (False, True, True, False)))
    (levels, _, used, _, _, _, _, ok, over), _ = jax.lax.scan(step, start, tokens)
    result = total(at(levels, 0))
    return Value(ok & over, result[0], result[1], used)


def value_of(text: str) -> tuple[Fraction, list[int]] | None:
    """(value, the numbers in it) of an expression, blanks apart; None where it is none."""
    levels: list[list] = [[Fraction(0), 1, Fraction(1), False]]
    numbers: list[int] = []
    wants, digits = True, ""

    def factor(value: Fraction) -> bool:
        level = levels[-1]
        if level[3] and value == 0:
            return False
        level[2] = level[2] / value if level[3] else level[2] * value
        return True

    for character in [*text.strip(), "$"]:
        if digits and not ("0" <= character <= "9"):
            numbers.append(int(digits))
            if not factor(Fraction(numbers[-1])):
                return None
            wants, digits = False, ""
        if "0" <= character <= "9":
            if not (digits or (wants and character != "0")) or len(digits) == DIGITS:
                return None
            digits += character
        elif character in ("+", "-") and not wants:
            level = levels[-1]
            sign = 1 if character == "+" else -1
            levels[-1], wants = [level[0] + level[1] * level[2], sign, Fraction(1), False], True
        elif character in ("*", "/") and not wants:
            levels[-1][3], wants = character == "/", True
        elif character == "(" and wants:
            levels.append([Fraction(0), 1, Fraction(1), False])
        elif character == ")" and not wants and len(levels) > 1:
            level = levels.pop()
            if not factor(level[0] + level[1] * level[2]):
                return None
        elif character == "$" and not wants and len(levels) == 1:
            return levels[0][0] + levels[0][1] * levels[0][2], numbers
        elif character != " ":
            return None
    return None


class Written(NamedTuple):
    """An expression that we made."""

    text: str
    value: int
    sum: bool  # its last operation is + or −
    product: bool  # or · or /


def write(generator: np.random.Generator, numbers: list[int]) -> Written | None:
    """An expression of all `numbers` in any order, each step a positive integer; None where that failed."""
    parts = [Written(str(number), number, False, False) for number in numbers]
    while len(parts) > 1:
        first, second = generator.choice(len(parts), 2, replace=False)
        a, b = parts[first], parts[second]
        parts = [part for place, part in enumerate(parts) if place not in (first, second)]
        operator = "+-*/"[generator.integers(4)]
        if (operator == "-" and a.value <= b.value) or (operator == "/" and a.value % b.value):
            return None
        in_brackets = lambda part, needed: f"({part.text})" if needed else part.text
        if operator in "+-":
            value = a.value + b.value if operator == "+" else a.value - b.value
            text = a.text + operator + in_brackets(b, operator == "-" and b.sum)
        else:
            value = a.value * b.value if operator == "*" else a.value // b.value
            text = in_brackets(a, a.sum) + operator + in_brackets(b, b.sum or (operator == "/" and b.product))
        parts.append(Written(text, value, operator in "+-", operator in "*/"))
    return parts[0]
