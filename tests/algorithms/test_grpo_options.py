"""The choices of GRPO: each loss is its formula, and its gradient does not depend on how a batch is cut."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.algorithms import grpo
from rljax.models.language_models import language_model
from rljax.types import Scores
from tests.algorithms import tasks, text_reference
from tests.algorithms.tasks import configured
from tests.algorithms.text_reference import programs

TASK = tasks.rewarded_task_with_a_model()
FIELDS: dict[str, Any] = {**tasks.RL, "group_size": 3, "adam_epsilon": 1e-3, "old_log_prob": "sampled"}
KEY = jax.random.key(3)


class Drawn(NamedTuple):
    """A rollout of a policy that has moved since: ratios are far from 1. Tokens of the policy in `mask`."""

    state: Any
    rollout: Any
    scores: Any
    log_prob: np.ndarray
    start: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        return np.exp(self.log_prob - np.asarray(self.rollout.log_prob, np.float64))


@functools.cache
def drawn(oversampling: int = 1) -> Drawn:
    config = configured(grpo, FIELDS | {"num_prompts": 4 * oversampling})
    made = programs(grpo, TASK)
    state = made.init(config, jax.random.key(0))
    noise = lambda seed, x, size: x + size * jax.random.normal(jax.random.key(seed), x.shape)
    leaves, structure = jax.tree.flatten(state.params)
    state = state.replace(params=structure.unflatten([noise(i, x, 0.1) for i, x in enumerate(leaves)]))
    rollout = made.sample(config, KEY, state)
    model = language_model(TASK.vocab_size, config, tasks.reverse().length)
    both = [text_reference.looked_at(model, params, rollout, 1.0) for params in (state.params, TASK.params)]
    log_prob, start = (np.asarray(each.log_prob, np.float64) for each in both)
    rollout = rollout._replace(log_prob=noise(50, rollout.log_prob, 0.5))
    mask = np.asarray(rollout.drawn)
    return Drawn(state, rollout, rewards(mask.shape[0]), log_prob, start, mask, mask.sum(axis=1))


def rewards(number: int, values: Any = None) -> Scores:
    column = np.random.default_rng(0).normal(size=number) if values is None else np.asarray(values)
    return Scores(jnp.asarray(column[:, None], jnp.float32), jnp.zeros((number, 1), bool))


def centred(reward: np.ndarray) -> np.ndarray:
    groups = reward.reshape(-1, 3)
    return (groups - groups.mean(axis=1, keepdims=True)).reshape(-1, 1)


def standardised(reward: np.ndarray) -> np.ndarray:
    groups = reward.reshape(-1, 3)
    return centred(reward) / np.repeat(groups.std(axis=1, ddof=1) + 1e-4, 3)[:, None]


def clipped(ratio: np.ndarray, advantage: np.ndarray, low: float, high: float) -> np.ndarray:
    return -np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)


def dual(here: Drawn, advantage: np.ndarray) -> np.ndarray:
    loss = clipped(here.ratio, advantage, 0.2, 0.4)
    bad = np.broadcast_to(advantage < 0, loss.shape)
    loss[bad] = -np.maximum(-loss, 1.5 * advantage)[bad]
    return loss


def sequence(here: Drawn, advantage: np.ndarray) -> np.ndarray:
    mean = np.where(here.mask, np.log(here.ratio), 0).sum(axis=1, keepdims=True) / here.lengths[:, None]
    return np.broadcast_to(clipped(np.exp(mean), advantage, 0.1, 0.1), here.mask.shape)


def k2(here: Drawn) -> np.ndarray:
    return (here.log_prob - here.start) ** 2 / 2


def k3(here: Drawn) -> np.ndarray:
    difference = here.start - here.log_prob
    return np.exp(difference) - 1 - difference


class Choice(NamedTuple):
    fields: dict[str, Any]
    advantage: Callable[[np.ndarray], np.ndarray]
    loss: Callable[[Drawn, np.ndarray], np.ndarray]  # of each token
    weigh: Callable[[Drawn], Any]  # of each token
    low: float = 0.8
    high: float = 1.2


def token_mean(here: Drawn) -> Any:
    return 1 / here.mask.sum()


def sequence_mean(here: Drawn) -> Any:
    return 1 / (len(here.mask) * here.lengths[:, None])


CHOICES = {
    "dapo, dual clip": Choice({"clip_high": 0.4, "dual_clip": 1.5}, standardised, dual, token_mean, high=1.4),
    "as published": Choice(
        {"aggregation": "sequence_mean", "kl": 0.3},
        standardised,
        lambda here, a: clipped(here.ratio, a, 0.2, 0.2) + 0.3 * k3(here),
        sequence_mean,
    ),
    "dr.grpo": Choice(
        {"advantage": "centred", "aggregation": "constant", "kl": 0.3, "divergence": "k2"},
        centred,
        lambda here, a: clipped(here.ratio, a, 0.2, 0.2) + 0.3 * k2(here),
        lambda here: 1 / here.mask.size,
    ),
    "gspo": Choice(
        {"loss": "sequence", "aggregation": "sequence_mean", "clip": 0.1},
        *(standardised, sequence, sequence_mean, 0.9, 1.1),
    ),
    "cispo": Choice(
        {"loss": "cispo", "clip_high": 0.4},
        standardised,
        lambda here, a: -np.minimum(here.ratio, 1.4) * a * here.log_prob,
        *(token_mean, 0.0, 1.4),
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_each_choice_is_its_formula_however_the_batch_is_cut(name: str) -> None:
    choice, here, made = CHOICES[name], drawn(), programs(grpo, TASK)
    config = configured(grpo, FIELDS | choice.fields)
    arguments = KEY, here.state, here.rollout, here.scores
    state, metrics = made.learn(config.replace(num_micro=1), *arguments)
    advantage = choice.advantage(np.asarray(here.scores.values, np.float64)[:, 0])
    loss = np.where(here.mask, choice.loss(here, advantage) * choice.weigh(here), 0).sum()
    np.testing.assert_allclose(metrics.policy_loss.value, loss, rtol=1e-5, atol=1e-6)
    ratio = here.ratio
    if name == "gspo":
        total = np.where(here.mask, np.log(ratio), 0).sum(axis=1, keepdims=True)
        ratio = np.broadcast_to(np.exp(total / here.lengths[:, None]), ratio.shape)
    outside = ratio > choice.high  # cispo bounds a weight on one side, whatever the advantage
    if name != "cispo":
        bad = (ratio < choice.low) | (ratio > choice.fields.get("dual_clip", np.inf))
        outside = np.where(advantage > 0, outside, (advantage < 0) & bad)
    outside = outside[here.mask]
    assert 0 < outside.sum() < outside.size
    np.testing.assert_allclose(metrics.clip_fraction.value, outside.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics.ratio.value, ratio[here.mask].mean(), rtol=1e-4)
    credit = np.where(here.mask, np.broadcast_to(advantage, here.mask.shape), 0)
    shown = made.advantage(config, here.state, here.rollout, here.scores)
    np.testing.assert_allclose(shown, credit, rtol=1e-4, atol=1e-5)

    cut, counted = made.learn(config.replace(num_micro=4), *arguments)
    whole = map(jax.tree.leaves, (cut.params, state.params, here.state.params))
    for one, other, first in zip(*whole, strict=True):
        step = float(np.abs(np.asarray(other) - np.asarray(first)).max())
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * step + 1e-8)
    np.testing.assert_allclose(counted.gradient_norm.value, metrics.gradient_norm.value, rtol=1e-5)
    np.testing.assert_allclose(counted.policy_loss.value, metrics.policy_loss.value, rtol=1e-4, atol=1e-6)


def test_a_completion_without_an_end_may_be_left_out_but_counts_in_its_group() -> None:
    here, made = drawn(), programs(grpo, TASK)
    config = configured(grpo, FIELDS, overlong="masked")
    _, metrics = made.learn(config, KEY, here.state, here.rollout, here.scores)
    stopped = np.asarray(here.rollout.stopped)
    assert 0 < stopped.sum() < stopped.size
    assert int(metrics.entropy.count) == here.mask[stopped].sum()
    credit = np.asarray(made.advantage(config, here.state, here.rollout, here.scores))
    right = standardised(np.asarray(here.scores.values, np.float64)[:, 0])
    np.testing.assert_allclose(credit[:, 0], right[:, 0], rtol=1e-4)


def test_the_penalty_of_length_grows_within_its_buffer() -> None:
    here, made = drawn(), programs(grpo, TASK)
    config = configured(grpo, FIELDS, overlong="penalty", overlong_buffer=2.0, advantage="centred")
    zeros = rewards(12, np.zeros(12))
    credit = np.asarray(made.advantage(config, here.state, here.rollout, zeros))
    lengths = np.asarray(here.rollout.mask).sum(axis=1)
    assert set(lengths) >= {1, 3, 4}  # of at most 4: 0, a half, 1
    penalty = np.array([{1: 0.0, 2: 0.0, 3: -0.5, 4: -1.0}[length] for length in lengths.tolist()])
    np.testing.assert_allclose(credit[:, 0], centred(penalty)[:, 0], atol=1e-6)


def test_rewards_that_are_standardised_per_group_are_not_once_more() -> None:
    """Two groups of four: of one both rewards agree, of the other they cancel, but for noise."""
    second = TASK.rewards[0]._replace(name="second")
    task = TASK._replace(rewards=(TASK.rewards[0], second))
    agree, cancel = np.array([1.0, 1, 0, 0]), np.array([0.0, 0, 1, 1.1])
    values = np.stack([[*agree, *agree], [*agree, *cancel]], axis=1)
    scores = Scores(jnp.asarray(values, jnp.float32), jnp.zeros(values.shape, bool))
    config = configured(grpo, FIELDS, group_size=4, num_prompts=2, reward_normalization="group")
    rollout = jax.tree.map(lambda x: x[:8], drawn().rollout)
    credit = np.asarray(programs(grpo, task).advantage(config, drawn().state, rollout, scores))[:, 0]
    z = lambda x: (x - x.mean()) / (x.std(ddof=1) + 1e-4)
    total = np.concatenate([2 * z(agree), z(agree) + z(cancel)])
    np.testing.assert_allclose(credit, total / (total.std(ddof=1) + 1e-4), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(credit[:4], [1.32, 1.32, -1.32, -1.32], atol=0.01)
    assert np.abs(credit[4:]).max() < 0.1


def test_groups_without_variance_can_be_left_out_of_the_mean() -> None:
    here, made = drawn(), programs(grpo, TASK)
    values = np.array([1, 1, 1, 0, 1, 0.5, 0, 0, 0, np.nan, 0.5, 0.5])
    scores = rewards(12, values)
    arguments = KEY, here.state, here.rollout, scores
    _, every = made.learn(configured(grpo, FIELDS), *arguments)
    _, varied = made.learn(configured(grpo, FIELDS, groups="varied"), *arguments)
    assert int(every.entropy.count) == here.mask[np.isfinite(values)].sum()
    assert int(varied.entropy.count) == here.mask[3:6].sum()
    for metrics in (every, varied):
        assert (float(metrics.varied.total), int(metrics.varied.count)) == (1, 4)
    share = here.mask[3:6].sum() / here.mask[np.isfinite(values)].sum()
    np.testing.assert_allclose(every.policy_loss.value, varied.policy_loss.value * share, rtol=1e-5)


@pytest.mark.parametrize("teaching", [(1, 2, 4, 7), (0, 5)])
def test_of_more_prompts_those_that_teach_are_chosen_in_their_order(teaching: tuple[int, ...]) -> None:
    here, made = drawn(2), programs(grpo, TASK)
    values = np.ones((8, 3))
    values[list(teaching)] = np.random.default_rng(1).normal(size=(len(teaching), 3))
    scores = rewards(24, values.reshape(-1))
    config = configured(grpo, FIELDS, groups="resampled", oversampling=2)
    state, metrics = made.learn(config, KEY, here.state, here.rollout, scores)
    assert (float(metrics.varied.total), int(metrics.varied.count)) == (len(teaching), 8)
    rows = (np.array(teaching)[:, None] * 3 + np.arange(3)[None]).reshape(-1)
    assert int(metrics.entropy.count) == here.mask[rows].sum()
    rows = np.concatenate([rows, np.zeros(12 - rows.size, np.int64)])
    some, them = jax.tree.map(lambda x: x[rows], (here.rollout, scores))
    missing = np.arange(12) >= 3 * len(teaching)
    them = them._replace(values=jnp.where(missing[:, None], jnp.nan, them.values))
    alone, _ = made.learn(configured(grpo, FIELDS), KEY, here.state, some, them)
    for one, other in zip(*map(jax.tree.leaves, (state.params, alone.params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
