"""How a checkpoint wants to be sampled from, and where it stops: generation_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rljax.models.huggingface.files import read_json

FILE = "generation_config.json"


class Generation(NamedTuple):
    """Special tokens and defaults of sampling; what a checkpoint does not say changes nothing."""

    stop_ids: tuple[int, ...] = ()  # tokens that end a text; chat models have several
    pad_id: int | None = None
    bos_id: int | None = None
    do_sample: bool = False  # False: the most probable token, whatever the fields below
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None


NEUTRAL = Generation()


def read(folder: Path, raw: dict[str, Any]) -> Generation:
    """From generation_config.json, and where it is silent from `raw`, the contents of config.json.

    Raises: ValueError naming the file and a value of the wrong kind.
    """
    path = folder / FILE
    said = {key: value for key, value in raw.items() if key.endswith("_token_id")}
    if path.is_file():
        said |= {key: value for key, value in read_json(path).items() if value is not None}
    where = path if path.is_file() else folder / "config.json"
    stops = said.get("eos_token_id")
    stops = tuple(stops) if isinstance(stops, list | tuple) else () if stops is None else (stops,)
    special = {"stop_ids": stops, "pad_id": said.get("pad_token_id"), "bos_id": said.get("bos_token_id")}
    for name, value in special.items():
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in values):
            raise ValueError(f"{where}: {name} = {value}: tokens must be integers of at least 0")
    rest = {name: said[name] for name in Generation._fields[3:] if name in said and path.is_file()}
    for name, value in rest.items():
        if not isinstance(value, bool | int | float):
            raise ValueError(f"{where}: {name} = {value!r}: must be a number")
    return Generation(**special, **rest)


def write(folder: Path, generation: Generation, more: Mapping[str, Any] | None = None) -> None:
    """Write generation_config.json with what is not neutral, and `more` of the architecture's own."""
    said = {
        name: getattr(generation, name)
        for name in Generation._fields[3:]
        if getattr(generation, name) != getattr(NEUTRAL, name)
    }
    special = {name: value for name, value in ids(generation).items() if value is not None}
    (folder / FILE).write_text(json.dumps({**special, **said, **(more or {})}, indent=2) + "\n")


def ids(generation: Generation) -> dict[str, Any]:
    """The special tokens under the names of config.json, None where there is none (left out, the
    architecture's own would be taken).
    """
    stops = list(generation.stop_ids)
    return {
        "bos_token_id": generation.bos_id,
        "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
        "pad_token_id": generation.pad_id,
    }
