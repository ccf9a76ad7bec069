"""Completions to learn from: what the algorithms share that write text, are rewarded for it, and learn.

A cycle samples B = num_prompts × group_size completions, scores them, and updates: the last is
`rljax.learning.policy_gradient`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import checks
from rljax.learning import maximum_likelihood, trainable
from rljax.math import groups
from rljax.text import Sampling, data, generate, rewards
from rljax.types import (
    Algorithm,
    Array,
    Key,
    LanguageModel,
    Mean,
    Policy,
    Prompts,
    PyTree,
    Scores,
    Split,
    Task,
)


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


def length(config: Any, task: Task) -> int:
    """Of a prompt and a completion together. ValueError in one line where the task has no prompts."""
    if not isinstance(task.learn, Prompts):
        raise ValueError(f"the task {task.name} has no prompts: learn is a {type(task.learn).__name__}")
    if config.max_new_tokens is not None:
        checks.count(config, "max_new_tokens")
    return task.learn.tokens.shape[1] + new_tokens(config, task)


def check(config: Any, task: Task, model: LanguageModel, oversampling: int = 1) -> None:
    """The fields that this file reads, and the task. ValueError in one line."""
    trainable.check(config)
    checks.number(config, "temperature", low=0, open_low=True)
    if config.top_k is not None:
        checks.number(config, "top_k", low=0)
        checks.integral(config, "top_k")
    for name in ("top_p", "min_p"):
        if getattr(config, name) is not None:
            checks.number(config, name, low=0, high=1)
    checks.count(config, "num_prompts", "num_epochs", "num_minibatches")
    checks.count(config, "group_size", low=2 if config.reward_normalization == "group" else 1)
    rows = checks.product(config, "num_prompts", "group_size")
    width = task.learn.tokens.shape[1] + new_tokens(config, task)
    # a token, its log-probability and two masks
    checks.fits(config, "group_size", rows * oversampling * width * 10)
    if rows % config.num_minibatches:
        checks.complain(config, "num_minibatches", f"must divide the {rows} completions of an update")
    if config.num_micro and rows // config.num_minibatches % config.num_micro:
        checks.complain(
            config, "num_micro", f"must divide the {rows // config.num_minibatches} rows of a minibatch"
        )
    rewards.check(task._replace(max_new_tokens=new_tokens(config, task)))
    number, width = task.learn.tokens.shape
    if config.num_prompts * oversampling > number:
        times = f"{oversampling} times (oversampling) that " if oversampling > 1 else ""
        checks.complain(config, "num_prompts", f"{times}must be at most the {number} prompts of {task.name}")
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


def sampling_settings(config: Any, task: Task, temperature: Any) -> Sampling:
    shape = config.top_k, config.top_p, config.min_p
    return Sampling(temperature, *shape, max_new_tokens=new_tokens(config, task))


def write(
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
    stopped = jnp.any(written.mask & jnp.isin(written.tokens, stops), axis=1)
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


def score(task: Task, frozen: PyTree, rollout: Rollout) -> Scores:
    """What each reward of the program gives; NaN for those of the host."""
    prompt = jnp.where(rollout.valid, rollout.prompt, -1)
    completion = rewards.one_stop(task.stop_ids, jnp.where(rollout.mask, rollout.completion, -1))
    columns = []
    for reward in task.rewards:
        if reward.host:
            columns.append(jnp.full(prompt.shape[0], jnp.nan))
            continue
        params = frozen.get("rewards", {}).get(reward.name)
        columns.append(reward.apply(params, prompt, completion, rollout.reference).astype(jnp.float32))
    values = jnp.stack(columns, axis=1)
    return Scores(values, *jnp.zeros((2, *values.shape), bool))


def combined(
    task: Task, scores: Scores, group: int = 1, normalisation: rewards.Normalisation = "raw"
) -> Array:
    """One reward of each completion, (B,), NaN where it could not be scored."""
    weights = jnp.array([reward.weight for reward in task.rewards])
    return rewards.combine(scores.values, weights, group, normalisation, scores.absent)


def credited(advantage: Callable[[Array, Array], Array], config: Any, reward: Array, scored: Array) -> Array:
    """Advantages (N, G) of rewards (N, G), group by group. The sum of rewards that were standardised within
    their group is divided by its deviation over the batch: within a group once more, a sum that is nearly 0
    would become as large as any (GDPO, Liu et al. 2026, arXiv:2601.05242).
    """
    if config.reward_normalization == "raw" or advantage is not groups.standardised:
        return jax.vmap(advantage)(reward, scored)
    centred = jax.vmap(groups.centred)(reward, scored)
    return groups.standardised(centred.reshape(-1), scored.reshape(-1)).reshape(reward.shape)


def at_the_end(values: Array, drawn: Array) -> Array:
    """Values (B,) at the last token that the policy wrote of each row, 0 elsewhere: (B, T)."""
    index = jnp.arange(drawn.shape[1])[None]
    last = jnp.where(drawn, index, -1).max(axis=1, keepdims=True)
    return jnp.where(index == last, values[:, None], 0.0)


class Rewarded(NamedTuple):
    """What people look at of a rollout."""

    reward: Mean  # the weighted sum of a completion's rewards
    rewards: dict[str, Mean]  # each of them
    length: Mean  # tokens of a completion
    truncated: Mean  # completions without a stop token
    unscored: Mean  # those whose reward is NaN
    failed: Mean  # those of which a reward of the host failed


def rewarded(task: Task, rollout: Rollout, scores: Scores) -> Rewarded:
    reward, finite = combined(task, scores), jnp.isfinite(scores.values)
    return Rewarded(
        reward=Mean.of(reward, jnp.isfinite(reward)),
        rewards={r.name: Mean.of(scores.values[:, i], finite[:, i]) for i, r in enumerate(task.rewards)},
        length=Mean.of(rollout.mask.sum(axis=1)),
        truncated=Mean.of(~rollout.stopped),
        unscored=Mean.of(~jnp.isfinite(reward)),
        failed=Mean.of(scores.failed.any(axis=1)),
    )


def algorithm(
    task: Task,
    config: Any,
    model: LanguageModel,
    frozen: PyTree,
    init: Callable[[Key], Any],
    sample: Callable[[Key, Any], Rollout],
    learn: Callable[[Key, Any, Rollout, Scores], tuple[Any, Any]],
    advantage: Callable[[Any, Rollout, Scores], Array],
    params: Callable[[Any], PyTree] = lambda state: state.params,
) -> Algorithm:
    """The algorithm of these parts; `params` are those of the policy in a State."""
    reward = lambda rollout: score(task, frozen, rollout)

    def in_the_program() -> None:
        if host := [each.name for each in task.rewards if each.host]:
            raise ValueError(
                f"reward {host[0]} is computed on the host: train with rljax.train, or call split's parts"
            )

    def step(key: Key, state: Any) -> tuple[Any, Any]:
        in_the_program()
        sample_key, learn_key = jax.random.split(key)
        rollout = sample(sample_key, state)
        return learn(learn_key, state, rollout, reward(rollout))

    def best(state: Any, count: int) -> Rollout:
        some = jax.tree.map(lambda x: x[:count], frozen["held_out"])
        settings = sampling_settings(config, task, 0.0)
        # any key will do: its numbers decide nothing at temperature 0
        return write(model, params(state), state.order, some, task, settings)

    def measure(state: Any, count: int) -> tuple[Array, Array]:
        in_the_program()
        rollout = best(state, count)
        return combined(task, reward(rollout)), rollout.mask.sum(axis=1).astype(jnp.float32)

    def policy(state: Any) -> Policy:
        return maximum_likelihood.policy(model, params(state))

    return Algorithm(init, step, policy, Split(sample, reward, learn, advantage, best), measure)
