"""A tokenizer of whole words, for tasks that have few."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from rljax.text.tokenizer import Tokenizer, check_ids, check_text, no_template

WORDS_FILE = "word_tokenizer.json"
SPECIAL = ["<pad>", "<eos>"]


def word_tokenizer(words: Iterable[str]) -> Tokenizer:
    """Every word is a token, white space stands between two and is one blank when decoded.

    Ids: 0 pads, 1 ends a text, then the words in their order, each once. `encode` raises ValueError naming
    the first word that is not among them.

    Raises: ValueError where there are no words, or one is empty or holds white space.
    """
    vocabulary = list(dict.fromkeys([words] if isinstance(words, str) else words))
    wrong = next((w for w in vocabulary if not isinstance(w, str) or w.split() != [w]), None)
    if not vocabulary or wrong is not None:
        what = "no words" if not vocabulary else f"{wrong!r} is not one word"
        raise ValueError(f"word_tokenizer: {what}; pass a list of words without white space")
    table = SPECIAL + vocabulary
    ids = {word: len(SPECIAL) + index for index, word in enumerate(vocabulary)}
    name = f"the word tokenizer of {len(vocabulary)} words"

    def encode(text: str, add_special_tokens: bool = False) -> list[int]:
        del add_special_tokens  # a text of words has none around it
        check_text(text)
        try:
            return [ids[word] for word in text.split()]
        except KeyError as error:
            raise ValueError(f"word {error.args[0]!r} is not in {name}") from None

    def decode(tokens: Iterable[int], skip_special_tokens: bool = False) -> str:
        tokens = check_ids(tokens, len(table), name)
        return " ".join(table[t] for t in tokens if not (skip_special_tokens and t < len(SPECIAL)))

    def save(folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / WORDS_FILE).write_text(json.dumps({"words": vocabulary}) + "\n", encoding="ascii")

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


def load_words(folder: str | Path) -> Tokenizer:
    """What `save` of a word tokenizer wrote. Raises: ValueError naming a file that is none."""
    path = Path(folder) / WORDS_FILE
    try:
        return word_tokenizer(json.loads(path.read_bytes())["words"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no saved word tokenizer ({error})") from error
