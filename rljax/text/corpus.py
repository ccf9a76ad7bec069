"""Where the text of a run comes from: files, a tokenizer, a model to start from; and how they become arrays.

    corpus = text.Corpus("shakespeare.txt")                                  its characters are the vocabulary
    corpus = text.Corpus("dialogues.jsonl", model="Qwen/Qwen2.5-0.5B")       in that model's tokens
    rljax.train("pretrain", corpus, {"length": 128})

A corpus is plain data, so config.json holds it and a run reads its text again. What is held out is never
learnt: files of their own, or the end of each plain text and the last of all other records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import checks
from rljax.models import huggingface as checkpoints
from rljax.text.data.examples import Example, Loss, conversation, fields
from rljax.text.data.pack import LONG, Long, Packed, Packing, pack
from rljax.text.data.pairs import Pairs, load_pairs
from rljax.text.data.read import PLAIN_TEXT, Documents, collect, parse, read, sources, suffix, walk
from rljax.text.data.streaming import blocks, stream
from rljax.text.load import load_tokenizer
from rljax.text.tokenizer import Tokenizer, character_tokenizer, check_vocabulary
from rljax.types import Feed, LanguageModel, PyTree, Task

Files = str | Path | Sequence[str | Path]
KEYS = ("text", "prompt", "completion")  # of a record, that hold text
CHOICES = {
    "documents": ("file", "line", "paragraph"),
    "loss": ("completion", "all"),
    "packing": ("first_fit", "sequential"),
    "long": LONG,
}

HOW = (*CHOICES, "order", "window", "block")  # what a stream is read with


@dataclass(frozen=True)
class Corpus:
    """Where a task's text comes from. Raises: ValueError naming a field that is wrong."""

    data: Files  # what is learnt: plain text (.txt) or JSON lines (.jsonl), one file or several
    held_out: Files = ()  # files to measure the loss on; none: the end of `data`
    held_out_fraction: float = 0.1  # of a plain text's characters, or of the records, without such files
    tokenizer: str | Path = ""  # a folder or a repository; none: the model's, else the characters of the data
    model: str | Path = ""  # a folder (of Hugging Face or llama2.c) or a repository whose parameters to adapt
    documents: Documents = "file"  # what a document of plain text is
    loss: Loss = "completion"  # of sft: what is learnt of a record that has a completion or messages
    packing: Packing = "first_fit"  # of sft: how documents share rows
    long: Long = "auto"  # of sft: a document longer than a row; auto splits text, drops what has a prompt
    stream: bool = False  # read while learning, for data larger than memory; held_out needs files of its own
    order: int = 0  # of a stream: the seed of the order in which it is read, the same for all seeds of a run
    window: int = 8192  # of a stream: documents that are in memory, and shuffled, together
    block: int = 64  # of a stream: batches that are on the device at a time

    def __post_init__(self) -> None:
        for name in ("data", "held_out"):
            object.__setattr__(self, name, files(getattr(self, name)))
        for name in ("tokenizer", "model"):
            object.__setattr__(self, name, str(getattr(self, name)))
        if not self.data:
            raise ValueError("a corpus without data: name a file of text")
        for name, known in CHOICES.items():
            checks.choice(self, name, known)
        checks.number(self, "held_out_fraction", low=0, high=1, open_low=True)
        checks.count(self, "order", low=0, high=2**63 - 1)
        checks.count(self, "window", "block")
        if self.stream and not self.held_out:
            raise ValueError("a streamed corpus needs files to measure the loss on: name them with held_out")
        if self.stream and self.documents == "file" and any(map(is_plain, files(self.data))):
            raise ValueError("a streamed corpus of plain text needs documents = 'line' or 'paragraph'")

    @property
    def name(self) -> str:
        """Of the first file, and how many more there are."""
        first, *rest = files(self.data)
        return Path(first).stem + (f"+{len(rest)}" if rest else "")

    def recorded(self) -> dict[str, Any]:
        """Every field as JSON, with files and folders found from anywhere: Corpus(**recorded) is the same."""
        where = lambda text: str(Path(text).expanduser().absolute())
        paths = {name: list(map(where, files(getattr(self, name)))) for name in ("data", "held_out")}
        named = {name: str(getattr(self, name)) for name in ("tokenizer", "model")}
        local = lambda text: bool(text) and Path(text).expanduser().exists()
        found = {name: where(text) if local(text) else text for name, text in named.items()}
        return asdict(self) | paths | found


