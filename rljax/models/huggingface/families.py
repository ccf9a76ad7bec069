"""The decoder-only architectures: what transformers takes where a config.json has no key, and its names."""

from __future__ import annotations

from rljax.models.huggingface.rotary import Raw

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
LLAMA = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
}
QWEN = {**LLAMA, "max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096}
GEMMA = {
    **LLAMA,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
# What transformers takes where a key is absent.
DEFAULTS: dict[str, Raw] = {
    "llama": LLAMA,
    "mistral": {**LLAMA, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {**QWEN, "max_window_layers": 28},
    "qwen3": {**QWEN, "max_window_layers": 28, "head_dim": 128},
    "smollm3": {
        **LLAMA,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "no_rope_layer_interval": 4,
    },
    "gemma": {**GEMMA, "num_key_value_heads": 16},
    "gemma2": {**GEMMA, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
    "gemma3_text": {**GEMMA, "max_position_embeddings": 131072, "sliding_window_pattern": 6},
    "gpt2": {
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    },
    "gpt_neox": {
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
}
BASES = {"smollm3": 2e6, "gemma3_text": 1e6}  # of rotary embeddings, 10,000 elsewhere
# Keys that ask for what we do not compute, whatever they hold that is not false.
REFUSED = (
    "quantization_config",
    "scale_attn_by_inverse_layer_idx",
    "add_cross_attention",
    "use_bidirectional_attention",
)
