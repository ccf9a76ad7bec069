"""The cycles of the algorithms that write text, step by step: advantages in loops of numpy, log-probabilities
of whole logits of sequences that are padded on the right, Adam by its formula.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax.learning.completions import Rollout
from rljax.math.shuffle import permutation
from rljax.types import Algorithm, LanguageModel, Scores, Task


class Programs(NamedTuple):
    """The functions of an algorithm, jitted with the numbers of its Config as arguments."""

    init: Callable[..., Any]  # (config, key)
    step: Callable[..., Any]  # (config, key, state)
    sample: Callable[..., Any]  # (config, key, state)
    reward: Callable[..., Any]  # (config, rollout)
    learn: Callable[..., Any]  # (config, key, state, rollout, scores)
    advantage: Callable[..., Any]  # (config, state, rollout, scores)


def programs(module: Any, task: Task) -> Programs:
    def of(choose: Callable[[Algorithm], Callable[..., Any]]) -> Callable[..., Any]:
        return jax.jit(lambda config, *arguments: choose(module.make(task, config))(*arguments))

    def part(name: str) -> Callable[..., Any]:
        return of(lambda algorithm: getattr(algorithm.split, name))

    parts = [part(name) for name in ("sample", "reward", "learn", "advantage")]
    return Programs(of(lambda a: a.init), of(lambda a: a.step), *parts)


class Seen(NamedTuple):
    """What a model says of completions."""

    log_prob: Any  # (B, T)
    hidden: Any  # (B, T, D)


def arranged(rollout: Rollout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts and completions one after the other from the first column on, (B, P + T); where there is one;
    and (B, T) the column before each token of the completion.
    """
    prompt, valid, completion, mask = map(
        np.asarray, (rollout.prompt, rollout.valid, rollout.completion, rollout.mask)
    )
    rows, width = completion.shape
    tokens = np.zeros((rows, prompt.shape[1] + width), np.int32)
    there, columns = np.zeros(tokens.shape, np.int32), np.zeros(completion.shape, np.int64)
    for row in range(rows):
        both = [*prompt[row][valid[row]], *completion[row][mask[row]]]
        tokens[row, : len(both)], there[row, : len(both)] = both, 1
        columns[row] = valid[row].sum() - 1 + np.arange(width)
    return tokens, there, columns


class Text(NamedTuple):
    """Of `arranged`, and what was drawn."""

    tokens: Any  # (B, P + T)
    there: Any  # (B, P + T)
    columns: Any  # (B, T)
    completion: Any  # (B, T)


def text_of(rollout: Rollout) -> Text:
    return Text(*arranged(rollout), np.asarray(rollout.completion))


def seen(model: LanguageModel, params: Any, text: Text, temperature: float) -> Seen:
    hidden = model.forward(params, text.tokens, text.there)
    hidden = jnp.take_along_axis(hidden, text.columns[..., None], axis=1)
    logits = model.logits(params, hidden) / temperature
    chosen = jnp.take_along_axis(logits, text.completion[..., None], axis=-1)[..., 0]
    return Seen(chosen - jax.nn.logsumexp(logits, axis=-1), hidden)


@functools.cache
def _seen(model: LanguageModel) -> Callable[..., Seen]:
    return jax.jit(functools.partial(seen, model))


def looked_at(model: LanguageModel, params: Any, rollout: Rollout, temperature: float) -> Seen:
    """`seen` as numpy."""
    return Seen(*map(np.asarray, _seen(model)(params, text_of(rollout), temperature)))


class Adam:
    """By its formula, in float64, after clipping the gradient's norm."""

    def __init__(self, config: Any) -> None:
        self.config, self.count, self.moments = config, 0, {}

    def step(self, params: Any, gradient: Any) -> Any:
        config = self.config
        flat, structure = jax.tree.flatten(jax.tree.map(lambda g: np.asarray(g, np.float64), gradient))
        norm = np.sqrt(sum((g**2).sum() for g in flat))
        self.count += 1
        moved = []
        for i, (p, g) in enumerate(zip(jax.tree.leaves(params), flat, strict=True)):
            g = g * min(1.0, config.max_grad_norm / norm) if norm else g
            m, v = self.moments.get(i, (0.0, 0.0))
            m = config.beta1 * m + (1 - config.beta1) * g
            v = config.beta2 * v + (1 - config.beta2) * g**2
            self.moments[i] = m, v
            first, second = m / (1 - config.beta1**self.count), v / (1 - config.beta2**self.count)
            p = np.asarray(p, np.float64)
            moved.append(p - config.learning_rate * first / (np.sqrt(second) + config.adam_epsilon))
        return structure.unflatten([jnp.asarray(p, jnp.float32) for p in moved])


