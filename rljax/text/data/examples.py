"""One record of training text as token ids, and which of them are to be learned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from rljax.text.tokenizer import Tokenizer

Loss = Literal["completion", "all"]


class Example(NamedTuple):
    """One document."""

    tokens: np.ndarray  # (L,) int32
    mask: np.ndarray  # (L,) bool: to be learned, as something to predict
    whole: bool = False  # a prompt with its completion, which without each other teach nothing


def example(record: Any, tokenizer: Tokenizer, loss: Loss = "completion") -> Example:
    """A record {"text"}, {"prompt", "completion"} or {"messages"} (or with more keys, which are not read), or
    Alpaca's {"instruction", "input", "output"}, see `prompted`.

    A text and a completion end with the tokenizer's end token, a conversation as its chat template says. A
    prompt and a completion of messages are a conversation. Its template reads `tools`, and each of
    `chat_template_kwargs`, which may be JSON strings.
    loss="completion": only completions and what the assistant says are learned; of a text, all of it.
    loss="all": prompts too.

    Raises: ValueError saying what is wrong with the record.
    """
    record = fields(record)
    if (messages := conversation(record)) is not None:
        chat = tokenizer.chat(messages, **template_arguments(record))
        if not any(chat.mask):
            raise ValueError("messages without a turn of the assistant: nothing to learn")
        tokens, mask = chat.tokens, np.array(chat.mask, bool)
    elif "prompt" in record or "completion" in record:
        prompt, completion = pair(record, tokenizer)
        tokens, mask = prompt + completion, np.arange(len(prompt) + len(completion)) >= len(prompt)
    elif "text" in record:
        tokens = ended(tokenizer, begun(tokenizer, string(record, "text")))
        mask = np.ones(len(tokens), bool)
    else:
        keys = ", ".join(map(str, record)) or "none"
        raise ValueError(f"needs the key text, or prompt and completion, or messages; has {keys}")
    learnt = mask if loss == "completion" else np.ones_like(mask)
    return Example(np.array(tokens, np.int32), learnt, whole=messages is not None or "prompt" in record)


def conversation(record: Mapping[str, Any]) -> list[Any] | None:
    """The messages of a record that is a conversation, ShareGPT's too; None of another."""
    if "messages" in record:
        return record["messages"]
    if isinstance(record.get("conversations"), list):
        return [_message(said) for said in record["conversations"]]
    prompt, completion = record.get("prompt"), record.get("completion")
    if not isinstance(prompt, list):
        return None
    return [*prompt, *([] if completion is None else answered(completion))]


ROLES = {"human": "user", "gpt": "assistant"}  # of ShareGPT


def _message(said: Any) -> Any:
    """{"from", "value"} as {"role", "content"}."""
    if not isinstance(said, Mapping) or not {"from", "value"} <= said.keys():
        return said
    return {"role": ROLES.get(said["from"], said["from"]), "content": said["value"]}


def answered(completion: Any) -> list[Any]:
    """A completion as messages: those of the list that it is, or one of the assistant's. Raises: ValueError
    where it is neither text nor a list.
    """
    if not isinstance(completion, str | list):
        raise ValueError(f"completion is a {type(completion).__name__}, must be a string or messages")
    return completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]


