"""Tiny texts to learn, and Configs that are small enough for them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rljax import pretrain, sft, text
from rljax.models.language_models import language_model
from rljax.text import data
from rljax.text.problem import ragged
from rljax.text.problem import task as task_of
from rljax.types import Array, Preferences, PyTree, Task

VOCABULARY, LENGTH = 11, 12
SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "length": LENGTH, "batch_size": 4, "chunk": 5}
FIELDS: dict[str, Any] = {**SIZES, "total_steps": 40 * 4 * LENGTH, "learning_rate": 1e-2}
# of what learns from preferences: rows have no length of their own, and a reward model no logits
SCORING: dict[str, Any] = {
    **{name: value for name, value in FIELDS.items() if name not in ("length", "chunk")},
    "total_steps": 40 * 4,
    "num_micro": 2,
}
PREFERRING: dict[str, Any] = {**SCORING, "chunk": 5}


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
    return rows_task(jax.jit(sft.make(task, tuning()).init)(jax.random.key(9)).params)


def halves(rows: Any) -> tuple[Any, Any]:
    """The first 40 rows and the next 20, cut by numpy: each cut of a JAX array is a program to compile."""
    cut = lambda part: jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[part]), rows)
    return cut(slice(40)), cut(slice(40, 60))


def pairs_task() -> Task:
    """The same pairs for an encoder-decoder: half of a row each, padded on the right."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(1, VOCABULARY, rng.integers(1, 5)).tolist() for _ in range(60)]
    arrays = (
        *data.pad_prompts(prompts, LENGTH // 2, "right"),
        *data.pad_prompts([[*prompt[::-1], 0] for prompt in prompts], LENGTH // 2, "right"),
    )
    learn, held_out = halves(data.Pairs(*arrays))
    return Task("backwards", VOCABULARY, learn, held_out)


def judged(number: int = 60, completions: int = 2, seed: int = 0) -> Preferences:
    """Of prompts of one to four tokens, completions that begin with 1 are preferred to those that do not."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(1, VOCABULARY, rng.integers(1, 5)).tolist() for _ in range(number)]
    written = []
    for row in range(number * completions):
        first = 1 if row % completions == 0 else rng.integers(2, VOCABULARY)
        written.append([first, *rng.integers(1, VOCABULARY, rng.integers(0, 4)).tolist(), 0])
    tokens, valid = data.pad_prompts(prompts)
    weight = rng.uniform(0.5, 2.0, number).astype(np.float32)
    margin = rng.uniform(0.0, 1.0, number).astype(np.float32)
    rows = (tokens, valid, ragged(written, 5).reshape(number, completions, 5), weight, margin)
    return Preferences(*map(jnp.asarray, rows))


def preferences_task(completions: int = 2, params: Any = None) -> Task:
    """Judgements of `completions` each, 40 to learn and 20 held out."""
    learn, held_out = halves(judged(60, completions))
    return Task("ones", VOCABULARY, learn, held_out, params, max_new_tokens=5, stop_ids=(0,))


@functools.cache
def started_task(completions: int = 2, architecture: str = "llama") -> Task:
    """The same with the parameters of a policy at the start."""
    model = language_model(VOCABULARY, tuning(architecture=architecture), LENGTH)
    return preferences_task(completions, jax.jit(model.init)(jax.random.key(9)))


RL: dict[str, Any] = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "chunk": 3,
    "num_prompts": 4,
    "group_size": 2,
    "total_steps": 400,
    "learning_rate": 1e-2,
    "adam_epsilon": 1e-4,  # so that a gradient that is 0 but for rounding moves nothing
}
NOT_READ = {False: (), True: ("num_heads",)}  # by recurrent models


def configured(module: Any, fields: dict[str, Any], **more: Any) -> Any:
    """The Config of an algorithm."""
    return module.Config(**fields | more)


def near(prompt: Array, completion: Array, reference: PyTree) -> Array:
    """How many of the first three tokens are right, and a half for an end: something differs at any time."""
    del prompt
    right = completion[:3] == reference["completion"][:3]
    return right.sum() + 0.5 * jnp.any(completion == EOS) - 0.25


@functools.cache
def reverse() -> text.Problem:
    """Two or three letters, whose reverse ends with a stop token: completions of four tokens."""
    problem = text.tasks.make("reverse", symbols="abc", min_length=2, max_length=3, train=24, held_out=6)
    return problem._replace(rewards=(text.rewards.of_tokens(near),))


EOS = 1  # of the tokenizer there


@functools.cache
def rewarded_task() -> Task:
    task = task_of(reverse(), "prompts")
    assert task.stop_ids == (EOS,)
    return task


@functools.cache
def rewarded_task_with_a_model() -> Task:
    """`rewarded_task` with the parameters of a model to stay close to."""
    task = rewarded_task()
    config = sft.Config(**{name: RL[name] for name in ("hidden_size", "num_layers", "num_heads")})
    model = language_model(task.vocab_size, config, reverse().length)
    return task._replace(params=jax.jit(model.init)(jax.random.key(9)))


def pretraining(**fields: Any) -> pretrain.Config:
    return pretrain.Config(**FIELDS | fields)


def tuning(**fields: Any) -> sft.Config:
    return sft.Config(**FIELDS | fields)
