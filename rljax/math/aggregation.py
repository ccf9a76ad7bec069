"""How a batch of token losses becomes one number: weights w such that the loss is Σ w · l.

The choice changes the effective learning rate and what length costs. Take the weights from the mask of the
whole batch, before it is cut into pieces: the sum over the pieces is then that over the batch, and
accumulated gradients are those of the single batch. A sequence that is masked entirely counts as absent
unless said otherwise. `mask` (B, T) holds B completions padded to the static length T; where it is false the
weight is 0, but 0 · NaN is NaN, so losses there must be finite.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def _count(mask: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """How many are true, at least 1, as a float."""
    count = jnp.sum(mask, axis=axis, keepdims=keepdims, dtype=jnp.int32)
    return jnp.maximum(count, 1).astype(float)


def token_mean(mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """1 / (tokens of the batch): every token weighs the same, so long completions weigh more.

    DAPO (Yu et al. 2025) and CISPO; "dapo" in TRL, its default, and "token-mean" in verl.
    """
    return mask.astype(float) / _count(mask)


def sequence_mean(mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """1 / (tokens of the row · rows that have any): every completion weighs the same, whatever its length.

    GRPO as published (Shao et al. 2024, eq. 3) and GSPO; "grpo" in TRL, "seq-mean-token-mean" in verl and
    "sequence-mean-token-mean" in Tunix, there the default. TRL counts rows without a token, too.
    """
    rows = _count(jnp.any(mask, axis=1))
    return mask.astype(float) / (rows * jnp.broadcast_to(_count(mask, 1, keepdims=True), mask.shape))


def constant(mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """1 / (B · T), whatever the mask: no weight depends on a length, and an absent row lowers the loss.

    Dr.GRPO (Liu et al. 2025); "dr_grpo" in TRL. verl's "seq-mean-token-sum-norm" divides by T alone.
    """
    return mask.astype(float) / mask.size


AGGREGATIONS: dict[str, Callable[[Bool[Array, "B T"]], Float[Array, "B T"]]] = {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "constant": constant,
}
