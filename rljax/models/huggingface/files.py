"""Safetensors files, read lazily and written as a stream.

The format: 8 bytes little-endian n, n bytes of JSON {name: {dtype, shape, data_offsets}}, the tensors' bytes.
Ours, because numpy has no bfloat16 of its own and because an error must name its file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"


class Pending(NamedTuple):
    """A tensor to be written: what it is, and how to get its values once it is its turn."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    values: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_json(path: Path) -> dict[str, Any]:
    """Raises: ValueError naming a file that is absent or not a JSON object."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder's safetensors, sharded or not, mapped from the files: nothing is read yet.

    Raises: ValueError naming a file that is absent or corrupt.
    """
    index = folder / INDEX
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError(f"{index}: must hold weight_map, the file of each tensor")
        paths = [folder / Path(name).name for name in sorted(set(shards.values()))]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        advice = ": pickled weights are never read, convert them with safetensors" if pickled else ""
        raise ValueError(f"{folder}: holds no *.safetensors{advice}")
    tensors: dict[str, np.ndarray] = {}
    for path in paths:
        for name, tensor in read(path).items():
            if name in tensors:
                raise ValueError(f"{path}: {name} is in another file of this folder, too")
            tensors[name] = tensor
    return tensors


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file, mapped from it. Raises: ValueError naming it and what is wrong with it."""
    try:
        mapped = np.memmap(path, np.uint8, "r")
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise ValueError(f"{path}: corrupt safetensors: {error}") from None
    try:
        if mapped.size < 8:
            raise ValueError("shorter than its header")
        length = int(mapped[:8].view("<u8")[0])
        if length > mapped.size - 8:
            raise ValueError("cut off within its header")
        header = json.loads(mapped[8 : 8 + length].tobytes())
        data = mapped[8 + length :]
        return {name: _view(data, name, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: corrupt safetensors: {str(error).splitlines()[0]}") from None


def _view(data: np.ndarray, name: str, entry: dict[str, Any]) -> np.ndarray:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"{name} has the dtype {entry['dtype']}: must be one of {', '.join(DTYPES)}")
    if not 0 <= start <= end <= data.size:
        raise ValueError(f"cut off: {name} should end at byte {end} of {data.size}")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} of shape {shape} does not have {end - start} bytes")
    return data[start:end].view(dtype).reshape(shape)


def write_folder(folder: Path, tensors: Iterable[Pending], limit: int = 5 * 10**9) -> None:
    """Write model.safetensors, or shards of at most `limit` bytes (or one tensor) and their index."""
    shards: list[list[Pending]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.size for other in shards[-1]) + tensor.size > limit:
            shards.append([])
        shards[-1].append(tensor)
    for old in [*folder.glob("model*.safetensors"), folder / INDEX]:
        old.unlink(missing_ok=True)
    if len(shards) == 1:
        write(folder / "model.safetensors", shards[0])
        return
    names = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write(folder / name, shard)
    where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(tensor.size for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write(path: Path, tensors: Sequence[Pending]) -> None:
    """Write one file, a tensor at a time; the widest elements first, so that all are aligned."""
    tensors = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.size
        header[tensor.name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(np.ascontiguousarray(tensor.values(), tensor.dtype).tobytes())
