"""What the tasks that we generate have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import numpy as np

from rljax.text.tokenizer import Tokenizer, same_vocabulary

Drawn = TypeVar("Drawn")

TRIES = 50  # draws for each record that is asked for, before there are no more


def at_least(name: str, low: int, **numbers: int) -> None:
    """Raises: ValueError naming an argument of the task that is below `low`."""
    for argument, value in numbers.items():
        if value < low:
            raise ValueError(f"the task {name}: {argument} = {value}: must be at least {low}")


def distinct(
    name: str,
    count: int,
    draw: Callable[[], Drawn],
    key: Callable[[Drawn], Hashable],
) -> list[Drawn]:
    """`count` draws of different keys, in the order in which they came.

    Raises: ValueError where they do not come.
    """
    found: dict[Hashable, Drawn] = {}
    for _ in range(TRIES * count):
        drawn = draw()
        found.setdefault(key(drawn), drawn)
        if len(found) == count:
            return list(found.values())
    raise ValueError(
        f"the task {name}: only {len(found)} different prompts were found of the {count} of train and "
        "held_out: ask for fewer, or for longer ones"
    )


def not_own(tokenizer: Tokenizer | None, own: Tokenizer) -> Tokenizer | None:
    """The tokenizer that a task is to be written with; None where there is none, or it is the task's own."""
    return None if tokenizer is None or same_vocabulary(tokenizer, own) else tokenizer


def check_symbols(name: str, symbols: str, marks: str) -> None:
    """Raises: ValueError where `symbols` are not at least two different characters, other than `marks`."""
    if len(set(symbols)) != len(symbols) or len(symbols) < 2 or set(symbols) & set(marks):
        raise ValueError(
            f"the task {name}: symbols = {symbols!r}: must be at least two different characters, none of "
            f"{marks!r}"
        )


def ordered(generator: np.random.Generator, scores: np.ndarray, temperature: float) -> np.ndarray:
    """Which of two was preferred: (N, 2) scores to (N,) 0 or 1, by Bradley and Terry's model, where the
    first wins with probability σ((s₀ − s₁) / temperature).
    """
    better = 1 / (1 + np.exp(-np.clip((scores[:, 0] - scores[:, 1]) / temperature, -60, 60)))
    return (generator.random(len(scores)) >= better).astype(np.int64)
