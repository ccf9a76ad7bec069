"""Algorithms of language models on completions, judgements and rows made by hand, again in numpy and float64.

The model is a bigram's, so that numpy needs no more than the formulas of the docstrings, and differences for
derivatives.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.algorithms import (
    dpo,
    grpo,
    kto,
    pretrain,
    reward_model,
    rlhf_ppo,
    rloo,
    sft,
    text_reinforce,
)
from rljax.learning.completions import Rollout
from rljax.text import rewards
from rljax.text.data import Packed
from rljax.types import Preferences, Prompts, Scores, Task
from tests.updates import numeric
from tests.updates.bigram import MODEL, START, D, V, parameters, table
from tests.updates.numeric import Adam, Params, log_softmax

P, T = 2, 3  # tokens of a prompt and of a completion
N, G = 2, 3  # prompts and completions of each
FIRST, SHARE = 4, 0.1  # the iteration that begins, and what each is of the run
OPTIMIZER: dict[str, Any] = {
    "learning_rate": 0.1, "warmup_fraction": 0.8, "weight_decay": 0.3, "beta1": 0.8, "beta2": 0.9,
    "adam_epsilon": 0.05, "max_grad_norm": 0.2, "schedule": "linear",
}  # fmt: skip


UNCLIPPED = {"max_grad_norm": 100.0}  # where a gradient is clipped, its scale shows nowhere
NOW = jax.tree.map(lambda x, y: x + y / 5, START, parameters(20))


def flat(tree: Any) -> dict[str, Any]:
    """{"head/kernel": leaf, …}."""
    named = lambda path: "/".join(str(key.key) for key in path)
    return {named(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


class AdamW:
    """Loshchilov & Hutter 2019, with warm-up and a schedule; biases and embeddings do not decay."""

    def __init__(self, config: Any) -> None:
        self.config, self.adam = config, Adam(config.adam_epsilon, config.beta1, config.beta2)

    def rate(self, iteration: int) -> float:
        done = SHARE * iteration
        fall = {"linear": 1 - done, "cosine": (1 + np.cos(np.pi * done)) / 2, "constant": 1.0}
        warm = min(1.0, (done + SHARE) / self.config.warmup_fraction)
        return self.config.learning_rate * warm * fall[self.config.schedule]

    def step(self, params: Params, loss: Callable[[Params], float], iteration: int) -> Params:
        gradients = numeric.clipped(numeric.gradient(loss, params), self.config.max_grad_norm)
        found = self.adam.direction(gradients)
        for name, value in params.items():
            if "embedding" not in name and "bias" not in name:
                found[name] = found[name] + self.config.weight_decay * value
        return {name: value - self.rate(iteration) * found[name] for name, value in params.items()}


def log_probs(params: Params, before: Any, tokens: Any, temperature: float = 1.0, of: str = "") -> np.ndarray:
    """Of tokens that follow `before`, arrays of one shape."""
    scores = params[of + "embedding"][before] @ params[of + "head/kernel"] + params[of + "head/bias"]
    return np.take_along_axis(log_softmax(scores / temperature), np.asarray(tokens)[..., None], -1)[..., 0]


# Completions: rows 0 to 2 of one prompt, 3 to 5 of another. Row 5 has no end, the world wrote one of row 3.

WRITTEN = np.array([[1, 0, 0], [2, 3, 0], [0, 0, 0], [4, 1, 0], [2, 0, 0], [3, 3, 1]], np.int32)
LENGTHS = np.array([2, 3, 1, 3, 2, 3])
MASK = np.arange(T) < LENGTHS[:, None]
DRAWN = MASK & ~((np.arange(6) == 3)[:, None] & (np.arange(T) == 1))
PROMPTS = np.repeat(np.array([[0, 2], [3, 4]], np.int32), G, axis=0)
BEFORE = np.concatenate([PROMPTS[:, -1:], WRITTEN[:, :-1]], axis=1)
SAMPLED = -1 - np.abs(table(5, 6, T))
STOPPED = np.array([True] * 5 + [False])
ROLLOUT = Rollout(PROMPTS, np.ones_like(PROMPTS, bool), None, WRITTEN, MASK, DRAWN, SAMPLED, STOPPED)
VALUES = np.array([[1, 2], [np.nan, 1], [-1, 0.5], [0.5, 1], [2, -1], [0, 3]], np.float32)  # of two rewards
EQUAL = np.array([[1, 2], [3, 1], [-1, 0.5], [1, 1], [1, 1], [1, 1]], np.float32)
WEIGHTS = np.array([1.0, 0.5])


def prompts_task() -> Task:
    nothing = lambda prompt, completion, reference: jnp.float32(0)
    both = [rewards.of_tokens(nothing, name, weight) for name, weight in zip("ab", WEIGHTS, strict=True)]
    shown = np.array([[1, 3, 0], [1, 3, 0]], np.int32)
    learn = Prompts(PROMPTS[::G], np.ones((N, P), bool), None, shown)
    learn = jax.tree.map(jnp.asarray, learn)
    return Task("made", V, learn, learn, params=START, rewards=tuple(both), max_new_tokens=T, stop_ids=(0,))


RL = {**OPTIMIZER, "total_steps": N * G / SHARE, "num_prompts": N, "group_size": G, "temperature": 0.7}


def cycles(module: Any, config: Any, values: np.ndarray, params: Any = NOW, number: int = 2) -> Any:
    """The State after learning from the same completions in two cycles."""
    task = prompts_task()
    algorithm = module.make(task, config, MODEL)
    scores = Scores(jnp.asarray(values), jnp.zeros(values.shape, bool))
    state = algorithm.init(jax.random.key(0))
    params = jax.tree.map(jnp.asarray, params)
    state = state.replace(params=params, opt_state=jax.tree.map(jnp.zeros_like, state.opt_state))
    state = state.replace(iteration=jnp.int32(FIRST))

    @jax.jit
    def learn(state: Any) -> Any:
        rollout = jax.tree.map(jnp.asarray, ROLLOUT)
        return module.make(task, config, MODEL).split.learn(jax.random.key(1), state, rollout, scores)[0]

    for _ in range(number):
        state = learn(state)
    return state


class Writer:
    """What GRPO, RLOO and PPO have in common, by hand."""

    def __init__(self, config: Any, values: np.ndarray, params: Any = NOW, of: str = "") -> None:
        self.config, self.values, self.of, self.outside = config, np.asarray(values, np.float64), of, 0
        self.params, self.adam, self.iteration = numeric.wide(flat(params)), AdamW(config), FIRST
        self.start = self.log_prob(numeric.wide(flat(START)), "")

    def log_prob(self, params: Params, of: str | None = None) -> np.ndarray:
        of = self.of if of is None else of
        return log_probs(params, BEFORE, WRITTEN, self.config.temperature, of)

    def reward(self) -> np.ndarray:
        values = self.values
        if self.config.reward_normalization == "group":
            values = np.concatenate([standardised(values[:G]), standardised(values[G:])])
        return values @ WEIGHTS

    def old(self) -> np.ndarray:
        sampled = self.config.old_log_prob == "sampled"
        return np.asarray(ROLLOUT.log_prob, np.float64) if sampled else self.log_prob(self.params)

    def surrogate(self, ratio: np.ndarray, advantage: np.ndarray, high: float | None = None) -> np.ndarray:
        low, high = self.config.clip, self.config.clip if high is None else high
        self.outside += np.sum((ratio > 1 + high) | (ratio < 1 - low))
        return -np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)

    def learn(self, loss: Callable[[Params], float]) -> None:
        for _ in range(self.config.num_epochs):
            self.params = self.adam.step(self.params, loss, self.iteration)
        self.iteration += 1


def standardised(values: np.ndarray) -> np.ndarray:
    """Each column, without the numbers that are not there."""
    return (values - np.nanmean(values, 0)) / (np.nanstd(values, 0, ddof=1) + 1e-4)


class GRPO(Writer):
    def cycle(self) -> None:
        config, reward, old = self.config, self.reward(), self.old()
        if config.overlong == "penalty":
            reward = reward - np.clip((LENGTHS - (T - config.overlong_buffer)) / config.overlong_buffer, 0, 1)
        advantage, learnt = np.zeros(6), np.isfinite(reward)
        for rows in (slice(0, G), slice(G, None)):
            scored = reward[rows][np.isfinite(reward[rows])]
            spread = scored.std(ddof=1) + 1e-4 if config.advantage == "standardised" else 1.0
            advantage[rows] = np.nan_to_num((reward[rows] - scored.mean()) / spread)
            if config.groups == "varied" and len(set(scored)) == 1:
                learnt[rows] = False
        if config.overlong == "masked":
            learnt &= ROLLOUT.stopped
        mask = DRAWN & learnt[:, None]
        counted = mask.sum(1, keepdims=True)
        weights = {
            "token_mean": mask / mask.sum(),
            "sequence_mean": mask / np.maximum(counted, 1) / (counted > 0).sum(),
            "constant": mask / mask.size,
        }[config.aggregation]
        high = config.clip if config.clip_high is None else config.clip_high

        def loss(params: Params) -> float:
            new = self.log_prob(params)
            difference = np.where(mask, new - old, 0.0)
            if config.loss == "sequence":
                difference = np.repeat(difference.sum(1, keepdims=True) / np.maximum(counted, 1), T, axis=1)
            ratio, gain = np.exp(difference), np.broadcast_to(advantage[:, None], mask.shape)
            if config.loss == "cispo":  # the weight is a constant: its log-probability is not differentiated
                held = np.exp(np.where(mask, self.log_prob(self.params) - old, 0.0))
                self.outside += np.sum(held > 1 + high)
                losses = -np.minimum(held, 1 + high) * gain * new
            else:
                losses = self.surrogate(ratio, gain, high)
            if config.dual_clip is not None:
                losses = np.minimum(losses, config.dual_clip * np.abs(gain))
            if config.kl is not None:
                apart = self.start - new
                k3 = np.exp(apart) - 1 - apart
                losses = losses + config.kl * (k3 if config.divergence == "k3" else apart**2 / 2)
            return np.sum(weights * np.where(mask, losses, 0.0))

        self.learn(loss)


GRPO_ROWS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "grpo": (VALUES, {"kl": 0.4, "clip": 0.02, "clip_high": 0.04, "num_micro": 2}),
    "dr. grpo": (
        VALUES,
        {
            "advantage": "centred", "aggregation": "constant", "divergence": "k2", "kl": 0.4,
            "dual_clip": 1.5, "old_log_prob": "sampled", "schedule": "cosine", "overlong": "masked",
            "max_grad_norm": 100.0,
        },
    ),
    "gspo": (
        VALUES,
        {
            "loss": "sequence", "aggregation": "sequence_mean", "clip": 0.05, "overlong": "penalty",
            "overlong_buffer": 2.0, "schedule": "constant",
        },
    ),
    "cispo": (EQUAL, {"loss": "cispo", "clip": 0.02, "groups": "varied", "reward_normalization": "group"}),
}  # fmt: skip


@pytest.mark.parametrize("name", GRPO_ROWS)
def test_two_cycles_of_grpo(name: str) -> None:
    values, fields = GRPO_ROWS[name]
    config = grpo.Config(**RL | {"num_epochs": 3, "kl": None} | fields)
    by_hand = GRPO(config, values)
    by_hand.cycle()
    by_hand.cycle()
    assert by_hand.outside > 0, "nothing was clipped"
    found = cycles(grpo, config, values).params
    numeric.agree(flat(found), by_hand.params, numeric.wide(flat(NOW)), tolerance=1e-3)


@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_two_cycles_of_rloo(normalization: str) -> None:
    fields = {"clip": 0.2, "kl": 0.2, "num_epochs": 3, "advantage_normalization": normalization}
    config = rloo.Config(**RL | fields | (UNCLIPPED if normalization == "none" else {}))
    by_hand = Writer(config, VALUES)
    for _ in range(2):
        old = by_hand.old()
        reward = by_hand.reward() - 0.2 * np.where(DRAWN, old - by_hand.start, 0).sum(1)
        scored, advantage = np.isfinite(reward), np.zeros(6)
        for row in np.flatnonzero(scored):
            group = range(row // G * G, row // G * G + G)
            advantage[row] = reward[row] - np.mean([reward[i] for i in group if i != row and scored[i]])
        if normalization == "batch":
            some = advantage[scored]
            advantage[scored] = (some - some.mean()) / np.sqrt(some.var() + 1e-8)

        def loss(params: Params, old: Any = old, scored: Any = scored, advantage: Any = advantage) -> float:
            ratio = np.exp(np.where(DRAWN, by_hand.log_prob(params) - old, 0).sum(1))
            return by_hand.surrogate(ratio, advantage)[scored].mean()

        by_hand.learn(loss)
    assert by_hand.outside > 0, "nothing was clipped"
    found = cycles(rloo, config, VALUES).params
    numeric.agree(flat(found), by_hand.params, numeric.wide(flat(NOW)), tolerance=1e-3)


class PPO(Writer):
    def __init__(self, config: Any, values: np.ndarray, params: Any) -> None:
        super().__init__(config, values, params, "policy/")
        self.beta, self.far = config.kl, 0

    def value(self, params: Params) -> np.ndarray:
        seen = "critic/" if self.config.critic == "separate" else "policy/"
        return (params[seen + "embedding"][BEFORE] @ params["head/kernel"])[..., 0] + params["head/bias"]

    def cycle(self) -> None:
        config, old, value = self.config, self.old(), self.value(self.params)
        score = self.reward() - config.missing_end * ~ROLLOUT.stopped
        mask = DRAWN & np.isfinite(score)[:, None]
        reward = -self.beta * (old - self.start)
        for row in np.flatnonzero(np.isfinite(score)):
            reward[row, np.flatnonzero(DRAWN[row])[-1]] += score[row]
        if config.reward_whitening == "scale":
            inside = reward[mask]
            reward = (reward - inside.mean()) / np.sqrt(inside.var() + 1e-8) + inside.mean()
        advantage = np.zeros(mask.shape)
        for row in range(6):
            following, carried = 0.0, 0.0
            for place in np.flatnonzero(mask[row])[::-1]:
                delta = reward[row, place] + config.discount * following - value[row, place]
                carried = delta + config.discount * config.trace_decay * carried
                advantage[row, place], following = carried, value[row, place]
        target = advantage + value
        if config.advantage_normalization == "batch":
            inside = advantage[mask]
            advantage = (advantage - inside.mean()) / np.sqrt(inside.var() + 1e-8)

        def loss(params: Params) -> float:
            ratio = np.exp(np.where(mask, self.log_prob(params) - old, 0))
            new = self.value(params)
            near = value + np.clip(new - value, -config.value_clip, config.value_clip)
            self.far += np.sum(near != new)
            error = (new - target) ** 2
            if config.value_loss == "clipped":
                error = np.maximum(error, (near - target) ** 2)
            losses = self.surrogate(ratio, advantage) + config.value_coefficient * error / 2
            return losses[mask].mean()

        self.learn(loss)
        if config.kl_controller == "adaptive":
            distance = np.where(DRAWN, old - self.start, 0).sum(1).mean()
            error = np.clip(distance / config.kl_target - 1, -0.2, 0.2)
            self.beta = self.beta * (1 + error * 6 / config.kl_horizon)


@pytest.mark.parametrize(
    "fields",
    [
        {"value_loss": "clipped", "value_clip": 0.02, "advantage_normalization": "batch"},
        {
            "value_loss": "plain",
            "advantage_normalization": "none",
            "reward_whitening": "scale",
            "kl_controller": "adaptive",
            "kl_target": 0.4,
            "kl_horizon": 8.0,
            "critic": "separate",
            **UNCLIPPED,
        },
    ],
    ids=["clipped", "plain"],
)
def test_two_cycles_of_rlhf_ppo(fields: dict[str, Any]) -> None:
    common = {"clip": 0.02, "value_coefficient": 0.7, "kl": 0.3, "num_epochs": 3}
    credit = {"missing_end": 0.6, "discount": 0.9, "trace_decay": 0.7}
    config = rlhf_ppo.Config(**RL | common | credit | fields)
    params = {"policy": NOW, "head": {"kernel": table(31, D, 1), "bias": table(32, 1)}}
    if config.critic == "separate":
        params["critic"] = {"embedding": table(33, V, D), "head": START["head"]}
    by_hand = PPO(config, VALUES, params)
    by_hand.cycle()
    by_hand.cycle()
    assert min(by_hand.outside, by_hand.far) > 0, "nothing was clipped"
    state = cycles(rlhf_ppo, config, VALUES, params)
    found, before = flat(state.params), numeric.wide(flat(params))
    for name in [name for name in by_hand.params if name.startswith("critic/head")]:  # which no value reads
        by_hand.params.pop(name)
        np.testing.assert_array_equal(found.pop(name), np.float32(before[name]))  # and so it does not decay
    numeric.agree(found, by_hand.params, before, tolerance=1e-3)
    np.testing.assert_allclose(state.kl_coefficient, by_hand.beta, rtol=1e-5)


def test_two_cycles_of_reinforce_with_demonstrations() -> None:
    """The moving baseline is 0 at first, then the first cycle's mean reward."""
    config = text_reinforce.Config(**RL | UNCLIPPED, baseline="moving", mixing=0.3)
    params, adam = numeric.wide(flat(NOW)), AdamW(config)
    reward = np.asarray(VALUES, np.float64) @ WEIGHTS
    scored = np.isfinite(reward)
    shown = np.array([[1, 3, 0]] * 6)
    earlier = np.concatenate([PROMPTS[:, -1:], shown[:, :-1]], axis=1)
    for iteration, baseline in ((FIRST, 0.0), (FIRST + 1, reward[scored].mean())):

        def loss(params: Params, advantage: Any = reward - baseline) -> float:
            whole = np.where(DRAWN, log_probs(params, BEFORE, WRITTEN, 0.7), 0).sum(1)
            imitation = -log_probs(params, earlier, shown).mean()
            return 0.7 * (-advantage * whole)[scored].mean() + 0.3 * imitation

        params = adam.step(params, loss, iteration)
    found = cycles(text_reinforce, config, VALUES).params
    numeric.agree(flat(found), params, numeric.wide(flat(NOW)), tolerance=1e-3)


