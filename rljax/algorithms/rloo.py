"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740; Kool et al. 2019): a completion is one
action, and its baseline is the mean reward of the other completions of its prompt.

    R_i = r_i − β Σ_t log π_old(y_t) / π_start(y_t)
    A_i = R_i − Σ_{j ≠ i} R_j / (G − 1)
    L   = mean_i −min(ρ_i A_i, clip(ρ_i, 1 ± ε) A_i),     ρ_i = π(y_i | x) / π_old(y_i | x)

One step samples num_prompts × group_size completions, then takes num_epochs passes over them in
num_minibatches; in the first minibatch ρ is 1 and L is REINFORCE.

Differs from the paper: the clipped ratio of a completion, as TRL has it, for more than one step per sample.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rljax import checks
from rljax.learning import completions, policy_gradient, trainable
from rljax.learning.completions import Rollout
from rljax.learning.policy_gradient import Batch
from rljax.math import groups, losses, masked
from rljax.math.aggregation import sequence_mean
from rljax.types import CARRIED, Algorithm, Array, Key, LanguageModel, Mean, PyTree, Scores, Task

LEARNS = "prompts"


@struct.dataclass
class Config:
    """Fields of RLOO; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 50_000  # completions of the run
    learning_rate: float = 1e-4  # of AdamW, at its highest
    clip: float = 0.2  # ε: how far a ratio may go from 1 and still be learnt from
    kl: float | None = None  # β of the penalty in the reward towards the policy at the start; None: none
    temperature: float = 1.0  # of the policy: of samples and of log-probabilities
    top_k: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    warmup_fraction: float = 0.01
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    alpha: float = 16.0
    num_prompts: int = struct.field(pytree_node=False, default=16)
    group_size: int = struct.field(pytree_node=False, default=8)
    max_new_tokens: int | None = struct.field(pytree_node=False, default=None)
    num_epochs: int = struct.field(pytree_node=False, default=1)
    num_minibatches: int = struct.field(pytree_node=False, default=1)
    num_micro: int = struct.field(pytree_node=False, default=0)
    chunk: int = struct.field(pytree_node=False, default=128)
    advantage_normalization: Literal["none", "batch"] = struct.field(pytree_node=False, default="none")
    reward_normalization: Literal["raw", "group"] = struct.field(pytree_node=False, default="raw")
    old_log_prob: Literal["recomputed", "sampled"] = struct.field(pytree_node=False, default="recomputed")
    train: Literal["all", "lora", "prefix", "subset"] = struct.field(pytree_node=False, default="all")
    rank: int = struct.field(pytree_node=False, default=8)
    prefix_length: int = struct.field(pytree_node=False, default=8)
    patterns: tuple[str, ...] = struct.field(pytree_node=False, default=("attention/*",))
    architecture: Literal["llama", "t5", "gru", "lstm"] = struct.field(pytree_node=False, default="llama")
    hidden_size: int = struct.field(pytree_node=False, default=128)
    num_layers: int = struct.field(pytree_node=False, default=4)
    num_heads: int = struct.field(pytree_node=False, default=4)
    dtype: Literal["float32", "bfloat16"] = struct.field(pytree_node=False, default="float32")
    schedule: Literal["constant", "linear", "cosine"] = struct.field(pytree_node=False, default="constant")

    @property
    def steps_per_iteration(self) -> int:
        return self.num_prompts * self.group_size

    @property
    def initial_steps(self) -> int:
        return 0


@struct.dataclass
class State:
    params: PyTree = struct.field(metadata=CARRIED)  # what is trained: all of the model's, or adapters
    opt_state: PyTree
    order: Key  # of the prompts
    iteration: Array


class Metrics(NamedTuple):
    reward: Mean  # see completions.Rewarded
    rewards: dict[str, Mean]
    length: Mean
    truncated: Mean
    unscored: Mean
    failed: Mean
    advantage: Mean  # its magnitude
    kl: Mean  # see policy_loss.shown
    entropy: Mean
    ratio: Mean  # of a completion
    clip_fraction: Mean  # tokens whose gradient the clip cuts off
    step_kl: Mean
    drift: Mean
    policy_loss: Mean
    gradient_norm: Mean  # before clipping


class Extras(NamedTuple):
    advantage: Array  # (B, T)
    start: Array | None  # (B, T) log-probabilities under the policy at the start


def _log_ratio(log_prob: Array, old: Array, mask: Array) -> Array:
    """Of a completion, at each of its tokens, (B, T)."""
    total = jnp.where(mask, log_prob - old, 0.0).sum(axis=1, keepdims=True)
    return jnp.broadcast_to(total, mask.shape)


def make(
    task: Task, config: Config, network: LanguageModel | None = None, frozen: PyTree = None
) -> Algorithm:
    """RLOO on `task`; `network` is the LanguageModel whose parameters are `frozen["params"]`.

    Raises: ValueError naming a field of `config`, its value and what would be right.
    """
    config = checks.fields(config)
    checks.number(config, "clip", low=0, open_low=True)
    checks.count(config, "group_size", low=2)
    frozen = task.frozen if frozen is None else frozen
    length = completions.length(config, task)
    model, trained, begin = trainable.adapted(task, config, network, frozen, length)
    group = config.group_size
    completions.check(config, task, model)
    trainable.check_start(config, frozen)

    def init(key: Key) -> State:
        params_key, order = jax.random.split(key)
        params = begin(params_key)
        return State(params, trainable.optimizer(config).init(params), order, jnp.int32(0))

    def sample(key: Key, state: State) -> Rollout:
        prompts = completions.chosen(state.order, state.iteration, frozen["learn"], config.num_prompts)
        settings = completions.sampling_settings(config, task, config.temperature)
        return completions.write(trained, state.params, key, prompts, task, settings, group)

    def credit(
        state: State, rollout: Rollout, scores: Scores, old: Array | None, start: Array | None
    ) -> tuple[Array, Array]:
        """Advantages (B,), and which completions are scored (B,)."""
        reward = completions.combined(task, scores, group, config.reward_normalization)
        if config.kl is not None and start is not None:
            own = policy_gradient.in_reward(trained, state.params, rollout, config, old)
            reward = reward - config.kl * policy_gradient.sequence_kl(rollout, own, start)
        scored = jnp.isfinite(reward)
        by_prompt = reward.reshape(-1, group), scored.reshape(-1, group)
        advantage = jax.vmap(groups.leave_one_out)(*by_prompt).reshape(-1)
        if config.advantage_normalization == "batch":
            advantage = masked.whiten(advantage, scored)
        return advantage, scored

    def references(state: State, rollout: Rollout) -> tuple[Array | None, Array | None]:
        """Log-probabilities before the update and under the policy at the start."""
        old = policy_gradient.before(trained, state.params, rollout, config)
        return old, policy_gradient.at_start(model, frozen, rollout, config)

    def loss(log_prob: Array, old: Array, extras: Extras, mask: Array) -> Array:
        ratio = _log_ratio(log_prob, old, mask)
        return losses.clipped_surrogate(ratio, jnp.zeros_like(ratio), extras.advantage, config.clip)

    def loss_sum(params: PyTree, part: tuple[Batch, Array]) -> tuple[Array, dict[str, Mean]]:
        rows, weights = part
        hidden = trained.completion(params, rows.prompt, rows.valid, rows.completion)
        total, told = policy_gradient.by_sequence(trained, params, hidden, rows, weights, loss, config)
        cut = lambda ratio: losses.without_gradient(ratio, rows.extras.advantage, config.clip)
        return total, policy_gradient.shown(told, rows, total, cut, rows.extras.start, _log_ratio)

    def learn(key: Key, state: State, rollout: Rollout, scores: Scores) -> tuple[State, Metrics]:
        old, start = references(state, rollout)
        advantage, scored = credit(state, rollout, scores, old, start)
        extras = Extras(jnp.broadcast_to(advantage[:, None], rollout.mask.shape), start)
        batch = policy_gradient.batch_of(rollout, scored[:, None], old, extras)
        params, opt_state, seen = policy_gradient.update(
            loss_sum, sequence_mean, state.params, state.opt_state, batch, key, state.iteration, config
        )
        about = completions.rewarded(task, rollout, scores)
        metrics = Metrics(*about, advantage=Mean.of(jnp.abs(advantage), scored), **seen)
        return State(params, opt_state, state.order, state.iteration + 1), metrics

    def advantage(state: State, rollout: Rollout, scores: Scores) -> Array:
        found, _ = credit(state, rollout, scores, *references(state, rollout))
        return jnp.where(rollout.drawn, found[:, None], 0.0)

    return completions.algorithm(task, config, trained, frozen, init, sample, learn, advantage)
