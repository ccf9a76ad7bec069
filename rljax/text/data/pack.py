"""Documents of any length into rows of one length, without one seeing the other.

A row holds several documents; `segments` numbers them from 1, 0 is padding. A model attends within a segment
and counts positions from its start (`LanguageModel.forward` does both, given the segments), so packing
changes what is computed at once, not what is computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax.text.data.examples import Example, Loss
from rljax.text.data.read import Documents, Report, read
from rljax.text.tokenizer import Tokenizer

Packing = Literal["first_fit", "sequential"]
Long = Literal["auto", "split", "drop"]
LONG = ("auto", "split", "drop")


class Packed(NamedTuple):
    """N rows of T tokens."""

    tokens: Any  # (N, T) int32
    segments: Any  # (N, T) int32: 0 is padding, k > 0 the row's k-th document
    # (N, T) bool: a token to be predicted from those before it, so never the first of a segment. The hidden
    # state at t − 1 predicts token t: with hidden states (N, T, D), losses of tokens[:, 1:] from
    # hidden[:, :-1], where mask[:, 1:].
    mask: Any


class Counts(NamedTuple):
    """What packing did."""

    documents: int  # that came in
    split: int  # of those, cut into several segments
    dropped: int  # of those, left out as longer than a row
    rows: int
    tokens: int  # in the rows, padding not counted


class Loaded(NamedTuple):
    """Text on the device, and how it got there."""

    rows: Packed
    report: Report  # entries that could not be used
    counts: Counts


def load(
    source: Any,
    tokenizer: Tokenizer,
    length: int,
    *,
    loss: Loss = "completion",
    documents: Documents = "file",
    packing: Packing = "first_fit",
    long: Long = "auto",
    strict: bool = False,
) -> Loaded:
    """All of `source` (see `read`), packed (see `pack`), as arrays on the device.

    Raises: FileNotFoundError, ValueError.
    """
    examples, report = read(source, tokenizer, loss=loss, documents=documents, strict=strict)
    rows, counts = pack(examples, length, tokenizer.pad_id, packing=packing, long=long)
    return Loaded(jax.tree.map(jnp.asarray, rows), report, counts)


def pack(
    examples: Sequence[Example],
    length: int,
    pad_id: int = 0,
    *,
    packing: Packing = "first_fit",
    long: Long = "auto",
) -> tuple[Packed, Counts]:
    """Documents into rows of `length` tokens (numpy arrays).

    packing="first_fit": each goes whole into the first row that has room for it; what is left of a row is
    padding. "sequential": one after the other, cut where a row ends, so only the last row has padding: the
    way of pretraining, where the rest of a document is learned without its beginning. A document longer than
    `length` is cut into pieces (long="split"), which lose what stood before them, or left out ("drop");
    "auto" splits plain text, and drops what has a prompt, of which a piece teaches nothing. Both are counted;
    what is dropped is told in a warning.

    Raises: ValueError where `length` is below 2 or no document is left.
    """
    if length < 2:
        raise ValueError(f"length = {length}: must be at least 2, as the first token of a row is not learned")
    for name, value, known in (("packing", packing, PACKINGS), ("long", long, LONG)):
        if value not in known:
            raise ValueError(f"{name} = {value!r}: must be one of {', '.join(known)}")
    kept = [item for item in examples if fits(item, length, long)]
    dropped = len(examples) - len(kept)
    if not kept:
        longest = max((len(item.tokens) for item in examples), default=0)
        raise ValueError(
            f"none of {len(examples)} documents fits into length = {length}: take a length of {longest}, or "
            "long='split'"
        )
    if dropped:
        warnings.warn(
            f"{dropped} of {len(examples)} documents dropped: longer than length = {length}", stacklevel=2
        )

    places = list(PACKINGS[packing]([len(item.tokens) for item in kept], length))
    rows = 1 + max(row for _, _, _, row, _ in places)
    tokens = np.full((rows, length), pad_id, np.int32)
    segments = np.zeros((rows, length), np.int32)
    mask = np.zeros((rows, length), bool)
    last = [0] * rows  # segment of each row
    pieces = [0] * len(kept)
    for document, start, end, row, column in places:
        last[row] += 1
        pieces[document] += 1
        there = slice(column, column + end - start)
        tokens[row, there] = kept[document].tokens[start:end]
        mask[row, there] = kept[document].mask[start:end]
        mask[row, column] = False  # nothing stands before it to predict it from
        segments[row, there] = last[row]
    split = sum(number > 1 for number in pieces)
    total = int((segments > 0).sum())
    return Packed(tokens, segments, mask), Counts(len(examples), split, dropped, rows, total)


def fits(item: Example, length: int, long: Long) -> bool:
    """Whether a document is learnt, in one row or in pieces."""
    return len(item.tokens) <= length or long == "split" or (long == "auto" and not item.whole)


Place = tuple[int, int, int, int, int]  # document, from its token, to its token, row, column


def _sequential(lengths: Sequence[int], length: int) -> Iterator[Place]:
    row, column = 0, 0
    for document, size in enumerate(lengths):
        start = 0
        while start < size:
            if column == length:
                row, column = row + 1, 0
            end = min(size, start + length - column)
            yield document, start, end, row, column
            column, start = column + end - start, end


def _first_fit(lengths: Sequence[int], length: int) -> Iterator[Place]:
    """A tree of the largest room under each node finds the first row that has enough in log₂ N steps."""
    pieces = [
        (document, start, min(size, start + length))
        for document, size in enumerate(lengths)
        for start in range(0, size, length)
    ]
    leaves = 1 << max(len(pieces) - 1, 0).bit_length()
    room = [length] * (2 * leaves)
    for document, start, end in pieces:
        need, node = end - start, 1
        while node < leaves:
            node = 2 * node + (room[2 * node] < need)
        yield document, start, end, node - leaves, length - room[node]
        room[node] -= need
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])


PACKINGS = {"first_fit": _first_fit, "sequential": _sequential}
