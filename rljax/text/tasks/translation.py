"""Sentences to translate, from parallel lines."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rljax.text.data.examples import string
from rljax.text.problem import Problem, problem
from rljax.text.rewards import chrf
from rljax.text.tasks.files import collect, held, own_tokenizer, parse, remembers, short
from rljax.text.tokenizer import Tokenizer

MARK = "\n"  # after the sentence to translate

Pair = tuple[str, str]


def translation(
    *,
    data: str | Path,
    swap: bool = False,
    prompt_length: int = 32,
    completion_length: int = 32,
    vocab_size: int = 2048,
    held_out: float = 0.02,
    limit: int = 0,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Problem:
    """A sentence and a line break are answered by its translation; the reward is chrF, 0 to 1.

    `data` is a file (plain or .gz) of lines with the sentence, a tab and its translation (what follows
    another tab is not read, nor is a first line "1<TAB>2"), or of JSON lines {"source", "target"}; `swap`
    translates the other way. A sentence may have several translations, of which the nearest counts for the
    reward, and each is a demonstration to learn. Of the different sentences `held_out` (a share) are held
    out, each with one demonstration; `limit` takes so many lines (0: all). Without a `tokenizer` byte pairs
    of the training text are the vocabulary, at most `vocab_size` of them.

    Raises: FileNotFoundError; ValueError; ImportError without sacrebleu. Warns of lines that are no pairs
    and of those dropped as longer than the lengths, in tokens.
    """
    path = Path(data).expanduser()
    is_json = path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson", ".json"))
    pairs = collect(path, partial(_json if is_json else _tabs, swap=swap))
    pairs = list(dict.fromkeys(pair for pair in pairs if pair))[: limit or None]
    out = held([source for source, _ in pairs], held_out, 0, 0, seed)
    learn = [pair for pair, is_out in zip(pairs, out, strict=True) if not is_out]
    new = [pair for pair, is_out in zip(pairs, out, strict=True) if is_out]
    if tokenizer is None:
        texts = [text for pair in learn for text in pair]
        tokenizer = own_tokenizer("translation", texts, vocab_size)
    remembering = remembers(tokenizer)
    parts = lambda pair: (pair[0] + MARK, [pair[1]], {})
    fits = lambda some: short("translation", remembering, some, parts, prompt_length, completion_length)
    learn, new = fits(learn), fits(new)
    references: dict[str, list[str]] = {}
    for source, target in pairs:
        references.setdefault(source, []).append(target)
    once = list({source: (source, target) for source, target in reversed(new)}.values())[::-1]
    records = [
        {"prompt": source + MARK, "completion": target, "references": references[source]}
        for source, target in learn + once
    ]
    made = problem(
        *("translation", remembering, records, chrf("references")),
        max_new_tokens=completion_length,
        held_out=len(once),
    )
    return made._replace(tokenizer=tokenizer)


def _tabs(line: str, swap: bool) -> Pair | None:
    parts = [part.strip() for part in line.split("\t")]
    if parts == ["1", "2"]:
        return None
    if len(parts) < 2 or not parts[0] or not parts[1]:
        raise ValueError("needs two texts with a tab between")
    return (parts[1], parts[0]) if swap else (parts[0], parts[1])


def _json(line: str, swap: bool) -> Pair:
    record = parse(line)
    source, target = string(record, "source").strip(), string(record, "target").strip()
    if not source or not target:
        raise ValueError("an empty source or target")
    return (target, source) if swap else (source, target)
