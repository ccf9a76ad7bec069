"""What the pinned core can do at best, as a worker: float32 matmul rate, and bytes per second of reading as
many weights as the case's model has. Medians of 15 calls.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from worker import Trial, serve

SIZE, CALLS = 1024, 15


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
        weights = jnp.ones((case["parameters"] // 256, 256))
        product = jax.jit(lambda x: x @ x).lower(matrix).compile()
        read = jax.jit(lambda x: jnp.sum(x, axis=0)).lower(weights).compile()

        def measure(_: Any) -> dict[str, float]:
            return {
                "flops_per_second": 2 * SIZE**3 / median(product, matrix),
                "bytes_per_second": weights.nbytes / median(read, weights),
            }

        return Trial(lambda: None, measure)

    return prepare


if __name__ == "__main__":
    serve(load)
