"""rljax's DQN, SAC, TD3 and PQN as a worker: `engine.build`, the program behind `rljax train`.

SAC and TD3 clip no gradients, which Rejax's presets do not either (TD3's clip at 100 touches none), and PQN
steps by RAdam, not by Adam. Noise is where actions are in [-1, 1], so it is rescaled.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any

from worker import EPISODES, Trial, serve


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    import rljax  # noqa: F401  (before JAX starts: it shows one host device per core)
    from rljax import envs
    from rljax.runs.program import engine

    def prepare(case: dict[str, Any]) -> Trial:
        algorithm = importlib.import_module(f"rljax.algorithms.{case['algorithm']}")
        config = algorithm.Config(**fields(case))
        learning = case["steps"] - config.initial_steps
        iterations, rest = divmod(learning, config.steps_per_iteration)
        if rest:
            raise ValueError(f"{learning} steps are no multiple of {config.steps_per_iteration}")
        program = engine.build(algorithm.make, envs.make(case["env"]), config, {}, list(range(case["seeds"])))
        program.advance(program.init(), 0)  # compiles both, runs no iteration

        def run() -> Any:
            return program.advance(program.init(), iterations)

        def measure(output: Any) -> list[float]:
            returns, _, _ = program.evaluate(output[0], 0, EPISODES, True)
            return program.fetch(returns).mean(1).tolist()

        return Trial(run, measure)

    return prepare


def fields(case: dict[str, Any]) -> dict[str, Any]:
    """A case's hyper-parameters under rljax's names."""
    name = case["algorithm"]
    same = ("num_envs", "num_steps", "learning_rate", "discount", "hidden_sizes")
    found = {key: case[key] for key in same} | {
        "total_steps": case["steps"],
        "activation": {"swish": "silu"}.get(case["activation"], case["activation"]),
        "observation_normalization": "running" if case["normalize"] else "none",
    }
    found["hidden_sizes"] = tuple(found["hidden_sizes"])
    if name in ("dqn", "pqn"):
        start, end, fraction = case["epsilon"]
        found |= {"epsilon_start": start, "epsilon_end": end, "exploration_fraction": fraction}
        found |= {"max_grad_norm": case["max_grad_norm"]}
    if name == "pqn":
        found |= {key: case[key] for key in ("num_minibatches", "trace_decay")}
        return found | {"num_epochs": case["num_updates"], "schedule": "constant"}
    found |= {key: case[key] for key in ("buffer_size", "batch_size", "learning_starts", "num_updates")}
    found |= {"train_every": 1, "target_rate": 1 - case["keep"]}
    if name == "dqn":
        found |= {"target_every": case["num_updates"], "head": "linear_dueling"}
        found |= {"target": "double", "loss": "squared", "replay": "uniform"}
    if name == "td3":
        names = {"exploration_noise": "noise_scale"}  # where actions are in [-1, 1]
        for key in ("exploration_noise", "target_noise", "target_noise_clip"):
            found[names.get(key, key)] = case[key] / case["action_high"]
        found |= {"policy_delay": 2}
    return found


if __name__ == "__main__":
    serve(load)
