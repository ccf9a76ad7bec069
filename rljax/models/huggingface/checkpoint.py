"""Load a model from a folder or a repository of the Hugging Face hub, and save one as such a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from rljax.models.huggingface import configs, files, llama2c, settings, t5, tensors
from rljax.models.huggingface.settings import Generation
from rljax.models.huggingface.tensors import Path as ParameterPath
from rljax.models.huggingface.tensors import Tensor
from rljax.models.seq2seq import Seq2SeqConfig, seq2seq
from rljax.models.transformer import TransformerConfig, transformer
from rljax.types import LanguageModel, PyTree

# What a folder needs: weights, configs, tokenizers.
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# Constants that old checkpoints hold besides their weights.
BUFFERS = re.compile(r"(\.rotary_emb\.inv_freq|\.attn\.(masked_)?bias|\.attention\.(masked_)?bias)$")
LAYER = re.compile(r"layer_(\d+)")
Config = TransformerConfig | Seq2SeqConfig
Read = TypeVar("Read")


class Loaded(NamedTuple):
    """A model, its parameters and how it wants to be sampled from."""

    model: LanguageModel
    params: PyTree
    generation: Generation
    source: Path  # the folder that it was read from


def load(
    path_or_repo_id: str | Path,
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = None,
    sharding: Sharding | Callable[[PyTree], PyTree] | None = None,
    loop: Literal["unrolled", "scanned"] = "unrolled",
    revision: str | None = None,
) -> Loaded:
    """The model of a folder with config.json and safetensors, or llama2.c's two *.bin, or of a repository.

    `dtype` is that of activations, `param_dtype` of parameters (None: the same). `sharding` says where
    parameters go: one for all, or a function from the tree of their shapes to a like tree of shardings (see
    `transformer.logical_axes`). No parameter exists twice, nor in a dtype that it does not stay in.

    Raises: ValueError in one line that names the file, the key or the tensors that are wrong.
    """
    folder = find(path_or_repo_id, revision)
    chosen = {"dtype": dtype, "param_dtype": dtype if param_dtype is None else param_dtype, "loop": loop}
    llama2c_model = None if (folder / "config.json").exists() else llama2c.find(folder)
    if llama2c_model is not None:
        config, unrolled = llama2c.read_model(llama2c_model)
        config = replace(config, **chosen)
        entries = [(path, leaf.shape, lambda leaf=leaf: leaf) for path, leaf in leaves(unrolled)]
        settled = Generation(stop_ids=(llama2c.END, llama2c.BEGIN), bos_id=llama2c.BEGIN)
        return Loaded(transformer(config), place(entries, config, sharding), settled, folder)
    raw = files.read_json(folder / "config.json")
    stored = files.read_folder(folder)
    model = at(folder / "config.json", lambda: build(replace(read_config(raw, stored), **chosen)))
    entries = at(folder, lambda: match(stored, model.config))
    return Loaded(model, place(entries, model.config, sharding), settings.read(folder, raw), folder)


def find(path_or_repo_id: str | Path, revision: str | None = None) -> Path:
    """The folder, after a download if it is a repository's.

    Raises: ValueError if there is none.
    """
    folder = Path(path_or_repo_id).expanduser()
    if folder.is_dir():
        return folder
    name = str(path_or_repo_id)
    if isinstance(path_or_repo_id, Path) or not REPOSITORY.fullmatch(name):
        raise ValueError(f"{name}: there is no such folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        advice = 'there is no such folder, and to download a repository: pip install "rljax[text]"'
        raise ValueError(f"{name}: {advice}") from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except Exception as error:  # of the network, of authorisation, of a name: many kinds, one remedy
        reason = str(error).strip().split("\n")[0].rstrip(".:")
        advice = "pass a local folder that holds config.json and *.safetensors instead"
        raise ValueError(
            f"{name}: no such folder, and not to be had from the hub ({reason}): {advice}"
        ) from None


def at(where: Path, read: Callable[[], Read]) -> Read:
    """What `read` returns. Raises: ValueError, with `where` before what it says."""
    try:
        return read()
    except KeyError as error:
        raise ValueError(f"{where}: {error.args[0]} is missing") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {str(error).splitlines()[0]}") from None


def read_config(raw: dict[str, Any], stored: dict[str, np.ndarray]) -> Config:
    return t5.config_from(raw, stored) if raw.get("model_type") == "t5" else configs.config_from(raw)


def build(config: Config) -> LanguageModel:
    return seq2seq(config) if isinstance(config, Seq2SeqConfig) else transformer(config)


def table(config: Config) -> list[Tensor]:
    return t5.tensors(config) if isinstance(config, Seq2SeqConfig) else tensors.tensors(config)


# A parameter to come: its path in an unrolled model, its shape, and a function that reads it.
Entry = tuple[ParameterPath, tuple[int, ...], Callable[[], np.ndarray]]


def match(stored: dict[str, np.ndarray], config: Config) -> list[Entry]:
    """The parameters in the tensors of a checkpoint.

    Raises: ValueError naming tensors that are missing, not known, or of the wrong shape or kind.
    """
    expected = table(config)
    stored = named(stored, config)
    missing = [tensor.name for tensor in expected if tensor.name not in stored]
    surplus = stored.keys() - {tensor.name for tensor in expected}
    wrong = [f"missing tensors: {some(missing)}"] if missing else []
    wrong += [f"tensors that config.json has no place for: {some(sorted(surplus))}"] if surplus else []
    if wrong:
        raise ValueError("; ".join(wrong))
    entries = []
    for tensor in expected:
        values = stored[tensor.name]
        if values.shape != tensor.shape:
            raise ValueError(f"{tensor.name} has shape {values.shape}, config.json says {tensor.shape}")
        if not jnp.issubdtype(values.dtype, jnp.floating):
            raise ValueError(f"{tensor.name} is of {values.dtype}: quantised weights are not supported")
        shapes = [part.shape for part in tensor.read(np.broadcast_to(np.float32(0), tensor.shape))]
        for number, (path, shape) in enumerate(zip(tensor.paths, shapes, strict=True)):
            read = lambda tensor=tensor, values=values, number=number: tensor.read(values)[number]
            entries.append((path, shape, read))
    return entries


def named(stored: dict[str, np.ndarray], config: Config) -> dict[str, np.ndarray]:
    """The tensors under the names of our tables, without those that mean nothing.

    Raises: ValueError for a head that should be the embedding and is not.
    """
    stored = {name: values for name, values in stored.items() if not BUFFERS.search(name)}
    if isinstance(config, Seq2SeqConfig):
        return {name: values for name, values in stored.items() if name not in t5.surplus(config)}
    prefix = {"gpt2": "transformer.", "gpt_neox": "gpt_neox."}.get(config.family, "model.")
    head = "embed_out.weight" if config.family == "gpt_neox" else "lm_head.weight"
    heads = ("lm_head.weight", "embed_out.weight")
    stored = {head if name in heads else name: values for name, values in stored.items()}
    if not any(name.startswith(prefix) for name in stored):  # saved without its head
        stored = {name if name == head else prefix + name: values for name, values in stored.items()}
    embedding = stored.get(table(config)[0].name)
    if config.tied and head in stored:
        copy = stored.pop(head)
        if embedding is not None and not np.array_equal(copy, embedding):
            raise ValueError(f"{head} is not the embedding: config.json must say tie_word_embeddings: false")
    return stored


def some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 6 else ""
    return ", ".join(names[: 5 if more else 6]) + more


def place(entries: Sequence[Entry], config: Config, sharding: Any) -> PyTree:
    """The parameters on their devices, in `config.param_dtype`, layers stacked if they are scanned."""
    groups: dict[ParameterPath, list[Entry]] = {}
    for entry in entries:
        path = entry[0]
        if config.loop == "scanned":
            path = tuple("layers" if LAYER.fullmatch(name) else name for name in path)
        groups.setdefault(path, []).append(entry)
    stacked = {path for path in groups if config.loop == "scanned" and "layers" in path}
    shapes = {
        path: (len(group), *group[0][1]) if path in stacked else group[0][1] for path, group in groups.items()
    }
    target = np.dtype(config.param_dtype)
    where: Any = dict.fromkeys(shapes, sharding)
    if callable(sharding):
        tree = nested({path: jax.ShapeDtypeStruct(shape, target) for path, shape in shapes.items()})
        where = dict(leaves(sharding(tree)))
    placed = {}
    for path, group in groups.items():
        # A copy of our own: JAX may use memory of numpy as it is, and the file may change.
        values = np.empty(shapes[path], target)
        rows = values if path in stacked else values[None]
        for row, (_, _, read) in enumerate(sorted(group, key=layer_number)):
            rows[row] = read()
        placed[path] = jax.device_put(values, where[path])
    return nested(placed)


def layer_number(entry: Entry) -> int:
    numbers = [int(found[1]) for name in entry[0] if (found := LAYER.fullmatch(name))]
    return numbers[0] if numbers else 0


def nested(flat: dict[ParameterPath, Any]) -> PyTree:
    """A nested dict from its leaves by path."""
    tree: PyTree = {}
    for path, leaf in flat.items():
        inner = tree
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = leaf
    return tree


def leaves(tree: PyTree, path: ParameterPath = ()) -> list[tuple[ParameterPath, Any]]:
    """(path, leaf) of a nested dict."""
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for name, inner in tree.items() for leaf in leaves(inner, (*path, name))]


def save(
    folder: str | Path,
    model: LanguageModel,
    params: PyTree,
    generation: Generation | None = None,
    *,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write config.json, generation_config.json and safetensors, as `model.config.family` writes them: the
    folder opens in torch transformers and vLLM. Parameters keep their dtypes.

    Raises: ValueError where no checkpoint of the family can say what the config says, or where the
    parameters are not those of the model.
    """
    config, folder = model.config, Path(folder)
    raw = raw_of(config)
    pending = [pend(tensor, config, params) for tensor in table(config)]
    raw["torch_dtype"] = max(pending, key=lambda one: one.size).dtype.name
    write_config(folder, raw, generation or Generation())
    files.write_folder(folder, pending, shard_bytes)


