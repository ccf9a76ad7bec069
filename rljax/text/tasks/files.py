"""What the tasks that read files have in common: lines, lengths, what is held out."""

from __future__ import annotations

import gzip
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rljax.text.byte_pair_tokenizer import byte_pair_tokenizer
from rljax.text.data.examples import turns
from rljax.text.data.read import Report, listed, opened, there
from rljax.text.tokenizer import Tokenizer

Understood = TypeVar("Understood")


def collect(path: Path, understand: Callable[[str], Understood]) -> list[Understood]:
    """`understand(line)` of all lines of a file (.gz or not) that are not empty, or of all records of one
    that is a JSON list, where it raises no ValueError; those others are counted and told in one warning.

    Raises: FileNotFoundError; ValueError where no line is good.
    """
    found, bad, entries = [], [], 0
    for number, raw in _lines(path):
        if not raw.strip():
            continue
        entries += 1
        try:
            found.append(understand(raw.decode("utf-8").rstrip("\r\n")))
        except UnicodeDecodeError as error:
            bad.append(f"{path}:{number}: not UTF-8 (byte 0x{raw[error.start]:02x})")
        except ValueError as error:
            bad.append(f"{path}:{number}: {error}")
    report = Report(entries, tuple(bad))
    if not found:
        raise ValueError(f"no usable line in {path}: {report}")
    if bad:
        warnings.warn(str(report), stacklevel=3)
    return found


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    there(path)
    try:
        if (records := listed(path)) is not None:
            yield from ((number, json.dumps(record).encode()) for number, record in enumerate(records, 1))
            return
        with opened(path) as file:
            for number, raw in enumerate(file, 1):
                yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is no whole gzip file ({error})") from error


def parse(line: str) -> dict[str, Any]:
    """The JSON object of a line. Raises: ValueError saying what is wrong."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict):
        raise ValueError(f"is a {type(record).__name__}, must be an object with keys")
    return {key: value for key, value in record.items() if value is not None}


def held(groups: Sequence[str], held_out: float, folds: int, fold: int, seed: int) -> np.ndarray:
    """(N,) bool: which of N records are held out. Records of one group are so together.

    The groups are put in an order by their hash, that of `seed`: the first `held_out` of them (a share) are
    held out, or with `folds` those whose place is `fold` modulo `folds`, so that each is held out once.

    Raises: ValueError where nothing would be left on one side.
    """
    distinct = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())
    if (folds and not 2 <= folds <= len(distinct)) or folds < 0 or not 0 <= fold < max(1, folds):
        raise ValueError(
            f"folds = {folds}, fold = {fold}: must be 2 to the {len(distinct)} different prompts, and below "
            "folds"
        )
    if not 0 < held_out < 1 or len(distinct) < 2:
        raise ValueError(
            f"held_out = {held_out}: must be above 0 and below 1, of {len(distinct)} different prompts"
        )
    first = min(max(1, round(held_out * len(distinct))), len(distinct) - 1)
    chosen = set(distinct[fold::folds] if folds else distinct[:first])
    return np.array([group in chosen for group in groups])


def own_tokenizer(name: str, texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """At most `vocab_size` byte pairs of `texts`: as many as they have. Raises: ValueError."""
    try:
        return byte_pair_tokenizer(texts, vocab_size, fewer=True)
    except ValueError as error:
        raise ValueError(f"the task {name}: {error}") from error


def remembers(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that encodes each text once: lengths are looked at before arrays are made."""
    return tokenizer._replace(encode=cache(tokenizer.encode))


def short(
    name: str,
    tokenizer: Tokenizer,
    records: Sequence[Understood],
    texts: Callable[[Understood], tuple[Any, Sequence[Any], Mapping[str, Any]]],
    prompt_length: int,
    completion_length: int,
) -> list[Understood]:
    """The records of which the prompt and all completions, stop token included, are within these lengths.

    `texts(record)`: (prompt, completions, arguments of the chat template), the first two strings or messages.
    Those dropped are counted in a warning.

    Raises: ValueError where none is left.
    """
    if prompt_length < 1 or completion_length < 1:
        raise ValueError(
            f"the task {name}: prompt_length = {prompt_length}, completion_length = {completion_length}: "
            "must be at least 1"
        )
    kept = []
    for record in records:
        prompt, completions, arguments = texts(record)
        encoded = [turns(tokenizer, prompt, completion, **arguments) for completion in completions]
        longest = max(len(completion) for _, completion in encoded)
        if len(encoded[0][0]) <= prompt_length and longest <= completion_length:
            kept.append(record)
    dropped = len(records) - len(kept)
    told = f"the task {name}: {dropped} of {len(records)} records longer than {prompt_length} + "
    told += f"{completion_length} tokens (prompt_length, completion_length)"
    if not kept:
        raise ValueError(f"{told}: none is left")
    if dropped:
        warnings.warn(f"{told}: dropped", stacklevel=3)
    return kept
