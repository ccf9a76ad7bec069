"""What tells one encoder-decoder from another, as switches of one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp

from rljax import checks
from rljax.models.transformer.layers import ACTIVATIONS
from rljax.models.transformer.model import POLICIES


@dataclass(frozen=True)
class Seq2SeqConfig:
    """An encoder-decoder transformer; the defaults are those of the first T5."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_layers: int  # of the encoder
    num_decoder_layers: int
    head_dim: int = 64
    buckets: int = 32  # of distances; the encoder has one half of them for each direction
    max_distance: int = 128  # from which on all distances are one
    norm: Literal["rms"] = "rms"
    norm_epsilon: float = 1e-6
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "relu"
    mlp: Literal["gated", "plain"] = "plain"
    tied: bool = True  # the head is the embedding, transposed
    output_scale: float | None = None  # of what the head sees; None: hidden_size ** -0.5 if tied, else 1
    start_token: int = 0  # what the decoder reads first
    dtype: Any = jnp.float32  # of activations, the cache and the inputs of matmuls
    param_dtype: Any = jnp.float32
    loop: Literal["unrolled", "scanned"] = "unrolled"  # over the layers; scanned stacks their parameters
    remat: Literal["none", "full", "dots"] = "none"  # what the backward pass computes again

    @property
    def head_scale(self) -> float:
        if self.output_scale is not None:
            return self.output_scale
        return self.hidden_size**-0.5 if self.tied else 1.0


def check(config: Seq2SeqConfig) -> None:
    """Raises: ValueError naming the field of `config` that is wrong."""
    sizes = "vocab_size", "hidden_size", "intermediate_size", "num_heads", "head_dim"
    checks.count(config, *sizes, "num_layers", "num_decoder_layers")
    checks.count(config, "buckets", low=4)
    if config.max_distance <= config.buckets // 2:
        checks.complain(config, "max_distance", f"must be above {config.buckets // 2}, half the buckets")
    if not 0 <= config.start_token < config.vocab_size:
        checks.complain(config, "start_token", f"must be at least 0 and below {config.vocab_size}")
    checks.choice(config, "norm", ("rms",))
    checks.choice(config, "activation", ACTIVATIONS)
    checks.choice(config, "mlp", ("gated", "plain"))
    checks.choice(config, "loop", ("unrolled", "scanned"))
    checks.choice(config, "remat", ("none", *POLICIES))
