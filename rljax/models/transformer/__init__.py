"""One decoder-only transformer with switches: Llama, SmolLM, Qwen, Mistral, Gemma, GPT-2, GPT-NeoX."""

from rljax.models.transformer.config import Layer, Rotary, TransformerConfig
from rljax.models.transformer.model import Cache, logical_axes, transformer

__all__ = ["Cache", "Layer", "Rotary", "TransformerConfig", "logical_axes", "transformer"]
