"""A language model that predicts each token from the one before it: by an embedding, a matrix and a bias."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rljax.types import LanguageModel

V, D = 5, 3  # vocabulary and width


def table(seed: int, *shape: int) -> np.ndarray:
    """Numbers of a standard normal distribution, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def parameters(seed: int) -> Any:
    kernel = {"kernel": table(seed + 1, D, V), "bias": table(seed + 2, V)}
    return {"embedding": table(seed, V, D), "head": kernel}


START = parameters(10)


def _embedded(params: Any, tokens: Any) -> Any:
    return jnp.asarray(params["embedding"])[tokens]


def _forward(params: Any, tokens: Any, segments: Any = None, dropout: Any = None, **_: Any) -> Any:
    """Dropout is no noise here, but its rate is felt."""
    hidden = _embedded(params, tokens)
    return hidden if dropout is None else hidden * (1 - dropout.rate)


def _completion(params: Any, prompt: Any, valid: Any, completion: Any, adapters: Any = None, **_: Any) -> Any:
    before = jnp.repeat(prompt[:, -1:], completion.shape[0] // prompt.shape[0], axis=0)
    return _embedded(params, jnp.concatenate([before, completion[:, :-1]], axis=1))


def _logits(params: Any, hidden: Any) -> Any:
    scores = jnp.tensordot(hidden, params["head"]["kernel"], 1)
    return scores + params["head"]["bias"].reshape((1,) * (scores.ndim - 1) + (-1,))


MODEL = LanguageModel(
    SimpleNamespace(vocab_size=V, hidden_size=D),
    init=lambda key: jax.tree.map(jnp.asarray, START),
    forward=_forward,
    logits=_logits,
    prefill=lambda params, prompt, valid, columns, adapters=None: (_embedded(params, prompt[:, -1]), ()),
    decode=lambda params, token, cache, adapters=None: (_embedded(params, token), cache),
    completion=_completion,
    fork=lambda cache, group: cache,
)
