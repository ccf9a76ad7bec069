"""Which tensor of a Hugging Face checkpoint holds which of our parameters, one table per architecture.

The same table reads and writes. Linear layers of torch are (out, in) where ours are (in, out).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from rljax.models.transformer import TransformerConfig

Path = tuple[str, ...]  # of a parameter in our nested dict, of an unrolled model


class Tensor(NamedTuple):
    """A tensor of a checkpoint, and how it becomes parameters and comes from them."""

    name: str
    shape: tuple[int, ...]
    paths: tuple[Path, ...]  # of the parameters that it holds
    read: Callable[[np.ndarray], tuple[np.ndarray, ...]]  # the tensor -> parameters, in the order of `paths`
    write: Callable[..., np.ndarray]  # the parameters -> the tensor


def same(name: str, shape: tuple[int, ...], *path: str) -> Tensor:
    """A tensor that is a parameter as it is."""
    return Tensor(name, shape, (path,), lambda tensor: (tensor,), lambda parameter: parameter)


def transposed(name: str, shape: tuple[int, ...], *path: str) -> Tensor:
    """A matrix that is a kernel, transposed. `shape` is the tensor's: (out, in)."""
    return Tensor(name, shape, (path,), lambda tensor: (tensor.T,), lambda parameter: parameter.T)


def linear(name: str, size_in: int, size_out: int, bias: bool, *path: str) -> list[Tensor]:
    """torch's nn.Linear."""
    tensors = [transposed(f"{name}.weight", (size_out, size_in), *path, "kernel")]
    return [*tensors, same(f"{name}.bias", (size_out,), *path, "bias")] if bias else tensors


def norm(name: str, size: int, bias: bool, *path: str) -> list[Tensor]:
    """An RMS or layer norm."""
    tensors = [same(f"{name}.weight", (size,), *path, "scale")]
    return [*tensors, same(f"{name}.bias", (size,), *path, "bias")] if bias else tensors


def tensors(config: TransformerConfig) -> list[Tensor]:
    """All tensors of a checkpoint of `config.family`."""
    if config.family == "gpt2":
        return list(_gpt2(config))
    if config.family == "gpt_neox":
        return list(_gpt_neox(config))
    return list(_llama(config))


def _llama(config: TransformerConfig) -> Iterator[Tensor]:
    """Llama and those that follow its names: SmolLM, Qwen, Mistral, Gemma."""
    size, vocabulary = config.hidden_size, config.vocab_size
    queries, keys = config.num_heads * config.head_size, config.kv_heads * config.head_size
    bias = {name: name in config.biases for name in ("qkv", "output", "mlp")}
    sandwich = config.block == "sandwich"
    yield same("model.embed_tokens.weight", (vocabulary, size), "embedding")
    for number in range(config.num_layers):
        there, here = f"model.layers.{number}", f"layer_{number}"
        attention, mlp = f"{there}.self_attn", f"{there}.mlp"
        yield from linear(f"{attention}.q_proj", size, queries, bias["qkv"], here, "attention", "query")
        yield from linear(f"{attention}.k_proj", size, keys, bias["qkv"], here, "attention", "key")
        yield from linear(f"{attention}.v_proj", size, keys, bias["qkv"], here, "attention", "value")
        yield from linear(f"{attention}.o_proj", queries, size, bias["output"], here, "attention", "output")
        if config.head_norm == "query_key":
            yield from norm(f"{attention}.q_norm", config.head_size, False, here, "attention", "query_norm")
            yield from norm(f"{attention}.k_norm", config.head_size, False, here, "attention", "key_norm")
        for part in ("gate", "up"):
            inner = size, config.intermediate_size
            yield from linear(f"{mlp}.{part}_proj", *inner, bias["mlp"], here, "mlp", part)
        yield from linear(
            f"{mlp}.down_proj", config.intermediate_size, size, bias["mlp"], here, "mlp", "down"
        )
        yield from norm(f"{there}.input_layernorm", size, False, here, "attention_norm")
        if sandwich:
            yield from norm(f"{there}.post_attention_layernorm", size, False, here, "attention_post_norm")
            yield from norm(f"{there}.pre_feedforward_layernorm", size, False, here, "mlp_norm")
            yield from norm(f"{there}.post_feedforward_layernorm", size, False, here, "mlp_post_norm")
        else:
            yield from norm(f"{there}.post_attention_layernorm", size, False, here, "mlp_norm")
    yield from norm("model.norm", size, False, "final_norm")
    if not config.tied:
        yield transposed("lm_head.weight", (vocabulary, size), "head")


