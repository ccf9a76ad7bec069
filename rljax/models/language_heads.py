"""Heads on the hidden states of a language model: a value per token, a score or classes per sequence.

Parameters are {"kernel" (D, N), "bias" (N,)} in float32, and so are the outputs. Initialised as by Ziegler et
al. 2019 (arXiv:1909.08593): values at 0, scores with standard deviation 1 / √(D + 1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rljax.models.transformer.products import product
from rljax.types import Array, Key, LanguageModel, Network, PyTree


def value_head(hidden_size: int, scale: float = 0.0) -> Network:
    """A scalar at each position: init(key) -> params, apply(params, hidden (..., D)) -> (...).

    `scale` is the standard deviation of the kernel at the start.
    """

    def apply(params: PyTree, hidden: Array) -> Array:
        return _outputs(params, hidden)[..., 0]

    return Network(lambda key: _params(key, hidden_size, 1, scale), apply)


def reward_head(hidden_size: int) -> Network:
    """A scalar at the last token of each sequence: init(key) -> params, apply(params, hidden, valid) -> (B,).

    hidden is (B, T, D) and valid (B, T) bool.
    """
    classes = classification_head(hidden_size, 1)
    return Network(classes.init, lambda params, hidden, valid: classes.apply(params, hidden, valid)[:, 0])


def classification_head(hidden_size: int, num_classes: int) -> Network:
    """Logits (B, N) of N classes at the last token: init(key) -> params, apply(params, hidden, valid).

    hidden is (B, T, D) and valid (B, T) bool.
    """

    def apply(params: PyTree, hidden: Array, valid: Array) -> Array:
        return _outputs(params, last(hidden, valid))

    return Network(lambda key: _params(key, hidden_size, num_classes, (hidden_size + 1) ** -0.5), apply)


def score(
    model: LanguageModel, params: PyTree, prompt: Array, valid: Array, completion: Array, mask: Array
) -> Array:
    """What a reward model gives B whole completions, (B,) float32: the reward head's output on the hidden
    state after the last token, that of the prompt where a completion has none.

    Args:
        model: of params["model"]; params["head"] are those of `reward_head`.
        prompt: (B / G, P) int32, padded on the left, each of G adjoining completions; `valid` (B / G, P) bool
            is where it has a token.
        completion: (B, T) int32, the stop token included; `mask` (B, T) bool is where it has a token, up to
            the last one.
    """
    # one more column, for the state after the last token; nothing is after what stands in it
    hidden = model.completion(params["model"], prompt, valid, jnp.pad(completion, [(0, 0), (0, 1)]))
    there = jnp.pad(mask, [(0, 0), (1, 0)], constant_values=True)
    return reward_head(hidden.shape[-1]).apply(params["head"], hidden, there)


def last(hidden: Array, valid: Array) -> Array:
    """Of hidden (B, T, D), that of the last column where `valid` (B, T) holds, (B, D), wherever the padding
    is; of a row that is all padding, that of the first column.
    """
    columns = jnp.arange(valid.shape[1], dtype=jnp.int32)[None]
    column = jnp.where(valid, columns, 0).max(axis=1)
    return jnp.take_along_axis(hidden, column[:, None, None], axis=1)[:, 0]


def _params(key: Key, size: int, outputs: int, scale: float) -> PyTree:
    kernel = scale * jax.random.normal(key, (size, outputs), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(outputs, jnp.float32)}


def _outputs(params: PyTree, hidden: Array) -> Array:
    y: Array = product(hidden, params["kernel"], jnp.float32)
    return y + params["bias"].reshape((1,) * (y.ndim - 1) + (-1,))
