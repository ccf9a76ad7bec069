"""A Hugging Face config.json as a TransformerConfig, and back.

Read as it is, without transformers: keys keep their names in checkpoints whatever its version does with them.
A key that is absent has the value that transformers gives it.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

from rljax import checks
from rljax.models.huggingface import rotary
from rljax.models.huggingface.families import ACTIVATIONS, ARCHITECTURES, BASES, DEFAULTS, REFUSED
from rljax.models.huggingface.rotary import Raw, need
from rljax.models.transformer import Layer, Rotary, TransformerConfig


def config_from(raw: Raw) -> TransformerConfig:
    """The config of a decoder-only model from the contents of its config.json.

    Raises: ValueError naming an architecture, key or value that is missing or not supported.
    """
    family = raw.get("model_type")
    if family not in DEFAULTS:
        near = checks.suggest(family, DEFAULTS)
        raise ValueError(f"model_type = {family!r}: must be one of {', '.join(DEFAULTS)}, t5{near}")
    for key in REFUSED:
        if raw.get(key):
            raise ValueError(f"{key} = {raw[key]!r}: not supported, must be absent or false")
    raw = {**DEFAULTS[family], **raw}
    read = {"gpt2": _gpt2, "gpt_neox": _gpt_neox}.get(family, _llama)
    return replace(read(raw), family=family, tied=bool(raw["tie_word_embeddings"]))


def _llama(raw: Raw) -> TransformerConfig:
    """Llama and those that follow its names."""
    family = raw["model_type"]
    gemma = family.startswith("gemma")
    activation = raw.get("hidden_activation") or raw["hidden_act"]
    if family == "gemma" and activation == "gelu":  # the first releases said so and meant the other one
        activation = "gelu_pytorch_tanh"
    attention = ("qkv", "output") if raw["attention_bias"] else ()
    heads = need(raw, "num_attention_heads")
    softcaps: dict[str, Any] = {}
    scale = None
    if family in ("gemma2", "gemma3_text"):
        scale = need(raw, "query_pre_attn_scalar") ** -0.5
        softcaps = {
            "attention_softcap": raw.get("attn_logit_softcapping"),
            "final_softcap": raw.get("final_logit_softcapping"),
        }
    return TransformerConfig(
        vocab_size=need(raw, "vocab_size"),
        hidden_size=need(raw, "hidden_size"),
        intermediate_size=need(raw, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim"),
        layers=_layers(raw),
        max_positions=raw["max_position_embeddings"],
        norm="rms_offset" if gemma else "rms",
        norm_epsilon=raw["rms_norm_eps"],
        block="sandwich" if family in ("gemma2", "gemma3_text") else "sequential",
        head_norm="query_key" if family in ("qwen3", "gemma3_text") else "none",
        activation=_activation(activation),
        biases=("qkv",) if family == "qwen2" else (*attention, *(("mlp",) if raw["mlp_bias"] else ())),
        embedding_scale=need(raw, "hidden_size") ** 0.5 if gemma else 1.0,
        attention_scale=scale,
        **softcaps,
    )


def _layers(raw: Raw) -> tuple[Layer, ...]:
    """The rotary embedding and the window of every layer."""
    family, number = raw["model_type"], need(raw, "num_hidden_layers")
    base, window = BASES.get(family, 10_000.0), raw.get("sliding_window")
    turn = rotary.read(raw, base)
    if family in ("qwen2", "qwen3", "smollm3") and not raw["use_sliding_window"]:
        window = None
    turns: list[Rotary | None] = [turn] * number
    if family == "smollm3":
        interval = raw["no_rope_layer_interval"]
        default = [(layer + 1) % interval for layer in range(number)]
        rotating = raw.get("no_rope_layers") or default  # in spite of its name, true where there is one
        turns = [turn if flag else None for flag in rotating[:number]]
    narrow = {
        "mistral": lambda layer: True,
        "qwen2": lambda layer: layer >= raw["max_window_layers"],
        "qwen3": lambda layer: layer >= raw["max_window_layers"],
        "smollm3": lambda layer: turns[layer] is None,
        "gemma2": lambda layer: layer % 2 == 0,
        "gemma3_text": lambda layer: (layer + 1) % raw["sliding_window_pattern"] != 0,
    }.get(family, lambda layer: False)
    kinds = ["sliding_attention" if narrow(layer) else "full_attention" for layer in range(number)]
    if family not in ("llama", "mistral", "gemma"):
        kinds = raw.get("layer_types") or kinds
    if len(kinds) != number or len(turns) != number or set(kinds) - {"sliding_attention", "full_attention"}:
        right = f"must be {number} times full_attention or sliding_attention"
        raise ValueError(f"layer_types = {kinds}, no_rope_layers = {raw.get('no_rope_layers')}: {right}")
    if family == "gemma3_text":
        local = rotary.read(raw, 10_000.0, local=True)
        turns = [local if kind == "sliding_attention" else turn for kind in kinds]
    windows = [window if kind == "sliding_attention" else None for kind in kinds]
    return tuple(Layer(turn, window) for turn, window in zip(turns, windows, strict=True))


def _gpt2(raw: Raw) -> TransformerConfig:
    size = raw["n_embd"]
    return TransformerConfig(
        vocab_size=need(raw, "vocab_size"),
        hidden_size=size,
        intermediate_size=raw.get("n_inner") or 4 * size,
        num_heads=raw["n_head"],
        layers=(Layer(rotary=None),) * raw["n_layer"],
        max_positions=raw["n_positions"],
        positions="learned",
        norm="layer",
        norm_epsilon=raw["layer_norm_epsilon"],
        activation=_activation(raw["activation_function"]),
        mlp="plain",
        biases=("qkv", "output", "mlp"),
        attention_scale=None if raw["scale_attn_weights"] else 1.0,
    )


def _gpt_neox(raw: Raw) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=need(raw, "vocab_size"),
        hidden_size=need(raw, "hidden_size"),
        intermediate_size=need(raw, "intermediate_size"),
        num_heads=need(raw, "num_attention_heads"),
        layers=(Layer(rotary.read(raw, 10_000.0, 0.25)),) * need(raw, "num_hidden_layers"),
        max_positions=raw["max_position_embeddings"],
        norm="layer",
        norm_epsilon=raw["layer_norm_eps"],
        block="parallel" if raw["use_parallel_residual"] else "sequential",
        activation=_activation(raw["hidden_act"]),
        mlp="plain",
        biases=("qkv", "output", "mlp") if raw["attention_bias"] else ("mlp",),
    )


def _activation(name: str) -> Any:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r}: must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def config_to(config: TransformerConfig) -> Raw:
    """The contents of config.json for `config.family`, in the layout that transformers 4 and 5 and vLLM read.

    Raises: ValueError naming a field that no checkpoint of that family can express.
    """
    if config.family not in DEFAULTS:
        checks.complain(config, "family", f"must be one of {', '.join(DEFAULTS)}")
    write = {"gpt2": _to_gpt2, "gpt_neox": _to_gpt_neox}.get(config.family, _to_llama)
    raw = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        **write(config),
    }
    ours, theirs = explicit(config), explicit(config_from(raw))
    for field in fields(TransformerConfig):
        here, there = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name in ("dtype", "param_dtype", "loop", "remat"):
            continue
        close = (
            isinstance(here, float) and isinstance(there, float) and math.isclose(here, there, rel_tol=1e-6)
        )
        if here != there and not close:
            checks.complain(config, field.name, f"a {config.family} checkpoint always has {there!r}")
    return raw


def explicit(config: TransformerConfig) -> TransformerConfig:
    """The same model with nothing left to defaults."""
    order = ("qkv", "output", "mlp", "head")
    return replace(
        config,
        num_kv_heads=config.kv_heads,
        head_dim=config.head_size,
        attention_scale=config.scale,
        biases=tuple(name for name in order if name in config.biases),
    )


def _to_llama(config: TransformerConfig) -> Raw:
    family = config.family
    name = {value: key for key, value in reversed(ACTIVATIONS.items())}[config.activation]
    name = "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else name
    windows = [layer.window for layer in config.layers if layer.window is not None]
    turns = [layer.rotary for layer in config.layers if layer.rotary is not None]
    kinds = ["full_attention" if layer.window is None else "sliding_attention" for layer in config.layers]
    raw = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_act": name,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        **rotary.write(turns[0] if turns else Rotary(BASES.get(family, 10_000.0))),
    }
    if "head_dim" in DEFAULTS[family] or config.head_size * config.num_heads != config.hidden_size:
        raw["head_dim"] = config.head_size
    if family not in ("qwen2", "mistral"):
        raw["attention_bias"] = "qkv" in config.biases
    if family in ("llama", "smollm3"):
        raw["mlp_bias"] = "mlp" in config.biases
    if "sliding_window" in DEFAULTS[family] or windows:
        raw["sliding_window"] = windows[0] if windows else None
    if family in ("qwen2", "qwen3", "smollm3"):
        raw |= {"use_sliding_window": bool(windows), "layer_types": kinds}
    if family in ("qwen2", "qwen3"):
        full = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
        raw["max_window_layers"] = full[-1] + 1 if full else 0
    if family == "smollm3":
        raw["no_rope_layers"] = [int(layer.rotary is not None) for layer in config.layers]
    if family in ("gemma", "gemma2", "gemma3_text"):
        raw["hidden_activation"] = name
    if family in ("gemma2", "gemma3_text"):
        scalar = config.scale**-2
        raw |= {
            "layer_types": kinds,
            "query_pre_attn_scalar": round(scalar) if math.isclose(scalar, round(scalar)) else scalar,
            "attn_logit_softcapping": config.attention_softcap,
            "final_logit_softcapping": config.final_softcap,
        }
    if family == "gemma3_text":
        full = [layer.rotary for layer in config.layers if layer.window is None and layer.rotary]
        local = [layer.rotary for layer in config.layers if layer.window is not None and layer.rotary]
        raw |= rotary.write(full[0] if full else Rotary(1e6))
        raw["rope_local_base_freq"] = local[0].base if local else 10_000.0
    return raw


def _to_gpt2(config: TransformerConfig) -> Raw:
    activation = "gelu_new" if config.activation == "gelu_tanh" else config.activation
    return {
        "n_positions": config.max_positions,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_size,
        "activation_function": activation,
        "layer_norm_epsilon": config.norm_epsilon,
        "scale_attn_weights": config.attention_scale is None,
    }


def _to_gpt_neox(config: TransformerConfig) -> Raw:
    turn = config.layers[0].rotary or Rotary(fraction=0.25)
    written = rotary.write(turn)
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else config.activation,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_epsilon,
        "rotary_emb_base": written.pop("rope_theta"),
        "rotary_pct": turn.fraction,
        "use_parallel_residual": config.block == "parallel",
        "attention_bias": "qkv" in config.biases,
        **written,
    }
