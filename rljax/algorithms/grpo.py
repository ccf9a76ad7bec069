"""Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300): PPO on a language model without a
value function, because the G completions of one prompt are each other's baseline.

    A_i  = (R_i − mean R) / (std R + 1e-4)                 over the group of completion i
    ρ_t  = π(y_t | x, y_<t) / π_old(y_t | x, y_<t)
    L    = Σ w_t [−min(ρ_t A, clip(ρ_t, 1 − ε, 1 + ε_high) A) + β k3_t]

where w averages over tokens or completions and k3 estimates the KL divergence to the policy at the start. One
step samples num_prompts × group_size completions, then takes num_epochs passes over them in num_minibatches.
Its variants are choices of pure functions:

    DAPO      clip_high, aggregation "token_mean", overlong "penalty", groups "resampled" (Yu et al. 2025)
    Dr.GRPO   advantage "centred", aggregation "constant" (Liu et al. 2025, arXiv:2503.20783)
    GSPO      loss "sequence", aggregation "sequence_mean" and a clip of about 3e-4 (Zheng et al. 2025)
    CISPO     loss "cispo": the ratio's bound weighs the policy gradient (MiniMax 2025, arXiv:2506.13585)

Differs from the paper: the mean is over the tokens of a whole minibatch, and there is no KL penalty unless
asked for, as in TRL; a reward that is NaN takes its completion out of group and loss, overlong "masked" out
of the loss alone; instead of sampling until enough groups vary, as DAPO does, "resampled" samples
`oversampling` times the prompts. Rewards that are normalised per group are then standardised over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rljax import checks
from rljax.learning import choices, completions, policy_gradient, trainable
from rljax.learning.completions import Rollout
from rljax.learning.policy_gradient import Batch
from rljax.math import divergences, groups, losses
from rljax.math.aggregation import AGGREGATIONS
from rljax.types import CARRIED, Algorithm, Array, Key, LanguageModel, Mean, PyTree, Scores, Task

# (reward, scored), each (G,) -> advantage (G,) of the completions of a prompt
ADVANTAGES = {"standardised": groups.standardised, "centred": groups.centred}
DIVERGENCES = {"k2": divergences.k2, "k3": divergences.k3}

LEARNS = "prompts"


@struct.dataclass
class Config:
    """Fields of GRPO; numbers are leaves that a sweep varies in one compilation, the rest is static."""

    total_steps: float = 50_000  # completions of the run
    learning_rate: float = 1e-4  # of AdamW, at its highest
    clip: float = 0.2  # ε: how far a ratio may go from 1 and still be learnt from
    clip_high: float | None = None  # ε of the upper bound; None: the same
    dual_clip: float | None = None  # bound of the ratio where the advantage is negative; None: none
    kl: float | None = None  # β of the penalty towards the policy at the start; None: no such policy
    temperature: float = 1.0  # of the policy: of samples and of log-probabilities
    top_k: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    overlong_buffer: float = 16.0  # tokens before the limit in which a completion's penalty grows to 1
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
    oversampling: int = struct.field(pytree_node=False, default=1)  # of prompts, with groups "resampled"
    loss: Literal["token", "sequence", "cispo"] | Callable[..., Any] = struct.field(
        pytree_node=False, default="token"
    )
    advantage: Literal["standardised", "centred"] | Callable[..., Any] = struct.field(
        pytree_node=False, default="standardised"
    )
    aggregation: Literal["token_mean", "sequence_mean", "constant"] | Callable[..., Any] = struct.field(
        pytree_node=False, default="token_mean"
    )
    groups: Literal["all", "varied", "resampled"] = struct.field(pytree_node=False, default="all")
    overlong: Literal["kept", "masked", "penalty"] = struct.field(pytree_node=False, default="kept")
    divergence: Literal["k2", "k3"] = struct.field(pytree_node=False, default="k3")  # of the KL penalty
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
        return self.num_prompts * self.group_size * self.oversampling

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
    varied: Mean  # groups whose rewards differ
    kl: Mean  # k3 estimate of KL(π ‖ π_start), per token; of nothing without `kl`
    entropy: Mean  # of a token
    ratio: Mean  # of a token; of a completion with loss "sequence"
    clip_fraction: Mean  # tokens whose gradient the clip cuts off; with "cispo" whose weight it bounds
    step_kl: Mean  # k3 estimate of KL(π_old ‖ π), per token
    drift: Mean  # |log π_old − log π when it was drawn| of a token
    policy_loss: Mean
    gradient_norm: Mean  # before clipping


def _clipped(ratio: tuple[Array, Array], advantage: Array, config: Config) -> Array:
    return losses.clipped_surrogate(*ratio, advantage, config.clip, config.clip_high, config.dual_clip)


# (log_prob, old, advantage, mask, config) -> loss of each token
LOSSES: dict[str, Callable[..., Array]] = {
    "token": lambda new, old, advantage, mask, config: _clipped((new, old), advantage, config),
    "cispo": lambda new, old, advantage, mask, config: losses.cispo(
        new, old, advantage, config.clip if config.clip_high is None else config.clip_high
    ),
    "sequence": lambda new, old, advantage, mask, config: _clipped(
        (_sequence(new, old, mask), jnp.zeros_like(new)), advantage, config
    ),
}
_sequence = jax.vmap(losses.sequence_log_ratio)


class Extras(NamedTuple):
    """What the loss is told of each token, (B, T)."""

    advantage: Array
    start: Array | None  # log-probabilities under the policy at the start


def make(
    task: Task, config: Config, network: LanguageModel | None = None, frozen: PyTree = None
) -> Algorithm:
    """GRPO on `task`; `network` is the LanguageModel whose parameters are `frozen["params"]`.

    Raises: ValueError naming a field of `config`, its value and what would be right.
    """
    config = checks.fields(config)
    checks.number(config, "clip", "overlong_buffer", low=0, open_low=True)
    if config.clip_high is not None:
        checks.number(config, "clip_high", low=0)
    high = config.clip if config.clip_high is None else config.clip_high
    if config.dual_clip is not None:
        checks.number(config, "dual_clip", low=1 + high, open_low=True)  # no gradient is lost within the clip
    checks.count(config, "group_size", low=2)
    if config.oversampling > 1 and config.groups != "resampled":
        checks.complain(config, "oversampling", 'more than 1 needs groups = "resampled"')
    unread = ("dual_clip",) if config.clip_high is None else ("dual_clip", "clip")  # by "cispo"
    checks.read_by(config, "loss", ("token", "sequence"), *unread)
    frozen = task.frozen if frozen is None else frozen
    length = completions.length(config, task)
    checks.read_by(config, "overlong", ("penalty",), "overlong_buffer")
    if config.overlong == "penalty":
        checks.number(config, "overlong_buffer", high=completions.new_tokens(config, task))
    model, trained, begin = trainable.adapted(task, config, network, frozen, length)
    advantage_of = choices.function(config, "advantage", ADVANTAGES, given="GM", gives="G")
    loss_of = choices.function(config, "loss", LOSSES)
    weigh = choices.function(config, "aggregation", AGGREGATIONS)
    group = config.group_size
    completions.check(config, task, model, config.oversampling)
    trainable.check_start(config, frozen)

    def init(key: Key) -> State:
        params_key, order = jax.random.split(key)
        params = begin(params_key)
        return State(params, trainable.optimizer(config).init(params), order, jnp.int32(0))

    def sample(key: Key, state: State) -> Rollout:
        number = config.num_prompts * config.oversampling
        prompts = completions.chosen(state.order, state.iteration, frozen["learn"], number)
        settings = completions.sampling_settings(config, task, config.temperature)
        return completions.write(trained, state.params, key, prompts, task, settings, group)

    def shaped(rollout: Rollout, scores: Scores) -> Array:
        reward = completions.combined(task, scores, group, config.reward_normalization)
        if config.overlong == "penalty":
            over = rollout.mask.sum(axis=1) - (rollout.mask.shape[1] - config.overlong_buffer)
            return reward - jnp.clip(over / config.overlong_buffer, 0.0, 1.0)
        return reward

    def credit(rollout: Rollout, scores: Scores) -> tuple[Array, Array, Array]:
        """Advantages (B,), which completions are learnt from (B,), and which groups' rewards differ (N,)."""
        reward = shaped(rollout, scores).reshape(-1, group)
        scored = jnp.isfinite(reward)
        advantage = completions.credited(advantage_of, config, reward, scored)
        varied = jax.vmap(groups.has_variance)(reward, scored)
        learnt = scored if config.groups == "all" else scored & varied[:, None]
        if config.overlong == "masked":  # its reward still counts for the others of its group
            learnt &= rollout.stopped.reshape(-1, group)
        return advantage.reshape(-1), learnt.reshape(-1), varied

    def loss(log_prob: Array, old: Array, extras: Extras, mask: Array) -> Array:
        surrogate = loss_of(log_prob, old, extras.advantage, mask, config)
        if config.kl is None or extras.start is None:
            return surrogate
        return surrogate + config.kl * DIVERGENCES[config.divergence](log_prob, extras.start)

    def loss_sum(params: PyTree, part: tuple[Batch, Array]) -> tuple[Array, dict[str, Mean]]:
        rows, weights = part
        hidden = trained.completion(params, rows.prompt, rows.valid, rows.completion)
        whole = config.loss == "sequence"
        over, ratio = (policy_gradient.by_sequence, _sequence) if whole else (policy_gradient.by_token, None)
        total, told = over(trained, params, hidden, rows, weights, loss, config)
        cispo = config.loss == "cispo"  # which bounds a weight, and cuts no gradient
        bounds = rows.extras.advantage, config.clip, config.clip_high, config.dual_clip
        cut = lambda ratio: ratio > 1 + high if cispo else losses.without_gradient(ratio, *bounds)
        return total, policy_gradient.shown(told, rows, total, cut, rows.extras.start, ratio)

    def learn(key: Key, state: State, rollout: Rollout, scores: Scores) -> tuple[State, Metrics]:
        about = completions.rewarded(task, rollout, scores)
        advantage, learnt, varied = credit(rollout, scores)
        if config.oversampling > 1:  # the groups that teach something first, in their order
            first = jnp.argsort(~varied, stable=True)[: config.num_prompts]
            rows = (first[:, None] * group + jnp.arange(group)[None]).reshape(-1)
            rollout, advantage, learnt = jax.tree.map(lambda x: x[rows], (rollout, advantage, learnt))
        old = policy_gradient.before(trained, state.params, rollout, config)
        start = policy_gradient.at_start(model, frozen, rollout, config)
        extras = Extras(jnp.broadcast_to(advantage[:, None], rollout.mask.shape), start)
        batch = policy_gradient.batch_of(rollout, learnt[:, None], old, extras)
        params, opt_state, seen = policy_gradient.update(
            loss_sum, weigh, state.params, state.opt_state, batch, key, state.iteration, config
        )
        metrics = Metrics(*about, varied=Mean.of(varied), **seen)
        return State(params, opt_state, state.order, state.iteration + 1), metrics

    def advantage(state: State, rollout: Rollout, scores: Scores) -> Array:
        return jnp.where(rollout.drawn, credit(rollout, scores)[0][:, None], 0.0)

    return completions.algorithm(task, config, trained, frozen, init, sample, learn, advantage)