class Base(NamedTuple):
    """What a corpus is read for: the tokenizer, and where it names a model, that model."""

    tokenizer: Tokenizer
    model: LanguageModel | None = None
    params: PyTree = None
    generation: checkpoints.Generation | None = None


def is_plain(path: str | Path) -> bool:
    return suffix(path) in PLAIN_TEXT


def files(given: Files) -> tuple[str, ...]:
    return (str(given),) if isinstance(given, str | Path) else tuple(map(str, given))


def base(corpus: Corpus, config: Any) -> Base:
    """The tokenizer of a corpus, and its model with activations in `config.dtype`, parameters in float32.

    Raises: FileNotFoundError; ValueError, also where the tokenizer has more ids than the model, and naming
    `length` of an algorithm's Config that is more than the model has positions.
    """
    if not corpus.model:
        if corpus.tokenizer:
            return Base(load_tokenizer(corpus.tokenizer))
        found = characters(files(corpus.data) + files(corpus.held_out), corpus.documents)
        if not found:
            where = ", ".join(files(corpus.data))
            what = "no text, prompt or completion"
            paths = sources(list(files(corpus.data)))
            if any(
                True for path in paths for _ in walk(path, corpus.documents)
            ):  # what is in them, or is bad
                records = collect(paths, fields, corpus.documents, strict=False)[0]
                if any(conversation(record) is not None for record in records):
                    what = "conversations need a chat template"
            raise ValueError(f"{where}: {what}: name a tokenizer, or a model with one")
        return Base(character_tokenizer(found))
    checks.choice(config, "dtype", ("float32", "bfloat16"))
    tokenizer = load_tokenizer(corpus.tokenizer or corpus.model)
    loaded = checkpoints.load(corpus.model, dtype=jnp.dtype(config.dtype), param_dtype=jnp.float32)
    check_vocabulary(tokenizer, loaded.model.config.vocab_size)
    positions = getattr(loaded.model.config, "max_positions", None)
    if positions is not None and config.length > positions:
        checks.complain(config, "length", f"must be at most {positions}, the positions of {corpus.model}")
    return Base(tokenizer, loaded.model, loaded.params, loaded.generation)


class Parts(NamedTuple):
    """What was read of a corpus."""

    learn: PyTree
    held_out: PyTree
    # of each part: documents that were read, of those cut into several segments, dropped as longer than a row
    counts: dict[str, dict[str, int]] | None = None


def task(corpus: Corpus, base: Base, parts: Parts) -> Task:
    """The task of what was read from a corpus."""
    size = base.tokenizer.vocab_size if base.model is None else base.model.config.vocab_size
    return Task(
        corpus.name,
        size,
        parts.learn,
        parts.held_out,
        base.params,
        tokenizer=base.tokenizer,
        model=base.model,
        generation=base.generation,
        corpus=corpus,
        counts=parts.counts,
    )


def told(counts: Mapping[str, Mapping[str, int]]) -> str:
    """What was read, dropped and cut, in words."""
    parts = []
    for part, number in counts.items():
        read = f"{part.replace('_', '-')}: {checks.counted(number['documents'], 'document')}"
        parts.append(f"{read}, {number['dropped']:,} dropped as longer than a row, {number['split']:,} cut")
    return "; ".join(parts)


def characters(paths: Sequence[str], documents: Documents) -> set[str]:
    """The distinct characters of files; what cannot be read is told when it is read to be learnt."""
    found: set[str] = set()
    for text in _texts(paths, documents):
        found.update(text)
    return found


def _texts(paths: Sequence[str], documents: Documents) -> Iterator[str]:
    for source in sources(list(paths)):
        for entry in walk(source, documents):
            try:
                record = parse(entry)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield from (record[key] for key in KEYS if isinstance(record.get(key), str))


