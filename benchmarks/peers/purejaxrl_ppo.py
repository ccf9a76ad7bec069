"""PureJaxRL's ppo.py as a worker, unchanged, from a checkout whose `purejaxrl` folder is on --path.

What it needs is given from outside: `jax.tree_map`, which JAX has dropped, and empty brax and navix where
they are not installed (wrappers.py imports them for environments other than Gymnax's). Where several seeds
run on several CPU cores, its initialiser's QR decompositions run one after the other, since jaxlib's
batched ones can wait for each other for ever; training is not touched.

Two choices in its favour: what it stacks of every step for plotting (`metrics`) is not returned, so XLA
drops it, and its DEBUG callback is off.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

from worker import Trial, compile_mapped, serve


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    import jax

    if not hasattr(jax, "tree_map"):
        setattr(jax, "tree_map", jax.tree.map)  # noqa: B010  (type checkers know that it is gone)
    if importlib.util.find_spec("brax") is None:
        stub("brax.envs.wrappers.training", EpisodeWrapper=object, AutoResetWrapper=object)
    if importlib.util.find_spec("navix") is None:
        stub("navix")
    ppo = importlib.import_module("ppo")
    if jax.default_backend() == "cpu" and (
        jax.local_device_count() > 1 or "," in arguments.cores or not arguments.cores
    ):
        setattr(ppo, "orthogonal", one_at_a_time(ppo.orthogonal))  # noqa: B010

    def prepare(case: dict[str, Any]) -> Trial:
        train = ppo.make_train(
            {
                "LR": 2.5e-4,
                "NUM_ENVS": case["num_envs"],
                "NUM_STEPS": case["num_steps"],
                "TOTAL_TIMESTEPS": case["iterations"] * case["num_envs"] * case["num_steps"],
                "UPDATE_EPOCHS": 4,
                "NUM_MINIBATCHES": 4,
                "GAMMA": 0.99,
                "GAE_LAMBDA": 0.95,
                "CLIP_EPS": 0.2,
                "ENT_COEF": 0.01,
                "VF_COEF": 0.5,
                "MAX_GRAD_NORM": 0.5,
                "ACTIVATION": "tanh",
                "ENV_NAME": "CartPole-v1",
                "ANNEAL_LR": True,
                "DEBUG": False,
            }
        )

        def final(key: Any) -> tuple[Any, Any]:
            train_state, env_state, *_ = train(key)["runner_state"]
            return train_state.params, env_state.returned_episode_returns.mean()

        return Trial(compile_mapped(final, case["seeds"]), lambda output: float(output[1].mean()))

    return prepare


def stub(name: str, **content: Any) -> None:
    """An empty package, and those above it, in place of one that is not installed."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        module = types.ModuleType(".".join(parts[:depth]))
        module.__path__ = []
        sys.modules[module.__name__] = module
        if depth > 1:
            setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], module)
    vars(sys.modules[name]).update(content)


def one_at_a_time(initializer_of: Callable[..., Any]) -> Callable[..., Any]:
    """An initialiser whose batch under vmap becomes a loop."""
    import jax

    def scaled(*scale: Any) -> Callable[..., Any]:
        initializer = initializer_of(*scale)
        return lambda key, *rest: jax.custom_batching.sequential_vmap(lambda key: initializer(key, *rest))(
            key
        )

    return scaled


if __name__ == "__main__":
    serve(load)
