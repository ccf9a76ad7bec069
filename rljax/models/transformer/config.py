"""What tells one decoder-only transformer from another, as switches of one frozen dataclass."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from rljax import checks


@dataclass(frozen=True)
class Rotary:
    """Rotary position embeddings (Su et al. 2021, arXiv:2104.09864): dimension i turns with i + size / 2.

    `scaling` "linear" divides all frequencies by `factor` (Chen et al. 2023, arXiv:2306.15595); "llama3" the
    low ones alone, with a smooth passage (Llama 3.1).
    """

    base: float = 10_000.0
    fraction: float = 1.0  # of a head's dimensions that turn: the first ones
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians per position, (fraction · head_dim / 2,), rounded up."""
        size = int(head_dim * self.fraction)
        inverse = self.base ** -(np.arange(0, size, 2, dtype=np.float64) / size)
        if self.scaling == "linear":
            inverse = inverse / self.factor
        if self.scaling == "llama3":
            low = self.original_positions / self.low_frequency_factor
            high = self.original_positions / self.high_frequency_factor
            length = 2 * math.pi / inverse
            smooth = (self.original_positions / length - self.low_frequency_factor) / (
                self.high_frequency_factor - self.low_frequency_factor
            )
            middle = (1 - smooth) * inverse / self.factor + smooth * inverse
            inverse = np.where(length > low, inverse / self.factor, np.where(length < high, inverse, middle))
        return inverse.astype(np.float32)


@dataclass(frozen=True)
class Layer:
    """What may differ between the layers of one model."""

    rotary: Rotary | None = Rotary()  # None: positions do not enter this layer
    window: int | None = None  # of positions that attention reaches back, the own one included; None: all


@dataclass(frozen=True)
class TransformerConfig:
    """A decoder-only transformer: Llama, SmolLM, Qwen, Mistral, Gemma, GPT-2, GPT-NeoX and what lies between.

    The defaults are Llama's.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    layers: tuple[Layer, ...]
    num_kv_heads: int | None = None  # None: as many as num_heads
    head_dim: int | None = None  # None: hidden_size / num_heads
    max_positions: int = 2048  # the longest sequence that it was made for
    positions: Literal["rotary", "learned"] = "rotary"
    norm: Literal["rms", "rms_offset", "layer"] = "rms"  # rms_offset: scales by 1 + w (Gemma)
    norm_epsilon: float = 1e-5
    block: Literal["sequential", "sandwich", "parallel"] = "sequential"  # sandwich: norms after, too
    head_norm: Literal["none", "query_key"] = "none"  # norms of queries and keys within each head (Qwen3)
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    mlp: Literal["gated", "plain"] = "gated"
    biases: tuple[str, ...] = ()  # of "qkv", "output", "mlp", "head": which linear layers have one
    tied: bool = True  # the head is the embedding, transposed
    embedding_scale: float = 1.0
    attention_scale: float | None = None  # None: head_dim ** -0.5
    attention_softcap: float | None = None
    final_softcap: float | None = None
    dtype: Any = field(default=jnp.float32)  # of activations, the cache and the inputs of matmuls
    param_dtype: Any = field(default=jnp.float32)
    attention: Literal["auto", "whole", "blocks", "cudnn"] = "auto"  # its form; auto: by the backend
    loop: Literal["unrolled", "scanned"] = "unrolled"  # over the layers; scanned stacks their parameters
    remat: Literal["none", "full", "dots"] = "none"  # what the backward pass computes again
    family: str = "llama"  # model_type of Hugging Face that `models.huggingface.save` writes it as

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def scale(self) -> float:
        return self.head_size**-0.5 if self.attention_scale is None else self.attention_scale


def check(config: TransformerConfig) -> None:
    """Raises: ValueError naming the field of `config` that is wrong, its value and what would be right."""
    checks.count(config, "vocab_size", "hidden_size", "intermediate_size", "num_heads", "max_positions")
    for name, options in CHOICES.items():
        checks.choice(config, name, options)
    for name in ("num_kv_heads", "head_dim"):
        if getattr(config, name) is not None:
            checks.count(config, name)
    checks.number(config, "norm_epsilon", low=0.0)
    if config.num_heads % config.kv_heads:
        checks.complain(config, "num_kv_heads", f"must divide num_heads = {config.num_heads}")
    if config.head_dim is None and config.hidden_size % config.num_heads:
        right = f"must divide hidden_size = {config.hidden_size} where no head_dim is given"
        checks.complain(config, "num_heads", right)
    if not config.layers:
        checks.complain(config, "layers", "must hold at least one Layer")
    if not set(config.biases) <= BIASES:
        checks.complain(config, "biases", f"must be a tuple of some of {', '.join(sorted(BIASES))}")
    if any(layer.window is not None and layer.window < 1 for layer in config.layers):
        checks.complain(config, "layers", "a window must be at least 1, or None for all positions")
    rotaries = {layer.rotary for layer in config.layers} - {None}
    sizes = {2 * len(rotary.frequencies(config.head_size)) for rotary in rotaries if rotary is not None}
    if len(sizes) > 1:
        checks.complain(config, "layers", "must all turn the same number of dimensions of a head")
    if any(size > config.head_size for size in sizes):
        right = (
            f"must be even where all of a head turns, or reduce Rotary.fraction: {config.head_size} is odd"
        )
        checks.complain(config, "head_dim", right)
    if config.positions == "learned" and rotaries:
        checks.complain(config, "positions", "needs layers with rotary=None: Layer(rotary=None)")


BIASES = {"qkv", "output", "mlp", "head"}
CHOICES = {
    "positions": ("rotary", "learned"),
    "norm": ("rms", "rms_offset", "layer"),
    "block": ("sequential", "sandwich", "parallel"),
    "head_norm": ("none", "query_key"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
    "mlp": ("gated", "plain"),
    "attention": ("auto", "whole", "blocks", "cudnn"),
    "loop": ("unrolled", "scanned"),
    "remat": ("none", "full", "dots"),
}
