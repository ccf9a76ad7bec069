"""REINFORCE on a language model (Williams 1992), as Ranzato et al. 2016 (MIXER, arXiv:1511.06732) and Rennie
et al. 2017 (self-critical training, arXiv:1612.00563) brought it to text: a completion's reward, less a
baseline, times the gradient of its log-probability, mixed with maximum likelihood of a demonstration.

    A_i = r_i − β Σ_t log π(y_t) / π_start(y_t) − b_i
    L   = (1 − μ) mean_i −A_i Σ_t log π(y_t | x, y_<t)  +  μ mean_t −log π(y*_t | x, y*_<t)

The baseline b is one of

    "none"           0
    "moving"         an average of all rewards so far, decaying by baseline_decay in each step
    "batch"          the mean reward of the batch
    "leave_one_out"  that of the prompt's other completions, of which there must be some: RLOO on policy
    "greedy"         that of the prompt's most probable completion, without β (ReMax, self-critical training)

One step samples num_prompts × group_size completions and takes one step of AdamW.

Differs from MIXER: μ does not anneal by itself, and mixes losses instead of steps of one sequence.
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
from rljax.math.aggregation import token_mean
from rljax.models.token_losses import weighted_sum
from rljax.types import CARRIED, Algorithm, Array, Key, LanguageModel, Mean, Prompts, PyTree, Scores, Task

BASELINES = ("none", "moving", "batch", "leave_one_out", "greedy")

LEARNS = "prompts"


@struct.dataclass
class Config:
    """Fields of REINFORCE; numbers are leaves that a sweep varies in one compilation."""

    total_steps: float = 50_000  # completions of the run, without the greedy ones
    learning_rate: float = 1e-4  # of AdamW, at its highest
    baseline_decay: float = 0.9  # of the moving baseline
    mixing: float | None = None  # μ, the weight of maximum likelihood; None: no demonstrations are read
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
    num_prompts: int = struct.field(pytree_node=False, default=128)
    group_size: int = struct.field(pytree_node=False, default=1)
    max_new_tokens: int | None = struct.field(pytree_node=False, default=None)
    num_micro: int = struct.field(pytree_node=False, default=0)
    chunk: int = struct.field(pytree_node=False, default=128)
    baseline: Literal["none", "moving", "batch", "leave_one_out", "greedy"] = struct.field(
        pytree_node=False, default="batch"
    )
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

    num_epochs = num_minibatches = 1  # no choices here: one step per sample
    old_log_prob, reward_normalization = "recomputed", "raw"

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
    baseline: Array  # () sum of decayed rewards
    weight: Array  # () sum of their weights, whose ratio is the moving average
    iteration: Array


class Metrics(NamedTuple):
    reward: Mean  # see completions.Rewarded
    rewards: dict[str, Mean]
    length: Mean
    truncated: Mean
    unscored: Mean
    failed: Mean
    baseline: Mean
    cross_entropy: Mean  # of a demonstration's token, in nats; of nothing without `mixing`
    kl: Mean  # see policy_loss.shown
    entropy: Mean
    drift: Mean
    policy_loss: Mean
    gradient_norm: Mean  # before clipping


def _nats(logits: Array, tokens: Array) -> tuple[Array, Array]:
    return (loss := losses.cross_entropy(logits, tokens)), loss


class Extras(NamedTuple):
    advantage: Array  # (B, T)
    start: Array | None  # (B, T) log-probabilities under the policy at the start
    demonstration: Array | None  # (B, T)
    share: Array | None  # (B, T) weights of its tokens


def make(
    task: Task, config: Config, network: LanguageModel | None = None, frozen: PyTree = None
) -> Algorithm:
    """REINFORCE on `task`; `network` is the LanguageModel whose parameters are `frozen["params"]`.

    Raises: ValueError naming a field of `config`, its value and what would be right.
    """
    config = checks.fields(config)
    checks.number(config, "baseline_decay", low=0, high=1)
    checks.read_by(config, "baseline", ("moving",), "baseline_decay")
    checks.count(config, "group_size", low=2 if config.baseline == "leave_one_out" else 1)
    frozen = task.frozen if frozen is None else frozen
    length = completions.length(config, task)
    model, trained, begin = trainable.adapted(task, config, network, frozen, length)
    completions.check(config, task, model)
    trainable.check_start(config, frozen)
    group, number = config.group_size, config.num_prompts * config.group_size
    of_samples = lambda rows: jax.tree.map(lambda x: x[:number], rows)  # without the greedy completions
    if config.mixing is not None:
        checks.number(config, "mixing", low=0, high=1)
        if task.learn.demonstration is None:
            checks.complain(config, "mixing", f"the task {task.name} has no demonstrations")

    def init(key: Key) -> State:
        params_key, order = jax.random.split(key)
        params, zero = begin(params_key), jnp.float32(0)
        return State(params, trainable.optimizer(config).init(params), order, zero, zero, jnp.int32(0))

    def chosen(state: State) -> Prompts:
        return completions.chosen(state.order, state.iteration, frozen["learn"], config.num_prompts)

    def sample(key: Key, state: State) -> Rollout:
        """B completions, and with the greedy baseline one more of each prompt after them."""
        settings = completions.sampling_settings(config, task, config.temperature)
        key, greedy_key = jax.random.split(key)
        drawn = completions.write(trained, state.params, key, chosen(state), task, settings, group)
        if config.baseline != "greedy":
            return drawn
        settings = completions.sampling_settings(config, task, 0.0)
        best = completions.write(trained, state.params, greedy_key, chosen(state), task, settings)
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), drawn, best)

    def baseline(state: State, reward: Array, scored: Array, greedy: Array) -> Array:
        """(B,), of rewards (B,) and those of greedy completions (N,)."""
        if config.baseline == "leave_one_out":
            by_prompt = reward.reshape(-1, group), scored.reshape(-1, group)
            return reward - jax.vmap(groups.leave_one_out)(*by_prompt).reshape(-1)
        if config.baseline == "greedy":
            return jnp.repeat(greedy, group)
        average = {
            "none": jnp.float32(0),
            "moving": state.baseline / jnp.maximum(state.weight, 1e-8),
            "batch": masked.masked_mean(reward, scored),
        }
        return jnp.broadcast_to(average[config.baseline], reward.shape)

    def credit(
        state: State, rollout: Rollout, scores: Scores, start: Array | None
    ) -> tuple[Array, Array, Array]:
        """Advantages, baselines and rewards (B,), NaN where there is none."""
        reward, greedy = jnp.split(completions.combined(task, scores), [number])
        if config.kl is not None and start is not None:
            drawn = of_samples(rollout)
            own = policy_gradient.in_reward(trained, state.params, drawn, config, None)
            reward = reward - config.kl * policy_gradient.sequence_kl(drawn, own, start)
        below = baseline(state, reward, jnp.isfinite(reward), greedy)
        return reward - below, below, reward

    def distance(rollout: Rollout) -> Array | None:
        """Log-probabilities of the samples under the policy at the start."""
        return policy_gradient.at_start(model, frozen, of_samples(rollout), config)

    def loss(log_prob: Array, old: Array, extras: Extras, mask: Array) -> Array:
        return losses.policy_gradient(log_prob, extras.advantage)

    def loss_sum(params: PyTree, part: tuple[Batch, Array]) -> tuple[Array, dict[str, Mean]]:
        rows, weights = part
        text, share = rows.extras.demonstration, rows.extras.share
        rows = rows._replace(extras=rows.extras._replace(demonstration=None, share=None))
        hidden = trained.completion(params, rows.prompt, rows.valid, rows.completion)
        total, told = policy_gradient.by_token(trained, params, hidden, rows, weights, loss, config)
        shown = policy_gradient.shown(told, rows, total, jnp.zeros_like, rows.extras.start)
        likelihood = Mean.none()
        if config.mixing is not None:
            tokens = jnp.where(text >= 0, text, 0)
            states = trained.completion(params, rows.prompt, rows.valid, tokens)
            imitation, each = weighted_sum(trained, _nats, params, states, share, tokens, chunk=config.chunk)
            total = (1 - config.mixing) * total + config.mixing * imitation
            likelihood = Mean.of(each, text >= 0)
        return total, shown | {"cross_entropy": likelihood}

    def learn(key: Key, state: State, rollout: Rollout, scores: Scores) -> tuple[State, Metrics]:
        start = distance(rollout)
        advantage, below, reward = credit(state, rollout, scores, start)
        scored = jnp.isfinite(advantage)
        rollout, scores = of_samples((rollout, scores))
        text = share = None
        if config.mixing is not None:
            text = jnp.repeat(chosen(state).demonstration, group, axis=0)
            share = token_mean(text >= 0)
        spread = jnp.broadcast_to(jnp.where(scored, advantage, 0.0)[:, None], rollout.mask.shape)
        batch = policy_gradient.batch_of(rollout, scored[:, None], None, Extras(spread, start, text, share))
        weigh = lambda mask: mask / jnp.maximum(mask.any(axis=1).sum(), 1).astype(jnp.float32)
        params, opt_state, seen = policy_gradient.update(
            loss_sum, weigh, state.params, state.opt_state, batch, key, state.iteration, config
        )
        kept = jnp.isfinite(reward)
        decay = jnp.where(kept.any(), config.baseline_decay, 1.0)
        seen = {name: mean for name, mean in seen.items() if name in Metrics._fields}
        about = completions.rewarded(task, rollout, scores)
        metrics = Metrics(*about, baseline=Mean.of(below, jnp.isfinite(below)), **seen)
        average = decay * state.baseline + (1 - decay) * masked.masked_mean(reward, kept)
        weight = decay * state.weight + (1 - decay)
        return State(params, opt_state, state.order, average, weight, state.iteration + 1), metrics

    def advantage(state: State, rollout: Rollout, scores: Scores) -> Array:
        found = credit(state, rollout, scores, distance(rollout))[0]
        spare = rollout.mask.shape[0] - number
        found = jnp.pad(jnp.where(jnp.isfinite(found), found, 0.0), (0, spare))
        return jnp.where(rollout.drawn, found[:, None], 0.0)

    return completions.algorithm(task, config, trained, frozen, init, sample, learn, advantage)
