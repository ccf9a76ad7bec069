"""What the core can do at best, as a worker: its float32 matmul rate and its time for one tanh, both through JAX.

A matmul of 1,024 x 1,024 matrices, and tanh over 16,384 numbers (64 KiB: they stay in the cache) a thousand times.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from worker import Trial, serve

SIZE, COUNT, TIMES = 1024, 16_384, 1000


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    import jax
    import jax.numpy as jnp

    def prepare(case: dict[str, Any]) -> Trial:
        matrix = jax.random.normal(jax.random.key(0), (SIZE, SIZE)) / SIZE**0.5
        numbers = jnp.linspace(-3.0, 3.0, COUNT)
        product = jax.jit(lambda x: x @ x).lower(matrix).compile()
        squash = (
            jax.jit(lambda x: jax.lax.fori_loop(0, TIMES, lambda _, x: jnp.tanh(3.0 * x), x))
            .lower(numbers)
            .compile()
        )

        def median(function: Callable[[Any], Any], argument: Any, repetitions: int) -> float:
            seconds = []
            for _ in range(repetitions):
                begun = time.perf_counter()
                jax.block_until_ready(function(argument))
                seconds.append(time.perf_counter() - begun)
            return sorted(seconds)[repetitions // 2]

        def measure(_: Any) -> dict[str, float]:
            return {
                "matmul_flops_per_second": 2 * SIZE**3 / median(product, matrix, 15),
                "tanh_seconds": median(squash, numbers, 15) / (COUNT * TIMES),
            }

        return Trial(lambda: None, measure)

    return prepare


if __name__ == "__main__":
    serve(load)
