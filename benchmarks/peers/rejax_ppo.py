"""Rejax's PPO as a worker, unchanged: `PPO.create(...).train` at equal hyper-parameters.

Rejax evaluates as it trains. Here it does not: the callback is replaced by an empty one (a field of the
algorithm, as its README does), `eval_freq` is the whole run and `skip_initial_evaluation` is set, so
`train` is num_iterations times `train_iteration` and nothing else. One iteration is num_envs x num_steps
steps, 4 epochs x 4 minibatches, as everywhere. The learning rate is optax's linear schedule.

What cannot be made equal without changing it, none of it dear: gradients are clipped by value instead of by
global norm, Adam's epsilon is 1e-8, actor and critic have an optimiser each, kernels start from LeCun's
initialiser instead of an orthogonal one.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any

from worker import Trial, compile_mapped, serve


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    import jax
    import optax

    rejax = importlib.import_module("rejax")

    def prepare(case: dict[str, Any]) -> Trial:
        steps = case["iterations"] * case["num_envs"] * case["num_steps"]
        updates = case["iterations"] * 4 * 4
        evaluating = rejax.PPO.create(
            env="CartPole-v1",
            total_timesteps=steps,
            eval_freq=steps,
            skip_initial_evaluation=True,
            num_envs=case["num_envs"],
            num_steps=case["num_steps"],
            num_epochs=4,
            num_minibatches=4,
            learning_rate=optax.linear_schedule(2.5e-4, 0.0, updates),
            gamma=0.99,
            gae_lambda=0.95,
            clip_eps=0.2,
            ent_coef=0.01,
            vf_coef=0.5,
            max_grad_norm=0.5,
            normalize_observations=False,
            normalize_rewards=False,
            agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
        )
        algorithm = evaluating.replace(eval_callback=lambda algorithm, state, key: ())

        def final(key: Any) -> Any:
            return algorithm.train(key)[0]

        def measure(state: Any) -> float:
            batch = len(jax.numpy.shape(state.global_step))  # (S,), (devices, S / devices) or ()
            for _ in range(batch):
                state = jax.tree.map(lambda x: x[0], state)
            _, returns = jax.jit(lambda state: evaluating.eval_callback(evaluating, state, state.rng))(state)
            return float(returns.mean())

        return Trial(compile_mapped(final, case["seeds"]), measure)

    return prepare


if __name__ == "__main__":
    serve(load)
