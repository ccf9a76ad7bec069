"""Hugging Face tokenizers behind `Tokenizer`, through the `transformers` package."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rljax.text.chat import chat
from rljax.text.tokenizer import Tokenizer, check_ids, check_text, choose_pad, one_line

# One of these holds the vocabulary; the companions say more about it, and without one are nothing.
FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt")
SENTENCE_PIECES = ("tokenizer.model", "spiece.model")  # for which transformers needs another package
COMPANIONS = (
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "config.json",
)
# What ends a text where nothing says so: the first of these that is a special token.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")


def from_transformers(tokenizer: Any, name: str, chat_template: str | Path | None = None) -> Tokenizer:
    """A tokenizer object of `transformers` as a `Tokenizer`; pad_id by the rule of `choose_pad`.

    `chat_template` (Jinja text, or the Path of a file of it) takes the place of the tokenizer's own.
    """
    if chat_template is not None:
        if isinstance(chat_template, Path):
            chat_template = chat_template.read_text(encoding="utf-8")
        tokenizer.chat_template = chat_template
    vocabulary = tokenizer.get_vocab()
    added = (token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special)
    vocab_size = max(vocabulary.values(), default=-1) + 1  # ids may have gaps: not their number
    pad_id = choose_pad(
        vocabulary,
        {*tokenizer.all_special_ids, *added},
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
        tokenizer.eos_token_id,
    )

    def encode(text: str, add_special_tokens: bool = False) -> list[int]:
        check_text(text)
        try:
            # verbose: it warns of texts longer than the context, which data pack and generate refuse
            return list(tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False))
        except (TypeError, UnicodeError) as error:  # a lone surrogate, as JSON's \\ud800 gives
            raise ValueError(f"text that is not Unicode: {text[:40]!a}") from error

    def decode(ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        return tokenizer.decode(
            check_ids(ids, vocab_size, name),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,  # which would not give back what was encoded
        )

    return Tokenizer(
        name=name,
        vocab_size=vocab_size,
        pad_id=pad_id,
        eos_id=tokenizer.eos_token_id,
        bos_id=tokenizer.bos_token_id,
        encode=encode,
        decode=decode,
        chat=partial(chat, tokenizer, name),
        save=lambda folder: _save(tokenizer, Path(folder)),
        template=bool(tokenizer.chat_template),
    )


def _save(tokenizer: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))


def load_folder(path: Path, chat_template: str | Path | None = None) -> Tokenizer:
    """The tokenizer in a local folder, or of one tokenizer.json; see `load_tokenizer`.

    A tokenizer.json is taken as it stands. `AutoTokenizer` would build the class that a configuration names
    and put that class's own splitting in place of the file's (transformers 5.23: a byte-level tokenizer.json
    beside model_type "qwen2" gives other ids), so it is asked only where there is no such file.
    """
    transformers = transformers_package()
    name = f"the tokenizer of {path}"
    if path.is_dir() and not any((path / file).is_file() for file in FILES):
        # some classes of transformers would make an empty vocabulary of their own
        raise FileNotFoundError(f"{path} holds no tokenizer: none of {', '.join(FILES)}")
    pieces = [file for file in SENTENCE_PIECES if (path / file).is_file()]
    if pieces and not (path / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
        raise ValueError(
            f'{name} is a SentencePiece model ({pieces[0]}): pip install "rljax[text]", or lay its '
            "tokenizer.json beside it"
        )
    try:
        if path.is_file():
            loaded = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
        elif (path / "tokenizer.json").is_file():
            loaded = transformers.PreTrainedTokenizerFast.from_pretrained(str(path), local_files_only=True)
        elif (path / "tokenizer_config.json").is_file() or (path / "config.json").is_file():
            loaded = transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        else:
            loaded = _byte_pairs(transformers, path)
    except Exception as error:  # of any library in between: Rust, JSON, sentencepiece, Python
        raise ValueError(f"{name} does not load: {one_line(error)}") from error
    if loaded.eos_token is None:  # a tokenizer.json alone does not name its end token
        special = {token.content for token in loaded.added_tokens_decoder.values() if token.special}
        loaded.eos_token = next((end for end in ENDS if end in special), None)
    return from_transformers(loaded, name, chat_template)


def load_repository(
    repository: str, chat_template: str | Path | None = None, revision: str | None = None
) -> Tokenizer:
    """The tokenizer of a repository on the Hugging Face hub; see `load_tokenizer`."""
    transformers_package()
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=[*FILES, *COMPANIONS])
    except Exception as error:  # no network, no such repository, no access
        raise ValueError(
            f"no tokenizer from the Hugging Face repository {repository!r} ({one_line(error)}); without "
            "network pass the path of a local folder that holds its tokenizer.json and tokenizer_config.json"
        ) from error
    return load_folder(Path(folder), chat_template)._replace(name=f"the tokenizer of {repository}")


def _byte_pairs(transformers: Any, folder: Path) -> Any:
    """vocab.json and merges.txt with nothing that says whose they are: GPT-2's byte-level BPE."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not merges.is_file():
        raise FileNotFoundError(f"{merges} is missing")
    backend = Backend(models.BPE.from_file(str(vocabulary), str(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore
    end = "<|endoftext|>"
    known = end in json.loads(vocabulary.read_bytes())
    special = dict.fromkeys(("eos_token", "bos_token", "unk_token"), end) if known else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def transformers_package() -> Any:
    """The module. Raises: ImportError that says how to install it."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError('Hugging Face tokenizers need transformers: pip install "rljax[text]"') from error
    return transformers
