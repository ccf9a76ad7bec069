"""The files of llama2.c (https://github.com/karpathy/llama2.c): a Llama in a *.bin, its tokens in a tok*.bin.

A model is 7 int32 (dim, hidden, layers, heads, kv heads, ± vocabulary: negative if the head is not tied,
positions) and float32 matrices (out, in), each kind for all layers together. A tokenizer is an int32, the
longest token, and per token a float32 score, an int32 length and so many bytes. Read only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rljax.models.transformer import Layer, TransformerConfig
from rljax.types import PyTree

BEGIN, END = 1, 2  # tokens: of the start and the end of a text
VERSIONED = 0x616B3432  # how the files of later versions begin


class Pieces(NamedTuple):
    """The tokens of a tok*.bin."""

    texts: tuple[bytes, ...]  # 0 is unknown, 1 begins and 2 ends a text, 3 + b is the byte b
    scores: np.ndarray  # (V,) float32: of two pairs of neighbours the better one is merged first


def find(folder: Path) -> Path | None:
    """The model of a folder that holds a llama2.c model and tokenizer, else None."""
    files = sorted(folder.glob("*.bin"))
    models = [path for path in files if not path.name.startswith("tok")]
    return models[0] if len(models) == 1 and len(files) > 1 else None


def read_model(path: Path) -> tuple[TransformerConfig, PyTree]:
    """The config and the parameters, float32 numpy arrays, unrolled.

    Queries and keys turn neighbouring dimensions (2i, 2i + 1) there, i and i + size / 2 here: their rows are
    put in that order, which changes no score.

    Raises: ValueError naming a file that is cut off, too long, or of a later version.
    """
    data = path.read_bytes()
    header = np.frombuffer(data[: min(len(data) // 4 * 4, 28)], "<i4")
    if header.size == 7 and header[0] == VERSIONED:
        raise ValueError(f"{path}: a versioned llama2.c file; only the first format is read")
    if header.size < 7 or not all(header[:5] > 0) or header[5] == 0 or header[6] <= 0:
        raise ValueError(f"{path}: not a llama2.c model: its header is {header.tolist()}")
    size, inner, layers, heads, kv_heads, vocabulary, positions = (int(number) for number in header)
    if size % heads or heads % kv_heads:
        raise ValueError(f"{path}: not a llama2.c model: {heads} heads of {size}, {kv_heads} of keys")
    head, tied, vocabulary = size // heads, vocabulary > 0, abs(vocabulary)
    shapes = {
        "embedding": (vocabulary, size),
        "attention_norm": (layers, size),
        "query": (layers, heads * head, size),
        "key": (layers, kv_heads * head, size),
        "value": (layers, kv_heads * head, size),
        "output": (layers, size, heads * head),
        "mlp_norm": (layers, size),
        "gate": (layers, inner, size),
        "down": (layers, size, inner),
        "up": (layers, inner, size),
        "final_norm": (size,),
        "angles": (2, positions, head // 2),
        **({} if tied else {"head": (vocabulary, size)}),
    }
    expected = 28 + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if len(data) != expected:
        raise ValueError(f"{path}: {len(data)} bytes, a model with this header has {expected}")
    parts, start = {}, 28
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        parts[name] = np.frombuffer(data, "<f4", count, start).reshape(shape)
        start += 4 * count
    turned = lambda x, count: x.reshape(layers, count, head // 2, 2, size).swapaxes(2, 3).reshape(x.shape)
    parts["query"], parts["key"] = turned(parts["query"], heads), turned(parts["key"], kv_heads)
    config = TransformerConfig(
        vocab_size=vocabulary,
        hidden_size=size,
        intermediate_size=inner,
        num_heads=heads,
        num_kv_heads=kv_heads,
        layers=(Layer(),) * layers,
        max_positions=positions,
        tied=tied,
    )
    kernel = lambda name, layer: {"kernel": parts[name][layer].T}
    params: PyTree = {"embedding": parts["embedding"], "final_norm": {"scale": parts["final_norm"]}}
    if not tied:
        params["head"] = parts["head"].T
    for layer in range(layers):
        params[f"layer_{layer}"] = {
            "attention": {name: kernel(name, layer) for name in ("query", "key", "value", "output")},
            "mlp": {name: kernel(name, layer) for name in ("gate", "up", "down")},
            "attention_norm": {"scale": parts["attention_norm"][layer]},
            "mlp_norm": {"scale": parts["mlp_norm"][layer]},
        }
    return config, params


def read_tokenizer(path: Path, vocab_size: int | None = None) -> Pieces:
    """The tokens of a tok*.bin: all of them, or `vocab_size`.

    Raises: ValueError naming a file that is cut off.
    """
    data = path.read_bytes()
    texts, scores, start = [], [], 4
    while start < len(data) and (vocab_size is None or len(texts) < vocab_size):
        head = data[start : start + 8]
        length = int.from_bytes(head[4:], "little", signed=True)
        text = data[start + 8 : start + 8 + max(length, 0)]
        if len(head) < 8 or length < 0 or len(text) < length:
            raise ValueError(f"{path}: cut off, or not a llama2.c tokenizer: token {len(texts)}")
        texts.append(text)
        scores.append(np.frombuffer(head[:4], "<f4")[0])
        start += 8 + length
    if not texts or (vocab_size is not None and len(texts) < vocab_size):
        raise ValueError(f"{path}: {len(texts)} tokens, expected {vocab_size or 'some'}")
    return Pieces(tuple(texts), np.asarray(scores, np.float32))


def write_tokenizer(path: Path, texts: Sequence[bytes], scores: Sequence[float]) -> None:
    """Write a tok*.bin."""
    longest = max(map(len, texts), default=0)
    parts = [longest.to_bytes(4, "little")]
    for text, score in zip(texts, scores, strict=True):
        parts += [np.float32(score).tobytes(), len(text).to_bytes(4, "little"), text]
    path.write_bytes(b"".join(parts))
