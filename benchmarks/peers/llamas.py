"""The Llama of a case, in either system, with random weights made where they are used."""

from __future__ import annotations

import argparse
import importlib
import os
from typing import Any

from worker import describe, peak_bytes, serve

POSITIONS = 4096


def rljax_llama(shape: dict[str, int], dtype: str, param_dtype: str, **more: Any) -> Any:
    """A LanguageModel of rljax; `more` are fields of TransformerConfig."""
    import jax.numpy as jnp

    from rljax.models.transformer import Layer, TransformerConfig, transformer

    config = TransformerConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_heads=shape["num_attention_heads"],
        num_kv_heads=shape["num_key_value_heads"],
        layers=(Layer(),) * shape["num_hidden_layers"],
        max_positions=POSITIONS,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(param_dtype),
        **more,
    )
    return transformer(config)


def torch_device(arguments: argparse.Namespace) -> str:
    """The device to use: the pinned cores, one thread each, or the GPU, where float32 products are rounded to
    TF32 as JAX rounds them. Call it before JAX is imported, which keeps off a GPU that torch uses.
    """
    torch = importlib.import_module("torch")
    if arguments.cores:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        return "cpu"
    torch.cuda.init()
    os.environ["JAX_PLATFORMS"] = "cpu"
    torch.set_float32_matmul_precision("high")
    return "cuda"


def torch_llama(shape: dict[str, int], dtype: str, device: str) -> Any:
    """transformers' LlamaForCausalLM with PyTorch's fused attention, its parameters of `dtype`."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    torch.manual_seed(0)
    never = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = transformers.LlamaConfig(
        tie_word_embeddings=True,
        max_position_embeddings=POSITIONS,
        attn_implementation="sdpa",
        **never,
        **shape,
    )
    with torch.device(device):
        return transformers.LlamaForCausalLM(config).to(getattr(torch, dtype))


def serve_torch(load: Any) -> None:
    """`serve` with what torch says of its GPU, where it has one."""
    torch = importlib.import_module("torch")

    def describe_torch() -> dict[str, Any]:
        if not torch.cuda.is_initialized():
            return describe()
        gpu = {"device": torch.cuda.get_device_name(0), "devices": torch.cuda.device_count()}
        return describe() | {"platform": "gpu"} | gpu

    def peak() -> int | None:
        return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else peak_bytes()

    serve(load, describe_torch, peak)
