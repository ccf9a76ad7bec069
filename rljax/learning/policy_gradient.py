"""The loss of a policy that writes tokens, and the passes of an update over the completions of a cycle.

The policy is the distribution that was sampled from, temperature and truncation included, in every
log-probability.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax.learning import trainable
from rljax.learning.completions import Rollout
from rljax.math import divergences, sampling
from rljax.math.shuffle import permutation
from rljax.models.optimization import add_up
from rljax.models.token_losses import per_token, weighted_sum
from rljax.text import Sampling
from rljax.text.decoding import shaped
from rljax.types import Array, Key, LanguageModel, Mean, PyTree

LARGEST = 40.0  # nats: the sum of a batch of e^40 is still a number of float32


class Batch(NamedTuple):
    """What an update sees of them."""

    prompt: Array  # (B, P), or (B / G, P) where G adjoining completions share one
    valid: Array
    completion: Array  # (B, T)
    mask: Array  # (B, T) bool: tokens to learn from
    sampled: Array | None  # (B, T) log-probabilities when they were drawn; None: `old` are those
    old: Array | None  # (B, T) those before the update; None: of the forward pass that differentiates
    extras: PyTree = None  # (B, ...) advantages, and what else the loss wants


class Told(NamedTuple):
    """What a loss knows of each token, (B, T), not differentiated."""

    log_prob: Array
    old: Array
    entropy: Array


def statistics(config: Any) -> Callable[[Array, Array], tuple[Array, Array]]:
    """(logits (B, c, V), tokens (B, c)) -> log-probabilities of the tokens under the policy and its
    entropies, (B, c), in nats. A token that truncation excludes counts as one of the kept ones. Entropies are
    not differentiated.
    """
    if config.top_k is None and config.top_p is None and config.min_p is None:
        return lambda logits, tokens: sampling.statistics(logits / config.temperature, tokens)
    truncation = Sampling(config.temperature, config.top_k, config.top_p, config.min_p)

    def one(logits: Array, token: Array) -> tuple[Array, Array]:
        kept, whole = shaped(truncation, (), logits, None, logits, token)
        kept = jnp.where(jnp.arange(kept.size) == token, whole, kept)
        log_p = jax.lax.stop_gradient(jax.nn.log_softmax(kept))
        return sampling.log_prob(kept, token), -jnp.where(kept > -jnp.inf, jnp.exp(log_p) * log_p, 0).sum()

    return jax.vmap(jax.vmap(one))


def in_parts(function: Callable[[Array, Array, Array], PyTree], rollout: Rollout, config: Any) -> PyTree:
    """function(prompt, valid, completion) of all completions, arrays (B, ...), in parts as the gradient is
    computed, without one.
    """
    rows, width = rollout.completion.shape
    parts, group = trainable.layout(config, rows, width, rollout.prompt.shape[1])
    parts *= config.num_minibatches
    inputs = rollout.prompt[::group], rollout.valid[::group], rollout.completion
    if parts == 1:
        return jax.lax.stop_gradient(function(*inputs))
    cut = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), inputs)
    found = jax.lax.map(lambda part: function(*part), cut)
    return jax.lax.stop_gradient(jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), found))


def log_probs(model: LanguageModel, params: PyTree, rollout: Rollout, config: Any) -> Array:
    """(B, T) log-probabilities of completions under `params`, without a gradient."""
    measured = statistics(config)

    def part(prompt: Array, valid: Array, completion: Array) -> Array:
        hidden = model.completion(params, prompt, valid, completion)
        return per_token(model, measured, params, hidden, completion, chunk=config.chunk)[0]

    return in_parts(part, rollout, config)


def before(model: LanguageModel, params: PyTree, rollout: Rollout, config: Any) -> Array | None:
    """The log-probabilities that an update's ratios are of: those of sampling, or the trainer's own; None,
    which costs nothing, where it takes one step.
    """
    if config.old_log_prob == "sampled":
        return rollout.log_prob
    if config.num_epochs * config.num_minibatches == 1:
        return None
    return log_probs(model, params, rollout, config)


def in_reward(
    model: LanguageModel, params: PyTree, rollout: Rollout, config: Any, old: Array | None
) -> Array:
    """The log-probabilities before the update that a penalty in the reward is of: `old`, of the ratios, or
    where there are none the trainer's own, of the same forward pass as those of the policy at the start.
    """
    return log_probs(model, params, rollout, config) if old is None else old


def at_start(model: LanguageModel, frozen: PyTree, rollout: Rollout, config: Any) -> Array | None:
    """Log-probabilities (B, T) under the policy at the start; None where there is no `kl` to it."""
    return None if config.kl is None else log_probs(model, frozen["params"], rollout, config)


def sequence_kl(rollout: Rollout, log_prob: Array, start: Array) -> Array:
    """(B,) the k1 estimate of KL(π ‖ π_start), summed over what a policy wrote: for a reward."""
    return jnp.where(rollout.drawn, divergences.k1(log_prob, start), 0.0).sum(axis=1)


def batch_of(rollout: Rollout, mask: Array, old: Array | None, extras: PyTree) -> Batch:
    return Batch(
        *(rollout.prompt, rollout.valid, rollout.completion, rollout.drawn & mask),
        *(None if old is rollout.log_prob else rollout.log_prob, old, extras),
    )


def by_token(
    model: LanguageModel,
    params: PyTree,
    hidden: Array,
    batch: Batch,
    weights: Array,
    function: Callable[[Array, Array, PyTree, Array], Array],
    config: Any,
) -> tuple[Array, Told]:
    """Σ weights · function(log_prob, old, extras, mask), for a function of each token by itself: it sees some
    places (B, c) at a time.
    """
    measured = statistics(config)

    def one(logits: Array, tokens: Array, old: Array | None, *more: PyTree) -> tuple[Array, Told]:
        log_prob, entropy = measured(logits, tokens)
        log_prob = jnp.where(more[-1], log_prob, 0.0)  # elsewhere ratios may be of any size
        old = jax.lax.stop_gradient(log_prob) if old is None else jnp.where(more[-1], old, 0.0)
        return function(log_prob, old, *more), Told(log_prob, old, entropy)

    inputs = batch.completion, batch.old, batch.extras, batch.mask
    return weighted_sum(model, one, params, hidden, weights, *inputs, chunk=config.chunk)


def by_sequence(
    model: LanguageModel,
    params: PyTree,
    hidden: Array,
    batch: Batch,
    weights: Array,
    function: Callable[[Array, Array, PyTree, Array], Array],
    config: Any,
) -> tuple[Array, Told]:
    """`by_token` for a function that needs a whole completion: it sees (B, T), at the cost of one more
    product with the head.
    """
    log_prob, entropy = per_token(
        model, statistics(config), params, hidden, batch.completion, chunk=config.chunk
    )
    log_prob = jnp.where(batch.mask, log_prob, 0.0)
    old = jax.lax.stop_gradient(log_prob) if batch.old is None else jnp.where(batch.mask, batch.old, 0.0)
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
    """num_epochs passes over the batch in num_minibatches, shuffled anew in each; completions that share a
    prompt stay together (see `language.layout`).

    `weigh` gives each minibatch's weights (B, T) of its mask, before it is cut into microbatches; `loss_sum`
    is of one of those, and gives what else is to be told. Returns also that, with the gradient's norm.
    """
    rows, width = batch.mask.shape
    parts, group = trainable.layout(config, rows, width, batch.prompt.shape[1])
    size = rows // config.num_minibatches // group
    cut = lambda tree: jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), tree)
    joined = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
    groups = cut(batch)

    def one(params: PyTree, part: tuple[Batch, Array]) -> tuple[Array, dict[str, Mean]]:
        rows, weights = part
        rows, weights = Batch(*joined(rows)), joined(weights)
        return loss_sum(
            params, (rows._replace(prompt=rows.prompt[::group], valid=rows.valid[::group]), weights)
        )

    def step(carry: tuple[PyTree, PyTree], part: Batch) -> tuple[tuple[PyTree, PyTree], dict[str, Mean]]:
        params, opt_state = carry
        weights = cut(weigh(joined(part.mask)))
        _, told, gradient = add_up(one, params, (part, weights), parts)
        params, opt_state, norm = trainable.move(config, params, opt_state, gradient, iteration)
        told = {name: mean._replace(count=mean.count + name.endswith("_loss")) for name, mean in told.items()}
        return (params, opt_state), told | {"gradient_norm": Mean.of(norm)}

    if config.num_epochs * config.num_minibatches == 1:
        (params, opt_state), told = step((params, opt_state), groups)
        return params, opt_state, told
    number = len(groups.mask)
    orders = jax.vmap(lambda epoch: permutation(jax.random.fold_in(key, epoch), number))
    indices = orders(jnp.arange(config.num_epochs)).reshape(-1, size)
    some = lambda carry, index: step(carry, jax.tree.map(lambda x: x[index], groups))
    (params, opt_state), told = jax.lax.scan(some, (params, opt_state), indices)
    return params, opt_state, jax.tree.map(lambda x: x.sum(axis=0, dtype=x.dtype), told)


def shown(
    told: Told,
    batch: Batch,
    total: Array,
    cut: Callable[[Array], Array],
    start: Array | None = None,
    log_ratio: Callable[[Array, Array, Array], Array] | None = None,
) -> dict[str, Mean]:
    """What people look at of a microbatch whose weighted loss is `total`; `cut` says of ratios (B, T) which
    ones the clip acts on. A ratio is that of a token unless its logarithm is `log_ratio` (log_prob, old,
    mask); `start` are log-probabilities under the policy at the start. Ratios are of at most e^LARGEST: what
    is only told ends no run.
    """
    mean = lambda values: Mean.of(values, batch.mask)
    both = told.log_prob, told.old
    logarithm = both[0] - both[1] if log_ratio is None else log_ratio(*both, batch.mask)
    ratio = jnp.exp(jnp.minimum(logarithm, LARGEST))
    far = lambda p, q: mean(divergences.k3(p, jnp.minimum(q, p + LARGEST)))
    return {
        "policy_loss": Mean(total, jnp.int32(0)),  # counted once a step
        "kl": Mean.none() if start is None else far(told.log_prob, start),
        "entropy": mean(told.entropy),
        "ratio": mean(ratio),
        "clip_fraction": mean(cut(ratio)),
        "step_kl": far(told.old, told.log_prob),
        "drift": Mean.none() if batch.sampled is None else mean(jnp.abs(told.old - batch.sampled)),
    }
