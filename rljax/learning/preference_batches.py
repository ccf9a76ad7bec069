"""Judgements to learn from: what the algorithms share that are told which of K completions of a prompt was
preferred. A row of `rljax.types.Preferences` is one judgement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rljax import checks
from rljax.learning import trainable
from rljax.math.losses import cross_entropy
from rljax.models.optimization import add_up
from rljax.models.token_losses import per_token
from rljax.text import data
from rljax.text.data import Pairs
from rljax.types import Array, Key, LanguageModel, Mean, Preferences, PyTree, Task


class LogProb(NamedTuple):
    """Log-probabilities of N completions, in nats, (N,) both."""

    total: Array  # of the whole completion, the sum over its tokens
    mean: Array  # over its tokens


def size(task: Task, frozen: PyTree) -> int:
    """Tokens of the longest prompt with the longest completion. ValueError where these are no judgements."""
    learn = frozen["learn"]
    if not isinstance(learn, Preferences):
        raise ValueError(f"the task {task.name} has no preferences: learn is a {type(learn).__name__}")
    return learn.tokens.shape[1] + learn.completion.shape[2]


def check(
    config: Any,
    task: Task,
    frozen: PyTree,
    model: LanguageModel,
    length: int,
    labels: bool = False,
) -> None:
    """The fields that all of them read, and the rows, of which `model` will see `length` tokens at once.
    Completions without others of their prompt are accepted where `labels` may say what they are worth.
    ValueError in one line; arrays that are traced are not looked into.
    """
    trainable.check(config)
    checks.count(config, "batch_size")
    number = frozen["learn"].tokens.shape[0]
    if config.batch_size > number:
        checks.complain(config, "batch_size", f"must be at most the {number} judgements there are to learn")
    if config.num_micro and config.batch_size % config.num_micro:
        checks.complain(config, "num_micro", f"must divide batch_size = {config.batch_size}")
    positions = getattr(model.config, "max_positions", None)
    if positions is not None and length > positions:
        raise ValueError(
            f"the task {task.name}: prompts and completions need {length} positions, for a model of "
            f"{positions}: leave the longest out"
        )
    for part in ("learn", "held_out"):
        rows = frozen[part]
        if rows.desirable is not None and not labels:
            raise ValueError(f"the task {task.name} has labels of single completions: kto learns from those")
        _check_rows(f"the task {task.name}: {part}", rows, task.vocab_size)


def _check_rows(where: str, rows: Preferences, vocab_size: int) -> None:
    if any(isinstance(leaf, Tracer) for leaf in rows):
        return
    tokens, valid, completion, weight, margin = map(np.asarray, rows[:5])
    several = completion.ndim == 3 and completion.size and completion.shape[1] >= 2
    if rows.desirable is None and not several:
        raise ValueError(f"{where} has completions {completion.shape}: must be (N, K, T) with K of 2 or more")
    if rows.desirable is not None and completion.shape[1:2] != (1,):
        raise ValueError(f"{where} has completions {completion.shape} with labels: must be (N, 1, T)")
    for name, bad in (("weight", ~np.isfinite(weight) | (weight < 0)), ("margin", ~np.isfinite(margin))):
        if bad.any():
            right = "must be finite" + " and at least 0" * (name == "weight")
            raise ValueError(
                f"{where} has the {name} {getattr(rows, name)[bad][0]} of row {bad.argmax()}: {right}"
            )
    if not weight.any():
        raise ValueError(f"{where} has no weight above 0")
    mask = completion >= 0
    if (empty := ~valid.any(axis=1)).any():
        raise ValueError(f"{where} has an empty prompt, row {empty.argmax()}")
    if (empty := (~mask.any(axis=-1)).any(axis=-1)).any():
        raise ValueError(f"{where} has an empty completion, row {empty.argmax()}")
    if (holes := (np.diff(mask.astype(np.int8), axis=2) > 0).any(axis=-1).any(axis=-1)).any():
        raise ValueError(f"{where} has a completion that goes on after −1, row {holes.argmax()}")
    for what, ids in (("prompt", tokens[valid.astype(bool)]), ("completion", completion[mask])):
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(
                f"{where} has a {what} with tokens {ids.min()} to {ids.max()}, for a vocabulary of "
                f"{vocab_size}"
            )


def need_pairs(task: Task, frozen: PyTree, who: str, other: str) -> None:
    """ValueError where a judgement is of more than two completions."""
    number = frozen["learn"].completion.shape[1]
    if number != 2:
        raise ValueError(
            f"the task {task.name} has {number} completions to a judgement, and {who} learns from pairs: "
            f"{other}"
        )


def chosen(order: Key, iteration: Array, learn: Preferences, number: int) -> tuple[Preferences, Array]:
    """The judgements of one iteration, in an order that is new in every epoch, and what each counts among
    them: (B,), its weight relative to the mean of all there are, divided by B. They sum to 1 on average, not
    in every batch: one of light judgements moves the parameters less than one of heavy ones.
    """
    rows: Preferences = data.batch(order, iteration, learn, number)
    mean = learn.weight.mean()
    return rows, rows.weight / (number * jnp.where(mean > 0, mean, 1.0))


def flat(rows: Preferences) -> Pairs:
    """B prompts with B · K completions: b · K + k is completion k of judgement b."""
    completion = rows.completion.reshape(-1, rows.completion.shape[2])
    mask = completion >= 0
    return Pairs(rows.tokens, rows.valid, jnp.where(mask, completion, 0), mask)


def log_probs(model: LanguageModel, params: PyTree, pairs: Pairs, chunk: int) -> LogProb:
    """Of each completion given its prompt, the stop token included."""
    hidden = model.completion(params, pairs.prompt, pairs.valid, pairs.completion)
    nats = -per_token(model, cross_entropy, params, hidden, pairs.completion, chunk=chunk)
    total = jnp.where(pairs.mask, nats, 0.0).sum(axis=1)
    return LogProb(total, total / jnp.maximum(pairs.mask.sum(axis=1), 1))


def right(scores: Array) -> Array:
    """Of scores (..., K): 1 where the first is the highest, 0 where it is not, and where m share the highest
    place 1/m, which is one half of a tie of two: (...).
    """
    best = scores.max(axis=-1, keepdims=True)
    return jnp.where(scores[..., 0] == best[..., 0], 1.0 / jnp.maximum((scores == best).sum(axis=-1), 1), 0.0)


def update(
    loss_sum: Callable[[PyTree, Any], tuple[Array, dict[str, Mean]]],
    params: PyTree,
    opt_state: PyTree,
    batch: PyTree,
    iteration: Array,
    config: Any,
    tokens: int,
) -> tuple[PyTree, PyTree, dict[str, Mean]]:
    """One step of AdamW down the loss of a batch, in parts that never divide a judgement.

    `batch` is (rows, weights), `loss_sum` gives the weighted loss of some of it and what else is to be told
    of them; `tokens` are those of a row. Returns also what is told, with the loss, which is the weighted mean
    of the batch, and the gradient's norm.
    """
    parts = trainable.parts(config, config.batch_size, tokens)
    total, told, gradients = add_up(loss_sum, params, batch, parts)
    params, opt_state, norm = trainable.move(config, params, opt_state, gradients, iteration)
    share = batch[1].sum()
    loss = total / jnp.where(share > 0, share, 1.0)
    return params, opt_state, {"loss": Mean.of(loss), **told, "gradient_norm": Mean.of(norm)}


def measure(
    correct: Callable[[Preferences], Array], rows: Preferences, batch_size: int
) -> tuple[Array, Array]:
    """What `correct`, of B judgements (B,), says of each of E, and 1: (E,) both."""
    one = lambda row: correct(jax.tree.map(lambda x: x[None], row))[0]
    found = jax.lax.map(one, rows, batch_size=batch_size)
    return found, jnp.ones_like(found)
