"""PPO from a reward of whole completions: the RLHF of Ziegler et al. 2019 (arXiv:1909.08593), Stiennon et al.
2020 and Ouyang et al. 2022, with the details that reproductions found to matter (Huang et al. 2024,
arXiv:2403.17031).

    r_t = −β log π_old(y_t) / π_start(y_t)  +  [t is the last token] R
    A_t by GAE over the tokens that the policy wrote, G_t = A_t + v_old
    L   = mean −min(ρ_t A_t, clip(ρ_t, 1 ± ε) A_t)  +  c_v mean ½ max((v − G)², (v_clipped − G)²)

One step samples num_prompts × group_size completions, then takes num_epochs passes over them in
num_minibatches. β is fixed or follows the divergence (`kl_controller`). The value is a head on the policy's
states or a model of its own, which begins as the policy does. GAE, surrogate and value loss are those of
`rljax.ppo`; on tokens as an Env both compute the same. Differs from Ziegler et al.: completions end at a stop
token, and Adam is optax's.
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
from rljax.math import divergences, losses, masked, returns
from rljax.math.aggregation import token_mean
from rljax.math.controllers import adaptive_coefficient
from rljax.models.language_heads import value_head
from rljax.models.token_losses import per_token
from rljax.types import CARRIED, Algorithm, Array, Key, LanguageModel, Mean, PyTree, Scores, Task

LEARNS = "prompts"


@struct.dataclass
class Config:
    """Fields of PPO on text; numbers are leaves that a sweep varies in one compilation."""

    total_steps: float = 50_000  # completions of the run
    learning_rate: float = 1e-4  # of AdamW, at its highest
    clip: float = 0.2  # ε: how far a ratio may go from 1 and still be learnt from
    value_clip: float = 0.2  # how far a value may move in an update before its loss stops
    value_coefficient: float = 0.1
    discount: float = 1.0
    trace_decay: float = 0.95  # λ of GAE: how far advantages look ahead; 0: one step, 1: to the end
    kl: float | None = None  # β of the penalty in the rewards towards the policy at the start; None: none
    kl_target: float = 6.0  # nats per completion that the adaptive controller holds
    kl_horizon: float = 10_000.0  # completions in which it moves β by at most about a fifth
    missing_end: float | None = None  # what a completion without an end loses; None: nothing
    temperature: float = 1.0  # of the policy: of samples and of log-probabilities
    top_k: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    warmup_fraction: float = 0.01
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    adam_epsilon: float = 1e-5
    max_grad_norm: float = 1.0
    alpha: float = 16.0
    num_prompts: int = struct.field(pytree_node=False, default=128)
    group_size: int = struct.field(pytree_node=False, default=1)
    max_new_tokens: int | None = struct.field(pytree_node=False, default=None)
    num_epochs: int = struct.field(pytree_node=False, default=4)
    num_minibatches: int = struct.field(pytree_node=False, default=1)
    num_micro: int = struct.field(pytree_node=False, default=0)
    chunk: int = struct.field(pytree_node=False, default=128)
    critic: Literal["head", "separate"] = struct.field(pytree_node=False, default="head")
    kl_controller: Literal["fixed", "adaptive"] = struct.field(pytree_node=False, default="fixed")
    reward_whitening: Literal["none", "scale"] = struct.field(pytree_node=False, default="none")
    advantage_normalization: Literal["none", "batch"] = struct.field(pytree_node=False, default="batch")
    value_loss: Literal["plain", "clipped"] = struct.field(pytree_node=False, default="clipped")
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
    schedule: Literal["constant", "linear", "cosine"] = struct.field(pytree_node=False, default="linear")

    @property
    def steps_per_iteration(self) -> int:
        return self.num_prompts * self.group_size

    @property
    def initial_steps(self) -> int:
        return 0


@struct.dataclass
class State:
    params: PyTree = struct.field(metadata=CARRIED)  # {"policy", "head", and "critic" where it is separate}
    opt_state: PyTree
    kl_coefficient: Array  # β now
    order: Key  # of the prompts
    iteration: Array


class Metrics(NamedTuple):
    reward: Mean  # see completions.Rewarded
    rewards: dict[str, Mean]
    length: Mean
    truncated: Mean
    unscored: Mean
    failed: Mean
    completion_kl: Mean  # k1 estimate of KL(π_old ‖ π_start) of a completion
    kl_coefficient: Mean
    value: Mean
    target: Mean  # of the value
    value_loss: Mean
    kl: Mean  # see policy_loss.shown
    entropy: Mean
    ratio: Mean
    clip_fraction: Mean  # tokens whose gradient the clip cuts off
    step_kl: Mean
    drift: Mean
    policy_loss: Mean
    gradient_norm: Mean  # before clipping


class Extras(NamedTuple):
    advantage: Array  # (B, T)
    value: Array  # (B, T) before the update
    target: Array  # (B, T)
    start: Array | None  # (B, T) log-probabilities under the policy at the start


def make(
    task: Task, config: Config, network: LanguageModel | None = None, frozen: PyTree = None
) -> Algorithm:
    """PPO on `task`; `network` is the LanguageModel whose parameters are `frozen["params"]`.

    Raises: ValueError naming a field of `config`, its value and what would be right.
    """
    config = checks.fields(config)
    positive = "clip", "value_clip", "value_coefficient", "kl_target", "kl_horizon"
    checks.number(config, *positive, low=0, open_low=True)
    checks.number(config, "discount", "trace_decay", low=0, high=1)
    if config.missing_end is not None:
        checks.number(config, "missing_end", low=0)
    frozen = task.frozen if frozen is None else frozen
    length = completions.length(config, task)
    model, trained, begin = trainable.adapted(task, config, network, frozen, length)
    group = config.group_size
    completions.check(config, task, model)
    trainable.check_start(config, frozen)
    checks.whitened(config, config.steps_per_iteration * completions.new_tokens(config, task))
    checks.read_by(config, "kl_controller", ("adaptive",), "kl_target", "kl_horizon")
    checks.read_by(config, "value_loss", ("clipped",), "value_clip")
    if config.kl_controller == "adaptive":
        checks.number(config, "kl", low=0, open_low=True)
        checks.number(config, "kl_horizon", low=config.steps_per_iteration / 5, open_low=True)  # keeps β > 0
    head = value_head(model.config.hidden_size)

    def init(key: Key) -> State:
        policy_key, head_key, critic_key, order = jax.random.split(key, 4)
        params = {"policy": begin(policy_key), "head": head.init(head_key)}
        if config.critic == "separate":
            params["critic"] = begin(critic_key)
        kl = jnp.asarray(0.0 if config.kl is None else config.kl, jnp.float32)
        return State(params, trainable.optimizer(config).init(params), kl, order, jnp.int32(0))

    def sample(key: Key, state: State) -> Rollout:
        prompts = completions.chosen(state.order, state.iteration, frozen["learn"], config.num_prompts)
        settings = completions.sampling_settings(config, task, config.temperature)
        return completions.write(trained, state.params["policy"], key, prompts, task, settings, group)

    def states(params: PyTree, *inputs: Array) -> tuple[Array, Array]:
        """Hidden states (B, T, D) of the policy, and the values (B, T) of what each token is drawn after."""
        hidden = trained.completion(params["policy"], *inputs)
        seen = trained.completion(params["critic"], *inputs) if config.critic == "separate" else hidden
        return hidden, head.apply(params["head"], seen)

    def before(state: State, rollout: Rollout) -> tuple[Array, Array, Array | None]:
        """Log-probabilities and values (B, T) before the update, and log-probabilities at the start."""

        def part(prompt: Array, valid: Array, completion: Array) -> tuple[Array | None, Array]:
            hidden, value = states(state.params, prompt, valid, completion)
            if config.old_log_prob == "sampled":
                return None, value
            inputs = policy_gradient.statistics(config), state.params["policy"], hidden, completion
            return per_token(trained, *inputs, chunk=config.chunk)[0], value

        old, value = policy_gradient.in_parts(part, rollout, config)
        old = rollout.log_prob if old is None else old
        return old, value, policy_gradient.at_start(model, frozen, rollout, config)

    def credit(
        state: State, rollout: Rollout, scores: Scores, old: Array, value: Array, start: Array | None
    ) -> tuple[Array, Array, Array]:
        """Advantages and targets of the value (B, T), and which tokens are learnt from (B, T)."""
        score = completions.combined(task, scores, group, config.reward_normalization)
        if config.missing_end is not None:
            score = score - config.missing_end * ~rollout.stopped
        mask = rollout.drawn & jnp.isfinite(score)[:, None]
        reward = completions.at_the_end(jnp.where(jnp.isfinite(score), score, 0.0), rollout.drawn)
        if start is not None:
            reward = reward - state.kl_coefficient * divergences.k1(old, start)
        if config.reward_whitening == "scale":
            reward = masked.whiten(reward, mask, shift_mean=False)
        gae = jax.vmap(returns.masked_gae, (0, 0, 0, None, None))
        advantage = gae(reward, value, mask, config.discount, config.trace_decay)
        target = advantage + value
        if config.advantage_normalization == "batch":
            advantage = masked.whiten(advantage, mask)
        return advantage, target, mask

    def surrogate(log_prob: Array, old: Array, extras: Extras, mask: Array) -> Array:
        return losses.clipped_surrogate(log_prob, old, extras.advantage, config.clip)

    def loss_sum(params: PyTree, part: tuple[Batch, Array]) -> tuple[Array, dict[str, Mean]]:
        rows, weights = part
        extras: Extras = rows.extras
        hidden, value = states(params, rows.prompt, rows.valid, rows.completion)
        inputs = params["policy"], hidden, rows, weights
        total, told = policy_gradient.by_token(trained, *inputs, surrogate, config)
        errors = losses.VALUE_LOSSES[config.value_loss](value, extras.value, extras.target, config.value_clip)
        error = jnp.sum(weights * errors)
        cut = lambda ratio: losses.without_gradient(ratio, extras.advantage, config.clip)
        shown = policy_gradient.shown(told, rows, total, cut, extras.start)
        return total + config.value_coefficient * error, shown | {"value_loss": Mean(error, jnp.int32(0))}

    def learn(key: Key, state: State, rollout: Rollout, scores: Scores) -> tuple[State, Metrics]:
        old, value, start = before(state, rollout)
        advantage, target, mask = credit(state, rollout, scores, old, value, start)
        batch = policy_gradient.batch_of(rollout, mask, old, Extras(advantage, value, target, start))
        params, opt_state, seen = policy_gradient.update(
            loss_sum, token_mean, state.params, state.opt_state, batch, key, state.iteration, config
        )
        far = jnp.zeros(mask.shape[0]) if start is None else policy_gradient.sequence_kl(rollout, old, start)
        seen |= {"kl_coefficient": Mean.of(coefficient := state.kl_coefficient)}
        if config.kl_controller == "adaptive":
            bounds = config.kl_target, config.kl_horizon, far.size
            coefficient = adaptive_coefficient(coefficient, far.mean(), *bounds)
        seen |= {"value": Mean.of(value, mask), "target": Mean.of(target, mask)}
        seen |= {"completion_kl": Mean.of(far, jnp.full(far.shape, start is not None))}
        metrics = Metrics(*completions.rewarded(task, rollout, scores), **seen)
        return State(params, opt_state, coefficient, state.order, state.iteration + 1), metrics

    def advantage(state: State, rollout: Rollout, scores: Scores) -> Array:
        return credit(state, rollout, scores, *before(state, rollout))[0]

    policy = lambda state: state.params["policy"]
    return completions.algorithm(task, config, trained, frozen, init, sample, learn, advantage, policy)
