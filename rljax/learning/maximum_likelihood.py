"""What pretrain and sft share: AdamW down the mean negative log-likelihood of a batch's tokens, and the same
sum over held-out text.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import checks
from rljax.learning import trainable
from rljax.math.losses import cross_entropy
from rljax.models.optimization import accumulate
from rljax.models.token_losses import per_token, weighted_sum
from rljax.text.data import Block, Pairs
from rljax.types import Array, Dropout, Key, LanguageModel, Mean, Policy, PyTree


class Rows(NamedTuple):
    """B rows of T tokens to learn."""

    tokens: Array  # (B, T) int32
    # (B, T) int32: 0 is padding, k > 0 the k-th document of the row; None: each row is one
    segments: Array | None
    mask: Array  # (B, T) bool: tokens to be predicted from those before them; never the first


def check(config: Any) -> None:
    """The fields that this file reads. ValueError naming the one that is wrong."""
    trainable.check(config)
    checks.count(config, "length", low=2)
    checks.count(config, "batch_size")
    tokens = checks.product(config, "batch_size", "length")
    checks.fits(config, "length" if config.length > config.batch_size else "batch_size", 4 * tokens)
    if config.dropout is not None:
        checks.number(config, "dropout", low=0, high=0.99)  # at 1 nothing is left, and gradients are NaN
    if config.num_micro and config.batch_size % config.num_micro:
        checks.complain(config, "num_micro", f"must divide batch_size = {config.batch_size}")


def check_block(config: Any, block: Block) -> None:
    """The rows of a stream are of the Config's sizes. ValueError naming the field that is wrong."""
    _, *sizes = block.rows.tokens.shape
    for name, size in zip(("batch_size", "length"), sizes, strict=True):
        if getattr(config, name) != size:
            checks.complain(config, name, f"must be {size}, as the batches of the stream")


def states(
    model: LanguageModel, params: PyTree, rows: Rows | Pairs, dropout: Dropout | None = None
) -> tuple[Array, Array, Array]:
    """Hidden states (B, T, D), the tokens that they predict (B, T), and which of those are to be learnt,
    (B, T) bool.
    """
    if isinstance(rows, Pairs):
        inputs = rows.prompt, rows.valid, rows.completion
        return model.completion(params, *inputs, dropout=dropout), rows.completion, rows.mask
    # all T places, so that shapes stay round numbers: nothing is to be learnt after the last one
    after = lambda x: jnp.pad(x[:, 1:], [(0, 0), (0, 1)])
    hidden = model.forward(params, rows.tokens, rows.segments, dropout=dropout)
    return hidden, after(rows.tokens), after(rows.mask)


def update(
    model: LanguageModel,
    params: PyTree,
    opt_state: PyTree,
    rows: Rows | Pairs,
    key: Key,
    iteration: Array,
    config: Any,
) -> tuple[PyTree, PyTree, Mean, Array]:
    """One step of AdamW down Σ loss / Σ mask of the whole batch; `key` is dropout's.

    Returns: parameters, the optimizer's state, the loss, and the gradient's norm before clipping, ().
    """

    def loss_sum(params: PyTree, part: tuple) -> tuple[Array, Array]:
        rows, numbers = part
        dropout = None
        if config.dropout is not None:
            dropout = Dropout(jax.vmap(jax.random.fold_in, (None, 0))(key, numbers), config.dropout)
        hidden, targets, mask = states(model, params, rows, dropout)
        weights = mask.astype(jnp.float32)
        loss = lambda logits, targets: (cross_entropy(logits, targets), ())
        total, _ = weighted_sum(model, loss, params, hidden, weights, targets, chunk=config.chunk)
        return total, mask.sum(dtype=jnp.int32)

    parts = trainable.parts(config, config.batch_size, config.length)
    total, count, gradients = accumulate(loss_sum, params, (rows, jnp.arange(config.batch_size)), parts)
    params, opt_state, norm = trainable.move(config, params, opt_state, gradients, iteration)
    return params, opt_state, Mean(total, count), norm


def measure(model: LanguageModel, params: PyTree, rows: Rows | Pairs, config: Any) -> tuple[Array, Array]:
    """Of each of E rows the sum of its tokens' losses, (E,), and their number, (E,), batch_size at a time."""

    def one(row: Rows | Pairs) -> tuple[Array, Array]:
        hidden, targets, mask = states(model, params, jax.tree.map(lambda x: x[None], row))
        loss = per_token(model, cross_entropy, params, hidden, targets, chunk=config.chunk)
        return jnp.where(mask, loss, 0.0).sum(), mask.sum(dtype=jnp.float32)

    return jax.lax.map(one, rows, batch_size=config.batch_size)


def policy(model: LanguageModel, params: PyTree) -> Policy:
    """Observations are (prompt (B, P), valid (B, P)), padded on the left; an action is the token (B,) that
    follows. To write more than one, `rljax.text.generate` keeps a cache.
    """

    def act(key: Key, obs: PyTree, carry: tuple, greedy: bool | Array) -> tuple[Array, tuple]:
        prompt, valid = obs
        hidden, _ = model.prefill(params, prompt, valid, prompt.shape[1])
        logits = model.logits(params, hidden)
        return jnp.where(greedy, logits.argmax(-1), jax.random.categorical(key, logits)), carry

    return Policy(tuple, act)
