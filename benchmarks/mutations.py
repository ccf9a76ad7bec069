"""Deliberate breaks: which of them does no test notice?

    python benchmarks/mutations.py                       # all, about half a minute each on one core
    python benchmarks/mutations.py --only "ppo|trace"    # those whose name or file matches
    python benchmarks/mutations.py --tests tests/algorithms    # with other tests than those named here

Each break replaces a text that occurs once in a file of a copy of the checkout; the tests named beside it are
run on the copy and should fail. The copy's own tests are run first, unbroken: a break that is "caught" by
tests that fail anyway says nothing. What survives is printed at the end, and the exit status is 1 where
something does. Not part of the tests, which only check that every break still applies
(tests/updates/test_mutations.py).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LIMIT = 900.0  # seconds of one run of tests; a break that hangs is noticed, too

ON_POLICY = "tests/updates/test_on_policy.py"
REPLAY = "tests/updates/test_replay_methods.py"
TEXT = "tests/updates/test_text.py"
SCHEDULES = "tests/updates/test_schedules.py"
ROWS = "tests/runs/test_rows.py"


class Break(NamedTuple):
    """One deliberate mistake."""

    name: str
    file: str  # below rljax/
    old: str  # occurs once in the file
    new: str
    tests: tuple[str, ...]  # that should fail
    why: str


BREAKS = (
    # named in issues as unnoticed
    Break(
        "epsilon-curve",
        "learning/deep_q_learning.py",
        "epsilon = schedules.interpolate(*ends, progress,",
        "epsilon = schedules.interpolate(*ends, progress**2,",
        (SCHEDULES + "::test_epsilon_of_methods_with_a_replay",),
        "ε of the deep Q methods on a wrong curve",
    ),
    Break(
        "double-is-max",
        "algorithms/dqn.py",
        '"double": _double,',
        '"double": _max,',
        (REPLAY + "::test_three_updates_of_dqn",),
        "double DQN silently the plain one",
    ),
    Break(
        "no-munchausen",
        "algorithms/dqn.py",
        "(batch.reward + bonus, batch.discount",
        "(batch.reward + 0 * bonus, batch.discount",
        (REPLAY + "::test_three_updates_of_dqn",),
        "Munchausen DQN without its bonus",
    ),
    Break(
        "beta-backwards",
        "learning/replay.py",
        "exponent = config.importance_exponent + (1 - config.importance_exponent) *",
        "exponent = 1 - (1 - config.importance_exponent) *",
        (SCHEDULES + "::test_beta_of_prioritised_replay_grows_to_one",),
        "β of prioritised replay annealed backwards",
    ),
    Break(
        "c51-weights",
        "algorithms/c51.py",
        "return (batch.weight * losses).mean()",
        "return losses.mean()",
        (REPLAY + "::test_three_updates_of_c51_and_rainbow",),
        "importance weights ignored in C51",
    ),
    Break(
        "sac-weights",
        "algorithms/sac.py",
        "return (batch.weight * 0.5 *",
        "return (0.5 *",
        (REPLAY + "::test_three_updates_of_sac",),
        "importance weights ignored in SAC",
    ),
    Break(
        "dqn-unclipped",
        "learning/deep_q_learning.py",
        "clip = optax.clip_by_global_norm(config.max_grad_norm)",
        "clip = optax.identity()",
        (REPLAY + "::test_three_updates_of_dqn",),
        "no gradient clipping in the DQN family",
    ),
    Break(
        "ppo-whitening",
        "algorithms/ppo.py",
        '"minibatch":\n                advantage = masked.whiten(advantage)',
        '"minibatch":\n                advantage = masked.centred(advantage)',
        (ON_POLICY + "::test_two_cycles_of_ppo",),
        "PPO's whitening without the scale",
    ),
    Break(
        "clip-schedule",
        "algorithms/ppo.py",
        "clip = config.clip * schedules.factor(config.clip_schedule, progress)",
        "clip = config.clip",
        (ON_POLICY + "::test_two_cycles_of_ppo",),
        "clip_schedule ignored",
    ),
    Break(
        "scaler-reset",
        "math/normalizers.py",
        "return jnp.where(done, 0.0, running), running",
        "return running, running",
        (ON_POLICY + "::test_two_cycles_of_ppo",),
        "the reward scaler never reset",
    ),
    Break(
        "pqn-lambda",
        "algorithms/pqn.py",
        "best(worlds.obs), config.discount, config.trace_decay",
        "best(worlds.obs), config.discount, config.trace_decay / 2",
        (ON_POLICY + "::test_two_cycles_of_pqn",),
        "PQN with half its λ",
    ),
    Break(
        "text-decay",
        "learning/trainable.py",
        "optax.add_decayed_weights(config.weight_decay, partial(decay_mask, unread=UNREAD)),",
        "optax.identity(),",
        (TEXT + "::test_two_updates_of_sft",),
        "text algorithms without weight decay",
    ),
    Break(
        "text-rate",
        "learning/trainable.py",
        "rate = config.learning_rate * warm * schedules.factor(config.schedule, iteration * share)",
        "rate = config.learning_rate + 0 * warm",
        (TEXT + "::test_two_updates_of_sft",),
        "text algorithms at a constant rate",
    ),
    Break(
        "plain-values",
        "algorithms/rlhf_ppo.py",
        "losses.VALUE_LOSSES[config.value_loss](value,",
        'losses.VALUE_LOSSES["clipped"](value,',
        (TEXT + "::test_two_cycles_of_rlhf_ppo",),
        'value_loss="plain" ignored by rlhf_ppo',
    ),
    # mathematics
    Break(
        "gae-trace",
        "math/returns.py",
        "discount * next_value - value, discount * trace, 0.0)",
        "discount * next_value - value, discount, 0.0)",
        ("tests/math/test_returns.py",),
        "GAE with λ = 1",
    ),
    Break(
        "lambda-bootstrap",
        "math/returns.py",
        "return _accumulate(reward + discount * (1 - trace) * next_value, discount * trace, next_value[-1])",
        "return _accumulate(reward + discount * next_value, discount * trace, next_value[-1])",
        ("tests/math/test_returns.py",),
        "λ-returns that count the bootstrap twice",
    ),
    Break(
        "lower-clip",
        "math/losses.py",
        "clipped = jnp.clip(ratio, 1 - clip,",
        "clipped = jnp.clip(ratio, 0.0,",
        ("tests/math/test_losses.py",),
        "ratios without a lower bound",
    ),
    Break(
        "value-clip",
        "math/losses.py",
        "near = value_old + jnp.clip(value - value_old, -clip, clip)",
        "near = value_old + jnp.clip(value - value_old, -1.0, clip)",
        ("tests/math/test_losses.py",),
        "values clipped on one side",
    ),
    Break(
        "quantile-side",
        "math/action_values.py",
        "weight = jnp.abs(tau[:, None] - (error < 0)",
        "weight = jnp.abs(tau[:, None] - (error > 0)",
        ("tests/math/test_action_values.py",),
        "quantiles mirrored",
    ),
    Break(
        "lost-mass",
        "math/action_values.py",
        "position = jnp.clip(position, 0.0, float(last))",
        "position = jnp.clip(position, -1.0, last + 1.0)",
        ("tests/math/test_action_values.py",),
        "mass beyond the support lost",
    ),
    Break(
        "group-deviation",
        "math/groups.py",
        "variance = jnp.sum(jnp.square(difference)) / jnp.maximum(count - 1, 1)",
        "variance = jnp.sum(jnp.square(difference)) / jnp.maximum(count, 1)",
        ("tests/math/test_groups.py",),
        "GRPO's deviation of a population",
    ),
    Break(
        "k3-sign",
        "math/divergences.py",
        "return jnp.expm1(log_ratio) - log_ratio",
        "return jnp.expm1(log_ratio)",
        ("tests/math/test_divergences.py",),
        "k3 without its control variate",
    ),
    Break(
        "merged-means",
        "math/statistics.py",
        " + weight * (1 - weight) * jnp.square(y - x)",
        "",
        ("tests/math/test_statistics.py",),
        "merged variances without the distance of the means",
    ),
    Break(
        "smoothing",
        "math/preferences.py",
        " - label_smoothing * wrong",
        "",
        ("tests/math/test_preferences.py",),
        "DPO's label smoothing without its second half",
    ),
    Break(
        "reward-bound",
        "math/normalizers.py",
        "return jnp.clip(reward / deviation, -10.0, 10.0)",
        "return jnp.clip(reward / deviation, -1.0, 1.0)",
        (ON_POLICY + "::test_two_cycles_of_ppo",),
        "scaled rewards cut at ±1",
    ),
    Break(
        "cosine",
        "math/schedules.py",
        "jnp.cos(jnp.pi * progress)",
        "jnp.cos(progress)",
        (SCHEDULES + "::test_learning_rates_of_language_models_rise_and_fall",),
        "a cosine that never reaches 0",
    ),
    Break(
        "line-search",
        "math/optimization.py",
        "accept(candidate), tried + 1, step * factor",
        "accept(candidate), tried + 1, step * factor * factor",
        (
            "tests/math/test_optimization.py",
            ON_POLICY,
        ),
        "a line search that shortens twice",
    ),
    Break(
        "squash",
        "math/distributions.py",
        "return _gaussian_log_prob(parameters, action) - _log_slope(action)",
        "return _gaussian_log_prob(parameters, action)",
        ("tests/math/test_distributions.py",),
        "densities of squashed actions without the slope",
    ),
    Break(
        "sequence-weights",
        "math/aggregation.py",
        "rows = _count(jnp.any(mask, axis=1))",
        "rows = mask.shape[0] * 1.0",
        ("tests/math/test_aggregation.py",),
        "absent completions counted",
    ),
    Break(
        "controller",
        "math/controllers.py",
        "jnp.clip(kl / target - 1, -0.2, 0.2)",
        "jnp.clip(kl / target - 1, -1.0, 0.2)",
        ("tests/math/test_controllers.py",),
        "the KL controller falls too fast",
    ),
    # algorithms of control
    Break(
        "value-target",
        "algorithms/ppo.py",
        "value_losses = value_loss(value, batch.value, batch.target, clip)",
        "value_losses = value_loss(value, batch.value, batch.advantage, clip)",
        (ON_POLICY + "::test_two_cycles_of_ppo",),
        "PPO's value learns advantages",
    ),
    Break(
        "entropy-sign",
        "algorithms/ppo.py",
        "- config.entropy_coefficient * entropy.mean()",
        "+ config.entropy_coefficient * entropy.mean()",
        (ON_POLICY + "::test_two_cycles_of_ppo",),
        "PPO pays for certainty",
    ),
    Break(
        "a2c-value",
        "algorithms/a2c.py",
        "+ config.value_coefficient * value_losses.mean()",
        "+ value_losses.mean()",
        (ON_POLICY + "::test_two_cycles_of_a2c",),
        "value_coefficient ignored by A2C",
    ),
    Break(
        "a2c-clip",
        "algorithms/a2c.py",
        "optax.clip_by_global_norm(config.max_grad_norm), OPTIMIZERS",
        "optax.identity(), OPTIMIZERS",
        (ON_POLICY + "::test_two_cycles_of_a2c",),
        "no gradient clipping in A2C",
    ),
    Break(
        "trpo-damping",
        "algorithms/trpo.py",
        "optimization.move(fisher(vector), config.damping, vector)",
        "optimization.move(fisher(vector), 0.1, vector)",
        (ON_POLICY + "::test_two_cycles_of_trpo",),
        "damping ignored",
    ),
    Break(
        "trpo-entropy",
        "algorithms/trpo.py",
        "config.entropy_coefficient * distribution.entropy(new, key).mean()",
        "0 * distribution.entropy(new, key).mean()",
        (ON_POLICY + "::test_two_cycles_of_trpo",),
        "TRPO's entropy bonus ignored",
    ),
    Break(
        "reinforce-rate",
        "algorithms/reinforce.py",
        "learning_rate = config.learning_rate * schedules.factor(config.schedule, progress)",
        "learning_rate = config.learning_rate + 0 * progress",
        (SCHEDULES + "::test_the_learning_rate_of_reinforce",),
        "REINFORCE at a constant rate",
    ),
    Break(
        "td3-noise",
        "algorithms/td3.py",
        "config.target_noise, config.target_noise_clip)",
        "config.target_noise, 1e9)",
        (REPLAY + "::test_three_updates_of_td3",),
        "smoothing noise without a bound",
    ),
    Break(
        "td3-least",
        "algorithms/td3.py",
        "batch.discount * value.min(axis=0)",
        "batch.discount * value.mean(axis=0)",
        (REPLAY + "::test_three_updates_of_td3",),
        "the mean of two critics for the least",
    ),
    Break(
        "ddpg-rate",
        "algorithms/ddpg.py",
        "updates, config.actor_learning_rate)",
        "updates, config.learning_rate)",
        (REPLAY + "::test_three_updates_of_ddpg",),
        "the actor at the critic's rate",
    ),
    Break(
        "sac-temperature",
        "algorithms/sac.py",
        "temperature * (entropy - target_entropy)",
        "temperature * (entropy + target_entropy)",
        (REPLAY + "::test_three_updates_of_sac",),
        "entropy driven to the wrong target",
    ),
    Break(
        "sac-entropy",
        "algorithms/sac.py",
        "(value - jnp.exp(params.log_temperature) * log_prob)",
        "(value)",
        (REPLAY + "::test_three_updates_of_sac",),
        "SAC's target without entropy",
    ),
    Break(
        "dsac-target",
        "algorithms/discrete_sac.py",
        "config.target_entropy_ratio * math.log(num_actions)",
        "math.log(num_actions)",
        (REPLAY + "::test_three_updates_of_discrete_sac",),
        "target_entropy_ratio ignored",
    ),
    Break(
        "target-every",
        "learning/off_policy.py",
        "due = (update + 1) % config.target_every == 0",
        "due = update % config.target_every == 0",
        (REPLAY + "::test_three_updates_of_dqn",),
        "targets move one update early",
    ),
    Break(
        "qrdqn-munchausen",
        "algorithms/qrdqn.py",
        "return bonus[:, None] + _bootstrap(batch, soft)",
        "return 0 * bonus[:, None] + _bootstrap(batch, soft)",
        (REPLAY + "::test_three_updates_of_qrdqn",),
        "QR-DQN and IQN without the Munchausen bonus",
    ),
    Break(
        "iqn-fractions",
        "algorithms/iqn.py",
        "z_target = lambda params, obs: z(params, obs, target_tau)",
        "z_target = lambda params, obs: z(params, obs, tau)",
        (REPLAY + "::test_three_updates_of_iqn",),
        "IQN's targets at the fractions that are learnt",
    ),
    Break(
        "c51-choice",
        "algorithms/c51.py",
        '"double": lambda q, params, target_params, obs: q(params, obs)',
        '"double": lambda q, params, target_params, obs: q(target_params, obs)',
        (REPLAY + "::test_three_updates_of_c51_and_rainbow",),
        "C51's and Rainbow's double silently max",
    ),
    # replay and environments
    Break(
        "n-step-discount",
        "learning/replay.py",
        "discount = jnp.where(going, discount * config.discount, discount)",
        "discount = jnp.where(going, config.discount, discount)",
        ("tests/test_replay.py",),
        "γ for γⁿ",
    ),
    Break(
        "final-observation",
        "learning/replay.py",
        "cut = end == TRUNCATED\n    choose",
        "cut = end == TERMINATED\n    choose",
        ("tests/test_replay.py",),
        "truncated steps followed by the next episode",
    ),
    Break(
        "priority-exponent",
        "learning/replay.py",
        "values = priority**config.priority_exponent",
        "values = priority",
        (SCHEDULES + "::test_beta_of_prioritised_replay_grows_to_one",),
        "priority_exponent ignored",
    ),
    Break(
        "weight-scale",
        "learning/replay.py",
        "weight=batch.weight * rarity / rarity.max()",
        "weight=batch.weight * rarity",
        (SCHEDULES + "::test_beta_of_prioritised_replay_grows_to_one",),
        "importance weights above 1",
    ),
    Break(
        "truncation-ends",
        "learning/env_rollouts.py",
        "return discount * goes_on, next_value",
        "return discount * within, next_value",
        (
            "tests/envs/test_vector.py",
            ON_POLICY,
        ),
        "a time limit taken for an end",
    ),
    Break(
        "trace-leaks",
        "learning/env_rollouts.py",
        "next_value, trace_decay * within",
        "next_value, trace_decay * goes_on",
        (
            "tests/envs/test_vector.py",
            ON_POLICY,
        ),
        "traces over the end of an episode",
    ),
    Break(
        "progress",
        "learning/off_policy.py",
        "now = jnp.broadcast_to(times[-1] + 1, counts.shape)",
        "now = jnp.broadcast_to(times[-1], counts.shape)",
        (SCHEDULES + "::test_what_acting_sampling_and_learning_are_told_of_the_time",),
        "samples that never see the newest row",
    ),
    # text
    Break(
        "temperature",
        "learning/policy_gradient.py",
        "sampling.statistics(logits / config.temperature, tokens)",
        "sampling.statistics(logits, tokens)",
        (TEXT + "::test_two_cycles_of_grpo",),
        "log-probabilities of another temperature than was sampled",
    ),
    Break(
        "dual-clip",
        "algorithms/grpo.py",
        "config.clip, config.clip_high, config.dual_clip)",
        "config.clip, config.clip_high)",
        (TEXT + "::test_two_cycles_of_grpo",),
        "dual_clip ignored",
    ),
    Break(
        "overlong",
        "algorithms/grpo.py",
        "return reward - jnp.clip(over / config.overlong_buffer, 0.0, 1.0)",
        "return reward",
        (TEXT + "::test_two_cycles_of_grpo",),
        "no penalty of length",
    ),
    Break(
        "grpo-kl",
        "algorithms/grpo.py",
        "return surrogate + config.kl * DIVERGENCES[config.divergence]",
        'return surrogate + config.kl * DIVERGENCES["k3"]',
        (TEXT + "::test_two_cycles_of_grpo",),
        "divergence ignored",
    ),
    Break(
        "rloo-kl",
        "algorithms/rloo.py",
        "reward = reward - config.kl *",
        "reward = reward + config.kl *",
        (TEXT + "::test_two_cycles_of_rloo",),
        "RLOO paid for distance",
    ),
    Break(
        "missing-end",
        "algorithms/rlhf_ppo.py",
        "score - config.missing_end * ~rollout.stopped",
        "score - config.missing_end * rollout.stopped",
        (TEXT + "::test_two_cycles_of_rlhf_ppo",),
        "ends are fined",
    ),
    Break(
        "moving-baseline",
        "algorithms/text_reinforce.py",
        '"moving": state.baseline / jnp.maximum(state.weight, 1e-8)',
        '"moving": state.baseline',
        (TEXT + "::test_two_cycles_of_reinforce_with_demonstrations",),
        "a moving average that starts at 0",
    ),
    Break(
        "kto-point",
        "algorithms/kto.py",
        "return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))",
        "return jax.lax.stop_gradient(0.0 * mean)",
        (TEXT + "::test_two_updates_of_kto",),
        "KTO without its reference point",
    ),
    Break(
        "kto-weights",
        "algorithms/kto.py",
        "config.desirable_weight, config.undesirable_weight",
        "config.undesirable_weight, config.undesirable_weight",
        (TEXT + "::test_two_updates_of_kto",),
        "desirable_weight ignored",
    ),
    Break(
        "dpo-reference",
        "algorithms/dpo.py",
        "s = s - value(preference_batches.log_probs(base, fixed, pairs, config.chunk))",
        "s = s - 0 * value(preference_batches.log_probs(base, fixed, pairs, config.chunk))",
        (TEXT + "::test_two_updates_of_dpo",),
        "DPO without its reference",
    ),
    Break(
        "reward-margin",
        "algorithms/reward_model.py",
        'margin = rows.margin if config.margin == "data" else 0.0',
        "margin = 0.0",
        (TEXT + "::test_two_updates_of_a_reward_model",),
        "margins ignored",
    ),
    Break(
        "centring",
        "algorithms/reward_model.py",
        "loss = loss + config.centring * centre",
        "loss = loss + centre",
        (TEXT + "::test_two_updates_of_a_reward_model",),
        "centring's coefficient ignored",
    ),
    Break(
        "judgement-weights",
        "learning/preference_batches.py",
        "return rows, rows.weight / (number * jnp.where(mean > 0, mean, 1.0))",
        "return rows, jnp.ones_like(rows.weight) / rows.weight.size",
        (TEXT + "::test_two_updates_of_dpo",),
        "weights of judgements ignored",
    ),
    Break(
        "micro-means",
        "models/optimization.py",
        "share = 1.0 / jnp.where(count > 0, count, 1).astype(jnp.float32)",
        "share = 1.0 / (count.astype(jnp.float32) + 1)",
        (TEXT + "::test_two_updates_of_sft",),
        "a mean over one token too many",
    ),
    Break(
        "pack-mask",
        "text/data/pack.py",
        "mask[row, column] = False",
        "mask[row, column] = True",
        ("tests/text/test_data.py",),
        "the first token of a document predicted from another",
    ),
    Break(
        "stop-token",
        "text/decoding.py",
        "alive=state.alive & ~jnp.any(token[:, None] == stop_ids[None, :], axis=1),",
        "alive=state.alive,",
        ("tests/text/test_generate.py",),
        "nothing stops a completion",
    ),
    Break(
        "min-p",
        "math/sampling.py",
        "best + jnp.log(jnp.maximum(jnp.asarray(p, logits.dtype), 0.0))",
        "best + jnp.log(jnp.maximum(jnp.asarray(p, logits.dtype), 0.0)) / 2",
        ("tests/math/test_sampling.py",),
        "min-p of the square root",
    ),
    Break(
        "end-reward",
        "learning/completions.py",
        "last = jnp.where(drawn, index, -1).max(axis=1, keepdims=True)",
        "last = jnp.where(drawn, index, -1).max(axis=1, keepdims=True) * 0",
        (TEXT + "::test_two_cycles_of_rlhf_ppo",),
        "rewards at the first token",
    ),
    # runs
    Break(
        "metric-means",
        "runs/program/loop.py",
        "name: (t + sums[name][0], c + sums[name][1]) if sums else (t, c)",
        "name: (t, c)",
        (ROWS,),
        "a row tells of its last chunk only",
    ),
    Break(
        "iqm",
        "runs/reports/statistics.py",
        "stats.trim_mean(np.where(missing, 0.0, array), 0.25, axis)",
        "stats.trim_mean(np.where(missing, 0.0, array), 0.1, axis)",
        ("tests/runs/test_statistics.py",),
        "an IQM that trims a tenth",
    ),
    Break(
        "short-episodes",
        "runs/program/engine.py",
        "returns = returns + jnp.where(done, 0.0, reward)",
        "returns = returns + reward",
        (
            "tests/runs/test_evaluate.py",
            "tests/runs/test_train.py",
        ),
        "evaluation goes on after the end",
    ),
    Break(
        "worst-checkpoint",
        "runs/folder/checkpoint.py",
        "for _, path in sorted(scored, reverse=True)",
        "for _, path in sorted(scored)",
        ("tests/runs/test_checkpoint.py",),
        "the worst checkpoint is the best",
    ),
    Break(
        "same-keys",
        "runs/program/host_rewards.py",
        "return jax.random.fold_in(jax.random.fold_in(run_key, iteration), retry)",
        "return jax.random.fold_in(run_key, retry)",
        (ROWS,),
        "every iteration draws the same numbers",
    ),
    Break(
        "dropped-members",
        "runs/program/engine.py",
        "fetch = lambda tree: jax.tree.map(lambda x: np.asarray(x)[:members], hosted(tree))",
        "fetch = lambda tree: jax.tree.map(lambda x: np.asarray(x)[:1], hosted(tree))",
        (ROWS,),
        "only one seed is told of",
    ),
    # places that none of those above touches
    Break(
        "time-limit-late",
        "envs/wrappers.py",
        "terminated, truncated | (time >= max_steps)",
        "terminated, truncated | (time > max_steps)",
        ("tests/envs/test_wrappers.py::test_time_limit",),
        "episodes one step too long",
    ),
    Break(
        "sticky-start",
        "envs/wrappers.py",
        "again = ~first & jax.random.bernoulli",
        "again = jax.random.bernoulli",
        ("tests/envs/test_wrappers.py::test_sticky_actions",),
        "a first step that takes an action nobody chose",
    ),
    Break(
        "frames-of-nothing",
        "envs/wrappers.py",
        "frames = jnp.tile(observation, copies)",
        "frames = jnp.tile(0 * observation, copies)",
        ("tests/envs/test_wrappers.py::test_stack_frames",),
        "episodes that begin with black frames",
    ),
    Break(
        "merged-weights",
        "math/statistics.py",
        "weight = jnp.where(count > 0, b.count / jnp.maximum(count, 1), 0)",
        "weight = jnp.where(count > 0, a.count / jnp.maximum(count, 1), 0)",
        ("tests/math/test_statistics.py::test_merging_in_any_tree_equals_one_pass",),
        "merged statistics with the weights exchanged",
    ),
    Break(
        "clip-below",
        "math/statistics.py",
        "_expand(scale, leaf), -clip, clip)",
        "_expand(scale, leaf), -jnp.inf, clip)",
        ("tests/math/test_statistics.py::test_normalise_clips_and_starts_as_the_identity",),
        "normalised observations without a lower bound",
    ),
    Break(
        "top-k-more",
        "math/sampling.py",
        "jnp.sum(kept, dtype=jnp.int32) >= wanted",
        "jnp.sum(kept, dtype=jnp.int32) > wanted",
        ("tests/math/test_sampling.py::test_top_k_keeps_the_k_largest",),
        "one token more than k",
    ),
    Break(
        "top-p-mass",
        "math/sampling.py",
        "mass = jnp.asarray(p, logits.dtype) * jnp.sum(_columns(weight))",
        "mass = jnp.asarray(p, logits.dtype)",
        ("tests/math/test_sampling.py::test_top_p_keeps_the_smallest_set_of_that_mass",),
        "top-p of weights that do not add up to 1",
    ),
    Break(
        "replay-offset",
        "learning/replay.py",
        "return chosen, (start - before) + offset",
        "return chosen, start - before",
        ("tests/test_replay.py::test_a_draw_tells_single_transitions_of_a_large_replay_apart",),
        "the first transition of a stratum every time",
    ),
    Break(
        "reinforce-cut",
        "algorithms/reinforce.py",
        "Mean.of(mask.sum(0)), Mean.of(worlds.running)",
        "Mean.of(mask.sum(0)), Mean.of(~worlds.terminated)",
        ("tests/algorithms/test_probes.py::test_reinforce_counts_the_episodes_that_the_rollout_cut",),
        "time limits of the environment told as cut",
    ),
    Break(
        "policy-gain",
        "models/actor_critic.py",
        "kernel(self.policy_gain)",
        "kernel(1.0)",
        ("tests/algorithms/test_models.py::test_gains_of_the_layers",),
        "policies that start sure of themselves",
    ),
    Break(
        "lecun-axes",
        "models/layers.py",
        "lambda gain: lecun(gain, -2, -1)",
        "lambda gain: lecun(gain)",
        ("tests/algorithms/test_models.py::test_lecun_kernels_have_the_variance_of_one_over_their_inputs",),
        "convolutions scaled by their outputs",
    ),
    Break(
        "one-segment",
        "text/data/pack.py",
        "last[row] += 1",
        "last[row] = 1",
        ("tests/text/test_data.py::test_first_fit_keeps_documents_whole",),
        "documents of a row that see each other",
    ),
    Break(
        "pad-is-end",
        "text/tokenizer.py",
        "if candidate is not None and candidate != eos_id:",
        "if candidate is not None:",
        ("tests/text/test_tokenizer.py::test_pad_is_never_the_end_and_inside_the_vocabulary",),
        "padding with the end of a text",
    ),
    Break(
        "length-after-end",
        "runs/program/engine.py",
        "returns, lengths + ~done, done |",
        "returns, lengths + 1, done |",
        ("tests/runs/test_evaluate.py::test_episodes_equal_a_plain_loop",),
        "lengths that go on after the end",
    ),
    Break(
        "sweep-ignored",
        "runs/program/engine.py",
        "make(world, shared[0].replace(**varied), network, shared[1])",
        "make(world, shared[0], network, shared[1])",
        (ROWS,),
        "members of a sweep that are all alike",
    ),
    Break(
        "retry-ignored",
        "runs/program/engine.py",
        "step(iteration_key(key, state.iteration, shared[3]), state)",
        "step(iteration_key(key, state.iteration, 0), state)",
        (ROWS,),
        "a retry that draws the numbers that broke",
    ),
    Break(
        "evaluation-key",
        "runs/program/engine.py",
        "jax.random.fold_in(jax.random.fold_in(key, EVALUATION), shared[2])",
        "jax.random.fold_in(key, shared[2])",
        (ROWS,),
        "evaluation with the numbers of training",
    ),
    Break(
        "rows-after-resume",
        "runs/program/loop.py",
        "*(iteration - iteration % n + n for n in every if n)",
        "*(iteration + n for n in every if n)",
        (ROWS,),
        "rows of a resumed run between those of a whole one",
    ),
    Break(
        "nan-parameters",
        "runs/program/host_rewards.py",
        "[~jnp.isnan(x).any() for x in numbers]",
        "[]",
        ("tests/runs/test_failures.py::test_nan_parameters_behind_finite_metrics_are_noticed",),
        "NaN parameters saved as the last good ones",
    ),
)


def copy(folder: Path) -> None:
    """The checkout's files, those not committed yet included, below `folder`."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split("\n"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def passes(folder: Path, tests: tuple[str, ...]) -> bool:
    """Whether these tests of the copy pass; no bytecode is kept, which could be of another break."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", *tests]
    try:
        ran = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return ran.returncode == 0


def survives(folder: Path, each: Break, tests: tuple[str, ...]) -> bool:
    """Whether the tests pass in spite of the break. ValueError where its text does not occur once."""
    path = folder / "rljax" / each.file
    whole = path.read_text()
    if (found := whole.count(each.old)) != 1:
        raise ValueError(f"break {each.name}: its text occurs {found} times in rljax/{each.file}: must be 1")
    path.write_text(whole.replace(each.old, each.new))
    try:
        return passes(folder, tests)
    finally:
        path.write_text(whole)


def main() -> int:
    parser = argparse.ArgumentParser(description="Which deliberate breaks does no test notice?")
    parser.add_argument("--only", default="", help="a pattern of names and files")
    parser.add_argument("--tests", nargs="*", help="instead of those beside each break")
    arguments = parser.parse_args()
    chosen = [each for each in BREAKS if re.search(arguments.only, f"{each.name} {each.file}")]
    sound: dict[str, bool] = {}  # of a file, unbroken
    left = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy(folder)
        for each in chosen:
            tests = tuple(arguments.tests or each.tests)
            begun = time.perf_counter()
            for file in {test.partition("::")[0] for test in tests} - set(sound):
                sound[file] = passes(folder, (file,))
            if not all(sound[test.partition("::")[0]] for test in tests):
                verdict = "no verdict: its tests fail without it"
                left.append(each)
            elif survives(folder, each, tests):
                verdict = "SURVIVES"
                left.append(each)
            else:
                verdict = "caught"
            seconds = time.perf_counter() - begun
            print(f"{each.name:20} {verdict:9} {seconds:5.0f} s  {each.why}", flush=True)
    print(f"{len(chosen) - len(left)} of {len(chosen)} caught")
    for each in left:
        print(f"not caught: {each.name} in rljax/{each.file}: {each.why}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
