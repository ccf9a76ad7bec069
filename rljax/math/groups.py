"""Advantages among the G completions of one prompt; map over prompts with `vmap`.

`scored` says which rewards count. The others may be anything, NaN included: neither the results nor their
gradients see them, and their advantage is 0. So is that of everyone where fewer than two are scored, or
where all scored rewards are equal. Advantages are in units of the reward unless standardised.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rljax.math import masked


def has_variance(reward: Float[Array, "G"], scored: Bool[Array, "G"]) -> Bool[Array, ""]:
    """Whether the scored rewards differ: a group without variance teaches nothing (Yu et al. 2025, DAPO)."""
    largest = jnp.max(jnp.where(scored, reward, -jnp.inf))
    return largest > jnp.min(jnp.where(scored, reward, jnp.inf))


def centred(reward: Float[Array, "G"], scored: Bool[Array, "G"]) -> Float[Array, "G"]:
    """Rᵢ − mean R, the advantage of Dr.GRPO (Liu et al. 2025)."""
    return masked.centred(reward, scored)


def standardised(
    reward: Float[Array, "G"], scored: Bool[Array, "G"], epsilon: float | Float[Array, ""] = 1e-4
) -> Float[Array, "G"]:
    """(Rᵢ − mean R) / (std R + ε), without unit: the advantage of GRPO (Shao et al. 2024, section 4.1.2).

    std is that of a sample (G − 1 in the denominator) and ε = epsilon is outside the root, as in TRL.
    """
    difference = centred(reward, scored)
    count = jnp.sum(scored, dtype=jnp.int32)
    variance = jnp.sum(jnp.square(difference)) / jnp.maximum(count - 1, 1).astype(reward.dtype)
    varied = has_variance(reward, scored) & (variance > 0)
    deviation = jnp.sqrt(jnp.where(varied, variance, 1))  # the root has no slope at 0
    return jnp.where(varied, difference / (deviation + epsilon), 0)


def leave_one_out(reward: Float[Array, "G"], scored: Bool[Array, "G"]) -> Float[Array, "G"]:
    """Rᵢ − mean of the other R, the advantage of RLOO (Kool et al. 2019; Ahmadian et al. 2024).

    The baseline does not depend on completion i, so the gradient is unbiased. G/(G − 1) times `centred`.
    """
    count = jnp.sum(scored, dtype=jnp.int32)
    others = jnp.maximum(count - 1, 1)
    return centred(reward, scored) * (count.astype(reward.dtype) / others.astype(reward.dtype))
