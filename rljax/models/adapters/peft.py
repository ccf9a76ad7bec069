"""LoRA adapters in the folder format of PEFT (github.com/huggingface/peft): adapter_config.json and
adapter_model.safetensors, for its torch models and from them.

Names come from the table of the checkpoint, in `rljax.models.huggingface`. Where a checkpoint has one layer
for what are several of ours (queries, keys and values of GPT-2 and GPT-NeoX), that layer's A holds theirs one
below the other and its B has theirs in blocks: the same function, of as many times the rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rljax.models.adapters.low_rank import pairs
from rljax.models.adapters.subsets import unflatten
from rljax.models.huggingface import files
from rljax.models.huggingface.checkpoint import table
from rljax.models.huggingface.tensors import Tensor
from rljax.models.seq2seq import Seq2SeqConfig
from rljax.models.transformer import TransformerConfig
from rljax.types import PyTree

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Fields of adapter_config.json that are read, or that say nothing of what the tensors mean.
FIELDS = {
    *("peft_type", "task_type", "r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "bias"),
    *("init_lora_weights", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "lora_dropout", "inference_mode", "base_model_name_or_path", "revision"),
    *("auto_mapping", "peft_version", "megatron_core", "qalora_group_size", "loftq_config", "eva_config"),
}
# Starts that change the base as well.
OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")


def save(folder: str | Path, config: Any, adapters: PyTree, alpha: float, base: str | None = None) -> None:
    """Writes adapters (not scaled) and α, so that PEFT loads them on the torch model.

    Args:
        folder: made if it does not exist.
        config: of the model that the adapters are for.
        adapters: as of `adapters.init`, of one model: no axis of seeds.
        alpha: α.
        base: path or repo id of the model, which PEFT's AutoPeftModel reads.

    Raises: ValueError naming adapters that are not of a linear layer of this model.
    """
    layers = unstack(pairs(adapters))
    settings: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}}
    found, weights, used = {}, {}, set()
    for module, tensor in modules(config).items():
        parts = [layers.get(_layer(path)) for path in tensor.paths]
        if not any(parts):
            continue
        used |= {_layer(path) for path in tensor.paths}
        a, b = _fuse(parts, _widths(tensor))
        rank = next(part for part in parts if part)[0].shape[1]
        found[module] = a.shape[1], float(alpha) * a.shape[1] / rank
        weights[f"{PREFIX}{module}.lora_A.weight"] = a.T
        weights[f"{PREFIX}{module}.lora_B.weight"] = _to_torch(tensor, b)
    surplus = sorted(layers.keys() - used)
    if surplus or not found:
        raise ValueError(
            f"adapters.save_peft: {surplus[0] if surplus else 'nothing'}: no layer of this model"
        )
    ranks = [rank for rank, _ in found.values()]
    rank = max(set(ranks), key=ranks.count)
    usual = next(one for size, one in found.values() if size == rank)
    for module, (size, one) in found.items():
        if (size, one) != (rank, usual):
            settings["rank_pattern"][module], settings["alpha_pattern"][module] = size, one
    whole = lambda x: int(x) if x == int(x) else x
    settings |= {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if isinstance(config, Seq2SeqConfig) else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": whole(usual),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(not _is_transposed(modules(config)[module]) for module in found),
        "target_modules": _targets(found, modules(config)),
        "inference_mode": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    pending = lambda name, x: files.Pending(name, x.shape, x.dtype, lambda: x)
    files.write(folder / WEIGHTS, [pending(name, x) for name, x in weights.items()])


def load(folder: str | Path, config: Any) -> tuple[PyTree, float]:
    """(adapters, α) from a folder that PEFT wrote, in float32, for a model of this config.

    Layers that have an α of their own, and rank-stabilised adapters, come with their B scaled so that the one
    α is right for all.

    Raises: ValueError naming what the folder lacks, has too much, or asks for that is not supported.
    """
    folder = Path(folder)
    settings = _settings(folder / CONFIG)
    stored = files.read(folder / WEIGHTS)
    layers = {}
    for module, tensor in modules(config).items():
        names = [f"{PREFIX}{module}.lora_{part}.weight" for part in "AB"]
        if not any(name in stored for name in names):
            continue
        missing = [name for name in names if name not in stored]
        if missing:
            raise ValueError(f"adapters.load_peft: {folder / WEIGHTS} lacks {missing[0]}")
        a, b = (np.asarray(stored.pop(name), np.float32) for name in names)
        widths = _widths(tensor)
        shapes = (len(a), _size_in(tensor)), (sum(widths), len(a))
        if (a.shape, b.shape) != shapes:
            raise ValueError(
                f"adapters.load_peft: {module} has adapters of shapes {a.shape} and {b.shape}; "
                f"this model's layer needs {shapes[0]} and {shapes[1]}"
            )
        b = b * (_scale(settings, module, len(a)) * len(a) / settings["lora_alpha"])
        for path, part in zip(tensor.paths, _from_torch(tensor, b), strict=True):
            layers[_layer(path)] = a.T, part
    if stored or not layers:
        surplus = min(stored, default="nothing")
        raise ValueError(f"adapters.load_peft: {folder / WEIGHTS}: {surplus}: no layer of this model")
    if config.loop == "scanned":
        layers = stack(layers, config, folder)
    flat = {}
    for path, (a, b) in layers.items():
        flat[f"{path}/a"], flat[f"{path}/b"] = jnp.asarray(a), jnp.asarray(b)
    return unflatten(flat), settings["lora_alpha"]


Pairs = Mapping[str, tuple[Any, Any]]


def unstack(layers: Pairs) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{path: (A, B)} with one entry per layer, of stacked ones too."""
    result = {}
    for path, pair in layers.items():
        a, b = (np.asarray(x, np.float32) for x in pair)
        stacked = "layers" in path.split("/")
        if a.ndim != 2 + stacked:
            raise ValueError(f"adapters.save_peft: {path}: A has shape {a.shape}: save one member at a time")
        for number in range(len(a) if stacked else 0):
            result[re.sub(r"\blayers\b", f"layer_{number}", path)] = a[number], b[number]
        if not stacked:
            result[path] = a, b
    return result


