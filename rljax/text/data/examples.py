"""One record of training text as token ids, and which of them are to be learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from rljax.text.tokenizer import Tokenizer

Loss = Literal["completion", "all"]


class Example(NamedTuple):
    """One document."""

    tokens: np.ndarray  # (L,) int32
    mask: np.ndarray  # (L,) bool: to be learned, as something to predict


def example(record: Any, tokenizer: Tokenizer, loss: Loss = "completion") -> Example:
    """A record {"text"}, {"prompt", "completion"} or {"messages"} (or with more keys, which are not read).

    A text and a completion end with the tokenizer's end token, a conversation as its chat template says.
    loss="completion": only completions and what the assistant says are learned; of a text, all of it.
    loss="all": prompts too.

    Raises: ValueError saying what is wrong with the record.
    """
    record = fields(record)
    if "messages" in record:
        chat = tokenizer.chat(record["messages"])
        if not any(chat.mask):
            raise ValueError("messages without a turn of the assistant: nothing to learn")
        tokens, mask = chat.tokens, np.array(chat.mask, bool)
    elif "prompt" in record or "completion" in record:
        prompt, completion = pair(record, tokenizer)
        tokens, mask = prompt + completion, np.arange(len(prompt) + len(completion)) >= len(prompt)
    elif "text" in record:
        text = string(record, "text")
        tokens = ended(tokenizer, tokenizer.encode(text, add_special_tokens=True))
        mask = np.ones(len(tokens), bool)
    else:
        keys = ", ".join(map(str, record)) or "none"
        raise ValueError(f"needs the key text, or prompt and completion, or messages; has {keys}")
    return Example(np.array(tokens, np.int32), mask if loss == "completion" else np.ones_like(mask))


def pair(record: Any, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(prompt, completion with its end token) of a decoder-only model.

    The prompt is encoded as it will be for generation, on its own; the completion as what follows it in both
    together where they agree with that, else on its own.

    Raises: ValueError where one of them is missing, empty or no string.
    """
    record = fields(record)
    prompt, completion = string(record, "prompt"), string(record, "completion")
    first = begun(tokenizer, prompt)
    both = begun(tokenizer, prompt + completion)
    fits = both[: len(first)] == first and len(both) > len(first)
    return first, ended(tokenizer, both[len(first) :] if fits else tokenizer.encode(completion))


def encoder_pair(record: Any, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(prompt, completion with its end token) of an encoder-decoder: each is encoded on its own, and the
    prompt keeps the end token that such tokenizers (T5) add. Raises: ValueError like `pair`.
    """
    record = fields(record)
    prompt, completion = string(record, "prompt"), string(record, "completion")
    return (
        tokenizer.encode(prompt, add_special_tokens=True),
        ended(tokenizer, tokenizer.encode(completion)),
    )


def begun(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a prompt that a decoder continues: with the beginning mark where the tokenizer sets one, without
    the end mark that some set.
    """
    tokens = tokenizer.encode(text, add_special_tokens=True)
    return tokens[:-1] if len(tokens) > 1 and tokens[-1] == tokenizer.eos_id else tokens


def ended(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """`tokens` with the end token of the tokenizer, where it has one, once."""
    missing = tokenizer.eos_id is not None and tokens[-1:] != [tokenizer.eos_id]
    return [*tokens, tokenizer.eos_id] if missing and tokenizer.eos_id is not None else tokens


def fields(record: Any) -> dict[str, Any]:
    """A record without the keys that are null: `datasets` fills absent ones in. Raises: ValueError."""
    if not isinstance(record, Mapping):
        raise ValueError(f"is a {type(record).__name__}, must be an object with keys")
    return {key: value for key, value in record.items() if value is not None}


def string(record: Mapping[str, Any], key: str) -> str:
    """The text under `key`. Raises: ValueError where it is missing, no string, or empty."""
    if key not in record:
        raise ValueError(f"missing key {key}")
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is a {type(value).__name__}, must be a string")
    if not value:
        raise ValueError(f"empty {key}")
    return value
