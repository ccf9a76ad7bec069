"""What is wrong with a task's rewards and prompts, said before anything is compiled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rljax.text.tokenizer import Tokenizer, one_line, same_vocabulary
from rljax.types import Prompts, Reward, Task

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")  # it becomes the metric rewards/NAME
ROWS = 5  # completions that a reward is tried with, in shape alone


def check(task: Task) -> None:
    """Raises: ValueError in one line where the task has no rewards, one of them has a bad name, weight,
    shape or type or lacks what it is told, or a prompt is empty. Arrays that are traced are not looked into.
    """
    if not task.rewards:
        raise ValueError(f"the task {task.name} has no reward")
    for part, prompts in (("learn", task.learn), ("held_out", task.held_out)):
        if not isinstance(prompts, Prompts):
            raise ValueError(f"the task {task.name} has no prompts: {part} is a {type(prompts).__name__}")
        if not isinstance(prompts.valid, Tracer):
            empty = ~np.asarray(prompts.valid, bool).any(axis=1)
            if empty.any() or not empty.size:
                what = (
                    f"prompt {empty.argmax()} of {part} is empty" if empty.size else f"{part} has no prompts"
                )
                raise ValueError(f"the task {task.name}: {what}")
            _check_tokens(task, part, prompts)
    names = [reward.name for reward in task.rewards]
    for number, reward in enumerate(task.rewards):
        if not isinstance(reward.name, str) or not NAME.fullmatch(reward.name):
            raise ValueError(
                f"reward {reward.name!r}: its name must be of letters, digits, '_', '.', '+' and '-', as it "
                "becomes that of a metric"
            )
        if reward.name in names[:number]:
            raise ValueError(f"two rewards are named {reward.name}: give one of them another name")
        _check_weight(reward)
        _check_vocabulary(task, reward)
        if reward.host:
            _check_host(task, reward)
        else:
            _check_shape(task, reward)
    if task.observe is not None:
        _check_observe(task)


def _check_tokens(task: Task, part: str, prompts: Prompts) -> None:
    if isinstance(prompts.tokens, Tracer):
        return
    known = np.asarray(prompts.tokens)[np.asarray(prompts.valid, bool)]
    if known.min() < 0 or known.max() >= task.vocab_size:
        raise ValueError(
            f"the task {task.name}: prompts of {part} have tokens {known.min()} to {known.max()}, for a "
            f"vocabulary of {task.vocab_size}"
        )


def _check_weight(reward: Reward) -> None:
    if isinstance(reward.weight, Tracer):
        return
    try:
        fine = np.shape(reward.weight) == () and bool(np.isfinite(reward.weight))
    except TypeError:
        fine = False
    if not fine:
        raise ValueError(f"reward {reward.name}: weight = {reward.weight!r}: must be one finite number")


def _check_vocabulary(task: Task, reward: Reward) -> None:
    known, own = reward.vocabulary, task.tokenizer
    if known is None:
        return
    if isinstance(known, Tokenizer) and isinstance(own, Tokenizer):
        fine, there, here = same_vocabulary(known, own), known.name, own.name
    else:
        there, here = getattr(known, "vocab_size", known), task.vocab_size
        fine = there == here
    if not fine:
        raise ValueError(
            f"reward {reward.name} has another vocabulary ({there}) than the task {task.name} ({here}): "
            "train it on tokens of this task's tokenizer"
        )


def _check_host(task: Task, reward: Reward) -> None:
    needs = f"reward {reward.name} is computed on the host, so the task {task.name} needs"
    if task.tokenizer is None:
        raise ValueError(f"{needs} a tokenizer")
    if not task.records:
        raise ValueError(f"{needs} records")
    for prompts in (task.learn, task.held_out):
        reference = prompts.reference
        if not isinstance(reference, Mapping) or "row" not in reference:
            raise ValueError(f"{needs} a reference with `row`, the number of a prompt's record")
        rows = reference["row"]
        if not isinstance(rows, Tracer) and not (
            np.asarray(rows).min() >= 0 and np.asarray(rows).max() < len(task.records)
        ):
            raise ValueError(f"{needs} as many records as `row` says: there are {len(task.records)}")


def _check_shape(task: Task, reward: Reward) -> None:
    prompts: Prompts = task.learn
    tokens = lambda width: jax.ShapeDtypeStruct((ROWS, width), jnp.int32)
    reference = _rows(prompts.reference, (ROWS,))
    arguments = (reward.params, tokens(prompts.tokens.shape[1]), tokens(task.max_new_tokens), reference)
    try:
        found = jax.eval_shape(reward.apply, *arguments)
    except Exception as error:  # of a user's function, of any kind
        given = f"; the reference has {', '.join(map(str, reference))}" if isinstance(reference, dict) else ""
        raise ValueError(
            f"reward {reward.name} fails: {type(error).__name__}: {one_line(error)}{given}"
        ) from error
    dtype = getattr(found, "dtype", None)
    real = dtype is not None and (
        jnp.issubdtype(dtype, jnp.bool_) or not jnp.issubdtype(dtype, jnp.complexfloating)
    )
    if not real or found.shape != (ROWS,):
        what = type(found).__name__ if dtype is None else f"{dtype}{list(found.shape)}"
        raise ValueError(
            f"reward {reward.name} gives {what} for {ROWS} completions: must be one number or boolean of "
            f"each, ({ROWS},)"
        )


def _check_observe(task: Task) -> None:
    prompts: Prompts = task.learn
    context = jax.ShapeDtypeStruct((prompts.tokens.shape[1] + task.max_new_tokens,), jnp.int32)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    assert task.observe is not None
    try:
        found: Any = jax.eval_shape(task.observe, context, step, _rows(prompts.reference, ()))
    except Exception as error:
        raise ValueError(
            f"observe of the task {task.name} fails: {type(error).__name__}: {one_line(error)}"
        ) from error
    if getattr(found, "shape", None) != () or not jnp.issubdtype(found.dtype, jnp.integer):
        raise ValueError(f"observe of the task {task.name} gives {found}: must be one token, an integer")


def _rows(reference: Any, rows: tuple[int, ...]) -> Any:
    """The shapes of a reference for `rows` prompts, in place of all of them."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*rows, *x.shape[1:]), x.dtype), reference)
