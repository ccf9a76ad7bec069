"""Starting values for well-known problems: plain data, read when a run gives no Config of its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rljax.algorithms import Definition

# A language model that two cores can train.
SMALL: dict[str, Any] = {"hidden_size": 64, "num_layers": 2, "learning_rate": 2e-3}

# Of the run of `sft` that trains the model of a task without a preset.
WARM_UP: dict[str, Any] = {"total_steps": 500_000, "batch_size": 64, "learning_rate": 2e-3}

# (algorithm, environment) -> Config fields that differ from the algorithm's defaults.
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("ppo", "CartPole-v1"): {
        "total_steps": 500_000,
        "learning_rate": 1e-3,
        "num_envs": 16,
    },
    ("ppo", "Acrobot-v1"): {
        "total_steps": 1_000_000,
        "learning_rate": 2e-3,
        "num_envs": 32,
        "num_steps": 64,
        "num_epochs": 8,
        "entropy_coefficient": 0.005,
        "observation_normalization": "running",
    },
    ("ppo", "MountainCar-v0"): {
        "total_steps": 1_000_000,
        "learning_rate": 3e-3,
        "trace_decay": 0.98,
        "num_envs": 16,
        "num_epochs": 10,
        "observation_normalization": "running",
        "reward_scaling": "running",
    },
    ("ppo", "MountainCarContinuous-v0"): {
        "total_steps": 1_000_000,
        "learning_rate": 1e-3,
        "trace_decay": 0.9,
        "entropy_coefficient": 0.0,
        "num_envs": 32,
        "num_epochs": 10,
        "initial_log_std": 0.5,
        "observation_normalization": "running",
        "reward_scaling": "running",
    },
    ("ppo", "Pendulum-v1"): {
        "total_steps": 1_000_000,
        "learning_rate": 1e-3,
        "discount": 0.95,
        "entropy_coefficient": 0.0,
        "num_envs": 16,
        "num_epochs": 10,
        "observation_normalization": "running",
        "reward_scaling": "running",
    },
    ("ppo", "Breakout-MinAtar"): {
        "total_steps": 10_000_000,
        "learning_rate": 5e-3,
        "num_minibatches": 8,
        "activation": "relu",
    },
    ("c51", "CartPole-v1"): {
        "total_steps": 200_000,
        "value_low": 0.0,
        "value_high": 100.0,
        "num_updates": 1,
        "batch_size": 64,
        "hidden_normalization": "layer",
    },
    ("iqn", "CartPole-v1"): {
        "total_steps": 200_000,
        "num_quantiles": 8,
        "num_target_quantiles": 8,
        "num_policy_quantiles": 8,
        "num_updates": 1,
        "batch_size": 64,
        "hidden_normalization": "layer",
    },
    ("rainbow", "Acrobot-v1"): {
        "total_steps": 300_000,
        "value_low": -100.0,
        "value_high": 0.0,
        "buffer_size": 100_000,
        "num_updates": 1,
        "batch_size": 64,
        "hidden_normalization": "layer",
    },
    ("qrdqn", "Acrobot-v1"): {
        "total_steps": 500_000,
        "quantiles": 16,
        "batch_size": 64,
        "buffer_size": 100_000,
        "hidden_sizes": (128, 128),
        "hidden_normalization": "layer",
    },
    ("pqn", "CartPole-v1"): {
        "total_steps": 500_000,
        "learning_rate": 1e-3,
        "trace_decay": 0.95,
        "epsilon_end": 0.2,
        "exploration_fraction": 0.2,
        "reward_scale": 0.1,
    },
    ("pqn", "Breakout-MinAtar"): {
        "total_steps": 10_000_000,
        "learning_rate": 5e-4,
        "num_envs": 128,
        "num_steps": 32,
        "num_epochs": 2,
        "num_minibatches": 32,
        "hidden_sizes": (128,),
        "architecture": "cnn",
    },
    ("dqn", "CartPole-v1"): {
        "total_steps": 300_000,
        "buffer_size": 100_000,
        "target_every": 500,
        "n_step": 3,
    },
    ("dqn", "Acrobot-v1"): {
        "total_steps": 400_000,
        "batch_size": 64,
        "buffer_size": 100_000,
        "hidden_normalization": "layer",
    },
    ("dqn", "MountainCar-v0"): {
        "total_steps": 400_000,
        "exploration_fraction": 0.3,
        "target_every": 500,
        "n_step": 4,
        "observation_normalization": "running",
    },
    ("trpo", "CartPole-v1"): {
        "total_steps": 200_000,
        "num_value_epochs": 20,
    },
    ("q_learning", "FrozenLake-tabular"): {"total_steps": 500_000},
    ("q_learning", "CliffWalking-tabular"): {
        "total_steps": 200_000,
        "step_size": 1.0,
        "step_size_decay": 0.0,
        "discount": 1.0,
        "epsilon_start": 0.1,
        "epsilon_end": 0.1,
    },
    ("sarsa", "CliffWalking-tabular"): {
        "total_steps": 500_000,
        "discount": 1.0,
        "epsilon_start": 0.1,
        "epsilon_end": 0.1,
    },
    ("expected_sarsa", "CliffWalking-tabular"): {
        "total_steps": 200_000,
        "step_size": 1.0,
        "step_size_decay": 0.0,
        "discount": 1.0,
        "epsilon_start": 0.1,
        "epsilon_end": 0.1,
    },
    ("monte_carlo", "FrozenLake-tabular"): {
        "total_steps": 2_000_000,
        "step_size_decay": 0.6,
        "epsilon_end": 0.2,
    },
    ("td_lambda", "RandomMDP-tabular"): {
        "total_steps": 500_000,
        "step_size_decay": 0.6,
        "trace_decay": 0.9,
    },
    ("ddpg", "Pendulum-v1"): {
        "total_steps": 30_000,
        "target_rate": 0.02,
        "num_steps": 100,
        "batch_size": 100,
        "buffer_size": 30_000,
        "schedule": "linear",
        "observation_normalization": "running",
    },
    ("ddpg", "MountainCarContinuous-v0"): {
        "total_steps": 200_000,
        "noise_scale": 0.7,
        "noise_reversion": 0.05,
        "target_rate": 0.01,
        "num_envs": 8,
        "num_steps": 64,
        "buffer_size": 200_000,
        "learning_starts": 5_000,
        "noise": "ornstein-uhlenbeck",
        "schedule": "linear",
        "observation_normalization": "running",
    },
    ("td3", "Pendulum-v1"): {
        "total_steps": 30_000,
        "noise_scale": 0.3,
        "target_rate": 0.05,
        "num_steps": 100,
        "batch_size": 100,
        "buffer_size": 30_000,
        "schedule": "linear",
        "observation_normalization": "running",
    },
    ("td3", "MountainCarContinuous-v0"): {
        "total_steps": 250_000,
        "noise_scale": 0.7,
        "noise_reversion": 0.05,
        "target_noise": 0.1,
        "target_rate": 0.02,
        "num_envs": 8,
        "num_steps": 64,
        "num_updates": 2,
        "buffer_size": 250_000,
        "learning_starts": 5_000,
        "noise": "ornstein-uhlenbeck",
        "schedule": "linear",
        "observation_normalization": "running",
    },
    ("sac", "Pendulum-v1"): {
        "total_steps": 30_000,
        "learning_rate": 3e-3,
        "target_rate": 0.02,
        "num_envs": 4,
        "num_steps": 25,
        "buffer_size": 30_000,
        "learning_starts": 500,
        "schedule": "linear",
        "observation_normalization": "running",
    },
    ("sac", "MountainCarContinuous-v0"): {
        "total_steps": 200_000,
        "noise_reversion": 0.05,
        "target_rate": 0.01,
        "num_envs": 8,
        "num_steps": 64,
        "buffer_size": 200_000,
        "learning_starts": 5_000,
        "noise": "ornstein-uhlenbeck",
        "schedule": "linear",
        "observation_normalization": "running",
    },
    ("discrete_sac", "CartPole-v1"): {
        "total_steps": 200_000,
        "learning_rate": 3e-3,
        "target_entropy_ratio": 0.6,
        "target_rate": 0.01,
        "num_envs": 8,
        "num_steps": 64,
        "batch_size": 128,
        "buffer_size": 200_000,
        "schedule": "linear",
    },
    ("sft", "reverse"): {"total_steps": 400_000, "batch_size": 64, **SMALL},
    ("sft", "sort"): {"total_steps": 300_000, "batch_size": 64, **SMALL},
    ("sft", "addition"): {"total_steps": 600_000, "batch_size": 64, **SMALL},
}


def _solvers() -> dict[tuple[str, str], dict[str, Any]]:
    """Of strings and sums."""
    sampled = {"num_epochs": 2, "num_minibatches": 4, "old_log_prob": "sampled"}
    ppo = {"num_prompts": 256, **sampled}
    rloo = {"num_prompts": 128, "group_size": 4, **sampled}
    grpo = rloo | {"groups": "resampled", "oversampling": 3, "clip_high": 0.28}
    reinforce = {"num_prompts": 256}
    strings = {  # fields, learning rate, iterations
        "rlhf_ppo": (ppo | {"num_minibatches": 1}, 5e-4, 900),
        "grpo": (grpo, 5e-4, 300),
        "rloo": (rloo | {"num_minibatches": 1}, 5e-4, 900),
        "text_reinforce": (reinforce, 5e-4, 1000),
    }
    sums = {
        "rlhf_ppo": (ppo, 5e-4, 2400),
        "grpo": (grpo, 5e-4, 1500),
        "rloo": (rloo, 5e-4, 3500),
        "text_reinforce": (reinforce, 1e-3, 3000),
    }
    shared = {"beta2": 0.95, "warmup_fraction": 0.1, "schedule": "linear"}
    shared |= {name: SMALL[name] for name in ("hidden_size", "num_layers")}
    rows = lambda fields: math.prod(fields.get(x, 1) for x in ("num_prompts", "group_size", "oversampling"))
    return {
        (name, task): {**shared, **fields, "learning_rate": rate, "total_steps": iterations * rows(fields)}
        for task, each in {"reverse": strings, "sort": strings, "addition": sums}.items()
        for name, (fields, rate, iterations) in each.items()
    }


PRESETS |= _solvers()


def preset(algorithm: str, env: str) -> dict[str, Any] | None:
    """A copy of the Config fields preset for this algorithm on this environment, None without a preset."""
    found = PRESETS.get((algorithm, env))
    return None if found is None else dict(found)


def config_for(algorithm: Definition, env_name: str, overrides: Mapping[str, Any]) -> tuple[Any, bool]:
    """The algorithm's Config: `overrides` over the preset for this environment, that over the defaults.

    Returns: (Config, whether there was a preset). ValueError for an unknown field.
    """
    config = algorithm.module.Config
    known = [field.name for field in dataclasses.fields(config)]
    for field in overrides:
        if field not in known:
            raise algorithm.unknown(field)
    found = preset(algorithm.name, env_name) if algorithm.built_in else None
    return config(**{**(found or {}), **overrides}), found is not None
