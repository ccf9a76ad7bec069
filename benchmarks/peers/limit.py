"""What the pinned core can do at best, as a worker: float32 matmul rate and seconds per tanh, through JAX.

The product of two 1,024 x 1,024 matrices, and tanh over one hidden layer of a minibatch, 2,048 x 64;
medians of 31 calls.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from worker import Trial, serve

SIZE, LAYER, CALLS = 1024, (2048, 64), 31


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    import jax
    import jax.numpy as jnp

    def median(function: Callable[[Any], Any], argument: Any) -> float:
        seconds = []
        for _ in range(CALLS):
            begun = time.perf_counter()
            jax.block_until_ready(function(argument))
            seconds.append(time.perf_counter() - begun)
        return sorted(seconds)[CALLS // 2]

    def prepare(case: dict[str, Any]) -> Trial:
        matrix = jax.random.normal(jax.random.key(0), (SIZE, SIZE)) / SIZE**0.5
        layer = jax.random.normal(jax.random.key(1), LAYER)
        product = jax.jit(lambda x: x @ x).lower(matrix).compile()
        squash = jax.jit(jnp.tanh).lower(layer).compile()

        def measure(_: Any) -> dict[str, float]:
            return {
                "matmul_flops_per_second": 2 * SIZE**3 / median(product, matrix),
                "tanh_seconds": median(squash, layer) / layer.size,
            }

        return Trial(lambda: None, measure)

    return prepare


if __name__ == "__main__":
    serve(load)