def save_config(folder: str | Path, model: LanguageModel, generation: Generation | None = None) -> None:
    """Write config.json and generation_config.json alone, for `load_config`.

    Raises: ValueError where no checkpoint of the family can say what the config says.
    """
    write_config(Path(folder), raw_of(model.config), generation or Generation())


def load_config(
    folder: str | Path, *, dtype: Any = jnp.float32, param_dtype: Any = None
) -> tuple[LanguageModel, Generation]:
    """The model of a folder without its parameters. `dtype` and `param_dtype` are as for `load`.

    Raises: ValueError in one line that names the file or the key that is wrong.
    """
    path = Path(folder) / "config.json"
    raw = files.read_json(path)
    chosen = {"dtype": dtype, "param_dtype": dtype if param_dtype is None else param_dtype}
    model = at(path, lambda: build(replace(read_config(raw, {}), **chosen)))
    return model, settings.read(Path(folder), raw)


def raw_of(config: Any) -> dict[str, Any]:
    """What config.json says, but for the special tokens. Raises: ValueError as `save`."""
    if not isinstance(config, TransformerConfig | Seq2SeqConfig):
        raise ValueError(f"{type(config).__name__} is no model that Hugging Face has: save it as a run")
    return t5.config_to(config) if isinstance(config, Seq2SeqConfig) else configs.config_to(config)


