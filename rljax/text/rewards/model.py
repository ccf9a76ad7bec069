"""Rewards that a model gives, inside the program: what `rljax.algorithms.reward_model` has learnt."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rljax.models import language_heads
from rljax.text.data.pairs import Pairs
from rljax.types import Array, LanguageModel, PyTree, Reward

ROWS = 16  # samples that are scored at a time


def normalised(model: LanguageModel, params: PyTree, samples: Pairs) -> PyTree:
    """`params` with the "gain" and "bias", () both, that give the scores of `samples` mean 0 and standard
    deviation 1: gain · score + bias (Ziegler et al. 2019, section 2.1).

    Args:
        model: of params["model"]; params["head"] are those of `rljax.models.language_heads.reward_head`.
        samples: completions of the policy that fine-tuning starts from, (N, ...). Where all of them score
            the same, the gain is 1.
    """
    one = lambda row: language_heads.score(model, params, *jax.tree.map(lambda x: x[None], row))[0]
    scores = jax.lax.map(one, samples, batch_size=min(ROWS, samples.mask.shape[0]))
    deviation = scores.std()
    gain = 1 / jnp.where(deviation > 1e-6 * jnp.abs(scores).max(), deviation, 1.0)
    return {**params, "gain": gain, "bias": -gain * scores.mean()}


def of_model(
    name: str,
    model: LanguageModel,
    params: PyTree,
    weight: float = 1.0,
    *,
    ensemble: Literal["mean", "min"] = "mean",
    pessimism: float = 0.0,
    vocabulary: Any = None,
) -> Reward:
    """A reward model as a reward of completions: gain · score + bias, of which nothing is differentiated.

    Args:
        params: {"model", "head", "gain", "bias"}, see `normalised`; of several models that judge together
            each leaf with a first axis M. Without normalisation they are 1 and 0.
        ensemble: what M models say as one: their mean, or the least of them (Coste et al. 2023,
            arXiv:2310.02743).
        pessimism: how many standard deviations over the M models are subtracted from their mean.
        vocabulary: the tokenizer that the model learnt with; None: the model's vocab_size is what is known.

    Raises: ValueError in one line where `params` lack something, or numbers are out of range.
    """
    if missing := [part for part in ("model", "head", "gain", "bias") if part not in params]:
        raise ValueError(
            f"reward {name}: params have no {missing[0]}: rewards.normalised(model, params, samples) gives a "
            "gain and a bias, and 1 and 0 leave the scores as they are"
        )
    if ensemble not in ("mean", "min"):
        raise ValueError(f"reward {name}: ensemble = {ensemble!r}: must be 'mean' or 'min'")
    if not 0 <= pessimism < np.inf or (pessimism and ensemble == "min"):
        raise ValueError(
            f'reward {name}: pessimism = {pessimism}: must be at least 0, and 0 where ensemble = "min"'
        )
    params = jax.tree.map(jnp.asarray, params)
    several = params["gain"].ndim == 1
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(params)}
    if params["gain"].ndim > 1 or (several and len(sizes) > 1):
        raise ValueError(f"reward {name}: params of several models need one first axis, and have {sizes}")

    def apply(params: PyTree, prompt: Array, completion: Array, reference: PyTree) -> Array:
        del reference
        valid, mask = prompt >= 0, completion >= 0
        rows = jnp.where(valid, prompt, 0), valid, jnp.where(mask, completion, 0), mask

        def one(params: PyTree) -> Array:
            return params["gain"] * language_heads.score(model, params, *rows) + params["bias"]

        params = jax.lax.stop_gradient(params)
        if not several:
            return one(params)
        scores = jax.vmap(one)(params)
        return (
            scores.min(axis=0) if ensemble == "min" else scores.mean(axis=0) - pessimism * scores.std(axis=0)
        )

    known = getattr(model.config, "vocab_size", None) if vocabulary is None else vocabulary
    return Reward(name, apply, params, weight, vocabulary=known)
