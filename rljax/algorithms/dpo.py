"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and its family: a policy learns
from judgements, without a reward model and without writing anything.

    sigmoid  −(1 − ε) log σ(β Δ) − ε log σ(−β Δ),  ε = label_smoothing
    hinge    max(0, 1 − β Δ)                                      SLiC, Zhao et al. 2023, arXiv:2305.10425
    ipo      (Δ − 1/(2β))²                                        Azar et al. 2023, arXiv:2310.12036
    simpo    −log σ(β Δ − γ),  γ = margin                         Meng et al. 2024, arXiv:2405.14734
    orpo     −mean log π(c) − λ log σ(log odds(c) − log odds(r)),  λ = odds_weight       Hong et al. 2024,
             odds = p/(1 − p) of p = exp(mean log π)                               arXiv:2403.07691

where c was preferred to r, Δ = s(c) − s(r), and s is

    log π − log π_start of the whole completion      sigmoid, hinge
    its mean over the completion's tokens            ipo, as in TRL; the paper has the sum
    the mean of log π over them                      simpo and orpo, which need no policy at the start

π_start is `frozen["params"]`; simpo and orpo do not compute it. The loss is the mean over the batch, weighted
by what each judgement counts. What is told as the reward of a completion is β s.

simpo takes a β of about 2. `measure` counts the held-out pairs in which c has the higher s.

Differs from TRL: the likelihood in orpo is of completions alone, a mean per completion as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rljax import checks
from rljax.learning import choices, maximum_likelihood, preference_batches, trainable
from rljax.learning.preference_batches import LogProb
from rljax.math import preferences
from rljax.types import CARRIED, Algorithm, Array, Key, LanguageModel, Mean, Policy, Preferences, PyTree, Task

LEARNS = "preferences"