def write_config(folder: Path, raw: dict[str, Any], generation: Generation) -> None:
    raw = raw | settings.ids(generation)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    starts = {"decoder_start_token_id": raw.get("decoder_start_token_id")}  # of an encoder-decoder
    settings.write(folder, generation, {name: value for name, value in starts.items() if value is not None})


def pend(tensor: Tensor, config: Config, params: PyTree) -> files.Pending:
    """A tensor made of parameters, once it is written."""

    def leaf(path: ParameterPath) -> tuple[Any, int | None]:
        number, inner = None, params
        for name in path:
            found = LAYER.fullmatch(name) if config.loop == "scanned" else None
            number, name = (int(found[1]), "layers") if found else (number, name)
            if not isinstance(inner, dict) or name not in inner:
                raise ValueError(f"params has no {'/'.join(path)}, which {tensor.name} is made of")
            inner = inner[name]
        return inner, number

    parts = [leaf(path) for path in tensor.paths]
    shapes = [part.shape for part in tensor.read(np.broadcast_to(np.float32(0), tensor.shape))]
    for path, (part, number), shape in zip(tensor.paths, parts, shapes, strict=True):
        if (part.shape if number is None else part.shape[1:]) != shape:
            raise ValueError(f"params: {'/'.join(path)} has shape {part.shape}, the config says {shape}")
    values = lambda: tensor.write(*(np.asarray(x if number is None else x[number]) for x, number in parts))
    return files.Pending(tensor.name, tensor.shape, np.dtype(parts[0][0].dtype), values)
