"""Running mean and variance of pytrees of arrays, such as observations, exact under batching and merging.

A value that belongs in an algorithm's State: freeze it during a rollout, `update` it once after, and
`normalise` observations where they enter a network.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


class RunningStatistics(NamedTuple):
    """Mean and population variance of `count` examples; the trees have one example's structure and shapes.

    `count` is float32: exact to 2²⁴, beyond that rounded to 7 digits.
    """

    mean: PyTree[Float[Array, "..."]]
    variance: PyTree[Float[Array, "..."]]
    count: Float[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]


def init(example: PyTree) -> RunningStatistics:
    """Statistics of nothing yet: mean 0, variance 1, count 0, in float32, shaped like one example."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.float32), example)
    return RunningStatistics(zeros, jax.tree.map(jnp.ones_like, zeros), jnp.zeros((), jnp.float32))


def update(stats: RunningStatistics, batch: PyTree) -> RunningStatistics:
    """Takes in a batch: example leaves with the same leading axes (time, environments, …) in front.

    Equal to one pass over all examples seen so far, up to float32 rounding. Raises ValueError where the
    structure, an example's shape, or the leading axes of the leaves disagree, and for an empty batch.
    """
    leading = _leading_shape(stats.mean, batch)
    axes = tuple(range(len(leading)))
    rough = jax.tree.map(lambda leaf: jnp.mean(_float(leaf), axis=axes), batch)
    # A second pass around the rough mean removes the rounding of a long float32 sum far from zero.
    centred = jax.tree.map(lambda leaf, centre: _float(leaf) - _expand(centre, leaf), batch, rough)
    shift = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=axes), centred)
    mean = jax.tree.map(jnp.add, rough, shift)
    variance = jax.tree.map(
        lambda leaf, centre: jnp.mean(jnp.square(leaf - _expand(centre, leaf)), axis=axes), centred, shift
    )
    return merge(stats, RunningStatistics(mean, variance, jnp.float32(math.prod(leading))))


def merge(a: RunningStatistics, b: RunningStatistics) -> RunningStatistics:
    """Statistics of both sets of examples together (Chan, Golub & LeVeque 1979), in any order.

    With w = n_b / (n_a + n_b) and d = mean_b − mean_a:
        mean = mean_a + w d,     variance = (1 − w) variance_a + w variance_b + w (1 − w) d².
    Merging with an empty one changes nothing, so devices may merge in any tree.
    """
    count = a.count + b.count
    weight = jnp.where(count > 0, b.count / jnp.maximum(count, 1), 0)
    mean = jax.tree.map(lambda x, y: x + weight * (y - x), a.mean, b.mean)
    variance = jax.tree.map(
        lambda u, v, x, y: (1 - weight) * u + weight * v + weight * (1 - weight) * jnp.square(y - x),
        a.variance,
        b.variance,
        a.mean,
        b.mean,
    )
    return RunningStatistics(mean, variance, count)


def normalise(
    stats: RunningStatistics, x: PyTree, clip: float | Float[Array, ""] = 10.0, epsilon: float = 1e-8
) -> PyTree:
    """clip((x − mean) / √(variance + epsilon), ±clip) in float32, for leaves with any leading axes.

    Before the first update it is clip(x, ±clip). `epsilon` is in squared units of x.
    """

    def one(mean: Array, variance: Array, leaf: Any) -> Array:
        scale = jax.lax.rsqrt(variance + epsilon)
        return jnp.clip((_float(leaf) - _expand(mean, leaf)) * _expand(scale, leaf), -clip, clip)

    return jax.tree.map(one, stats.mean, stats.variance, x)


def _float(leaf: Any) -> Array:
    return jnp.asarray(leaf, jnp.float32)


def _expand(value: Array, leaf: Any) -> Array:
    return jnp.broadcast_to(value, jnp.shape(leaf))


def _leading_shape(mean: PyTree, batch: PyTree) -> tuple[int, ...]:
    """The axes in front of the example's, the same for all leaves."""
    shapes = set()
    for example, leaf in zip(
        jax.tree.leaves(mean), jax.tree.structure(mean).flatten_up_to(batch), strict=True
    ):
        split = jnp.ndim(leaf) - example.ndim
        if split < 0 or jnp.shape(leaf)[split:] != example.shape:
            raise ValueError(
                f"a batch leaf of shape {jnp.shape(leaf)} must end in the example's {example.shape}"
            )
        shapes.add(jnp.shape(leaf)[:split])
    if len(shapes) != 1 or 0 in (shape := shapes.pop()):
        raise ValueError("the leaves of a batch must have the same leading axes, none of length 0")
    return shape