def _gpt2(config: TransformerConfig) -> Iterator[Tensor]:
    """GPT-2: linear layers (in, out) as ours; queries, keys and values side by side in one."""
    size, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    yield same("transformer.wte.weight", (vocabulary, size), "embedding")
    yield same("transformer.wpe.weight", (config.max_positions, size), "position_embedding")
    split = lambda tensor: tuple(np.split(tensor, 3, axis=-1))
    join = lambda *parameters: np.concatenate(parameters, axis=-1)
    for number in range(config.num_layers):
        there, here = f"transformer.h.{number}", f"layer_{number}"
        yield from norm(f"{there}.ln_1", size, True, here, "attention_norm")
        for ending, leaf, shape in (
            ("weight", "kernel", (size, 3 * size)),
            ("bias", "bias", (3 * size,)),
        ):
            paths = tuple((here, "attention", part, leaf) for part in ("query", "key", "value"))
            yield Tensor(f"{there}.attn.c_attn.{ending}", shape, paths, split, join)
        for name, shape, path in (
            ("attn.c_proj", (size, size), ("attention", "output")),
            ("mlp.c_fc", (size, inner), ("mlp", "up")),
            ("mlp.c_proj", (inner, size), ("mlp", "down")),
        ):
            yield same(f"{there}.{name}.weight", shape, here, *path, "kernel")
            yield same(f"{there}.{name}.bias", shape[1:], here, *path, "bias")
        yield from norm(f"{there}.ln_2", size, True, here, "mlp_norm")
    yield from norm("transformer.ln_f", size, True, "final_norm")
    if not config.tied:
        yield transposed("lm_head.weight", (vocabulary, size), "head")


def _gpt_neox(config: TransformerConfig) -> Iterator[Tensor]:
    """GPT-NeoX, Pythia: a linear layer holds query, key and value of the first head, of the second, ..."""
    size, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    heads, head = config.num_heads, config.head_size

    def split(tensor: np.ndarray) -> tuple[np.ndarray, ...]:
        parts = tensor.reshape(heads, 3, head, *tensor.shape[1:])
        return tuple(parts[:, part].reshape(heads * head, *tensor.shape[1:]).T for part in range(3))

    def join(*parameters: np.ndarray) -> np.ndarray:
        parts = [parameter.T.reshape(heads, head, *parameter.shape[:-1]) for parameter in parameters]
        return np.stack(parts, axis=1).reshape(3 * heads * head, *parameters[0].shape[:-1])

    yield same("gpt_neox.embed_in.weight", (vocabulary, size), "embedding")
    for number in range(config.num_layers):
        there, here = f"gpt_neox.layers.{number}", f"layer_{number}"
        yield from norm(f"{there}.input_layernorm", size, True, here, "attention_norm")
        yield from norm(f"{there}.post_attention_layernorm", size, True, here, "mlp_norm")
        for ending, leaf, shape in (("weight", "kernel", (3 * size, size)), ("bias", "bias", (3 * size,))):
            if leaf == "kernel" or "qkv" in config.biases:
                paths = tuple((here, "attention", part, leaf) for part in ("query", "key", "value"))
                yield Tensor(f"{there}.attention.query_key_value.{ending}", shape, paths, split, join)
        bias = "output" in config.biases
        yield from linear(f"{there}.attention.dense", size, size, bias, here, "attention", "output")
        yield from linear(f"{there}.mlp.dense_h_to_4h", size, inner, True, here, "mlp", "up")
        yield from linear(f"{there}.mlp.dense_4h_to_h", inner, size, True, here, "mlp", "down")
    yield from norm("gpt_neox.final_layer_norm", size, True, "final_norm")
    if not config.tied:
        yield transposed("embed_out.weight", (vocabulary, size), "head")
