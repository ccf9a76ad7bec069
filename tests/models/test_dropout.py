"""Noise of training: where it comes from, and what it leaves alone."""

from collections.abc import Callable
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


def states(model: LanguageModel, dropout: Dropout | None, rows: Any = slice(None)) -> Any:
    rng = np.random.default_rng(0)
    prompt, completion = (jnp.asarray(rng.integers(1, V, (B, T)), jnp.int32)[rows] for _ in range(2))
    run = lambda params: model.completion(
        params, prompt, jnp.ones(prompt.shape, bool), completion, dropout=dropout
    )
    return jax.jit(run)(jax.jit(model.init)(jax.random.key(0)))


def noise(rate: float, seed: int = 0) -> Dropout:
    return Dropout(jax.random.split(jax.random.key(seed), B), rate)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_that_of_a_rows_key_and_nothing_at_rate_0(name: str) -> None:
    model = MODELS[name]()
    clean, noisy = states(model, None), states(model, noise(0.3))
    np.testing.assert_allclose(states(model, noise(0.0)), clean, rtol=1e-6, atol=1e-6)
    assert np.abs(noisy - clean).max() > 1e-3
    np.testing.assert_array_equal(states(model, noise(0.3)), noisy)
    assert np.abs(states(model, noise(0.3, 1)) - noisy).max() > 1e-3
    some = np.asarray([2, 0])  # the same rows with other ones beside them
    part = states(model, Dropout(noise(0.3).keys[some], 0.3), some)
    np.testing.assert_allclose(part, noisy[some], rtol=1e-5, atol=1e-6)


def test_scanned_layers_have_the_noise_of_unrolled_ones() -> None:
    one, other = decoder(), decoder("scanned")
    params = one.init(jax.random.key(0))
    layers = [params[f"layer_{number}"] for number in range(2)]
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("layer_")}
    stacked = rest | {"layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, V, (B, T)), jnp.int32)
    found = other.forward(stacked, tokens, dropout=noise(0.3))
    np.testing.assert_allclose(found, one.forward(params, tokens, dropout=noise(0.3)), rtol=1e-5, atol=1e-6)


def test_a_share_is_0_and_the_mean_is_kept() -> None:
    x = jnp.ones((B, 100, 100))
    y = np.asarray(dropped(x, noise(0.2), 3))
    assert abs((y == 0).mean() - 0.2) < 0.01
    np.testing.assert_allclose(np.unique(y), [0.0, 1.25])
    assert (y[0] != y[1]).any()
    assert (np.asarray(dropped(x, noise(0.2), 4)) != y).any()
