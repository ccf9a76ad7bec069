"""Kahneman–Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306): a policy learns which completions
are desirable, each by itself, and not which of two is better.

    r   = log π(y | x) − log π_start(y | x)
    z   = max(0, E log π(y' | x) − log π_start(y' | x))        of completions y' of other prompts, no gradient
    L   = Σ w λ_D (1 − σ(β (r − z)))   where y is desirable
        + Σ w λ_U (1 − σ(β (z − r)))   where it is not

Of each judgement the first completion is desirable and the K − 1 others are not, so that the same data
serves here, in `dpo` and in `reward_model`; w is what the judgement counts, over all completions of the batch
1 in sum. z estimates KL(π ‖ π_start): its y' are the completions of the judgement that comes next in the
batch, weighted by what both judgements count. π_start is `frozen["params"]`.

Judgements may be of one completion each, with a label that says whether it is desirable.

Where K > 2, λ_D / λ_U of about K − 1 makes up for the numbers of both (the paper's equation 9).

`measure` counts the held-out judgements in which the preferred completion has the highest r, which is what
`dpo` counts, so that the two compare; of single completions those whose r is above 0 where they are desirable
and below where they are not.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rljax import checks
from rljax.learning import maximum_likelihood, preference_batches, trainable
from rljax.math import preferences
from rljax.types import CARRIED, Algorithm, Array, Key, LanguageModel, Mean, Policy, Preferences, PyTree, Task

LEARNS = "preferences"


@struct.dataclass
class Config:
    """Fields; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 10_000  # judgements of the run
    learning_rate: float = 2e-5  # of AdamW, at its highest
    beta: float = 0.1  # β, how close the policy stays to where it started
    desirable_weight: float = 1.0  # λ_D of completions that are desirable
    undesirable_weight: float = 1.0  # λ_U of those that are not
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    alpha: float = 16.0
    batch_size: int = struct.field(pytree_node=False, default=16)  # judgements of an update, at least 2
    num_micro: int = struct.field(pytree_node=False, default=0)  # parts of the gradient; 0: by the backend
    chunk: int = struct.field(pytree_node=False, default=128)
    train: Literal["all", "lora", "prefix", "subset"] = struct.field(pytree_node=False, default="all")
    rank: int = struct.field(pytree_node=False, default=8)
    prefix_length: int = struct.field(pytree_node=False, default=8)
    patterns: tuple[str, ...] = struct.field(pytree_node=False, default=("attention/*",))
    architecture: Literal["llama", "t5", "gru", "lstm"] = struct.field(pytree_node=False, default="llama")
    hidden_size: int = struct.field(pytree_node=False, default=128)
    num_layers: int = struct.field(pytree_node=False, default=4)
    num_heads: int = struct.field(pytree_node=False, default=4)
    dtype: Literal["float32", "bfloat16"] = struct.field(pytree_node=False, default="float32")
    schedule: Literal["constant", "linear", "cosine"] = struct.field(pytree_node=False, default="linear")

    @property
    def steps_per_iteration(self) -> int:
        return self.batch_size

    @property
    def initial_steps(self) -> int:
        return 0


@struct.dataclass
class State:
    params: PyTree = struct.field(metadata=CARRIED)  # what is trained: all of the model's, or adapters
    opt_state: PyTree
    order: Key  # of the judgements
    iteration: Array


class Metrics(NamedTuple):
    loss: Mean
    kl: Mean  # z
    accuracy: Mean  # judgements in which the preferred completion has the highest reward, or r the right sign
    margin: Mean  # its reward less the best of the others; of nothing where completions are single
    reward_chosen: Mean  # β r of a desirable completion
    reward_rejected: Mean  # of the others
    log_prob_chosen: Mean  # of a whole completion, in nats
    log_prob_rejected: Mean
    gradient_norm: Mean  # before clipping


