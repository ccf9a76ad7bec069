"""Tiny models of torch transformers with random parameters: the oracle of our own, and what fixtures are made
of. Needs torch.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

COMMON = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}
FULL, NARROW = "full_attention", "sliding_attention"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GPT2 = {
    "vocab_size": 40,
    "n_positions": 32,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": None,
}
NEOX = {name: value for name, value in COMMON.items() if name != "num_key_value_heads"}
# name -> (class of the config, what it differs in). Head dims unlike hidden / heads, windows shorter than the
# sequence, and caps low enough to matter.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"head_dim": 6, "rms_norm_eps": 1e-3}),
    "llama_biases": (
        "LlamaConfig",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0},
        },
    ),
    "llama3": ("LlamaConfig", {"tie_word_embeddings": True, "head_dim": 8, "rope_parameters": LLAMA3}),
    "smollm3": (
        "SmolLM3Config",
        {
            "no_rope_layers": [1, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": [FULL, NARROW, FULL],
        },
    ),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen2_tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 10, "attention_bias": True}),
    "mistral": ("MistralConfig", {"head_dim": 6, "sliding_window": 5}),
    "gemma": ("GemmaConfig", {"head_dim": 10, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 6,
            "query_pre_attn_scalar": 10,
            "sliding_window": 4,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 10,
            "query_pre_attn_scalar": 7,
            "sliding_window": 4,
            "layer_types": [NARROW, FULL, NARROW],
            "rope_parameters": {
                FULL: {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
                NARROW: {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "gpt2": ("GPT2Config", {**GPT2, "n_inner": 36}),
    "gpt2_untied": ("GPT2Config", {**GPT2, "tie_word_embeddings": False, "scale_attn_weights": False}),
    "gpt_neox": (
        "GPTNeoXConfig",
        {
            **NEOX,
            "hidden_size": 24,
            "num_attention_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25},
        },
    ),
    "gpt_neox_sequential": (
        "GPTNeoXConfig",
        {
            **NEOX,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0},
        },
    ),
}
# name -> what it differs in from T5. Encoders and decoders are of unlike depth, and 3 heads of 5 are not 16.
T5 = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 5,
    "d_ff": 28,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "layer_norm_epsilon": 1e-3,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": None,
}
T5_CASES: dict[str, dict[str, Any]] = {
    "t5": {"feed_forward_proj": "relu"},
    "t5_gated": {
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "num_layers": 3,
        "num_decoder_layers": 2,
    },
    "t5_silu": {"feed_forward_proj": "gated-silu", "num_decoder_layers": 1},
}
NEW = 10  # tokens generated greedily


class Expected(NamedTuple):
    """What torch makes of a batch of two left-padded prompts."""

    prompt: np.ndarray  # (2, P) int64
    valid: np.ndarray  # (2, P) bool
    logits: np.ndarray  # (2, P, V) of the prompts
    greedy: np.ndarray  # (2, NEW)


class ExpectedT5(NamedTuple):
    """What torch makes of a batch of two right-padded prompts and of completions to them."""

    prompt: np.ndarray  # (2, P) int64
    valid: np.ndarray  # (2, P) bool
    completion: np.ndarray  # (2, T) int64
    logits: np.ndarray  # (2, T, V) that predict the completions
    greedy: np.ndarray  # (2, NEW)


def build(name: str) -> Any:
    """The torch model of a case, every parameter random: norms and biases too."""
    import torch
    import transformers

    if name in T5_CASES:
        return build_t5(name)
    kind, changes = CASES[name]
    common = {} if kind in ("GPT2Config", "GPTNeoXConfig") else COMMON
    config = getattr(transformers, kind)(**{**common, **changes})
    torch.manual_seed(sum(map(ord, name)))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def build_t5(name: str) -> Any:
    import torch
    import transformers

    config = transformers.T5Config(**{**T5, **T5_CASES[name]})
    model = transformers.T5ForConditionalGeneration(config).eval()
    if "tie_word_embeddings" in T5_CASES[name]:  # what its checkpoints have and its constructor has not
        model.lm_head.weight = torch.nn.Parameter(torch.empty(config.vocab_size, config.d_model))
    torch.manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
            if parameter.ndim == 1:
                parameter.add_(1.0)
    return model


def expected(model: Any) -> Expected | ExpectedT5:
    """The answers of a torch model."""
    import torch

    if model.config.is_encoder_decoder:
        return expected_t5(model)
    draw = np.random.default_rng(3)
    prompt = draw.integers(2, 40, (2, 11))
    valid = np.arange(11)[None, :] >= np.asarray([[0], [4]])
    inputs = {"input_ids": torch.tensor(prompt), "attention_mask": torch.tensor(valid).long()}
    places = torch.tensor(np.maximum(valid.cumsum(axis=1) - 1, 0))
    with torch.no_grad():
        logits = model(**inputs, position_ids=places).logits.numpy()
        settings = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0}
        greedy = model.generate(**inputs, **settings).numpy()[:, 11:]
    return Expected(prompt, valid, logits, greedy)


def expected_t5(model: Any) -> ExpectedT5:
    import torch

    draw = np.random.default_rng(3)
    prompt, completion = draw.integers(2, 40, (2, 17)), draw.integers(2, 40, (2, 15))
    valid = np.arange(17)[None, :] < np.asarray([[17], [6]])
    inputs = {"input_ids": torch.tensor(prompt), "attention_mask": torch.tensor(valid).long()}
    read = torch.tensor(np.pad(completion[:, :-1], [(0, 0), (1, 0)]))
    with torch.no_grad():
        logits = model(**inputs, decoder_input_ids=read).logits.numpy()
        # Without a cache: that of transformers 5.24 has no room for a decoder deeper than its encoder.
        settings = {"do_sample": False, "max_new_tokens": NEW, "use_cache": False}
        greedy = model.generate(**inputs, **settings).numpy()[:, 1:]
    return ExpectedT5(prompt, valid, completion, logits, greedy)


def save(model: Any, folder: Path, answers: Expected | ExpectedT5) -> None:
    """A checkpoint with what torch makes of it."""
    model.save_pretrained(folder)
    np.savez_compressed(folder / "expected.npz", **answers._asdict())