# Judgements: three of them, all in every batch.


class Judged(NamedTuple):
    """`Preferences` with K completions each, and the tokens before those of each."""

    rows: Preferences
    before: np.ndarray  # (3, K, T)
    tokens: np.ndarray  # (3, K, T), 0 where there is none
    mask: np.ndarray  # (3, K, T)
    share: np.ndarray  # (3,) what each counts, 1 in sum


def judged(number: int) -> Judged:
    rng = np.random.default_rng(6)
    prompt = np.array([[0, 2], [3, 4], [1, 1]], np.int32)
    lengths = rng.integers(1, T + 1, (3, number))
    mask = np.arange(T) < lengths[..., None]
    tokens = np.where(mask, rng.integers(1, V, mask.shape), 0).astype(np.int32)
    first = np.broadcast_to(prompt[:, None, -1:], (3, number, 1))
    weight, margin = np.float32([0.5, 2.0, 1.0]), np.float32([0.3, 0.0, 0.8])
    completions = np.where(mask, tokens, -1).astype(np.int32)
    rows = Preferences(prompt, np.ones_like(prompt, bool), completions, weight, margin)
    before = np.concatenate([first, tokens[..., :-1]], -1)
    return Judged(rows, before, tokens, mask, np.asarray(weight, np.float64) / weight.sum())


