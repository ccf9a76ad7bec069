"""rljax: reinforcement learning on control problems and language models as pure, compiled functions.

    from rljax import ppo, train
    result = train(ppo, "CartPole-v1", ppo.Config(learning_rate=1e-3), seeds=8, out="runs/first")

Everything below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rljax import algorithms as _algorithms
from rljax import backend as _backend
from rljax.runs import stopping as _stopping

if TYPE_CHECKING:
    from rljax import envs as envs
    from rljax import math as math
    from rljax import models as models
    from rljax import runs as runs
    from rljax import testing as testing
    from rljax import text as text
    from rljax.algorithms import a2c as a2c
    from rljax.algorithms import c51 as c51
    from rljax.algorithms import ddpg as ddpg
    from rljax.algorithms import discrete_sac as discrete_sac
    from rljax.algorithms import dpo as dpo
    from rljax.algorithms import dqn as dqn
    from rljax.algorithms import expected_sarsa as expected_sarsa
    from rljax.algorithms import grpo as grpo
    from rljax.algorithms import iqn as iqn
    from rljax.algorithms import kto as kto
    from rljax.algorithms import monte_carlo as monte_carlo
    from rljax.algorithms import ppo as ppo
    from rljax.algorithms import pqn as pqn
    from rljax.algorithms import pretrain as pretrain
    from rljax.algorithms import q_learning as q_learning
    from rljax.algorithms import qrdqn as qrdqn
    from rljax.algorithms import rainbow as rainbow
    from rljax.algorithms import reinforce as reinforce
    from rljax.algorithms import reward_model as reward_model
    from rljax.algorithms import rlhf_ppo as rlhf_ppo
    from rljax.algorithms import rloo as rloo
    from rljax.algorithms import sac as sac
    from rljax.algorithms import sarsa as sarsa
    from rljax.algorithms import sft as sft
    from rljax.algorithms import td3 as td3
    from rljax.algorithms import td_lambda as td_lambda
    from rljax.algorithms import text_reinforce as text_reinforce
    from rljax.algorithms import trpo as trpo
    from rljax.runs.evaluate import evaluate as evaluate
    from rljax.runs.evaluate_text import judge as judge
    from rljax.runs.load import load as load
    from rljax.runs.metrics import metrics as metrics
    from rljax.runs.pretrained import language_model as language_model
    from rljax.runs.pretrained import load_reward as load_reward
    from rljax.runs.program.engine import run as run
    from rljax.runs.render import render as render
    from rljax.runs.report import report as report
    from rljax.runs.sweep import sweep as sweep
    from rljax.runs.train import train as train

__version__ = "0.1.0"

_backend.prepare()

_FUNCTIONS = {
    "run": "rljax.runs.program.engine",
    "train": "rljax.runs.train",
    "sweep": "rljax.runs.sweep",
    "evaluate": "rljax.runs.evaluate",
    "judge": "rljax.runs.evaluate_text",
    "load": "rljax.runs.load",
    "metrics": "rljax.runs.metrics",
    "language_model": "rljax.runs.pretrained",
    "load_reward": "rljax.runs.pretrained",
    "report": "rljax.runs.report",
    "render": "rljax.runs.render",
}
_MODULES = ("envs", "math", "models", "runs", "text", "algorithms", "types", "checks", "cli", "testing")


def __getattr__(name: str) -> Any:
    with _stopping.stoppable("interrupted while importing"), _backend.importing:
        if name in _FUNCTIONS:
            return getattr(importlib.import_module(_FUNCTIONS[name]), name)
        if name in _MODULES:
            return importlib.import_module(f"rljax.{name}")
        if name in _algorithms.NAMES:
            return importlib.import_module(f"rljax.algorithms.{name}")
    raise AttributeError(f"module 'rljax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_FUNCTIONS, *_MODULES, *_algorithms.NAMES, "__version__"])