def template_arguments(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template reads of a record beside its messages. Raises: ValueError."""
    found = {key: record[key] for key in ("tools", "chat_template_kwargs") if key in record}
    for key, value in found.items():
        try:
            found[key] = json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f"{key} is no JSON ({error})") from error
    more = found.pop("chat_template_kwargs", {})
    if not isinstance(more, Mapping):
        raise ValueError(f"chat_template_kwargs is a {type(more).__name__}, must be an object with keys")
    return {**found, **more}


def turns(
    tokenizer: Tokenizer, prompt: Any, completion: Any = None, **arguments: Any
) -> tuple[list[int], list[int]]:
    """(prompt, completion with its end token) of texts or of messages, the latter as the chat template has
    them, with `arguments` of the template; without a completion an empty one.

    Raises: ValueError where the messages are none, or the template does not render them.
    """
    if isinstance(prompt, str):
        return begun(tokenizer, prompt), [] if completion is None else continued(
            tokenizer, prompt, completion
        )
    first = tokenizer.chat(prompt, add_generation_prompt=True, **arguments).tokens
    if completion is None:
        return first, []
    chat = tokenizer.chat([*prompt, *answered(completion)], **arguments)
    if chat.tokens[: len(first)] != first or not any(chat.mask):
        raise ValueError("the completion is no turn of the assistant after the prompt")
    return first, chat.tokens[len(first) : len(chat.mask) - chat.mask[::-1].index(True)]


def turn_end(tokenizer: Tokenizer) -> int | None:
    """The special token that ends a turn of the assistant in the chat template, None where there is none."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        last = turns(tokenizer, talk[:1], talk[1:])[1][-1]
    except (ValueError, ImportError):  # no template, or nothing that renders it
        return None
    return None if tokenizer.decode([last], skip_special_tokens=True) else last


def pair(record: Any, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(prompt, completion with its end token) of a decoder-only model.

    The prompt is encoded as it will be for generation, on its own; the completion as what follows it in both
    together where they agree with that, else on its own.

    Raises: ValueError where one of them is missing, empty or no string.
    """
    record = fields(record)
    prompt, completion = string(record, "prompt"), string(record, "completion")
    return begun(tokenizer, prompt), continued(tokenizer, prompt, completion)


def continued(tokenizer: Tokenizer, prompt: str, completion: str) -> list[int]:
    """Ids of a completion of `prompt` with its end token: what follows the prompt in both together, where
    they begin with it, so that a tokenizer which marks the beginning of a text with a space (Llama 2) does
    not ask for one; else those of its own, as those of an encoder-decoder (T5), for which it is a text.
    """
    first = begun(tokenizer, prompt)
    try:
        both = begun(tokenizer, prompt + completion)
    except ValueError:  # whole words, of which the two make one that is none
        both = []
    fits = both[: len(first)] == first and len(both) > len(first) and not two_sequences(tokenizer)
    return ended(tokenizer, both[len(first) :] if fits else tokenizer.encode(completion))


def two_sequences(tokenizer: Tokenizer) -> bool:
    """Whether a prompt is a text by itself, which ends before its completion begins (T5): its tokenizer puts
    an end mark after a text, and nothing before it.
    """
    return tokenizer.eos_id is not None and tokenizer.encode("", add_special_tokens=True) == [
        tokenizer.eos_id
    ]


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
    """Ids of a prompt that a decoder continues: with the beginning mark where the tokenizer sets one and the
    text has none of its own, without the end mark that some tokenizers set.
    """
    tokens, own = tokenizer.encode(text, add_special_tokens=True), tokenizer.encode(text)
    before_end = tokens[len(tokens) - 1 - len(own) : -1]
    if len(tokens) > 1 and tokens[-1] == tokenizer.eos_id and before_end == own:
        tokens = tokens[:-1]
    begin = tokenizer.bos_id
    twice = begin is not None and tokens[:2] == [begin, begin] and own[:2] != [begin, begin]
    return tokens[1:] if twice else tokens


def ended(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """`tokens` with the end token of the tokenizer, where it has one, once."""
    missing = tokenizer.eos_id is not None and tokens[-1:] != [tokenizer.eos_id]
    return [*tokens, tokenizer.eos_id] if missing and tokenizer.eos_id is not None else tokens


def fields(record: Any) -> dict[str, Any]:
    """A record without the keys that are null: `datasets` fills absent ones in. Raises: ValueError."""
    if not isinstance(record, Mapping):
        raise ValueError(f"is a {type(record).__name__}, must be an object with keys")
    return prompted({key: value for key, value in record.items() if value is not None})


# Of Taori et al. 2023 (Stanford Alpaca), without an input and with one.
INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
INSTRUCTION_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
    "### Input:\n{input}\n\n### Response:\n"
)


def prompted(record: dict[str, Any]) -> dict[str, Any]:
    """A record of Alpaca's keys with a prompt in Alpaca's words and a completion; others as they are."""
    others = "prompt", "completion", "messages", "conversations"
    if not {"instruction", "output"} <= record.keys() or any(key in record for key in others):
        return record
    string(record, "instruction")
    if not isinstance(given := record.get("input", ""), str):
        raise ValueError(f"input is a {type(given).__name__}, must be a string")
    words = (INSTRUCTION_WITH_INPUT if given else INSTRUCTION).format(**{**record, "input": given})
    return {**record, "prompt": words, "completion": record["output"]}


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
