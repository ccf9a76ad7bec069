"""How a large model's parameters are updated: which decay, in which precision, from how many microbatches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rljax.models.adapters.subsets import flatten, matches, unflatten
from rljax.types import Array, PyTree

NEVER_DECAYED = ("*bias*", "*norm*", "scale", "*embedding*", "prefix_*")


def decay_mask(params: PyTree, unread: Sequence[str] = ()) -> PyTree:
    """Which parameters weight decay is for, as a pytree of Python booleans: `optax.adamw(mask=decay_mask)`.

    Matrices are, the head and adapters among them; biases, norms, embeddings (a tied head is one) and
    prefixes are not, nor what matches `unread`, which no loss reads. By name, not by number of axes, so that
    stacked layers are no exception.
    """
    return unflatten({path: not matches(path, (*NEVER_DECAYED, *unread)) for path in flatten(params)})


class MasterState(NamedTuple):
    master: PyTree  # the parameters, in float32
    inner: Any


def master_weights(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer` on float32 copies of parameters that are stored in half precision (Micikevicius et al.
    2018, arXiv:1710.03740).

    A step of less than 2⁻⁹ of a bfloat16 parameter would be lost in it; here it goes to the copy, and after
    `optax.apply_updates` each parameter is its copy, rounded. The learning rate belongs inside `optimizer`.

    A transformer with `param_dtype` float32 and `dtype` bfloat16 needs none of this: its parameters are the
    master weights, rounded where they enter a product, and gradients are summed in float32. It holds 4 bytes
    per parameter where this holds 6.
    """
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params: PyTree) -> MasterState:
        master = wide(params)
        return MasterState(master, optimizer.init(master))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, MasterState]:
        if params is None:
            raise ValueError(
                "optimization.master_weights: update needs params: call update(updates, state, params)"
            )
        steps, inner = optimizer.update(wide(updates), state.inner, state.master)
        master = jax.tree.map(lambda m, u: m + u, state.master, steps)
        # in float32, where the difference of two half-precision numbers rounds to within the last bit of
        # either, so that parameter + difference rounds to the copy
        change = lambda p, m: m.astype(p.dtype).astype(jnp.float32) - p.astype(jnp.float32)
        return jax.tree.map(change, params, master), MasterState(master, inner)

    return optax.GradientTransformation(init, update)


def accumulate(
    loss_sum: Callable[[PyTree, PyTree], tuple[Array, Array]], params: PyTree, batch: PyTree, num_micro: int
) -> tuple[Array, Array, PyTree]:
    """Loss, count and gradient of their ratio of a whole batch, with the memory of one of its `num_micro`
    microbatches.

    The gradient is that of Σ loss / Σ count over the whole batch, never a mean of the microbatches' means,
    which would weigh a token the more, the fewer there are beside it.

    Args:
        loss_sum: (params, microbatch) -> (sum of losses, number that was summed over), both ().
        params: differentiated.
        batch: pytree of arrays (B, ...). Microbatch i is the rows i, i + num_micro, ..., so that a batch axis
            spread over devices stays spread.
        num_micro: static; must divide B.

    Returns: (sum of losses (), count (), gradient of their ratio like params; zero where the count is).

    Raises: ValueError where num_micro does not divide B.
    """
    total, count, gradient = add_up(loss_sum, params, batch, num_micro)
    share = 1.0 / jnp.where(count > 0, count, 1).astype(jnp.float32)
    gradient = jax.tree.map(lambda g, p: (g * share).astype(p.dtype), gradient, params)
    return total, count, gradient


def add_up(
    loss_sum: Callable[[PyTree, PyTree], tuple[Array, PyTree]], params: PyTree, batch: PyTree, num_micro: int
) -> tuple[Array, PyTree, PyTree]:
    """`accumulate` of losses that are weighted already: the sum over all microbatches, that of whatever else
    `loss_sum` gives, and the gradient of the sum.
    """
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if num_micro < 1 or len(sizes) != 1 or min(sizes) % num_micro:
        raise ValueError(
            f"optimization.accumulate: num_micro = {num_micro} with a batch of {sorted(sizes)} rows: "
            "must divide it"
        )

    def micro(params: PyTree, part: PyTree) -> tuple[Array, PyTree, PyTree]:
        (total, others), gradient = jax.value_and_grad(loss_sum, has_aux=True)(params, part)
        return total, others, gradient

    if num_micro == 1:
        total, others, gradient = micro(params, batch)
    else:
        rows = lambda x: jnp.swapaxes(x.reshape(-1, num_micro, *x.shape[1:]), 0, 1)
        parts = jax.tree.map(rows, batch)
        shapes = jax.eval_shape(micro, params, jax.tree.map(lambda x: x[0], parts))
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, _sum_dtype(s.dtype)), shapes)

        def add(sums: PyTree, part: PyTree) -> tuple[PyTree, None]:
            return jax.tree.map(lambda s, x: s + x.astype(s.dtype), sums, micro(params, part)), None

        (total, others, gradient), _ = jax.lax.scan(add, start, parts)
    return total, others, jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, params)


def _sum_dtype(dtype: Any) -> Any:
    """In which many microbatches can be added up."""
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else jnp.int32