def make(
    task: Task, config: Config, network: LanguageModel | None = None, frozen: PyTree = None
) -> Algorithm:
    """KTO on `task`'s judgements; `network` is the LanguageModel whose parameters are `frozen["params"]`.

    Raises: ValueError naming a field of `config`, its value and what would be right.
    """
    config = checks.fields(config)
    checks.number(config, "beta", low=0, open_low=True)
    checks.number(config, "desirable_weight", "undesirable_weight", low=0)
    checks.count(config, "batch_size", low=2)  # one judgement has no other to take a completion from
    frozen = task.frozen if frozen is None else frozen
    length = preference_batches.size(task, frozen)
    base, model, begin = trainable.adapted(task, config, network, frozen, length)
    preference_batches.check(config, task, frozen, model, length, labels=True)
    trainable.need_start(config, "beta", frozen)
    number = frozen["learn"].completion.shape[1]

    def compared(params: PyTree, rows: Preferences) -> tuple[Array, Array]:
        """r and log-probabilities, (B, K)."""
        pairs, fixed = preference_batches.flat(rows), jax.lax.stop_gradient(frozen["params"])
        now = preference_batches.log_probs(model, params, pairs, config.chunk).total
        start = preference_batches.log_probs(base, fixed, pairs, config.chunk).total
        return (now - start).reshape(-1, number), now.reshape(-1, number)

    def reference_point(params: PyTree, rows: Preferences, weights: Array) -> Array:
        """z, ()."""
        following = lambda x: jnp.roll(x, -1, axis=0)
        other = rows._replace(completion=following(rows.completion))
        parts = trainable.parts(config, config.batch_size, number * length)
        cut = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), other)
        ratio = jax.lax.map(lambda part: compared(params, part)[0].mean(axis=1), cut).reshape(-1)
        weights = weights * following(weights)
        total = weights.sum()
        mean = jnp.sum(weights * ratio) / jnp.where(total > 0, total, 1.0)
        return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))

    def init(key: Key) -> State:
        params_key, order = jax.random.split(key)
        params = begin(params_key)
        return State(params, trainable.optimizer(config).init(params), order, jnp.int32(0))

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        del key  # nothing is drawn
        batch = preference_batches.chosen(state.order, state.iteration, frozen["learn"], config.batch_size)
        kl = reference_point(state.params, *batch)

        def loss_sum(params: PyTree, part: tuple[Preferences, Array]) -> tuple[Array, dict[str, Mean]]:
            rows, weights = part
            ratio, log_prob = compared(params, rows)
            desirable = _desirable(rows)
            loss = preferences.kto(
                ratio, desirable, kl, config.beta, config.desirable_weight, config.undesirable_weight
            )
            reward, log_prob = jax.lax.stop_gradient((config.beta * ratio, log_prob))
            counted = weights > 0
            good, bad = desirable & counted[:, None], ~desirable & counted[:, None]
            best = jnp.where(desirable, -jnp.inf, reward).max(axis=1)
            return jnp.sum(weights * loss.mean(axis=1)), {
                "accuracy": Mean.of(_right(rows, reward), counted),
                "margin": Mean.of(reward[:, 0] - best, counted) if number > 1 else Mean.none(),
                "reward_chosen": Mean.of(reward, good),
                "reward_rejected": Mean.of(reward, bad),
                "log_prob_chosen": Mean.of(log_prob, good),
                "log_prob_rejected": Mean.of(log_prob, bad),
            }

        params, opt_state, told = preference_batches.update(
            loss_sum, state.params, state.opt_state, batch, state.iteration, config, number * length
        )
        metrics = Metrics(kl=Mean.of(kl), **told)
        return State(params, opt_state, state.order, state.iteration + 1), metrics

    def policy(state: State) -> Policy:
        return maximum_likelihood.policy(model, state.params)

    def measure(state: State, count: int) -> tuple[Array, Array]:
        rows = jax.tree.map(lambda x: x[:count], frozen["held_out"])
        correct = lambda rows: _right(rows, compared(state.params, rows)[0])
        return preference_batches.measure(correct, rows, config.batch_size)

    return Algorithm(init, step, policy, measure=measure)


def _desirable(rows: Preferences) -> Array:
    """Which completions are, (B, K): the first of several, or as the labels say."""
    if rows.desirable is not None:
        return rows.desirable[:, None]
    return jnp.broadcast_to(jnp.arange(rows.completion.shape[1]) == 0, rows.completion.shape[:2])


def _right(rows: Preferences, scores: Array) -> Array:
    """Of r (B, K), or a positive multiple: 1 where a judgement is right, 0 where not, (B,)."""
    if rows.desirable is None:
        return preference_batches.right(scores)
    r = jnp.where(rows.desirable, scores[:, 0], -scores[:, 0])
    return jnp.where(r == 0, 0.5, (r > 0).astype(jnp.float32))