def descend(
    loss: Callable[..., jax.Array], model: Any, params: Any, config: Any, key: jax.Array, data: Any
) -> Any:
    """The passes of an update down loss(model, config, params, rows (B,), data), where `rows` are 1 for those
    of the minibatch. Completions of one prompt that fit a microbatch stay together.
    """
    adam, gradient = Adam(config), _gradient(loss, model)
    count = data["text"].tokens.shape[0]
    size = count // config.num_minibatches
    group = math.gcd(config.group_size, size // (config.num_micro or 1))
    for epoch in range(config.num_epochs):
        order = np.arange(count)
        if config.num_epochs * config.num_minibatches > 1:
            first = np.asarray(permutation(jax.random.fold_in(key, epoch), count // group)) * group
            order = first[:, None] + np.arange(group)
        for part in order.reshape(-1, size):
            rows = np.zeros(count, np.float32)
            rows[part] = 1
            params = adam.step(params, gradient(config, params, rows, data))
    return params


@functools.cache
def _gradient(loss: Callable[..., jax.Array], model: LanguageModel) -> Callable[..., Any]:
    return jax.jit(jax.grad(functools.partial(loss, model), argnums=1))


def rewards_of(task: Task, scores: Scores) -> np.ndarray:
    weights = np.array([[reward.weight for reward in task.rewards]])
    return (np.asarray(scores.values, np.float64) * weights).sum(axis=1)


def data_of(rollout: Rollout, **more: Any) -> dict[str, Any]:
    narrow = lambda x: x if x.dtype == bool else np.asarray(x, np.float32)
    return {"text": text_of(rollout)} | {name: narrow(value) for name, value in more.items()}


def bounded(ratio: jax.Array, clip: Any) -> jax.Array:
    return jnp.minimum(jnp.maximum(ratio, 1 - clip), 1 + clip)


def mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(weight > 0, weight * values, 0)) / jnp.maximum(weight.sum(), 1)


def grpo(task: Task, config: Any, model: Any, params: Any, key: Any, rollout: Any, scores: Scores) -> Any:
    """The standardised advantage, the ratio of a token, mean over tokens, k3."""
    reward, group = rewards_of(task, scores), config.group_size
    advantage, learnt = np.zeros(len(reward)), np.isfinite(reward)
    for first in range(0, len(reward), group):
        rows = [row for row in range(first, first + group) if learnt[row]]
        if len(rows) > 1 and len(set(reward[rows])) > 1:
            deviation = reward[rows].std(ddof=1) + 1e-4
            advantage[rows] = (reward[rows] - reward[rows].mean()) / deviation
    old = looked_at(model, params, rollout, config.temperature).log_prob
    start = looked_at(model, task.params, rollout, config.temperature).log_prob
    mask = np.asarray(rollout.drawn) & learnt[:, None]
    data = data_of(rollout, advantage=advantage, old=old, start=start, mask=mask)
    return descend(_grpo, model, params, config, key, data)


def _grpo(model: Any, config: Any, params: Any, rows: Any, data: Any) -> jax.Array:
    new = seen(model, params, data["text"], config.temperature).log_prob
    ratio, advantage = jnp.exp(new - data["old"]), data["advantage"][:, None]
    surrogate = -jnp.minimum(ratio * advantage, bounded(ratio, config.clip) * advantage)
    k3 = jnp.exp(data["start"] - new) - 1 - (data["start"] - new)
    return mean(surrogate + config.kl * k3, rows[:, None] * data["mask"])


def rloo(task: Task, config: Any, model: Any, params: Any, key: Any, rollout: Any, scores: Scores) -> Any:
    old = looked_at(model, params, rollout, config.temperature).log_prob
    start = looked_at(model, task.params, rollout, config.temperature).log_prob
    drawn, group = np.asarray(rollout.drawn), config.group_size
    reward = rewards_of(task, scores) - config.kl * np.where(drawn, old - start, 0).sum(axis=1)
    learnt = np.isfinite(reward)
    advantage = np.zeros(len(reward))
    for row in np.flatnonzero(learnt):
        first = row // group * group
        others = [other for other in range(first, first + group) if other != row and learnt[other]]
        advantage[row] = reward[row] - reward[others].mean() if others else 0.0
    data = data_of(rollout, advantage=advantage, old=old, drawn=drawn, learnt=learnt)
    return descend(_rloo, model, params, config, key, data)


def _rloo(model: Any, config: Any, params: Any, rows: Any, data: Any) -> jax.Array:
    new = seen(model, params, data["text"], config.temperature).log_prob
    ratio = jnp.exp(jnp.sum(jnp.where(data["drawn"], new - data["old"], 0), axis=1))
    advantage = data["advantage"]
    each = -jnp.minimum(ratio * advantage, bounded(ratio, config.clip) * advantage)
    return mean(each, rows * data["learnt"])


def rlhf_ppo(task: Task, config: Any, model: Any, params: Any, key: Any, rollout: Any, scores: Scores) -> Any:
    """With a head on the policy's states, advantages whitened, values clipped."""
    before = looked_at(model, params["policy"], rollout, config.temperature)
    old, value = before.log_prob, np.asarray(_value(params, before.hidden))
    start = looked_at(model, task.params, rollout, config.temperature).log_prob
    score = rewards_of(task, scores) - config.missing_end * ~np.asarray(rollout.stopped)
    mask = np.asarray(rollout.drawn) & np.isfinite(score)[:, None]
    advantage = np.zeros(mask.shape)
    for row in range(len(score)):
        following, carried = 0.0, 0.0
        places = np.flatnonzero(mask[row])
        for place in places[::-1]:
            reward = -config.kl * (old[row, place] - start[row, place])
            reward += score[row] if place == places[-1] else 0.0
            delta = reward + config.discount * following - value[row, place]
            carried = delta + config.discount * config.trace_decay * carried
            advantage[row, place], following = carried, value[row, place]
    target = advantage + value
    if mask.any():
        inside = advantage[mask]
        advantage = np.where(mask, (advantage - inside.mean()) / np.sqrt(inside.var() + 1e-8), 0)
    data = data_of(rollout, advantage=advantage, target=target, value=value, old=old, mask=mask)
    return descend(_rlhf_ppo, model, params, config, key, data)


def _value(params: Any, hidden: Any) -> jax.Array:
    return (hidden @ params["head"]["kernel"])[..., 0] + params["head"]["bias"][0]


def _rlhf_ppo(model: Any, config: Any, params: Any, rows: Any, data: Any) -> jax.Array:
    now = seen(model, params["policy"], data["text"], config.temperature)
    ratio, advantage = jnp.exp(now.log_prob - data["old"]), data["advantage"]
    surrogate = -jnp.minimum(ratio * advantage, bounded(ratio, config.clip) * advantage)
    new, value, target = _value(params, now.hidden), data["value"], data["target"]
    near = jnp.minimum(jnp.maximum(new, value - config.value_clip), value + config.value_clip)
    error = 0.5 * jnp.maximum((new - target) ** 2, (near - target) ** 2)
    return mean(surrogate + config.value_coefficient * error, rows[:, None] * data["mask"])


def text_reinforce(
    task: Task, config: Any, model: Any, params: Any, key: Any, rollout: Any, scores: Scores
) -> Any:
    """The baseline is the mean of the batch; demonstrations of the same prompts are mixed in."""
    start = looked_at(model, task.params, rollout, config.temperature).log_prob
    drawn = np.asarray(rollout.drawn)
    far = np.where(drawn, np.asarray(rollout.log_prob) - start, 0).sum(axis=1)
    reward = rewards_of(task, scores) - config.kl * far
    learnt = np.isfinite(reward)
    advantage = np.where(learnt, reward - (reward[learnt].mean() if learnt.any() else 0), 0)
    text = np.asarray(rollout.reference["completion"])
    shown = rollout._replace(completion=np.where(text >= 0, text, 0), mask=text >= 0)
    data = data_of(rollout, advantage=advantage, drawn=drawn, learnt=learnt, known=text >= 0)
    return descend(_text_reinforce, model, params, config, key, data | {"shown": text_of(shown)})


def _text_reinforce(model: Any, config: Any, params: Any, rows: Any, data: Any) -> jax.Array:
    del rows  # all of them, once
    new = seen(model, params, data["text"], config.temperature).log_prob
    whole = jnp.where(data["drawn"], new, 0).sum(axis=1)
    gradient = mean(-data["advantage"] * whole, data["learnt"].astype(jnp.float32))
    likely = seen(model, params, data["shown"], 1.0).log_prob
    imitation = mean(-likely, data["known"].astype(jnp.float32))
    return (1 - config.mixing) * gradient + config.mixing * imitation
