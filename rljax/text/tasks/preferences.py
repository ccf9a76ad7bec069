"""What people preferred: dialogues of HH-RLHF's format (Bai et al. 2022, arXiv:2204.05862), or one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rljax.text.data.examples import string, template_arguments, turns
from rljax.text.problem import Problem, problem, ragged
from rljax.text.tasks.files import collect, held, own_tokenizer, parse, remembers, short
from rljax.text.tokenizer import Tokenizer
from rljax.types import Preferences

TURN = "\n\nAssistant:"


class Judgement(NamedTuple):
    """One prompt and its completions, the best first; or one completion and whether it is desirable."""

    prompt: Any  # a string, or messages
    completions: tuple[Any, ...]
    weight: float
    margin: float
    arguments: Mapping[str, Any]  # of the chat template
    desirable: bool | None = None  # of a single completion


def preferences(
    *,
    data: str | Path,
    prompt_length: int = 512,
    completion_length: int = 256,
    vocab_size: int = 2048,
    held_out: float = 0.1,
    folds: int = 0,
    fold: int = 0,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Problem:
    """Pairs, or more completions of a prompt, of which somebody liked the first best; or labels, for `kto`.

    `data` is a file of JSON lines (.jsonl or .jsonl.gz), each one of

        {"chosen": dialogue, "rejected": dialogue}      the same up to the last "\\n\\nAssistant:", the prompt
        {"chosen": messages, "rejected": messages}      the same up to the last turn, the assistant's
        {"prompt", "chosen", "rejected"}                strings, or messages
        {"prompt", "completions": [the best, ...]}      two or more of them, as many in each line
        {"prompt", "completion", "label"}               whether this one is desirable, true or false

    all with numbers "weight" (default 1) and "margin" (0) where they are known. `held_out` of the
    different prompts are held out, or with `folds` those of one `fold` (0 to folds − 1) for cross-validation;
    judgements of one prompt stay together. There is no reward: algorithms learn from the preferences, `sft`
    from the best completions (of labels the desirable ones), `pretrain` from those after their prompts.
    Completions are padded to the longest of them. Without a `tokenizer` byte pairs of the whole file are the
    vocabulary, at most `vocab_size` of them, the same in each fold; messages need one with a chat template.

    Raises: FileNotFoundError; ValueError, also where lines differ in the number of completions. Warns of
    lines that are no such records and of those dropped as longer than the lengths, in tokens.
    """
    found = collect(Path(data).expanduser(), _judgement)
    counts = [len(judgement.completions) for judgement in found]
    if len(set(counts)) > 1:
        raise ValueError(
            f"the task preferences: {data} has {min(counts)} to {max(counts)} completions per prompt: must "
            "be as many in each line, two where pairs are compared, one where lines have a label"
        )
    if tokenizer is None:
        everything = [text for judgement in found for text in (judgement.prompt, *judgement.completions)]
        if any(not isinstance(text, str) for text in everything):
            raise ValueError(
                f"the task preferences: {data} has messages: begin with a model whose tokenizer has a chat "
                "template"
            )
        tokenizer = own_tokenizer("preferences", everything, vocab_size)
    remembering = remembers(tokenizer)
    parts = lambda judgement: (judgement.prompt, judgement.completions, judgement.arguments)
    found = short("preferences", remembering, found, parts, prompt_length, completion_length)
    out = held([str(judgement.prompt) for judgement in found], held_out, folds, fold, seed)
    found = [found[place] for place in np.argsort(out, kind="stable")]
    arguments = lambda each: {"chat_template_kwargs": each.arguments} if each.arguments else {}
    good = lambda each: {} if each.desirable is False else {"completion": each.completions[0]}
    records = [{"prompt": each.prompt} | good(each) | arguments(each) for each in found]
    number = int(out.sum())
    tokens = _tokens(remembering, found)
    made = problem("preferences", remembering, records, (), max_new_tokens=tokens.shape[2], held_out=number)
    column = lambda values: jnp.asarray(np.array(values, np.float32))
    weight = column([judgement.weight for judgement in found])
    margin = column([judgement.margin for judgement in found])
    labels = None if found[0].desirable is None else jnp.asarray([each.desirable for each in found], bool)
    columns = tokens, weight, margin, labels
    halves = slice(-number), slice(-number, None)
    texts = [_text(remembering, found[half]) for half in halves]
    return made._replace(
        tokenizer=tokenizer,
        preferences=tuple(
            Preferences(part.tokens, part.valid, *(None if x is None else x[half] for x in columns))
            for part, half in zip((made.learn, made.held_out), halves, strict=True)
        ),
        text=tuple(texts) if all(len(each) for each in texts) else None,
    )


def _text(tokenizer: Tokenizer, found: Sequence[Judgement]) -> Any:
    """(M,) the tokens of all prompts with their best completions, those that are not desirable left out."""
    best = [
        turns(tokenizer, each.prompt, each.completions[0], **each.arguments)
        for each in found
        if each.desirable is not False
    ]
    return jnp.asarray([token for prompt, completion in best for token in prompt + completion], jnp.int32)


def _tokens(tokenizer: Tokenizer, found: Sequence[Judgement]) -> Any:
    """(N, K, T) of all completions with their stop tokens, −1 after them; T is that of the longest."""
    rows = [
        turns(tokenizer, each.prompt, completion, **each.arguments)[1]
        for each in found
        for completion in each.completions
    ]
    tokens = ragged(rows)
    return jnp.asarray(tokens.reshape(len(found), -1, tokens.shape[1]))


def _judgement(line: str) -> Judgement:
    record = parse(line)
    number = lambda key, default: _number(record, key, default)
    extra = (number("weight", 1.0), number("margin", 0.0))
    if extra[0] < 0:
        raise ValueError(f"weight = {extra[0]:g}: must be at least 0")
    desirable = None
    if "label" in record and "completion" in record:
        desirable = record["label"]
        if not isinstance(desirable, bool):
            raise ValueError(f"label = {desirable!r}: must be true or false")
        prompt, completions = spoken(record, "prompt"), (spoken(record, "completion"),)
    elif "completions" in record:
        texts = record["completions"]
        if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(t, str | list) for t in texts):
            raise ValueError("completions must be a list of two strings or more, none empty")
        prompt, completions = spoken(record, "prompt"), tuple(texts)
    elif "prompt" in record:
        prompt = spoken(record, "prompt")
        completions = spoken(record, "chosen"), spoken(record, "rejected")
    else:
        prompt, completions = _dialogues(spoken(record, "chosen"), spoken(record, "rejected"))
    if any(not (text.strip() if isinstance(text, str) else text) for text in completions):
        raise ValueError("an empty completion")
    if any(one == other for one, other in combinations(completions, 2)):
        raise ValueError("two of the completions are equal")
    if isinstance(prompt, str) and not all(isinstance(text, str) for text in completions):
        raise ValueError("completions of messages need a prompt of messages")
    return Judgement(prompt, completions, *extra, template_arguments(record), desirable)


def spoken(record: Mapping[str, Any], key: str) -> Any:
    """The text or the messages under `key`. Raises: ValueError where there are none."""
    return record[key] if isinstance(record.get(key), list) and record[key] else string(record, key)


def _dialogues(chosen: Any, rejected: Any) -> tuple[Any, tuple[Any, Any]]:
    if isinstance(chosen, list) or isinstance(rejected, list):
        if not isinstance(chosen, list) or not isinstance(rejected, list) or chosen[:-1] != rejected[:-1]:
            raise ValueError("the two conversations differ before the last turn")
        return chosen[:-1], (chosen[-1:], rejected[-1:])
    (first, mark, good), (second, other, bad) = chosen.rpartition(TURN), rejected.rpartition(TURN)
    if not mark or not other:
        raise ValueError(f"a dialogue without {TURN!r}")
    if first != second:
        raise ValueError(f"the two dialogues differ before the last {TURN!r}")
    return first + mark, (good, bad)


def _number(record: Mapping[str, Any], key: str, default: float) -> float:
    value = record.get(key, default)
    if not isinstance(value, Real) or isinstance(value, bool) or not np.isfinite(float(value)):
        raise ValueError(f"{key} = {value!r}: must be a number")
    return float(value)
