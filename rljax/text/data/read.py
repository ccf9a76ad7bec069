"""Records from files or objects, one after the other, each with its place; bad ones are named and counted."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rljax.text.data.examples import Example, Loss, example
from rljax.text.tokenizer import Tokenizer

Documents = Literal["file", "line", "paragraph"]
JSON_LINES, PLAIN_TEXT = (".jsonl", ".ndjson", ".json"), (".txt", ".text", ".md")
SHOWN = 3  # bad lines that a report quotes

Source = Any  # a Path, or a sequence of records


class Entry(NamedTuple):
    """What stands at one place of a source, not yet understood, and where the next one begins."""

    where: str  # "train.jsonl:17"
    raw: Any  # bytes of a file, or a record
    offset: int  # of the next entry: a byte of a file, or an index
    line: int  # likewise


class Report(NamedTuple):
    """What became of a source's entries. As a string: one line."""

    entries: int
    bad: tuple[str, ...]  # "train.jsonl:17: empty completion", those left out

    def __str__(self) -> str:
        more = len(self.bad) - SHOWN
        shown = "; ".join(self.bad[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
        return f"{len(self.bad)} of {self.entries} entries left out" + (f": {shown}" if self.bad else "")


def read(
    source: Any,
    tokenizer: Tokenizer,
    *,
    loss: Loss = "completion",
    documents: Documents = "file",
    strict: bool = False,
) -> tuple[list[Example], Report]:
    """All documents of `source` as tokens.

    `source`: one file or a list of files, plain or .gz, JSON lines or a JSON list (.jsonl, .json; see
    `example` for their keys) or plain text (.txt, where a document is the whole file, a line, or a
    paragraph); or any iterable of records, such as a
    list of dicts or a `datasets.Dataset`. A line that cannot be used is left out and named in one warning;
    `strict` raises at the first. Lines of white space alone are no records.

    Raises: FileNotFoundError; ValueError naming file and line.
    """
    return collect(source, partial(example, tokenizer=tokenizer, loss=loss), documents, strict)


def collect(
    source: Any, understand: Callable[[Any], Any], documents: Documents, strict: bool
) -> tuple[list[Any], Report]:
    """`understand(record)` of all records of `source`, where it raises no ValueError; warns of those others.

    Raises: ValueError at the first bad one with `strict`, or where there is none that is good.
    """
    found, bad, entries = [], [], 0
    for part in sources(source):
        for entry in walk(part, documents):
            entries += 1
            try:
                found.append(understand(parse(entry)))
            except ValueError as error:
                bad.append(complaint(entry, error, strict))
    report = Report(entries, tuple(bad))
    if not found:
        raise ValueError(f"no usable text in {describe(source)}: {report}")
    if bad:
        warnings.warn(str(report), stacklevel=3)
    return found, report


def complaint(entry: Entry, error: ValueError, strict: bool) -> str:
    """One line that names the place. Raises: ValueError with it where `strict`."""
    line = f"{entry.where}: {error}"
    if strict:
        raise ValueError(line) from error
    return line


def sources(source: Any) -> list[Source]:
    """A list of files and sequences of records. Raises: FileNotFoundError, ValueError."""
    if isinstance(source, str | Path):
        return [_file(source)]
    if isinstance(source, Sequence) and source and all(isinstance(part, str | Path) for part in source):
        return [_file(part) for part in source]
    if hasattr(source, "__len__") and hasattr(source, "__getitem__") and hasattr(source, "__iter__"):
        if hasattr(source, "keys"):
            raise ValueError(
                "data is one dict: pass a list of records, or one split of a datasets.DatasetDict"
            )
        return [source]
    if isinstance(source, Iterable):
        return [list(source)]
    raise ValueError(f"data is a {type(source).__name__}: must be a path, paths, or records")


def _file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    there(path)
    if suffix(path) not in JSON_LINES + PLAIN_TEXT:
        known = ", ".join(JSON_LINES + PLAIN_TEXT)
        raise ValueError(f"{path}: what is in it is told by its name, which must end in one of {known}")
    return path


def there(path: Path) -> None:
    """Raises: FileNotFoundError where there is no file; ValueError where it is a folder."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the files in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")


def suffix(path: str | Path) -> str:
    """What the name of a file ends with, compressed or not."""
    return Path(Path(path).name.removesuffix(".gz")).suffix


def opened(path: Path) -> Any:
    """The bytes of a file, plain or .gz."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def listed(path: Path) -> list[Any] | None:
    """The records of a file that is one JSON list; None of another. Raises: ValueError."""
    if suffix(path) not in JSON_LINES:
        return None
    with opened(path) as file:
        first = file.readline().removeprefix(b"\xef\xbb\xbf").strip()
        if not first.startswith(b"["):
            return None
        try:  # a line that is a list by itself is one of many, unless the name says that there is one
            if isinstance(json.loads(first), list) and suffix(path) != ".json":
                return None
        except ValueError:
            pass
        file.seek(0)
        try:
            found = json.loads(file.read().removeprefix(b"\xef\xbb\xbf"))
        except ValueError as error:
            raise ValueError(f"{path} begins a JSON list and is none ({error})") from error
    return found


def describe(source: Any) -> str:
    """The names of files; of others what they are."""
    several = source if isinstance(source, list | tuple) else [source]
    named = bool(several) and all(isinstance(part, str | Path) for part in several)
    return ", ".join(map(str, several)) if named else f"a {type(source).__name__}"


def walk(source: Source, documents: Documents, offset: int = 0, line: int = 0) -> Iterator[Entry]:
    """The entries of one file or sequence from `offset` on, which is after `line` lines.

    Raises: ValueError where no entry can begin at `offset`: the file is not the one that it was.
    """
    if not isinstance(source, Path):
        for index in range(offset, len(source)):
            yield Entry(f"entry {index}", source[index], index + 1, index + 1)
        return
    if (records := listed(source)) is not None:
        for index in range(offset, len(records)):
            yield Entry(f"{source}: record {index}", records[index], index + 1, index + 1)
        return
    with opened(source) as file:
        size = file.seek(0, 2)
        if offset > size or (offset and file.seek(offset - 1) and file.read(1) != b"\n" and offset != size):
            raise ValueError(f"{source} has changed: no line begins at byte {offset}, where reading stopped")
        file.seek(offset)
        kind = "line" if suffix(source) in JSON_LINES else documents
        if kind == "file":
            if raw := file.read():
                yield Entry(f"{source}:{line + 1}", raw, size, line + raw.count(b"\n"))
            return
        gathered, first = b"", line
        for raw in file:
            offset, line = offset + len(raw), line + 1
            if raw.strip():
                first = first if gathered else line
                gathered += raw
            if gathered and (kind == "line" or not raw.strip()):
                yield Entry(f"{source}:{first}", gathered.rstrip(b"\r\n"), offset, line)
                gathered = b""
        if gathered:
            yield Entry(f"{source}:{first}", gathered.rstrip(b"\r\n"), offset, line)


def parse(entry: Entry) -> Any:
    """The record of an entry. Raises: ValueError saying what is wrong with it."""
    if not isinstance(entry.raw, bytes):
        return entry.raw
    place = Path(entry.where.rpartition(":")[0])
    try:
        text = entry.raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte 0x{entry.raw[error.start]:02x})") from error
    if suffix(place) not in JSON_LINES:
        return {"text": text}
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("invalid JSON (nested too deeply)") from error
