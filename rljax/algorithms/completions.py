"""Completions to learn from: what the algorithms share that write text, are rewarded for it, and learn.

A cycle samples B = num_prompts × group_size completions, scores them and updates. The policy is the
distribution that was sampled from, temperature and truncation included, in every log-probability.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import checks
from rljax.algorithms import language
from rljax.math import divergences, sampling
from rljax.math.shuffle import permutation
from rljax.models.optimization import add_up
from rljax.models.token_losses import per_token, weighted_sum
from rljax.text import Sampling, data, generate, rewards
from rljax.text.decoding import shaped
from rljax.types import Array, Key, LanguageModel, Mean, Prompts, PyTree, Scores, Task


class Rollout(NamedTuple):
    """B completions; row n · G + g is sample g of prompt n."""

    prompt: Array  # (B, P) int32
    valid: Array  # (B, P) bool
    reference: PyTree  # (B, ...)
    completion: Array  # (B, T) int32
    mask: Array  # (B, T) bool: where there is a token, the stop token included
    drawn: Array  # (B, T) bool: of these, the ones that the policy wrote
    log_prob: Array  # (B, T) when it was drawn
    stopped: Array  # (B,) bool: whether it met a stop token


class Batch(NamedTuple):
    """What an update sees of them."""

    prompt: Array
    valid: Array
    completion: Array
    mask: Array  # (B, T) bool: tokens to learn from
    sampled: Array  # (B, T) log-probabilities when they were drawn
    old: Array | None  # (B, T) those before the update; None: of the forward pass that differentiates
    extras: PyTree = None  # (B, ...) advantages, and what else the loss wants


class Told(NamedTuple):
    """What a loss knows of each token, (B, T), not differentiated."""

    log_prob: Array
    old: Array
    entropy: Array


def check(config: Any, task: Task, model: LanguageModel, rows: int) -> None:
    """The fields that this file reads, and the task. ValueError in one line."""
    language.check(config)
    checks.number(config, "temperature", low=0, open_low=True)
    for name in ("top_k", "top_p", "min_p"):
        if getattr(config, name) is not None:
            checks.number(config, name, low=0, high=jnp.inf if name == "top_k" else 1)
    if config.max_new_tokens is not None:
        checks.count(config, "max_new_tokens")
    checks.count(config, "num_prompts", "num_epochs", "num_minibatches")
    checks.choice(config, "old_log_prob", ("recomputed", "sampled"))
    if rows % config.num_minibatches:
        checks.complain(config, "num_minibatches", f"must divide the {rows} completions of an update")
    if config.num_micro and rows // config.num_minibatches % config.num_micro:
        checks.complain(
            config, "num_micro", f"must divide the {rows // config.num_minibatches} rows of a minibatch"
        )
    rewards.check(task)
    number, width = task.learn.tokens.shape
    if config.num_prompts > number:
        checks.complain(config, "num_prompts", f"must be at most the {number} prompts of {task.name}")
    positions = getattr(model.config, "max_positions", None)
    if positions is not None and width + new_tokens(config, task) > positions:
        checks.complain(
            config,
            "max_new_tokens",
            f"prompts of {width} tokens and {new_tokens(config, task)} new ones, for a model of {positions}",
        )


def new_tokens(config: Any, task: Task) -> int:
    """T, of a completion."""
    return task.max_new_tokens if config.max_new_tokens is None else config.max_new_tokens


def settings(config: Any, task: Task, temperature: Any) -> Sampling:
    loop = "while" if jax.default_backend() == "cpu" else "scan"  # see rljax.text.generate
    return Sampling(
        temperature, config.top_k, config.top_p, config.min_p, max_new_tokens=new_tokens(config, task), loop=loop
    )


def sample(
    model: LanguageModel,
    params: PyTree,
    key: Key,
    prompts: Prompts,
    task: Task,
    settings: Sampling,
    group: int = 1,
) -> Rollout:
    """`group` completions of each prompt."""
    written = generate(
        model, params, key, prompts.tokens, prompts.valid, settings, task.stop_ids, group,
        observe=task.observe, reference=prompts.reference,
    )  # fmt: skip
    several = lambda x: jnp.repeat(x, group, axis=0)
    stops = jnp.asarray(task.stop_ids, jnp.int32)
    stopped = jnp.any((written.tokens[..., None] == stops) & written.mask[..., None], axis=(1, 2))
    return Rollout(
        prompt=several(prompts.tokens),
        valid=several(prompts.valid),
        reference=jax.tree.map(several, prompts.reference),
        completion=written.tokens,
        mask=written.mask,
        drawn=written.drawn,
        log_prob=written.log_prob,
        stopped=stopped,
    )


def chosen(order: Key, iteration: Array, learn: Prompts, number: int) -> Prompts:
    """The prompts of one iteration: every epoch goes through all of them in a new order."""
    return data.batch(order, iteration, learn, number)


def greedy(
    model: LanguageModel, params: PyTree, task: Task, held_out: Prompts, count: int, config: Any
) -> Rollout:
    """The most probable completions of the first `count` held-out prompts, or of all if there are fewer."""
    some = jax.tree.map(lambda x: x[:count], held_out)
    key = jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32))  # whose numbers decide nothing at temperature 0
    return sample(model, params, key, some, task, settings(config, task, 0.0))


def score(task: Task, frozen: PyTree, rollout: Rollout) -> Scores:
    """What each reward of the program gives; NaN for those of the host."""
    prompt = jnp.where(rollout.valid, rollout.prompt, -1)
    completion = jnp.where(rollout.mask, rollout.completion, -1)
    columns = []
    for reward in task.rewards:
        if reward.host:
            columns.append(jnp.full(prompt.shape[0], jnp.nan))
            continue
        params = frozen.get("rewards", {}).get(reward.name)
        columns.append(reward.apply(params, prompt, completion, rollout.reference).astype(jnp.float32))
    values = jnp.stack(columns, axis=1)
    return Scores(values, jnp.zeros(values.shape, bool))


def combined(task: Task, scores: Scores, group: int = 1, normalisation: str = "raw") -> Array:
    """One reward of each completion, (B,), NaN where it could not be scored."""
    weights = jnp.array([reward.weight for reward in task.rewards])
    return rewards.combine(scores.values, weights, group, normalisation)


def statistics(config: Any) -> Callable[[Array, Array], tuple[Array, Array]]:
    """(logits (B, c, V), tokens (B, c)) -> the log-probability of each token under the policy and its entropy,
    (B, c), in nats. A token that truncation excludes counts as one of the kept ones. The entropy is not
    differentiated.
    """
    if config.top_k is None and config.top_p is None and config.min_p is None:

        def plain(logits: Array, tokens: Array) -> tuple[Array, Array]:
            logits = logits / config.temperature
            best = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
            logits = logits - best
            weight = jnp.exp(logits)
            total = weight.sum(axis=-1)
            index = jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1)
            log_z = jnp.log(total)
            log_prob = jnp.where(index == tokens[..., None], logits, 0).sum(axis=-1) - log_z
            return log_prob, jax.lax.stop_gradient(log_z - (weight * logits).sum(axis=-1) / total)

        return plain
    truncation = Sampling(config.temperature, config.top_k, config.top_p, config.min_p)

    def one(logits: Array, token: Array) -> tuple[Array, Array]:
        kept, whole = shaped(truncation, (), logits, None, logits, token)
        kept = jnp.where(jnp.arange(kept.size) == token, whole, kept)
        log_p = jax.lax.stop_gradient(jax.nn.log_softmax(kept))
        return sampling.log_prob(kept, token), -jnp.where(kept > -jnp.inf, jnp.exp(log_p) * log_p, 0).sum()

    return jax.vmap(jax.vmap(one))


def log_probs(model: LanguageModel, params: PyTree, rollout: Rollout, config: Any) -> Array:
    """(B, T) log-probabilities of completions under `params`, in parts as the gradient is computed, without
    one.
    """
    rows, width = rollout.completion.shape
    parts = language.parts(config, rows // config.num_minibatches, width + rollout.prompt.shape[1])
    measured = statistics(config)

    def part(inputs: tuple[Array, Array, Array]) -> Array:
        hidden = model.completion(params, *inputs)
        return per_token(model, measured, params, hidden, inputs[2], chunk=config.chunk)[0]

    inputs = rollout.prompt, rollout.valid, rollout.completion
    parts *= config.num_minibatches
    if parts == 1:
        return jax.lax.stop_gradient(part(inputs))
    cut = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), inputs)
    return jax.lax.stop_gradient(jax.lax.map(part, cut).reshape(rows, width))


def before(model: LanguageModel, params: PyTree, rollout: Rollout, config: Any) -> Array | None:
    """The log-probabilities that an update's ratios are of: those of sampling, or the trainer's own; None,
    which costs nothing, where it takes one step.
    """
    if config.old_log_prob == "sampled":
        return rollout.log_prob
    if config.num_epochs * config.num_minibatches == 1:
        return None
    return log_probs(model, params, rollout, config)


def batch(rollout: Rollout, mask: Array, old: Array | None, extras: PyTree) -> Batch:
    return Batch(
        *(rollout.prompt, rollout.valid, rollout.completion, rollout.drawn & mask, rollout.log_prob),
        *(old, extras),
    )


def token_loss(
    model: LanguageModel,
    params: PyTree,
    hidden: Array,
    batch: Batch,
    weights: Array,
    function: Callable[[Array, Array, PyTree], Array],
    config: Any,
) -> tuple[Array, Told]:
    """Σ weights · function(log_prob, old, extras), of each token by itself, (B, c) at a time."""
    measured = statistics(config)

    def one(logits: Array, tokens: Array, old: Array | None, extras: PyTree) -> tuple[Array, Told]:
        log_prob, entropy = measured(logits, tokens)
        old = jax.lax.stop_gradient(log_prob) if old is None else old
        return function(log_prob, old, extras), Told(log_prob, old, entropy)

    inputs = weights, batch.completion, batch.old, batch.extras
    return weighted_sum(model, one, params, hidden, *inputs, chunk=config.chunk)


def sequence_loss(
    model: LanguageModel,
    params: PyTree,
    hidden: Array,
    batch: Batch,
    weights: Array,
    function: Callable[[Array, Array, PyTree, Array], Array],
    config: Any,
) -> tuple[Array, Told]:
    """Σ weights · function(log_prob, old, extras, mask), (B, T) at once: a token's loss may need all others of
    its completion.
    """
    log_prob, entropy = per_token(
        model, statistics(config), params, hidden, batch.completion, chunk=config.chunk
    )
    old = jax.lax.stop_gradient(log_prob) if batch.old is None else batch.old
    total = jnp.sum(weights * function(log_prob, old, batch.extras, batch.mask))
    return total, Told(jax.lax.stop_gradient(log_prob), old, entropy)


def update(
    loss_sum: Callable[[PyTree, tuple[Batch, Array]], tuple[Array, dict[str, Mean]]],
    weigh: Callable[[Array], Array],
    params: PyTree,
    opt_state: PyTree,
    batch: Batch,
    key: Key,
    iteration: Array,
    config: Any,
) -> tuple[PyTree, PyTree, dict[str, Mean]]:
    """num_epochs passes over the batch in num_minibatches, shuffled anew in each.

    `weigh` gives each minibatch's weights (B, T) of its mask, before it is cut into microbatches; `loss_sum`
    is of one of those, and gives what else is to be told. Returns also that, with the gradient's norm.
    """
    rows, width = batch.mask.shape
    size = rows // config.num_minibatches
    parts = language.parts(config, size, width + batch.prompt.shape[1])

    def step(carry: tuple[PyTree, PyTree], part: Batch) -> tuple[tuple[PyTree, PyTree], dict[str, Mean]]:
        params, opt_state = carry
        _, told, gradient = add_up(loss_sum, params, (part, weigh(part.mask)), parts)
        params, opt_state, norm = language.move(config, params, opt_state, gradient, iteration)
        return (params, opt_state), told | {"gradient_norm": Mean.of(norm)}

    if config.num_epochs * config.num_minibatches == 1:
        (params, opt_state), told = step((params, opt_state), batch)
        return params, opt_state, told
    orders = jax.vmap(lambda epoch: permutation(jax.random.fold_in(key, epoch), rows))
    indices = orders(jnp.arange(config.num_epochs)).reshape(-1, size)
    some = lambda carry, index: step(carry, jax.tree.map(lambda x: x[index], batch))
    (params, opt_state), told = jax.lax.scan(some, (params, opt_state), indices)
    return params, opt_state, jax.tree.map(lambda x: x.sum(axis=0, dtype=x.dtype), told)


def told(told: Told, batch: Batch, low: Array | float, high: Array | float) -> dict[str, Mean]:
    """What people look at of an update; `low` and `high` bound the ratio."""
    mean = lambda values: Mean.of(values, batch.mask)
    ratio = jnp.exp(told.log_prob - told.old)
    return {
        "entropy": mean(told.entropy),
        "ratio": mean(ratio),
        "clip_fraction": mean(((ratio < low) | (ratio > high)).astype(jnp.float32)),
        "step_kl": mean(divergences.k3(told.old, told.log_prob)),
        "drift": mean(jnp.abs(told.old - batch.sampled)),
    }


def rewarded(task: Task, rollout: Rollout, scores: Scores, reward: Array) -> dict[str, Any]:
    """What people look at of a rollout."""
    finite = jnp.isfinite(scores.values)
    each = {r.name: Mean.of(scores.values[:, i], finite[:, i]) for i, r in enumerate(task.rewards)}
    return {
        "reward": Mean.of(reward, jnp.isfinite(reward)),
        "rewards": each,
        "length": Mean.of(rollout.mask.sum(axis=1)),
        "truncated": Mean.of(~rollout.stopped),
        "unscored": Mean.of(~jnp.isfinite(reward)),
        "failed": Mean.of(scores.failed.any(axis=1)),
    }
