"""Controlled generation in small: sentences that are to be kind. The words and the grammar are ours."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rljax.text.problem import Problem, problem, ragged
from rljax.text.rewards import of_tokens
from rljax.text.tasks.build import at_least, ordered
from rljax.text.tokenizer import Tokenizer
from rljax.text.word_tokenizer import word_tokenizer
from rljax.types import Array, Preferences, PyTree, Reward


def _words(line: str) -> tuple[str, ...]:
    return tuple(line.split())


TIMES = _words("yesterday today tonight usually often later again then")
OWNERS = _words("the my our your her his this that")
THINGS = _words("film book meal story song game room train play walk dinner garden")
VERBS = _words("was seemed felt looked stayed became")
DEGREES = _words("very rather quite so really fairly")
POSITIVE = _words("good great lovely happy bright warm kind brilliant funny fresh gentle superb")
NEGATIVE = _words("bad awful dull sad dark cold rude terrible boring stale harsh poor")
PLAIN = _words("long short new old red small quiet plain")
JOINS = _words("and but")
WORDS = TIMES + OWNERS + THINGS + VERBS + DEGREES + POSITIVE + NEGATIVE + PLAIN + JOINS
LENGTH = 8  # tokens of a completion, the stop token included


def sentiment_words(
    *, train: int = 4096, held_out: int = 64, pairs: int = 2000, temperature: float = 0.2, seed: int = 0
) -> Problem:
    """today my film is answered by "seemed rather dull and long", or by something kinder.

    The reward `sentiment` is (positive − negative words) / words of the completion, from −1 to 1 (0 for an
    empty one), where the optimum says nothing but positive words: how far a policy goes there and how much
    it still speaks like the demonstrations is what the KL coefficient is for. Demonstrations are random
    sentences of the grammar, as many positive as negative; `text` is those with their prompts; preferences
    are two of them after one prompt, of which the first was preferred with probability
    σ((its reward − the other's) / `temperature`). `held_out` of the 768 prompts are held out.
    """
    at_least("sentiment_words", 1, train=train, held_out=held_out, pairs=pairs)
    every = [f"{time} {owner} {thing}" for time in TIMES for owner in OWNERS for thing in THINGS]
    if held_out >= len(every) or not temperature > 0:
        raise ValueError(
            f"the task sentiment_words: held_out = {held_out}, temperature = {temperature}: must be below "
            f"{len(every)}, the number of prompts, and above 0"
        )
    generator = np.random.default_rng(seed)
    tokenizer = word_tokenizer(WORDS)
    shuffled = [every[place] for place in generator.permutation(len(every))]
    known, new = shuffled[held_out:], shuffled[:held_out]
    drawn = [known[place] for place in generator.integers(len(known), size=train)]
    records = [{"prompt": prompt, "completion": sentence(generator)} for prompt in drawn + new]
    made = problem(
        *("sentiment_words", tokenizer, records, sentiment(tokenizer)),
        max_new_tokens=LENGTH,
        held_out=held_out,
    )
    text = lambda some: jnp.asarray(
        np.concatenate([[*tokenizer.encode(f"{r['prompt']} {r['completion']}"), 1] for r in some]), jnp.int32
    )
    preferences = lambda prompts, count: _preferences(generator, tokenizer, prompts, count, temperature)
    return made._replace(
        preferences=(preferences(known, pairs), preferences(new, held_out)),
        text=(text(records[:train]), text(records[train:])),
    )


def sentence(generator: np.random.Generator) -> str:
    """VERB [DEGREE] WORD [JOIN [DEGREE] WORD]."""
    pick = lambda words: [words[generator.integers(len(words))]]
    degree = lambda: pick(DEGREES) if generator.random() < 0.5 else []
    word = lambda: pick([POSITIVE, NEGATIVE, PLAIN][generator.integers(3)])
    more = pick(JOINS) + degree() + word() if generator.random() < 0.6 else []
    return " ".join([*pick(VERBS), *degree(), *word(), *more])


def sentiment(tokenizer: Tokenizer) -> Reward:
    """As `sentiment_words` says."""
    signs = np.zeros(tokenizer.vocab_size, np.int8)
    signs[tokenizer.encode(" ".join(POSITIVE))] = 1
    signs[tokenizer.encode(" ".join(NEGATIVE))] = -1

    def mean(prompt: Array, completion: Array, reference: PyTree) -> Array:
        del prompt, reference
        words = (completion >= 0) & (completion != tokenizer.eos_id)
        total = jnp.sum(jnp.where(words, jnp.asarray(signs)[completion], 0).astype(jnp.float32))
        return total / jnp.maximum(words.sum(), 1)

    return of_tokens(mean, "sentiment")


def worth(string: str) -> float:
    """The same of text."""
    words = string.split()
    return sum((word in POSITIVE) - (word in NEGATIVE) for word in words) / max(1, len(words))


def _preferences(
    generator: np.random.Generator, tokenizer: Tokenizer, prompts: list[str], count: int, temperature: float
) -> Preferences:
    chosen = [prompts[place] for place in generator.integers(len(prompts), size=count)]
    rows = []
    for _ in chosen:
        one = other = sentence(generator)
        while other == one:
            other = sentence(generator)
        rows.append((one, other))
    worse = ordered(generator, np.array([[worth(string) for string in pair] for pair in rows]), temperature)
    rows = [pair[::-1] if swap else pair for pair, swap in zip(rows, worse, strict=True)]
    tokens = jnp.asarray([tokenizer.encode(prompt) for prompt in chosen], jnp.int32)
    flat = ragged([[*tokenizer.encode(string), 1] for pair in rows for string in pair], LENGTH)
    ones = jnp.ones(count, jnp.float32)
    completions = jnp.asarray(flat.reshape(count, 2, LENGTH))
    return Preferences(tokens, jnp.ones(tokens.shape, bool), completions, ones, 0 * ones)
