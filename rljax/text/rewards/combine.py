"""Several rewards as one number."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from rljax.math import groups
from rljax.types import Array

Normalisation = Literal["raw", "group"]


def combine(
    values: Array,
    weights: Array,
    group: int,
    normalisation: Normalisation = "raw",
    absent: Array | None = None,
) -> Array:
    """(B, R) rewards as one (B,): "raw" Σᵣ wᵣ Rᵣ; "group" Σᵣ wᵣ (Rᵣ − μᵣ) / (σᵣ + 1e-4).

    μ and σ (with n − 1) are those of the `group` consecutive rows of one prompt, so that a reward counts by
    its order within the group and not by its size: GDPO (Liu et al. 2026, arXiv:2601.05242). NaN in a row
    where a reward of non-zero weight is NaN; the others of its group are standardised without it. Rewards
    that are `absent` (B, R) from a row, as they do not apply to it, are left out of its sum, as in TRL; a row
    from which all are is NaN.

    Raises: ValueError where B is no multiple of `group`, or a group of one is to be standardised.
    """
    if normalisation not in ("raw", "group"):
        raise ValueError(f"normalisation = {normalisation!r}: must be 'raw' or 'group'")
    size = values.shape[0]
    if group < 1 or size % group or (normalisation == "group" and group < 2):
        raise ValueError(
            f"group = {group}: must divide the {size} completions, and be at least 2 where rewards are "
            "normalised per group"
        )
    values, weights = jnp.asarray(values, jnp.float32), jnp.asarray(weights, jnp.float32)[None]
    if normalisation == "group":
        values = _standardised(values.reshape(size // group, group, -1)).reshape(values.shape)
    total = jnp.sum(jnp.where(_left_out(weights, absent), 0.0, weights * values), axis=-1)
    return total if absent is None else jnp.where(_left_out(weights, absent).all(axis=-1), jnp.nan, total)


def _left_out(weights: Array, absent: Array | None) -> Array:
    """Which rewards do not count, (1, R) or (B, R)."""
    return weights == 0 if absent is None else (weights == 0) | absent


def _standardised(values: Array) -> Array:
    """(N, G, R), over G; NaNs stay and do not count."""
    scored = ~jnp.isnan(values)
    over_rewards = jax.vmap(groups.standardised, (1, 1), 1)
    return jnp.where(scored, jax.vmap(over_rewards)(values, scored), jnp.nan)
