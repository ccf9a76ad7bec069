"""Rewards that are functions of token ids, compiled into the program."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from rljax.types import Array, PyTree, Reward


def of_tokens(
    function: Callable[[Array, Array, PyTree], Array], name: str | None = None, weight: float = 1.0
) -> Reward:
    """A reward of one completion: (prompt (P,), completion (T,), reference) -> (), a number or a boolean.

    Tokens are int32, −1 where there is none: before a short prompt, after a completion's stop token. `name`
    is that of the function where None.
    """

    def apply(params: PyTree, prompt: Array, completion: Array, reference: PyTree) -> Array:
        del params
        return jax.vmap(function)(prompt, completion, reference)

    return Reward(name or function.__name__, apply, weight=weight)


def one_stop(stop_ids: Sequence[int], completion: Array) -> Array:
    """Completions with the first of a task's stop tokens in place of any other: rewards know of one end."""
    if len(stop_ids) < 2:
        return completion
    return jnp.where(jnp.isin(completion, jnp.asarray(stop_ids)), stop_ids[0], completion)


def length(target: float = 0.0, weight: float = 1.0) -> Reward:
    """−|number of tokens − target| / target; with target 0 the number of tokens, stop token included."""

    def measured(prompt: Array, completion: Array, reference: PyTree) -> Array:
        del prompt, reference
        tokens = jnp.sum(completion >= 0).astype(jnp.float32)
        return -jnp.abs(tokens - target) / target if target else tokens

    return of_tokens(measured, "length", weight)
