"""rljax's PPO as a worker: `engine.build`, the program behind `rljax train`, with its own mapping."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from worker import Trial, serve


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    import rljax  # noqa: F401  (before JAX starts: it shows one host device per core)
    from rljax import envs
    from rljax.algorithms import ppo
    from rljax.runs.program import engine

    world = envs.make("CartPole-v1")

    def prepare(case: dict[str, Any]) -> Trial:
        iterations = case["iterations"]
        config = ppo.Config(
            total_steps=iterations * case["num_envs"] * case["num_steps"],
            learning_rate=2.5e-4,
            schedule="linear",
            clip=0.2,
            clip_schedule="constant",
            discount=0.99,
            trace_decay=0.95,
            entropy_coefficient=0.01,
            value_coefficient=0.5,
            value_loss="clipped",
            max_grad_norm=0.5,
            adam_epsilon=1e-5,
            num_envs=case["num_envs"],
            num_steps=case["num_steps"],
            num_epochs=4,
            num_minibatches=4,
            hidden_sizes=(64, 64),
            activation="tanh",
            architecture="mlp",
            torso="separate",
            advantage_normalization="minibatch",
            observation_normalization="none",
            reward_scaling="none",
        )
        program = engine.build(ppo.make, world, config, {}, list(range(case["seeds"])))
        program.advance(program.init(), 0)  # compiles both, runs no iteration

        def run() -> Any:
            return program.advance(program.init(), iterations)

        def measure(output: Any) -> float:
            returns, _, _ = program.evaluate(output[0], 0, 128, False)
            return float(program.fetch(returns).mean())

        return Trial(run, measure)

    return prepare


if __name__ == "__main__":
    serve(load)