PAIRS, TRIPLES = judged(2), judged(3)
JUDGING = {**OPTIMIZER, "total_steps": 3 / SHARE, "batch_size": 3}


def judge(module: Any, config: Any, judged: Judged, params: Any = NOW) -> Any:
    """The parameters after two updates."""
    learn = jax.tree.map(jnp.asarray, judged.rows)
    task = Task("made", V, learn, learn, params=START, max_new_tokens=T, stop_ids=(0,))
    algorithm = module.make(task, config, MODEL)
    state = algorithm.init(jax.random.key(0))
    state = state.replace(params=jax.tree.map(jnp.asarray, params), iteration=jnp.int32(FIRST))
    step = jax.jit(lambda state: module.make(task, config, MODEL).step(jax.random.key(1), state)[0])
    return step(step(state)).params


def descend(config: Any, params: Any, *losses: Callable[[Params], float]) -> Params:
    """One update for each of the losses."""
    found, adam = numeric.wide(flat(params)), AdamW(config)
    for iteration, loss in enumerate(losses, FIRST):
        found = adam.step(found, loss, iteration)
    return found


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def whole(params: Params, judged: Judged, mean: bool) -> np.ndarray:
    """(3, K) log-probabilities of completions, or their means over tokens."""
    total = np.where(judged.mask, log_probs(params, judged.before, judged.tokens), 0).sum(-1)
    return total / judged.mask.sum(-1) if mean else total


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "simpo", "orpo"])
def test_two_updates_of_dpo(loss: str) -> None:
    fields: dict[str, Any] = (
        {"loss": loss, "odds_weight": 0.4} if loss == "orpo" else {"loss": loss, "beta": 0.6}
    )
    fields |= {"sigmoid": {"label_smoothing": 0.2}, "simpo": {"margin": 0.5}}.get(loss, {})
    config = dpo.Config(**JUDGING | fields | (UNCLIPPED if loss != "sigmoid" else {}))
    start = numeric.wide(flat(START))

    def of_batch(params: Params) -> float:
        mean = loss in ("ipo", "simpo", "orpo")
        s = whole(params, PAIRS, mean)
        if loss in ("sigmoid", "hinge", "ipo"):
            s = s - whole(start, PAIRS, mean)
        difference = s[:, 0] - s[:, 1]
        odds = np.exp(s) / (1 - np.exp(np.minimum(s, -1e-9)))
        each = {
            "sigmoid": -0.8 * np.log(sigmoid(0.6 * difference)) - 0.2 * np.log(sigmoid(-0.6 * difference)),
            "hinge": np.maximum(0, 1 - 0.6 * difference),
            "ipo": (difference - 1 / (2 * 0.6)) ** 2,
            "simpo": -np.log(sigmoid(0.6 * difference - 0.5)),
            "orpo": -s[:, 0] - 0.4 * np.log(sigmoid(np.log(odds[:, 0] / odds[:, 1]))),
        }[loss]
        return PAIRS.share @ each

    found = judge(dpo, config, PAIRS)
    right = descend(config, NOW, of_batch, of_batch)
    numeric.agree(flat(found), right, numeric.wide(flat(NOW)), tolerance=1e-3)


