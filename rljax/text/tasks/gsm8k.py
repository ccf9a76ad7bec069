"""Word problems of primary school (Cobbe et al. 2021, arXiv:2110.14168), from its files."""

from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from rljax.text.data.examples import string
from rljax.text.problem import Problem, problem
from rljax.text.rewards import number, numeric_answer
from rljax.text.tasks.files import collect, held, own_tokenizer, parse, remembers, short
from rljax.text.tokenizer import Tokenizer

MARK = "####"
CALCULATOR = re.compile(r"<<[^>]*>>")
FILES = ("train.jsonl", "test.jsonl")

Record = dict[str, Any]


def gsm8k(
    *,
    data: str | Path,
    template: str = "Question: {question}\nAnswer:",
    calculator: bool = False,
    chat: bool = False,
    prompt_length: int = 256,
    completion_length: int = 256,
    vocab_size: int = 2048,
    held_out: float = 0.1,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Problem:
    """Questions, worth 1 where the number after "####", or else the last number, is the right one.

    `data` is a folder with train.jsonl and test.jsonl (held out), or one file of lines {"question",
    "answer"} of which `held_out` is held out. The answer's text is the demonstration, without the marks of
    its `calculator` if that is False. With `chat` the prompt is a message of the user's, the question alone,
    as instruct models read it. Without a `tokenizer` byte pairs of the training text are the vocabulary, at
    most `vocab_size` of them.

    Raises: FileNotFoundError; ValueError. Warns of lines that are no such records, of questions that are in
    both files (which are not learnt from), and of those dropped as longer than the lengths, in tokens.
    """
    path = Path(data).expanduser()
    if "{question}" not in template:
        raise ValueError(f"the task gsm8k: template = {template!r}: must hold {{question}}")
    understand = partial(_record, template=template, calculator=calculator, chat=chat)
    if path.is_dir():
        learn, test = (collect(path / name, understand) for name in FILES)
        asked = {str(record["prompt"]) for record in test}
        if both := sum(str(record["prompt"]) in asked for record in learn):
            warnings.warn(f"the task gsm8k: {both} questions of {FILES[0]} are in {FILES[1]}", stacklevel=3)
        learn = [record for record in learn if str(record["prompt"]) not in asked]
    else:
        found = collect(path, understand)
        out = held([str(record["prompt"]) for record in found], held_out, 0, 0, seed)
        learn = [record for record, is_out in zip(found, out, strict=True) if not is_out]
        test = [record for record, is_out in zip(found, out, strict=True) if is_out]
    if tokenizer is None and chat:
        raise ValueError(
            "the task gsm8k: chat = True: begin with a model whose tokenizer has a chat template"
        )
    if tokenizer is None:
        texts = [record["prompt"] + record["completion"] for record in learn]
        tokenizer = own_tokenizer("gsm8k", texts, vocab_size)
    remembering = remembers(tokenizer)
    parts = lambda record: (record["prompt"], [record["completion"]], {})
    fits = lambda some: short("gsm8k", remembering, some, parts, prompt_length, completion_length)
    learn, test = fits(learn), fits(test)
    made = problem(
        *("gsm8k", remembering, learn + test, numeric_answer()),
        max_new_tokens=completion_length,
        held_out=len(test),
    )
    return made._replace(tokenizer=tokenizer)


def _record(line: str, template: str, calculator: bool, chat: bool) -> Record:
    record = parse(line)
    question, answer = string(record, "question"), string(record, "answer")
    if MARK not in answer or number(answer) is None:
        raise ValueError(f"its answer has no number after {MARK}")
    if not calculator:
        answer = CALCULATOR.sub("", answer)
    prompt = [{"role": "user", "content": question}] if chat else template.replace("{question}", question)
    return {
        "prompt": prompt,
        "completion": answer if chat else " " + answer,
        "answer": answer.rpartition(MARK)[2].strip(),
    }
