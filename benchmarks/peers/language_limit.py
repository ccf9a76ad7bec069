"""What the pinned core or the GPU can do at best, as a worker: rate of a square matrix product, and bytes per
second. Medians of 15 calls.

A product of bfloat16 has a float32 result on a CPU, where no other is fast, and a bfloat16 one on a GPU; a
product of float32 is rounded to TF32 there, as JAX does unless told otherwise. Bytes are those of reading as
many weights as the case's model has, on a GPU those read and written by copying 2 GiB.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from worker import Trial, serve

CALLS, CHAIN = 15, 8  # timed calls; products of one call on a GPU, so that launching one does not show


def load(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Trial]:
    import jax
    import jax.numpy as jnp

    on_cpu = jax.local_devices()[0].platform == "cpu"

    def median(function: Callable[[Any], Any], argument: Any) -> float:
        seconds = []
        for _ in range(CALLS):
            begun = time.perf_counter()
            jax.block_until_ready(function(argument))
            seconds.append(time.perf_counter() - begun)
        return sorted(seconds)[CALLS // 2]

    def multiply(x: Any) -> Any:
        if on_cpu:
            return jnp.matmul(x, x, preferred_element_type=jnp.float32)
        y = x
        for _ in range(CHAIN):
            y = y @ x
        return y

    def prepare(case: dict[str, Any]) -> Trial:
        size = case["size"]
        matrix = (jax.random.normal(jax.random.key(0), (size, size)) / size**0.5).astype(case["dtype"])
        numbers = jnp.ones((case["bytes"] // 1024, 256))
        product = jax.jit(multiply).lower(matrix).compile()
        move = jax.jit((lambda x: jnp.sum(x, axis=0)) if on_cpu else (lambda x: x + 1))
        moved = move.lower(numbers).compile()

        def measure(_: Any) -> dict[str, float]:
            products, passes = (1, 1) if on_cpu else (CHAIN, 2)
            return {
                "flops_per_second": 2 * size**3 * products / median(product, matrix),
                "bytes_per_second": passes * numbers.nbytes / median(moved, numbers),
            }

        return Trial(lambda: None, measure)

    return prepare


if __name__ == "__main__":
    serve(load)