def test_two_updates_of_kto() -> None:
    """In whichever order three judgements come, each has its neighbour in one of two circles."""
    config = kto.Config(**JUDGING | UNCLIPPED, beta=0.6, desirable_weight=1.5, undesirable_weight=0.7)
    begun = jax.tree.map(lambda x, y: x + y / 5, START, parameters(26))  # whose z is above 0
    start, now = numeric.wide(flat(START)), numeric.wide(flat(begun))
    found, distances = flat(judge(kto, config, TRIPLES, begun)), []
    prompt = np.asarray(TRIPLES.rows.tokens)

    def far(params: Params, following: np.ndarray) -> float:
        """z: completions of the judgement that follows, after the prompt of this one."""
        before = TRIPLES.before[following].copy()
        before[:, :, 0] = prompt[:, -1:]
        other = TRIPLES._replace(
            before=before, tokens=TRIPLES.tokens[following], mask=TRIPLES.mask[following]
        )
        ratio = (whole(params, other, False) - whole(start, other, False)).mean(1)
        share = TRIPLES.share * TRIPLES.share[following]
        return max(0.0, float(share @ ratio / share.sum()))

    def loss(params: Params, z: float) -> float:
        r = whole(params, TRIPLES, False) - whole(start, TRIPLES, False)
        each = 0.7 * (1 - sigmoid(0.6 * (z - r)))
        each[:, 0] = 1.5 * (1 - sigmoid(0.6 * (r[:, 0] - z)))
        return TRIPLES.share @ each.mean(1)

    circles = np.array([1, 2, 0]), np.array([2, 0, 1])
    for ways in itertools.product(circles, repeat=2):
        params, adam = now, AdamW(config)
        for iteration, following in enumerate(ways, FIRST):
            z = far(params, following)
            params = adam.step(params, lambda params, z=z: loss(params, z), iteration)
        gaps = [np.abs(np.asarray(found[name]) - right).max() for name, right in params.items()]
        distances.append(max(gaps))
    assert min(distances) < 1e-5
    assert max(far(now, following) for following in circles) > 0, "z is 0 and tests nothing"


