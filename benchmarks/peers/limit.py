"""What the pinned core can do at best, as a worker: float32 matmul rates and seconds per tanh, through JAX.

The product of two 1,024 x 1,024 matrices; the products of one minibatch's forward and backward pass and
nothing else, in the faster of two layouts (their shapes are 4, 64, 64, 2 by 2,048, which no product of a
thousand rows resembles); and tanh over one hidden layer of a minibatch, 2,048 x 64. Medians of 31 calls.
"""

from __future__ import annotations

import argparse
import itertools
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

        widths = [(4, 64, 64, 2), (4, 64, 64, 1)]
        pairs = [pair for net in widths for pair in itertools.pairwise(net)]
        flops = 2 * LAYER[0] * sum((2 + (i != 4)) * i * o for i, o in pairs)
        keys = iter(jax.random.split(jax.random.key(2), 3 * len(pairs)))
        rows = [
            tuple(jax.random.normal(next(keys), shape) for shape in ((o, i), (LAYER[0], i), (LAYER[0], o)))
            for i, o in pairs
        ]
        columns = [(w, x.T, g.T) for w, x, g in rows]

        def by_columns(layers: Any) -> Any:
            return [(w @ x, g @ x.T, w.T @ g if w.shape[1] != 4 else None) for w, x, g in layers]

        def by_rows(layers: Any) -> Any:
            return [(x @ w.T, x.T @ g, g @ w if w.shape[1] != 4 else None) for w, x, g in layers]

        minibatch = [
            (jax.jit(function).lower(layers).compile(), layers)
            for function, layers in ((by_columns, columns), (by_rows, rows))
        ]

        def measure(_: Any) -> dict[str, float]:
            return {
                "network_flops_per_second": flops / min(median(*each) for each in minibatch),
                "matmul_flops_per_second": 2 * SIZE**3 / median(product, matrix),
                "tanh_seconds": median(squash, layer) / layer.size,
            }

        return Trial(lambda: None, measure)

    return prepare


if __name__ == "__main__":
    serve(load)
