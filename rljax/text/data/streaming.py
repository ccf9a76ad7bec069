"""Packed batches from files larger than memory, and a position that says where to go on.

    source = data.stream(["a.jsonl", "b.jsonl"], tokenizer, length=512, batch_size=32, seed=0)
    position = source.init()
    position, rows = source.next(position)      rows: `Packed` of (32, 512)

`next` is a function of the position alone: the same position gives the same rows, bit for bit, in this
process or in another one after a restart. So a position, ten small integers, is all that a checkpoint keeps
of the data.

How: an epoch visits all files in an order drawn from (seed, epoch), reads them in blocks of `block` entries,
shuffles each block by a permutation drawn from (seed, epoch, number of the block), and packs it. A block is
read again from its first byte where a position lies inside it. Entries that are far apart in a file come near
each other only if `block` is large: shuffle a sorted file once, on disk.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from rljax.text.data.examples import Loss, example
from rljax.text.data.pack import Long, Packed, Packing, fits, pack
from rljax.text.data.read import Documents, Report, complaint, describe, parse, sources, walk
from rljax.text.tokenizer import Tokenizer
from rljax.types import Array, Feed, PyTree

GIGABYTE = 2**30
FILES, ENTRIES = 0, 1  # what a permutation is of


class Position(NamedTuple):
    """Where a stream is: integers below 2³¹, so int32 arrays carry them, and so does JSON (`_asdict`)."""

    epoch: int = 0
    file: int = 0  # in the order of the epoch, the one in which the block begins
    gigabyte: int = 0  # the block begins at gigabyte · 2³⁰ + byte of that file (of records: at this index)
    byte: int = 0
    line: int = 0  # of that file, for messages
    block: int = 0  # of the epoch
    row: int = 0  # the next one, of the packed block
    # entries so far that could not be used, and documents that were longer than a row, every epoch anew
    bad: int = 0
    dropped: int = 0
    split: int = 0


class Stream(NamedTuple):
    """An endless source of batches as two functions."""

    init: Callable[[], Position]
    # (position, or a mapping of its fields) -> (the one after, Packed of (batch_size, length) numpy arrays)
    next: Callable[[Any], tuple[Position, Packed]]


class Block(NamedTuple):
    """The batches of K iterations, one after the other."""

    rows: Packed  # of leaves (K, B, T)


class _Block(NamedTuple):
    rows: Packed | None  # None: nothing in it could be used
    following: Position


def stream(
    source: Any,
    tokenizer: Tokenizer,
    length: int,
    batch_size: int,
    *,
    seed: int = 0,
    order: Literal["shuffled", "given"] = "shuffled",
    block: int = 8192,
    loss: Loss = "completion",
    documents: Documents = "line",
    packing: Packing = "first_fit",
    long: Long = "auto",
    strict: bool = False,
) -> Stream:
    """Batches of packed rows from one or several files (see `read`), or from a sequence that can be indexed,
    such as a `datasets.Dataset`; epoch after epoch.

    Everything but `order`, `seed` and `block` (entries in memory at a time) is as in `load`. order="given"
    takes files and entries as they stand. Lines that cannot be used are named in one warning per block of the
    first epoch; `strict` raises at the first. `next` raises ValueError where a file has changed under a
    position, or where a whole epoch gives no row.

    Raises: FileNotFoundError, ValueError.
    """
    if order not in ("shuffled", "given") or block < 1 or batch_size < 1:
        raise ValueError(
            f"order = {order!r}, block = {block}, batch_size = {batch_size}: must be 'shuffled' or 'given', "
            "and at least 1"
        )
    parts = sources(source)
    held: dict[Position, _Block] = {}  # the block that was used last

    def permutation(size: int, kind: int, epoch: int, number: int) -> np.ndarray:
        if order == "given":
            return np.arange(size)
        # raw words of a named generator, sorted: the same for ever, unlike numpy's own shuffles
        words = np.random.Philox(np.random.SeedSequence([seed, kind, epoch, number])).random_raw(size)
        return np.argsort(words, kind="stable")

    def load(start: Position) -> _Block:
        files = permutation(len(parts), FILES, start.epoch, 0)
        examples, bad, entries = [], [], 0
        file, offset, line = start.file, start.gigabyte * GIGABYTE + start.byte, start.line
        while file < len(parts) and entries < block:
            for entry in walk(parts[files[file]], documents, offset, line):
                entries, offset, line = entries + 1, entry.offset, entry.line
                try:
                    examples.append(example(parse(entry), tokenizer, loss))
                except ValueError as error:
                    bad.append(complaint(entry, error, strict))
                if entries == block:
                    break
            else:
                file, offset, line = file + 1, 0, 0
        # the end of a file, and of the epoch, is where its last entry was read, not where the next is missed
        while file < len(parts) and next(walk(parts[files[file]], documents, offset, line), None) is None:
            file, offset, line = file + 1, 0, 0
        if bad and start.epoch == 0:
            warnings.warn(str(Report(entries, tuple(bad))), stacklevel=4)
        gigabyte, byte = divmod(offset, GIGABYTE)
        following = start._replace(
            file=file, gigabyte=gigabyte, byte=byte, line=line, block=start.block + 1, row=0
        )
        if file == len(parts):
            following = following._replace(epoch=start.epoch + 1, file=0, block=0)
        following = following._replace(bad=start.bad + len(bad))
        kept = [item for item in examples if fits(item, length, long)]
        following = following._replace(dropped=start.dropped + len(examples) - len(kept))
        if len(kept) < len(examples) and start.epoch == 0:
            told = f"{len(examples) - len(kept)} of {len(examples)} documents dropped: longer than length = "
            warnings.warn(f"{told}{length}", stacklevel=4)
        examples = kept
        if not examples:
            return _Block(None, following)
        shuffled = [
            examples[place] for place in permutation(len(examples), ENTRIES, start.epoch, start.block)
        ]
        rows, counts = pack(shuffled, length, tokenizer.pad_id, packing=packing, long=long)
        return _Block(rows, following._replace(split=start.split + counts.split))

    def next_(position: Any) -> tuple[Position, Packed]:
        fields = position if isinstance(position, Mapping) else position._asdict()
        position = Position(**{name: int(value) for name, value in fields.items()})
        found: list[Packed] = []
        missing, empty_since = batch_size, position.epoch
        while missing:
            start = position._replace(row=0)
            if start not in held:
                held.clear()
                held[start] = load(start)
            rows, following = held[start]
            number = 0 if rows is None else len(rows.tokens)
            taken = min(missing, number - position.row)
            if rows is not None and taken:
                there = slice(position.row, position.row + taken)
                found.append(Packed(*(array[there] for array in rows)))
                missing, empty_since = missing - taken, position.epoch
            position = position._replace(row=position.row + taken)
            if position.row >= number:
                position = following
            if position.epoch > empty_since + 1:
                raise ValueError(f"no usable text in {describe(source)}: an epoch gave no row")
        return position, Packed(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))

    return Stream(init=Position, next=next_)


def blocks(source: Stream, number: int, sha256: str = "") -> Feed:
    """A stream as what a `Task` learns in place of rows in memory: `number` batches are on the device at a
    time. `sha256` says what is read and how, if it is known.

    Raises: ValueError where `number` is below 1, or as `next` of the stream: the first batch is read here.
    """
    if number < 1:
        raise ValueError(f"number = {number}: must be at least 1 batch")
    _, first = source.next(source.init())
    blank = Block(Packed(*(np.zeros((number, *array.shape), array.dtype) for array in first)))

    def following(position: Mapping[str, int]) -> tuple[dict[str, int], Block]:
        batches, place = [], Position(**position)
        for _ in range(number):
            place, rows = source.next(place)
            batches.append(rows)
        return place._asdict(), Block(Packed(*map(np.stack, zip(*batches, strict=True))))

    return Feed(blank, number, lambda: source.init()._asdict(), following, sha256)


def block_batch(block: Block, iteration: Array | int) -> PyTree:
    """The rows (B, T) of one iteration, of the block that it lies in."""
    size = block.rows.tokens.shape[0]
    return jax.tree.map(lambda leaf: leaf[iteration % size], block.rows)