@pytest.mark.parametrize(("loss", "rows"), [("pairwise", PAIRS), ("choice", TRIPLES)])
@pytest.mark.parametrize("centring", [None, 0.3])
def test_two_updates_of_a_reward_model(loss: str, rows: Judged, centring: float | None) -> None:
    fields = {"loss": loss, "centring": centring, "margin": "data", "normalization": "none"}
    config = reward_model.Config(**JUDGING | fields | (UNCLIPPED if centring else {}))
    params = {"model": NOW, "head": {"kernel": table(31, D, 1), "bias": table(32, 1)}}
    last = np.take_along_axis(rows.tokens, rows.mask.sum(-1, keepdims=True) - 1, -1)[..., 0]
    margin = np.asarray(rows.rows.margin, np.float64)
    fixed = np.float64(params["head"]["bias"])  # without centring nothing says what it is

    def of_batch(params: Params) -> float:
        bias = fixed if centring is None else params["head/bias"]
        score = (params["model/embedding"][last] @ params["head/kernel"])[..., 0] + bias
        if loss == "pairwise":
            each = -np.log(sigmoid(score[:, 0] - score[:, 1] - margin))
        else:
            others = np.exp(score[:, 1:] + margin[:, None]).sum(1)
            each = np.log(np.exp(score[:, 0]) + others) - score[:, 0]
        return rows.share @ (each + (centring or 0.0) * score.sum(1) ** 2)

    found, right = (
        flat(judge(reward_model, config, rows, params)),
        descend(config, params, of_batch, of_batch),
    )
    before = numeric.wide(flat(params))
    unread = ["model/head/kernel", "model/head/bias"]
    for name in unread + ["head/bias"] * (centring is None):  # which no score reads: nor do they decay
        np.testing.assert_allclose(found.pop(name), before[name], rtol=1e-6)
        right.pop(name)
    numeric.agree(found, right, before, tolerance=1e-3)