def documents(corpus: Corpus, tokenizer: Tokenizer) -> tuple[list[Example], list[Example]]:
    """What is learnt and what is held out, as documents.

    Raises: FileNotFoundError; ValueError, also where nothing is left to learn or to hold out.
    """
    load = partial(read, tokenizer=tokenizer, loss=corpus.loss, documents=corpus.documents)
    if corpus.held_out:
        return load(list(files(corpus.data)))[0], measured(corpus, tokenizer)
    whole = lambda path: corpus.documents == "file" and is_plain(path)
    texts = [path for path in files(corpus.data) if whole(path)]
    records = [path for path in files(corpus.data) if not whole(path)]
    learn: list[Example] = []
    held_out: list[Example] = []
    for path in texts:
        ((text,), _) = collect(path, lambda record: record["text"], "file", strict=True)
        size = round(len(text) * corpus.held_out_fraction)
        if not 0 < size < len(text):
            raise ValueError(f"{path}: {len(text)} characters: {_nothing_left(corpus)}")
        for part, piece in ((learn, text[:-size]), (held_out, text[-size:])):
            part += load([{"text": piece}], strict=True)[0]
    if records:
        found = load(records)[0]
        size = _held_out(len(found), corpus, needed=not texts)
        learn, held_out = learn + found[: len(found) - size], held_out + found[len(found) - size :]
    return learn, held_out


def measured(corpus: Corpus, tokenizer: Tokenizer) -> list[Example]:
    """The documents of files that are held out. Raises: FileNotFoundError, ValueError."""
    paths = list(files(corpus.held_out))
    return read(paths, tokenizer, loss=corpus.loss, documents=corpus.documents)[0]


def feed(corpus: Corpus, tokenizer: Tokenizer, config: Any) -> Feed:
    """The data of a streamed corpus in batches of the Config's sizes.

    Raises: FileNotFoundError; ValueError, also where nothing in the first documents can be used.
    """
    paths = list(files(corpus.data))
    source = stream(
        paths,
        tokenizer,
        config.length,
        config.batch_size,
        seed=corpus.order,
        block=corpus.window,
        loss=corpus.loss,
        documents=corpus.documents,
        packing=corpus.packing,
        long=corpus.long,
    )
    digest = hashlib.sha256(repr([getattr(corpus, name) for name in HOW]).encode())
    for path in paths:
        with Path(path).expanduser().open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return blocks(source, corpus.block, digest.hexdigest())


def packed(corpus: Corpus, tokenizer: Tokenizer, config: Any) -> Parts:
    """What is learnt and what is held out, in rows of `config.length` tokens; what is learnt of a
    stream is a Feed, which counts while it reads.

    Raises: as `documents` and `feed`.
    """

    def rows(part: list[Example]) -> tuple[Packed, dict[str, int]]:
        found, number = pack(part, config.length, tokenizer.pad_id, packing=corpus.packing, long=corpus.long)
        counts = {"documents": number.documents, "split": number.split, "dropped": number.dropped}
        return jax.tree.map(jnp.asarray, found), counts

    if corpus.stream:
        held_out, number = rows(measured(corpus, tokenizer))
        return Parts(feed(corpus, tokenizer, config), held_out, {"held_out": number})
    (learn, learnt), (held_out, number) = map(rows, documents(corpus, tokenizer))
    return Parts(learn, held_out, {"learn": learnt, "held_out": number})


def pairs(corpus: Corpus, tokenizer: Tokenizer, length: int) -> Parts:
    """Prompts and completions of an encoder-decoder, up to `length` tokens each. Without files that are held
    out the counts are of all.

    Raises: as `documents`; ValueError for a stream.
    """
    if corpus.stream:
        raise ValueError("the pairs of an encoder-decoder are read into memory: leave stream out")

    def load(paths: Files) -> tuple[Pairs, dict[str, int]]:
        found = load_pairs(list(files(paths)), tokenizer, length, length, side="right")
        documents = found.rows.prompt.shape[0] + found.dropped
        return found.rows, {"documents": documents, "split": 0, "dropped": found.dropped}

    rows, counts = load(corpus.data)
    if corpus.held_out:
        held_out, others = load(corpus.held_out)
        return Parts(rows, held_out, {"learn": counts, "held_out": others})
    number = rows.prompt.shape[0]
    first = number - _held_out(number, corpus, needed=True)
    cut = lambda part: jax.tree.map(lambda x: x[part], rows)
    return Parts(cut(slice(first)), cut(slice(first, None)), {"all": counts})


def _held_out(number: int, corpus: Corpus, needed: bool) -> int:
    """How many of so many records, at least one of several."""
    if number < 2 and needed:
        raise ValueError(f"{', '.join(files(corpus.data))}: {number} record: {_nothing_left(corpus)}")
    return min(number - 1, max(1, round(number * corpus.held_out_fraction)))


def _nothing_left(corpus: Corpus) -> str:
    fraction = f"held_out_fraction = {corpus.held_out_fraction:g}"
    return f"nothing is left to learn or to hold out ({fraction}): give more, or name files with held_out"
