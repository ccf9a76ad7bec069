"""What pretrain and sft share: AdamW down the mean negative log-likelihood of a batch's tokens, and the same
sum over held-out text.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rljax import checks
from rljax.math import optimization, schedules
from rljax.models.optimization import accumulate, decay_mask
from rljax.models.token_losses import cross_entropy
from rljax.models.transformer import Layer, TransformerConfig, transformer
from rljax.text.data import Block
from rljax.types import Array, Key, LanguageModel, Mean, Policy, PyTree

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Rows(NamedTuple):
    """B rows of T tokens to learn."""

    tokens: Array  # (B, T) int32
    segments: Array  # (B, T) int32: 0 is padding, k > 0 the k-th document of the row
    mask: Array  # (B, T) bool: tokens to be predicted from those before them; never the first


def check(config: Any) -> None:
    """The fields that this file reads. ValueError naming the one that is wrong."""
    positive = "total_steps", "learning_rate", "adam_epsilon", "max_grad_norm", "warmup_fraction"
    checks.number(config, *positive, low=0, open_low=True)
    checks.number(config, "weight_decay", low=0)
    checks.number(config, "beta1", "beta2", "warmup_fraction", low=0, high=1)
    checks.count(config, "length", low=2)
    checks.count(config, "batch_size", "num_micro", "chunk")
    checks.choice(config, "schedule", schedules.SCHEDULES)
    if config.batch_size % config.num_micro:
        checks.complain(config, "num_micro", f"must divide batch_size = {config.batch_size}")


def check_block(config: Any, block: Block) -> None:
    """The rows of a stream are of the Config's sizes. ValueError naming the field that is wrong."""
    _, *sizes = block.rows.tokens.shape
    for name, size in zip(("batch_size", "length"), sizes, strict=True):
        if getattr(config, name) != size:
            checks.complain(config, name, f"must be {size}, as the batches of the stream")


def language_model(vocab_size: int, config: Any) -> LanguageModel:
    """A Llama of the Config's sizes, for rows of `config.length` tokens.

    Raises: ValueError naming the field that is wrong.
    """
    checks.count(config, "hidden_size", "num_layers", "num_heads")
    checks.choice(config, "dtype", DTYPES)
    if config.hidden_size % (2 * config.num_heads):
        checks.complain(config, "num_heads", f"2 x num_heads must divide hidden_size = {config.hidden_size}")
    shape = TransformerConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=-(-8 * config.hidden_size // 48) * 16,  # as many weights as 2 of 4 x hidden
        num_heads=config.num_heads,
        layers=(Layer(),) * config.num_layers,
        max_positions=config.length,
        dtype=DTYPES[config.dtype],
    )
    return transformer(shape)


def optimizer(config: Any) -> optax.GradientTransformation:
    """AdamW's direction (Loshchilov & Hutter 2019), gradients clipped before, without the learning rate."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.adam_epsilon),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
    )


def losses(model: LanguageModel, params: PyTree, rows: Rows, chunk: int) -> tuple[Array, Array]:
    """−log p of every token but the first of a row, (B, T − 1), 0 where it is not to be learnt; and where it
    is, (B, T − 1) bool.
    """
    hidden = model.forward(params, rows.tokens[:, :-1], rows.segments[:, :-1])
    loss, mask = cross_entropy(model, params, hidden, rows.tokens[:, 1:], chunk), rows.mask[:, 1:]
    return jnp.where(mask, loss, 0.0), mask


def update(
    model: LanguageModel, params: PyTree, opt_state: PyTree, rows: Rows, iteration: Array, config: Any
) -> tuple[PyTree, PyTree, Mean, Array]:
    """One step of AdamW down Σ loss / Σ mask of the whole batch, computed in num_micro parts.

    Returns: parameters, the optimizer's state, the loss, and the gradient's norm before clipping, ().
    """

    def loss_sum(params: PyTree, part: Rows) -> tuple[Array, Array]:
        loss, mask = losses(model, params, part, config.chunk)
        return loss.sum(), mask.sum(dtype=jnp.int32)

    total, count, gradients = accumulate(loss_sum, params, rows, config.num_micro)
    updates, opt_state = optimizer(config).update(gradients, opt_state, params)
    share = config.steps_per_iteration / config.total_steps
    warm = schedules.interpolate(0.0, 1.0, (iteration + 1) * share, config.warmup_fraction)
    rate = config.learning_rate * warm * schedules.factor(config.schedule, iteration * share)
    params = optimization.move(params, -rate, updates)
    return params, opt_state, Mean(total, count), optax.tree.norm(gradients)


def measure(model: LanguageModel, params: PyTree, rows: Rows, config: Any) -> tuple[Array, Array]:
    """Of each of E rows the sum of its tokens' losses, (E,), and their number, (E,), batch_size at a time."""

    def one(row: Rows) -> tuple[Array, Array]:
        loss, mask = losses(model, params, jax.tree.map(lambda x: x[None], row), config.chunk)
        return loss.sum(), mask.sum(dtype=jnp.float32)

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
