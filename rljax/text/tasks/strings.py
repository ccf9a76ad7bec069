"""Strings to reverse and to sort, and sums: tasks with one right answer.

Of the `train` prompts the first `demonstrations` come with their answer, all of them where that is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rljax.text.problem import Problem, problem
from rljax.text.rewards import exact_match
from rljax.text.tasks.build import at_least, check_symbols, distinct, not_own
from rljax.text.tokenizer import Tokenizer, character_tokenizer

MARK = ">"


def reverse(
    *,
    symbols: str = "abcdefghij",
    min_length: int = 2,
    max_length: int = 6,
    train: int = 4096,
    held_out: int = 256,
    demonstrations: int = 448,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Problem:
    """abc> is answered by cba. Lengths are uniform, and so are symbols."""
    turned = lambda string: string[::-1]
    return _strings(
        "reverse", turned, symbols, min_length, max_length, train, held_out, demonstrations, seed, tokenizer
    )


def sort(
    *,
    symbols: str = "abcdefghij",
    min_length: int = 2,
    max_length: int = 6,
    train: int = 4096,
    held_out: int = 256,
    demonstrations: int = 208,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Problem:
    """cab> is answered by abc: in the order of `symbols`, which may be digits. See `reverse`."""
    rank = symbols.index
    turned = lambda string: "".join(sorted(string, key=rank))
    return _strings(
        "sort", turned, symbols, min_length, max_length, train, held_out, demonstrations, seed, tokenizer
    )


def addition(
    *,
    digits: int = 2,
    train: int = 4096,
    held_out: int = 256,
    demonstrations: int = 1280,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Problem:
    """12+7= is answered by 19. Both numbers are uniform below 10^digits."""
    at_least("addition", 1, digits=digits, train=train, held_out=held_out)
    at_least("addition", 0, demonstrations=demonstrations)
    if digits > 18:
        raise ValueError(f"the task addition: digits = {digits}: must be at most 18")
    generator = np.random.default_rng(seed)

    def draw() -> tuple[str, str]:
        a, b = (int(number) for number in generator.integers(0, 10**digits, 2))
        return f"{a}+{b}=", str(a + b)

    return _answers("addition", draw, "0123456789+=", digits + 2, train, held_out, demonstrations, tokenizer)


def _strings(
    name: str,
    turned: Callable[[str], str],
    symbols: str,
    min_length: int,
    max_length: int,
    train: int,
    held_out: int,
    demonstrations: int,
    seed: int,
    tokenizer: Tokenizer | None,
) -> Problem:
    check_symbols(name, symbols, MARK)
    at_least(name, 1, min_length=min_length, train=train, held_out=held_out)
    at_least(name, min_length, max_length=max_length)
    at_least(name, 0, demonstrations=demonstrations)
    generator = np.random.default_rng(seed)
    letters = np.array(list(symbols))

    def draw() -> tuple[str, str]:
        length = generator.integers(min_length, max_length + 1)
        string = "".join(generator.choice(letters, length))
        return string + MARK, turned(string)

    return _answers(name, draw, symbols + MARK, max_length + 1, train, held_out, demonstrations, tokenizer)


def _answers(
    name: str,
    draw: Callable[[], tuple[str, str]],
    characters: str,
    longest: int,
    train: int,
    held_out: int,
    demonstrations: int,
    tokenizer: Tokenizer | None,
) -> Problem:
    """(prompt, completion) records of different prompts, rewarded where the completion is that one: in tokens
    that are characters, or where a `tokenizer` may write one text in several ways, as text.
    """
    records = [
        {"prompt": prompt, "completion": completion}
        for prompt, completion in distinct(name, train + held_out, draw, lambda drawn: drawn[0])
    ]
    characters_of = character_tokenizer(characters)
    tokenizer = not_own(tokenizer, characters_of)
    own = tokenizer is None
    return problem(
        name,
        characters_of if tokenizer is None else tokenizer,
        records,
        exact_match(tokens=own),
        max_new_tokens=longest if own else None,
        held_out=held_out,
        demonstrated=demonstrations or None,
    )
