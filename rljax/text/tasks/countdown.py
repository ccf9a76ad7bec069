"""Countdown: an expression of given numbers that has a given value (as in TinyZero, Pan et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from rljax.text.problem import Problem, problem
from rljax.text.rewards import of_text, of_tokens
from rljax.text.tasks.build import at_least, distinct, not_own
from rljax.text.tasks.expressions import CHARACTERS, LARGEST, evaluate, kinds, value_of, write
from rljax.text.tokenizer import Tokenizer, character_tokenizer
from rljax.types import Array, PyTree, Reward

TRIES = 10_000  # expressions, to find one that comes to a target


def countdown(
    *,
    numbers: int = 3,
    largest: int = 20,
    target: int = 60,
    train: int = 8192,
    held_out: int = 256,
    demonstrations: int = 0,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Problem:
    """3,4,2=14> is answered by (3+4)*2, or by any other expression of the same value.

    Every one of the `numbers` numbers from 1 to `largest` is used, once, with + − · / and parentheses;
    fractions on the way are exact; the target is from 1 to `target`. The reward, of the completion's tokens
    and computed in the program, is 1 or 0; with a `tokenizer` of a pretrained model it is of its text, on the
    host, where blanks do not count. Each prompt was made from an expression, which is its demonstration; only
    the first `demonstrations` prompts keep it, where that is not 0.
    """
    at_least("countdown", 0, demonstrations=demonstrations)
    at_least("countdown", 2, numbers=numbers)
    at_least("countdown", 1, largest=largest, target=target, train=train, held_out=held_out)
    if (largest + 1) ** numbers > LARGEST:
        raise ValueError(
            f"the task countdown: numbers = {numbers}, largest = {largest}: (largest + 1)^numbers must be "
            "below 2^31, as exact fractions of 32 bits need"
        )
    generator = np.random.default_rng(seed)

    def draw() -> dict[str, Any]:
        for _ in range(TRIES):
            given = generator.integers(1, largest + 1, numbers).tolist()
            written = write(generator, given)
            if written is not None and written.value <= target:
                prompt = f"{','.join(map(str, given))}={written.value}>"
                known = {"numbers": given, "target": written.value}
                return {"prompt": prompt, "completion": written.text, **known}
        raise ValueError(f"the task countdown: no expression found with a target of at most {target}")

    records = distinct("countdown", train + held_out, draw, _question)
    own = character_tokenizer(CHARACTERS + ",=>")
    tokenizer = not_own(tokenizer, own)
    longest = numbers * len(str(largest)) + 3 * (numbers - 1) + 1
    return problem(
        "countdown",
        own if tokenizer is None else tokenizer,
        records,
        on_tokens(own) if tokenizer is None else of_text(solves, "solved", processes=0),
        max_new_tokens=longest if tokenizer is None else None,
        held_out=held_out,
        demonstrated=demonstrations or None,
    )


def _question(record: Mapping[str, Any]) -> tuple:
    """Two prompts that differ in the order of their numbers are one."""
    return (*sorted(record["numbers"]), record["target"])


def on_tokens(tokenizer: Tokenizer) -> Reward:
    """1 where the completion solves the prompt, of tokens that are characters."""
    ids = {character: tokenizer.encode(character)[0] for character in CHARACTERS}
    assert tokenizer.eos_id is not None
    table = kinds(ids, tokenizer.vocab_size, tokenizer.eos_id)

    def solved(prompt: Array, completion: Array, reference: PyTree) -> Array:
        del prompt
        given = reference["numbers"]
        found = evaluate(jnp.where(completion >= 0, jnp.asarray(table)[completion], -1), given.shape[0])
        same = jnp.all(jnp.sort(found.numbers) == jnp.sort(given))
        below = jnp.where(found.denominator == 0, 1, found.denominator)
        whole = (found.numerator % below == 0) & (found.numerator // below == reference["target"])
        return found.valid & same & whole

    return of_tokens(solved)


def solves(prompt: str, completion: str, record: Mapping[str, Any]) -> bool:
    """The same on text."""
    found = value_of(completion)
    return (
        found is not None and found[0] == record["target"] and sorted(found[1]) == sorted(record["numbers"])
    )
