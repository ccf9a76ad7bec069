"""Language models of an algorithm's own making: of the sizes in its Config, for one that brings no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from rljax import checks
from rljax.models.recurrent import RecurrentConfig, recurrent
from rljax.models.seq2seq import Seq2SeqConfig, seq2seq
from rljax.models.transformer import Layer, TransformerConfig, transformer
from rljax.types import LanguageModel

MOST_LAYERS = 1000  # the program of each is its own
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def language_model(vocab_size: int, config: Any, length: int) -> LanguageModel:
    """A model of `config.architecture` with its hidden_size, num_layers, num_heads and dtype, for rows of
    `length` tokens. Parameters are float32.

    Raises: ValueError naming the field that is wrong.
    """
    checks.count(config, "hidden_size", "num_heads")
    checks.count(config, "num_layers", high=MOST_LAYERS)
    columns = vocab_size + 6 * config.num_layers * config.hidden_size  # no architecture has fewer weights
    checks.fits(config, "hidden_size", 4 * config.hidden_size * columns)
    checks.choice(config, "dtype", DTYPES)
    checks.choice(config, "architecture", ARCHITECTURES)
    return ARCHITECTURES[config.architecture](vocab_size, config, length)


def _llama(vocab_size: int, config: Any, length: int) -> LanguageModel:
    _divides(config, 2)  # rotary embeddings turn pairs of a head's dimensions
    shape = TransformerConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=_intermediate(config),
        num_heads=config.num_heads,
        layers=(Layer(),) * config.num_layers,
        max_positions=length,
        dtype=DTYPES[config.dtype],
    )
    return transformer(shape)


def _t5(vocab_size: int, config: Any, length: int) -> LanguageModel:
    """As T5 1.1, but for its head, which is the embedding."""
    del length  # there is no limit
    _divides(config, 1)
    shape = Seq2SeqConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=_intermediate(config),
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        num_decoder_layers=config.num_layers,
        head_dim=config.hidden_size // config.num_heads,
        activation="gelu_tanh",
        mlp="gated",
        dtype=DTYPES[config.dtype],
    )
    return seq2seq(shape)


def _recurrent(vocab_size: int, config: Any, length: int) -> LanguageModel:
    del length  # there is no limit
    size = config.hidden_size
    shape = RecurrentConfig(
        vocab_size, size, size, config.num_layers, config.architecture, tied=True, dtype=DTYPES[config.dtype]
    )
    return recurrent(shape)


def _intermediate(config: Any) -> int:
    """Three matrices with as many weights as two of 4 x hidden_size."""
    return -(-8 * config.hidden_size // 48) * 16


def _divides(config: Any, factor: int) -> None:
    if config.hidden_size % (factor * config.num_heads):
        what = "num_heads" if factor == 1 else f"{factor} x num_heads"
        checks.complain(config, "num_heads", f"{what} must divide hidden_size = {config.hidden_size}")


ARCHITECTURES: dict[str, Callable[[int, Any, int], LanguageModel]] = {
    "llama": _llama,
    "t5": _t5,
    "gru": _recurrent,
    "lstm": _recurrent,
}
