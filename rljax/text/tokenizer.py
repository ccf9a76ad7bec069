"""Text to token ids and back: one surface for Hugging Face's tokenizers, for characters, for byte pairs of
one's own and for llama2.c's.

    tokenizer = text.load_tokenizer("Qwen/Qwen2.5-0.5B-Instruct")        a repo id, or a folder
    tokenizer = text.character_tokenizer(open("shakespeare.txt").read())  nothing to download
    tokenizer = text.byte_pair_tokenizer(open("shakespeare.txt"), 1024)   trained on its lines
    ids = tokenizer.encode("Once upon a time")
    tokenizer.decode(ids)                                                 "Once upon a time"

A `Tokenizer` is a bundle of functions and a few numbers, so one of your own needs no class: fill the fields.
Two rules hold for all of them. `pad_id` is never `eos_id`, always lies inside the vocabulary, and its value
never matters: what is padding is known from lengths (`valid`, `mask`, `segments`), nowhere from `ids != pad`.
And generation does not stop at `eos_id` but at the stop ids of the model's generation settings; `eos_id` is
what training text ends with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

CHARACTERS_FILE = "character_tokenizer.json"


class Chat(NamedTuple):
    """A conversation as a model reads it."""

    tokens: list[int]
    # For each token: it was written by the assistant, the mark that ends its turn included. All False where
    # the conversation ends with a generation prompt, which is there to be continued.
    mask: list[bool]


class Tokenizer(NamedTuple):
    """Text to token ids and back, as pure functions."""

    name: str  # for messages
    vocab_size: int  # the largest id + 1, added tokens included
    pad_id: int  # fills rows up; never eos_id
    eos_id: int | None  # ends a training text
    bos_id: int | None
    # (text, add_special_tokens=False) -> ids. With special tokens: and what models of this tokenizer expect
    # around a text: a beginning mark for Llama and Gemma, an end mark for T5, nothing for GPT-2 and Qwen.
    # ValueError where the text cannot be written in this vocabulary.
    encode: Callable[..., list[int]]
    # (ids, skip_special_tokens=False) -> text. The inverse of `encode`. SentencePiece tokenizers (Llama 2,
    # T5, llama2.c) drop a space at the start, so the text of a continuation is
    # decode(prompt + completion)[len(decode(prompt)):].
    decode: Callable[..., str]
    # (messages, add_generation_prompt=False, **arguments of the template) -> Chat. Messages are dicts with
    # role and content. ValueError in one line where there is no template or it fails.
    chat: Callable[..., Chat]
    save: Callable[[str | Path], None]  # (folder) -> files that `load_tokenizer` reads
    template: bool = False  # whether there is a chat template


def character_tokenizer(
    characters: Iterable[str], unknown: Literal["error", "replace"] = "error"
) -> Tokenizer:
    """Every character is a token: the vocabulary of from-scratch research.

    `characters` is a text or a set (its distinct characters are taken, sorted, so that the order of the text
    does not matter), or a list or tuple of characters in the order of their ids, as of a model that was
    trained elsewhere. Ids: 0 pads, 1 ends a text, then with unknown="replace" 2 stands
    for every character that is not in the vocabulary, then the characters. With unknown="error" `encode`
    raises ValueError naming the first such character and where it stands.

    Raises: ValueError where there are no characters, or a member of `characters` is longer than one.
    """
    if unknown not in ("error", "replace"):
        raise ValueError(f"unknown = {unknown!r}: must be 'error' or 'replace'")
    ordered = isinstance(characters, list | tuple)
    alphabet = list(dict.fromkeys(characters)) if ordered else sorted(set(characters))
    wrong = next((entry for entry in alphabet if not isinstance(entry, str) or len(entry) != 1), None)
    if not alphabet or wrong is not None:
        what = "no characters" if not alphabet else f"{wrong!r} is not one character"
        raise ValueError(f"character_tokenizer: {what}; pass a text or a collection of characters")
    special = ["<pad>", "<eos>"] + (["<unk>"] if unknown == "replace" else [])
    table = special + alphabet
    ids = {character: len(special) + index for index, character in enumerate(alphabet)}
    name = f"the character tokenizer of {len(alphabet)} characters"

    def encode(text: str, add_special_tokens: bool = False) -> list[int]:
        del add_special_tokens  # a text of characters has none around it
        check_text(text)
        if unknown == "replace":
            return [ids.get(character, 2) for character in text]
        try:
            return [ids[character] for character in text]
        except KeyError as error:
            (character,) = error.args
            raise ValueError(
                f"character {character!r} at place {text.index(character)} is not in {name}; "
                "make the tokenizer from all of the text, or with unknown='replace'"
            ) from None

    def decode(tokens: Iterable[int], skip_special_tokens: bool = False) -> str:
        tokens = check_ids(tokens, len(table), name)
        return "".join(table[token] for token in tokens if not (skip_special_tokens and token < len(special)))

    def save(folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        content = {"characters": "".join(alphabet), "unknown": unknown}
        # ASCII with escapes: any character survives, lone surrogates too
        (Path(folder) / CHARACTERS_FILE).write_text(json.dumps(content) + "\n", encoding="ascii")

    return Tokenizer(
        name=name,
        vocab_size=len(table),
        pad_id=0,
        eos_id=1,
        bos_id=None,
        encode=encode,
        decode=decode,
        chat=lambda *_, **__: no_template(name),
        save=save,
    )


def load_characters(folder: str | Path) -> Tokenizer:
    """What `save` of a character tokenizer wrote. Raises: ValueError naming a file that is none."""
    path = Path(folder) / CHARACTERS_FILE
    try:
        content = json.loads(path.read_bytes())
        return character_tokenizer(list(content["characters"]), content["unknown"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no saved character tokenizer ({error})") from error


def check_vocabulary(tokenizer: Tokenizer, model_vocab_size: int) -> None:
    """Raises: ValueError where the tokenizer writes ids that the model's embedding has no row for.

    (JAX would read past the end of a table without a word.) A model with more rows than there are tokens, as
    many are padded to a round number, is fine.
    """
    if tokenizer.vocab_size > model_vocab_size:
        raise ValueError(
            f"{tokenizer.name} has ids up to {tokenizer.vocab_size - 1} but the model's vocabulary is "
            f"{model_vocab_size}: use the tokenizer that the model was trained with, or a model with at "
            f"least {tokenizer.vocab_size} rows"
        )


def same_vocabulary(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether ids mean the same to both: as many of them, the same end, and the same text of each that is
    looked at, about 2,000 over the whole range.
    """
    if (one.vocab_size, one.eos_id) != (other.vocab_size, other.eos_id):
        return False
    some = range(0, one.vocab_size, max(1, one.vocab_size // 2_000))
    return all(one.decode([token]) == other.decode([token]) for token in some)


_PAD = re.compile(r"[<\[]\|?\w*pad(ding)?\w*\|?[>\]]", re.IGNORECASE)
_RESERVED = re.compile(r"[<\[]\|?\w*(reserved|unused|extra_id)\w*\|?[>\]]", re.IGNORECASE)


def choose_pad(
    vocabulary: Mapping[str, int],
    special: Iterable[int],
    pad_id: int | None,
    unk_id: int | None,
    eos_id: int | None,
) -> int:
    """The id that pads, of the vocabulary {token: id} and the ids of its special tokens: the first of

    1. its own pad token; 2. a token named after padding (<|finetune_right_pad_id|>); 3. one that is reserved
    or unused (<|reserved_special_token_0|>); 4. the unknown token; 5. the smallest id of an ordinary token
    (GPT-2 has nothing else: "!"); each only where it is not eos_id. An id beyond the vocabulary would be
    read from outside the embedding, and a token added for padding would change the model's shape.

    Raises: ValueError where the vocabulary has no other id at all.
    """
    by_id = sorted(vocabulary.items(), key=lambda entry: entry[1])
    named = [token for pattern in (_PAD, _RESERVED) for text, token in by_id if pattern.fullmatch(text)]
    ordinary = set(vocabulary.values()) - set(special)
    candidates = [pad_id, *named, unk_id, *sorted(ordinary)[:2], *sorted(vocabulary.values())[:2]]
    for candidate in candidates:
        if candidate is not None and candidate != eos_id:
            return candidate
    raise ValueError(f"a vocabulary of {len(vocabulary)} tokens: needs one that is not the end token")


def check_text(text: Any) -> None:
    """Raises: TypeError where `text` is not a string (bytes and lists would be encoded as something else)."""
    if not isinstance(text, str):
        raise TypeError(f"encode takes a string, not {type(text).__name__}")


def check_ids(ids: Iterable[Any], vocab_size: int, name: str) -> list[int]:
    """`ids` as Python integers. Raises: ValueError naming the first that the vocabulary does not have."""
    tokens = [int(token) for token in ids]
    wrong = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise ValueError(f"id {wrong} is not in the vocabulary of {name}, 0 to {vocab_size - 1}")
    return tokens


def one_line(error: Exception, length: int = 300) -> str:
    """What an error of another library says, without its line breaks and not without end."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 1] + "…"


def no_template(name: str) -> NoReturn:
    """Raises: ValueError."""
    raise ValueError(
        f"{name} has no chat template: use prompts and completions, or pass "
        "chat_template=... to load_tokenizer where it is a Hugging Face tokenizer"
    )


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises: ValueError where `messages` is not a list of dicts with a role."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError("messages must be a list of at least one {role, content}")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {number} must be a {{role, content}} with a string as its role")
        content = message.get("content")
        if not isinstance(content, str | list) and "tool_calls" not in message:
            kind = type(content).__name__
            raise ValueError(f"message {number} ({message['role']}): content is {kind}, must be a string")
