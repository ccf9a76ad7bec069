"""A conversation: a number is to be found, and the world says of each guess on which side it lies."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax.text.problem import Problem, problem
from rljax.text.rewards import of_tokens
from rljax.text.tasks.build import at_least
from rljax.text.tokenizer import Tokenizer, character_tokenizer
from rljax.types import Array, PyTree, Reward

PROMPT, LESS, MORE = "?", "<", ">"


def guess_number(*, numbers: int = 64, guesses: int = 0, cost: float = 0.02) -> Problem:
    """After ? the policy writes a number of fixed digits, the world < where the secret is less and > where it
    is more, and so on: ?31>47<39<35 for the secret 35, and then the world writes the stop token.

    Secrets are 0 to `numbers` − 1. There are `guesses` of them (0: as many as halving needs at the most);
    after the last, or one that is no number, the world writes the stop token too. Two rewards: `found`, 1
    or 0, and `guesses`, how many were made, of weight −`cost`. The demonstrations halve what is left; SFT
    learns the world's tokens with them. The prompt never differs and the secret is told to the rewards and
    the world alone, so learning and held-out rows are the same: every secret once.
    """
    at_least("guess_number", 2, numbers=numbers)
    at_least("guess_number", 0, guesses=guesses)
    digits = len(str(numbers - 1))
    turns = guesses or numbers.bit_length()
    tokenizer = character_tokenizer("0123456789" + PROMPT + LESS + MORE)
    records = [
        {"prompt": PROMPT, "completion": _halving(secret, numbers, turns, digits), "secret": secret}
        for secret in range(numbers)
    ]
    length = turns * (digits + 1)
    made = problem(
        *("guess_number", tokenizer, [*records, *records], _rewards(tokenizer, digits, cost)),
        max_new_tokens=length,
        held_out=numbers,
    )
    return made._replace(observe=_world(tokenizer, digits, turns, made.learn.tokens.shape[1]))


def _world(
    tokenizer: Tokenizer, digits: int, turns: int, begin: int
) -> Callable[[Array, Array, PyTree], Array]:
    """See `Task.observe`; the prompt is of `begin` tokens."""

    zero, less, more = (tokenizer.encode(character)[0] for character in ("0", LESS, MORE))
    stop = -1 if tokenizer.eos_id is None else tokenizer.eos_id

    def observe(context: Array, step: Array, reference: PyTree) -> Array:
        guess = jax.lax.dynamic_slice(context, (begin + step - digits,), (digits,)) - zero
        number = _number(guess)
        hint = jnp.where(reference["secret"] < number, less, more)
        over = (number == reference["secret"]) | (number < 0) | (step + 1 >= turns * (digits + 1))
        answer = jnp.where(over, stop, hint)
        return jnp.where(step % (digits + 1) == digits, answer, -1).astype(jnp.int32)

    return observe


def _number(guess: Array) -> Array:
    """Of digits (..., D); −1 where one of them is none."""
    powers = jnp.array([10**place for place in range(guess.shape[-1])][::-1], jnp.int32)
    number = jnp.sum(guess * powers.reshape((1,) * (guess.ndim - 1) + (-1,)), axis=-1)
    return jnp.where(jnp.all((guess >= 0) & (guess <= 9), axis=-1), number, -1)


def _rewards(tokenizer: Tokenizer, digits: int, cost: float) -> tuple[Reward, Reward]:
    zero = tokenizer.encode("0")[0]

    def found(prompt: Array, completion: Array, reference: PyTree) -> Array:
        del prompt
        turns = completion.reshape(-1, digits + 1)
        right = _number(turns[:, :digits] - zero) == reference["secret"]
        return jnp.any(right & (turns[:, digits] == tokenizer.eos_id))

    def guesses(prompt: Array, completion: Array, reference: PyTree) -> Array:
        del prompt, reference
        return jnp.sum(completion.reshape(-1, digits + 1)[:, digits] >= 0).astype(jnp.float32)

    return of_tokens(found), of_tokens(guesses, weight=-cost)


def _halving(secret: int, numbers: int, turns: int, digits: int) -> str:
    """The guesses of a binary search and what is said of them, up to the last guess."""
    low, high, written = 0, numbers - 1, ""
    for turn in range(turns):
        guess = (low + high) // 2
        written += f"{guess:0{digits}d}"
        if guess == secret or turn + 1 == turns:
            break
        low, high = (low, guess - 1) if secret < guess else (guess + 1, high)
        written += LESS if secret < guess else MORE
    return written