# Rows of text.


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_two_updates_of_sft(schedule: str) -> None:
    """The mean is over the tokens of the mask of the whole batch."""
    rng = np.random.default_rng(8)
    tokens, mask = rng.integers(0, V, (4, 6)).astype(np.int32), rng.random((4, 6)) < 0.4
    mask[:, 0] = False
    rows = Packed(*map(jnp.asarray, (tokens, np.ones_like(tokens), mask)))
    task = Task("made", V, rows, rows, params=NOW)
    fields = {"total_steps": 24 / SHARE, "batch_size": 4, "length": 6, "num_micro": 2, "schedule": schedule}
    fields |= UNCLIPPED if schedule == "constant" else {}
    config = sft.Config(**OPTIMIZER | fields)

    def loss(params: Params) -> float:
        return -log_probs(params, tokens[:, :-1], tokens[:, 1:])[mask[:, 1:]].mean()

    step = jax.jit(lambda state: sft.make(task, config, MODEL).step(jax.random.key(1), state)[0])
    state = sft.make(task, config, MODEL).init(jax.random.key(0)).replace(iteration=jnp.int32(FIRST))
    right = descend(config, NOW, loss, loss)
    numeric.agree(flat(step(step(state)).params), right, numeric.wide(flat(NOW)), tolerance=1e-3)


def test_two_updates_of_pretraining() -> None:
    """A text of one row's length is all that can be drawn."""
    tokens = np.array([1, 3, 0, 2, 2, 4, 1, 0], np.int32)
    task = Task("made", V, jnp.asarray(tokens), jnp.asarray(tokens), params=NOW)
    fields = {"total_steps": 16 / SHARE, "batch_size": 2, "length": 8}
    config = pretrain.Config(**OPTIMIZER | fields)
    loss = lambda params: -log_probs(params, tokens[:-1], tokens[1:]).mean()
    step = jax.jit(lambda state: pretrain.make(task, config, MODEL).step(jax.random.key(1), state)[0])
    state = pretrain.make(task, config, MODEL).init(jax.random.key(0)).replace(iteration=jnp.int32(FIRST))
    right = descend(config, NOW, loss, loss)
    numeric.agree(flat(step(step(state)).params), right, numeric.wide(flat(NOW)), tolerance=1e-3)
