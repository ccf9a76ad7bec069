"""Tiny texts to learn, and Configs that are small enough for them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rljax import pretrain, sft
from rljax.text import data
from rljax.types import Task

VOCABULARY, LENGTH = 11, 12
SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "length": LENGTH, "batch_size": 4, "chunk": 5}
FIELDS: dict[str, Any] = {**SIZES, "total_steps": 40 * 4 * LENGTH, "learning_rate": 1e-2}


def text_task() -> Task:
    """Counting modulo 11: after three tokens everything is known."""
    text = np.arange(40 * VOCABULARY, dtype=np.int32) % VOCABULARY
    return Task("count", VOCABULARY, jnp.asarray(text[:-50]), jnp.asarray(text[-50:]))


def rows_task(params: Any = None, number: int = 60) -> Task:
    """Pairs of a prompt and a completion that says it backwards, packed."""
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(number):
        prompt = rng.integers(1, VOCABULARY, rng.integers(1, 4)).tolist()
        tokens = [*prompt, 0, *prompt[::-1]]
        examples.append(data.Example(tokens, [False] * (len(prompt) + 1) + [True] * len(prompt)))
    learn, held_out = (
        jax.tree.map(jnp.asarray, data.pack(part, LENGTH)[0]) for part in (examples[:-20], examples[-20:])
    )
    return Task("backwards", VOCABULARY, learn, held_out, params)


@functools.cache
def adapting_task() -> Task:
    """`rows_task` with the parameters of a model to adapt."""
    task = rows_task()
    return rows_task(sft.make(task, tuning()).init(jax.random.key(9)).params)


def pairs_task() -> Task:
    """The same pairs for an encoder-decoder: half of a row each, padded on the right."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(1, VOCABULARY, rng.integers(1, 5)).tolist() for _ in range(60)]
    arrays = (
        *data.pad_prompts(prompts, LENGTH // 2, "right"),
        *data.pad_prompts([[*prompt[::-1], 0] for prompt in prompts], LENGTH // 2, "right"),
    )
    rows = data.Pairs(*map(jnp.asarray, arrays))
    learn, held_out = (
        jax.tree.map(lambda x, part=part: x[part], rows) for part in (slice(40), slice(40, 60))
    )
    return Task("backwards", VOCABULARY, learn, held_out)


def pretraining(**fields: Any) -> pretrain.Config:
    return pretrain.Config(**FIELDS | fields)


def tuning(**fields: Any) -> sft.Config:
    return sft.Config(**FIELDS | fields)
