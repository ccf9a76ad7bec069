"""Noise of training: where it comes from, and what it leaves alone."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.models.recurrent import RecurrentConfig, recurrent
from rljax.models.seq2seq import Seq2SeqConfig, seq2seq
from rljax.models.transformer import Layer, TransformerConfig, transformer
from rljax.models.transformer.layers import dropped
from rljax.types import Dropout, LanguageModel

V, B, T = 13, 4, 6
SHAPE = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2}


def decoder(loop: Any = "unrolled", block: Any = "sequential") -> LanguageModel:
    return transformer(TransformerConfig(**SHAPE, layers=(Layer(),) * 2, loop=loop, block=block))


MODELS: dict[str, Callable[[], LanguageModel]] = {
    "llama": decoder,
    "parallel": lambda: decoder(block="parallel"),
    "sandwich": lambda: decoder(block="sandwich"),
    "scanned": lambda: decoder("scanned"),
    "t5": lambda: seq2seq(Seq2SeqConfig(**SHAPE, num_layers=2, num_decoder_layers=2, head_dim=8)),
    "gru": lambda: recurrent(RecurrentConfig(V, 16, 16, 2)),
}


@cache
def built(name: str) -> tuple[Any, Any]:
    """(what computes states, parameters) of a model, compiled once for each number of rows."""
    model = MODELS[name]()

    @jax.jit
    def run(params: Any, prompt: Any, completion: Any, dropout: Dropout | None) -> Any:
        valid = jnp.ones(prompt.shape, bool)
        return model.completion(params, prompt, valid, completion, dropout=dropout)

    return run, jax.jit(model.init)(jax.random.key(0))


def states(name: str, dropout: Dropout | None, rows: Any = slice(None)) -> Any:
    rng, (run, params) = np.random.default_rng(0), built(name)
    prompt, completion = (rng.integers(1, V, (B, T)).astype(np.int32)[rows] for _ in range(2))
    return np.asarray(run(params, prompt, completion, dropout))


def noise(rate: float, seed: int = 0) -> Dropout:
    return Dropout(jax.random.split(jax.random.key(seed), B), np.float32(rate))


@pytest.mark.parametrize("name", MODELS)
def test_it_is_that_of_a_rows_key_and_nothing_at_rate_0(name: str) -> None:
    clean, noisy = states(name, None), states(name, noise(0.3))
    np.testing.assert_allclose(states(name, noise(0.0)), clean, rtol=1e-6, atol=1e-6)
    assert np.abs(noisy - clean).max() > 1e-3
    np.testing.assert_array_equal(states(name, noise(0.3)), noisy)
    assert np.abs(states(name, noise(0.3, 1)) - noisy).max() > 1e-3
    some = np.asarray([2, 0])  # the same rows with other ones beside them
    part = states(name, Dropout(noise(0.3).keys[some], np.float32(0.3)), some)
    np.testing.assert_allclose(part, noisy[some], rtol=1e-5, atol=1e-6)


def test_scanned_layers_have_the_noise_of_unrolled_ones() -> None:
    one, other = decoder(), decoder("scanned")
    params = jax.device_get(jax.jit(one.init)(jax.random.key(0)))
    layers = [params[f"layer_{number}"] for number in range(2)]
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("layer_")}
    stacked = rest | {"layers": jax.tree.map(lambda *x: np.stack(x), *layers)}
    tokens = np.random.default_rng(0).integers(1, V, (B, T)).astype(np.int32)
    found = jax.jit(other.forward)(stacked, tokens, dropout=noise(0.3))
    expected = jax.jit(one.forward)(params, tokens, dropout=noise(0.3))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_share_is_0_and_the_mean_is_kept() -> None:
    drop = jax.jit(dropped, static_argnums=2)
    x = np.ones((B, 100, 100), np.float32)
    y = np.asarray(drop(x, noise(0.2), 3))
    assert abs((y == 0).mean() - 0.2) < 0.01
    np.testing.assert_allclose(np.unique(y), [0.0, 1.25])
    assert (y[0] != y[1]).any()
    assert (np.asarray(drop(x, noise(0.2), 4)) != y).any()