@struct.dataclass
class Config:
    """Fields; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 10_000  # judgements of the run
    learning_rate: float = 2e-5  # of AdamW, at its highest
    beta: float = 0.1  # β of all but orpo, how close the policy stays to where it started
    label_smoothing: float = 0.0  # ε of sigmoid, the share of judgements that are the wrong way round
    margin: float = 1.0  # γ of simpo
    odds_weight: float = 0.1  # λ of orpo
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    alpha: float = 16.0
    batch_size: int = struct.field(pytree_node=False, default=16)  # judgements of an update
    num_micro: int = struct.field(pytree_node=False, default=0)  # parts of the gradient; 0: by the backend
    chunk: int = struct.field(pytree_node=False, default=128)
    loss: Literal["sigmoid", "hinge", "ipo", "simpo", "orpo"] | Callable[..., Any] = struct.field(
        pytree_node=False, default="sigmoid"
    )  # which member of the family: DPO's own (sigmoid), SLiC's (hinge), IPO, SimPO, ORPO
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
    accuracy: Mean  # judgements in which the preferred completion has the higher reward
    margin: Mean  # its reward less the other's
    reward_chosen: Mean  # β s of the preferred completion
    reward_rejected: Mean
    log_prob_chosen: Mean  # of the whole completion, in nats
    log_prob_rejected: Mean
    gradient_norm: Mean  # before clipping


class Loss(NamedTuple):
    """One of the family."""

    started: bool  # whether s is measured from the policy at the start
    averaged: bool  # whether s is a mean over a completion's tokens
    of: Callable[[Array, Config], Array]  # (s (B, 2), config) -> (B,)


def _difference(s: Array) -> Array:
    return s[:, 0] - s[:, 1]


# One of the user's is (s (B, 2), config) -> (B,), of sums of log-probabilities less those at the start.
LOSSES = {
    "sigmoid": Loss(
        True, False, lambda s, config: preferences.dpo(_difference(s), config.beta, config.label_smoothing)
    ),
    "hinge": Loss(True, False, lambda s, config: preferences.hinge(_difference(s), config.beta)),
    "ipo": Loss(True, True, lambda s, config: preferences.ipo(_difference(s), config.beta)),
    "simpo": Loss(
        False, True, lambda s, config: preferences.simpo(_difference(s), config.beta, config.margin)
    ),
    "orpo": Loss(
        False, True, lambda s, config: config.odds_weight * preferences.orpo(s[:, 0], s[:, 1]) - s[:, 0]
    ),
}


def make(
    task: Task, config: Config, network: LanguageModel | None = None, frozen: PyTree = None
) -> Algorithm:
    """DPO on `task`'s judgements; `network` is the LanguageModel whose parameters are `frozen["params"]`.

    Raises: ValueError naming a field of `config`, its value and what would be right.
    """
    config = checks.fields(config)
    checks.number(config, "beta", low=0, open_low=True)
    checks.number(config, "label_smoothing", low=0, high=0.5)
    checks.number(config, "margin", "odds_weight", low=0)
    checks.read_by(config, "loss", ("sigmoid",), "label_smoothing")
    checks.read_by(config, "loss", ("simpo",), "margin")
    checks.read_by(config, "loss", ("orpo",), "odds_weight")
    checks.read_by(config, "loss", [name for name in LOSSES if name != "orpo"], "beta")
    frozen = task.frozen if frozen is None else frozen
    length = preference_batches.size(task, frozen)
    base, model, begin = trainable.adapted(task, config, network, frozen, length)
    preference_batches.check(config, task, frozen, model, length)
    preference_batches.need_pairs(task, frozen, "dpo", "reward_model and kto take more")
    chosen = choices.function(config, "loss", LOSSES, lambda own: Loss(True, False, own))
    if chosen.started:
        trainable.need_start(config, "beta", frozen)

    def compared(params: PyTree, rows: Preferences) -> tuple[Array, LogProb]:
        """s (B, 2), and log-probabilities (B · 2,)."""
        pairs = preference_batches.flat(rows)
        now = preference_batches.log_probs(model, params, pairs, config.chunk)
        value = lambda found: found.mean if chosen.averaged else found.total
        s = value(now)
        if chosen.started:
            fixed = jax.lax.stop_gradient(frozen["params"])
            s = s - value(preference_batches.log_probs(base, fixed, pairs, config.chunk))
        return s.reshape(-1, 2), now

    def init(key: Key) -> State:
        params_key, order = jax.random.split(key)
        params = begin(params_key)
        return State(params, trainable.optimizer(config).init(params), order, jnp.int32(0))

    def loss_sum(params: PyTree, part: tuple[Preferences, Array]) -> tuple[Array, dict[str, Mean]]:
        rows, weights = part
        s, now = compared(params, rows)
        loss = chosen.of(s, config)
        reward, log_prob = jax.lax.stop_gradient((config.beta * s, now.total.reshape(-1, 2)))
        mean = lambda values: Mean.of(values, weights > 0)
        return jnp.sum(weights * loss), {
            "accuracy": mean(preference_batches.right(reward)),
            "margin": mean(_difference(reward)),
            "reward_chosen": mean(reward[:, 0]),
            "reward_rejected": mean(reward[:, 1]),
            "log_prob_chosen": mean(log_prob[:, 0]),
            "log_prob_rejected": mean(log_prob[:, 1]),
        }

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        del key  # nothing is drawn
        batch = preference_batches.chosen(state.order, state.iteration, frozen["learn"], config.batch_size)
        params, opt_state, told = preference_batches.update(
            loss_sum, state.params, state.opt_state, batch, state.iteration, config, 2 * length
        )
        return State(params, opt_state, state.order, state.iteration + 1), Metrics(**told)

    def policy(state: State) -> Policy:
        return maximum_likelihood.policy(model, state.params)

    def measure(state: State, count: int) -> tuple[Array, Array]:
        rows = jax.tree.map(lambda x: x[:count], frozen["held_out"])
        correct = lambda rows: preference_batches.right(compared(state.params, rows)[0])
        return preference_batches.measure(correct, rows, config.batch_size)

    return Algorithm(init, step, policy, measure=measure)