def stack(layers: Pairs, config: Any, source: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{path: (A, B)} with the layers stacked, of one entry per layer.

    Raises: ValueError where the layers are not adapted alike.
    """
    together = lambda path: re.sub(r"\blayer_\d+\b", "layers", path)
    groups: dict[str, list] = {}
    for tensor in modules(config).values():  # in the order of the layers
        for path in map(_layer, tensor.paths):
            groups.setdefault(together(path), []).append(layers.get(path))
    result = {}
    for path, members in groups.items():
        if not any(members):
            continue
        if not all(members) or len({a.shape for a, _ in members}) > 1:
            alike = 'not adapted alike in all layers; use a model with loop="unrolled"'
            raise ValueError(f"adapters.load_peft: {source}: {path} is {alike}")
        result[path] = np.stack([a for a, _ in members]), np.stack([b for _, b in members])
    return result


def modules(config: Any) -> dict[str, Tensor]:
    """{name of a torch module: its weight} of every linear layer of a checkpoint.

    Raises: ValueError for a model that Hugging Face does not have.
    """
    if not isinstance(config, TransformerConfig | Seq2SeqConfig):
        raise ValueError(f"adapters: {type(config).__name__} is no model that PEFT has: save them as a run")
    linear = lambda tensor: all(path[-1] == "kernel" for path in tensor.paths)
    return {tensor.name.removesuffix(".weight"): tensor for tensor in table(config) if linear(tensor)}


def _layer(path: Iterable[str]) -> str:
    return "/".join(list(path)[:-1])


def _fuse(parts: list, widths: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """One A (in, R) and the B (R, out) of each part, of parts (A, B) or None, all scaled like the first."""
    present = [part for part in parts if part]
    first = present[0][0]
    shared = all(np.array_equal(a, first) for a, _ in present)  # also where there is only one
    a = first if shared else np.concatenate([a for a, _ in present], axis=1)
    fused, row = [], 0
    for part, width in zip(parts, widths, strict=True):
        b = np.zeros((a.shape[1], width), np.float32)
        if part:
            rank = part[0].shape[1]
            b[row : row + rank] = part[1] * (first.shape[1] / rank)
            row += 0 if shared else rank
        fused.append(b)
    return a, fused


def _widths(tensor: Tensor) -> list[int]:
    """The number of outputs of each of the layers that a weight holds."""
    return [part.shape[1] for part in tensor.read(np.broadcast_to(np.float32(0), tensor.shape))]


def _size_in(tensor: Tensor) -> int:
    return tensor.read(np.broadcast_to(np.float32(0), tensor.shape))[0].shape[0]


def _is_transposed(tensor: Tensor) -> bool:
    """Whether the weight is (out, in), torch's Linear, rather than (in, out), GPT-2's Conv1D."""
    return tensor.write(*[np.zeros((1, width), np.float32) for width in _widths(tensor)]).shape[0] != 1


def _to_torch(tensor: Tensor, parts: list[np.ndarray]) -> np.ndarray:
    """lora_B (out, R) of the B (R, out) of each part: placed as a weight of R inputs would be."""
    weight = tensor.write(*parts)
    return weight if _is_transposed(tensor) else weight.T


def _from_torch(tensor: Tensor, b: np.ndarray) -> tuple[np.ndarray, ...]:
    return tensor.read(b if _is_transposed(tensor) else b.T)


def _targets(found: Iterable[str], every: Iterable[str]) -> list[str]:
    """The last parts of the names where they tell these modules from the others, else whole names."""
    found, last = set(found), lambda name: name.rpartition(".")[2]
    endings = {last(name) for name in found}
    return sorted(endings if {name for name in every if last(name) in endings} == found else found)


def _settings(path: Path) -> dict[str, Any]:
    settings = files.read_json(path)
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type = {settings.get('peft_type')!r}: must be 'LORA'")
    if settings.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias = {settings['bias']!r}: must be 'none'")
    asked = [name for name, value in settings.items() if value and name not in FIELDS]
    if asked:
        raise ValueError(f"{path}: {asked[0]} = {settings[asked[0]]!r} is not supported")
    start = str(settings.get("init_lora_weights")).lower()
    if start.startswith(OTHER_BASES):
        raise ValueError(
            f"{path}: init_lora_weights = {start!r} changes the base: merge the adapters with PEFT"
        )
    alpha = settings.get("lora_alpha")
    if not isinstance(alpha, int | float) or alpha == 0:
        raise ValueError(f"{path}: lora_alpha = {alpha!r}: must be a number, not 0")
    return settings | {"lora_alpha": float(alpha)}


def _scale(settings: dict[str, Any], module: str, rank: int) -> float:
    """PEFT's factor of A B at this module."""
    alpha = settings["lora_alpha"]
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
            break
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)
