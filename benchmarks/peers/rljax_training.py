"""rljax's `pretrain` as a worker: its own step, compiled as `runs` compiles it, one after the other."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from llamas import rljax_llama
from worker import Trial, serve


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rljax import backend
    from rljax.algorithms import pretrain
    from rljax.types import Task

    def prepare(case: dict[str, Any]) -> Trial:
        text = np.random.default_rng(0).integers(0, case["shape"]["vocab_size"], size=case["text"])
        text = jnp.asarray(text, jnp.int32)
        task = Task("random tokens", case["shape"]["vocab_size"], text, text)
        config = pretrain.Config(
            total_steps=1e12,  # so that the learning rate stays in its rise
            batch_size=case["batch"],
            length=case["length"],
            num_micro=case["num_micro"],
            chunk=case["chunk"],
        )
        model = rljax_llama(case["shape"], case["dtype"], "float32", remat=case["remat"], loop=case["loop"])
        make = lambda frozen: pretrain.make(task, config, model, frozen)
        frozen = task.frozen  # an argument of the program, as `runs` passes it
        keys = list(jax.random.split(jax.random.key(0), case["steps"] + 2))
        state = jax.jit(make(frozen).init)(keys.pop())
        step = jax.jit(lambda frozen, key, state: make(frozen).step(key, state), donate_argnums=2)
        options = backend.compiler_options(jax.local_devices()[0])
        compiled = step.lower(frozen, keys[0], state).compile(options)

        def run() -> Any:
            nonlocal state
            metrics: Any = None
            for key in keys:
                state, metrics = compiled(frozen, key, state)
            jax.block_until_ready(state)
            return metrics.loss

        state, _ = jax.block_until_ready(compiled(frozen, keys.pop(), state))
        return Trial(run, lambda loss: float(loss.total / loss.count))

    return prepare


if __name__ == "__main__":
    serve(load)
