"""T5, T5-1.1 and Flan-T5 as Hugging Face writes them.

`tie_word_embeddings` says two things of a T5: that the head is the embedding, and that the decoder's output
is scaled before it. From transformers 5 on it is always true and `scale_decoder_outputs` says the second; a
head of its own is then known only by its tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from rljax.checks import complain, suggest
from rljax.models.huggingface.tensors import Path, Tensor, linear, norm, same, transposed
from rljax.models.seq2seq import Seq2SeqConfig

# `feed_forward_proj` -> (activation, mlp). "gated-gelu" means the approximation with tanh, "gelu" does not.
PROJECTIONS: dict[str, tuple[Any, Any]] = {
    "relu": ("relu", "plain"),
    "gelu": ("gelu", "plain"),
    "gelu_new": ("gelu_tanh", "plain"),
    "silu": ("silu", "plain"),
    "gated-relu": ("relu", "gated"),
    "gated-gelu": ("gelu_tanh", "gated"),
    "gated-silu": ("silu", "gated"),
}
HEAD = "lm_head.weight"


def config_from(raw: Mapping[str, Any], names: Collection[str] = ()) -> Seq2SeqConfig:
    """Our config from a config.json; `names` are those of the checkpoint's tensors.

    Raises: ValueError for a kind of feed-forward layer that we do not have; KeyError where a size is missing.
    """
    projection = raw.get("feed_forward_proj", "relu")
    if projection not in PROJECTIONS:
        known = f"must be one of {', '.join(PROJECTIONS)}{suggest(projection, PROJECTIONS)}"
        raise ValueError(f"feed_forward_proj = {projection!r}: {known}")
    activation, mlp = PROJECTIONS[projection]
    tied = raw.get("tie_word_embeddings") is not False
    scaled = raw.get("scale_decoder_outputs", tied)
    # Scaled means tied whatever a file repeats: the first T5s have copies of the embedding under all names.
    tied = scaled or (tied and HEAD not in names)
    size, layers = raw["d_model"], raw["num_layers"]
    starts = (raw.get("decoder_start_token_id"), raw.get("pad_token_id"), 0)
    return Seq2SeqConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=size,
        intermediate_size=raw["d_ff"],
        num_heads=raw["num_heads"],
        num_layers=layers,
        num_decoder_layers=raw.get("num_decoder_layers") or layers,
        head_dim=raw["d_kv"],
        buckets=raw.get("relative_attention_num_buckets", 32),
        max_distance=raw.get("relative_attention_max_distance", 128),
        norm_epsilon=raw.get("layer_norm_epsilon", 1e-6),
        activation=activation,
        mlp=mlp,
        tied=tied,
        output_scale=size**-0.5 if scaled else 1.0,
        start_token=next(token for token in starts if token is not None),
    )


def config_to(config: Seq2SeqConfig) -> dict[str, Any]:
    """What a config.json says, for transformers 4 and 5, but for the ids of special tokens.

    Raises: ValueError naming a field that T5 has no word for.
    """
    kinds = {kind: projection for projection, kind in PROJECTIONS.items()}
    if (config.activation, config.mlp) not in kinds:
        complain(config, "activation", f"T5 has no {config.mlp} layer of it; use gelu_tanh, relu or silu")
    scaled = config.head_scale == config.hidden_size**-0.5
    if not scaled and config.head_scale != 1.0:
        complain(config, "output_scale", f"T5 has 1 or hidden_size ** -0.5 = {config.hidden_size**-0.5:g}")
    if scaled and not config.tied:
        complain(config, "output_scale", "T5 scales only before a head that is the embedding: use 1, or tied")
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "d_kv": config.head_dim,
        "d_ff": config.intermediate_size,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": config.norm_epsilon,
        "feed_forward_proj": kinds[config.activation, config.mlp],
        "tie_word_embeddings": config.tied,
        "scale_decoder_outputs": scaled,
        "decoder_start_token_id": config.start_token,
    }


def tensors(config: Seq2SeqConfig) -> list[Tensor]:
    """All tensors of a checkpoint."""
    shape = config.vocab_size, config.hidden_size
    table = [same("shared.weight", shape, "embedding")]
    table += _stack(config, "encoder", config.num_layers)
    table += _stack(config, "decoder", config.num_decoder_layers)
    return table if config.tied else [*table, transposed(HEAD, shape, "head")]


def surplus(config: Seq2SeqConfig) -> set[str]:
    """Tensors that a checkpoint may hold besides, and that mean nothing: copies of the embedding, and a table
    of the first T5s that nothing reads.
    """
    names = {f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")}
    names.add("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight")
    return {*names, HEAD} if config.tied else names


def _stack(config: Seq2SeqConfig, stack: str, layers: int) -> Iterator[Tensor]:
    size, inner = config.hidden_size, config.num_heads * config.head_dim
    first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    yield same(first, (config.buckets, config.num_heads), stack, "relative_bias")
    for number in range(layers):
        here: Path = (stack, f"layer_{number}")
        parts = [("SelfAttention", "attention", "attention_norm")]
        if stack == "decoder":
            parts.append(("EncDecAttention", "cross_attention", "cross_norm"))
        for place, (theirs, ours, its_norm) in enumerate(parts):
            there = f"{stack}.block.{number}.layer.{place}"
            for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
                yield from linear(f"{there}.{theirs}.{letter}", size, inner, False, *here, ours, name)
            yield from linear(f"{there}.{theirs}.o", inner, size, False, *here, ours, "output")
            yield from norm(f"{there}.layer_norm", size, False, *here, its_norm)
        there = f"{stack}.block.{number}.layer.{len(parts)}"
        names = (("wi_0", "gate"), ("wi_1", "up")) if config.mlp == "gated" else (("wi", "up"),)
        for theirs, ours in names:
            path = *here, "mlp", ours
            yield from linear(
                f"{there}.DenseReluDense.{theirs}", size, config.intermediate_size, False, *path
            )
        path = *here, "mlp", "down"
        yield from linear(f"{there}.DenseReluDense.wo", config.intermediate_size, size, False, *path)
        yield from norm(f"{there}.layer_norm", size, False, *here, "mlp_norm")
    yield from norm(f"{stack}.final_layer_norm", size, False, stack, "final_norm")
