"""Tokenizers, and whole pretrained models with theirs, from a folder or a repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from rljax.models import huggingface as checkpoints
from rljax.text import huggingface
from rljax.text.llama2c_tokenizer import load_pieces
from rljax.text.tokenizer import CHARACTERS_FILE, Tokenizer, check_vocabulary, load_characters
from rljax.text.word_tokenizer import WORDS_FILE, load_words
from rljax.types import LanguageModel, PyTree


class Pretrained(NamedTuple):
    """A model with all that one needs to talk to it."""

    model: LanguageModel
    params: PyTree
    tokenizer: Tokenizer
    generation: checkpoints.Generation  # stop ids and sampling defaults


def load_pretrained(
    source: str | Path, *, dtype: Any = jnp.float32, chat_template: str | Path | None = None, **options: Any
) -> Pretrained:
    """(model, params, tokenizer, generation) of a local folder, or of a repository on the Hugging Face hub.

    `options` are those of `rljax.models.huggingface.load` (param_dtype, sharding, loop, revision).

    Raises: ValueError or FileNotFoundError in one line, also where the tokenizer has ids that the model has
    no embedding for.
    """
    loaded = checkpoints.load(source, dtype=dtype, **options)
    tokenizer = load_tokenizer(source, chat_template=chat_template, revision=options.get("revision"))
    check_vocabulary(tokenizer, loaded.model.config.vocab_size)
    return Pretrained(loaded.model, loaded.params, tokenizer, loaded.generation)


def sampling_defaults(generation: checkpoints.Generation) -> dict[str, Any]:
    """The fields of `Sampling` that a model wants to be sampled with; temperature 1 where it does not say."""
    if not generation.do_sample:
        return {"temperature": 1.0}
    return {
        "temperature": generation.temperature,
        "top_k": generation.top_k,
        "top_p": generation.top_p if generation.top_p < 1 else None,
        "min_p": generation.min_p or None,
        "repetition_penalty": generation.repetition_penalty if generation.repetition_penalty != 1 else None,
    }


def load_tokenizer(
    source: str | Path, *, chat_template: str | Path | None = None, revision: str | None = None
) -> Tokenizer:
    """The tokenizer of a local folder or of a repository on the Hugging Face hub.

    A folder holds one of: what `Tokenizer.save` wrote; a Hugging Face tokenizer (tokenizer.json, alone or
    with its tokenizer_config.json; vocab.json and merges.txt, which without a configuration are taken as
    GPT-2's byte-level BPE; a SentencePiece model); llama2.c's
    tok*.bin. `source` may also be the tokenizer.json or tok*.bin itself. `chat_template` (Jinja text, or the
    Path of a file of it) takes the place of the tokenizer's own, `revision` is of a repository.

    Raises: FileNotFoundError or ValueError in one line.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix == ".json":
            return huggingface.load_folder(path, chat_template)
        if path.suffix == ".bin":
            return load_pieces(path)
        raise ValueError(f"{path} is no tokenizer: pass its folder, a tokenizer.json or a tok*.bin")
    if path.is_dir():
        if (path / CHARACTERS_FILE).is_file():
            return load_characters(path)
        if (path / WORDS_FILE).is_file():
            return load_words(path)
        if any((path / name).is_file() for name in huggingface.FILES):
            return huggingface.load_folder(path, chat_template)
        binary = sorted(path.glob("tok*.bin"))
        if len(binary) == 1:
            return load_pieces(binary[0])
        if binary:
            names = ", ".join(file.name for file in binary)
            raise ValueError(f"{path} holds several tokenizers ({names}): pass one of the files")
        raise FileNotFoundError(
            f"{path} holds no tokenizer: needs tokenizer.json, or vocab.json and merges.txt, or "
            f"{CHARACTERS_FILE}, or a tok*.bin of llama2.c"
        )
    if not _like_repository(str(source)):
        raise FileNotFoundError(f"{source}: no such file or folder")
    return huggingface.load_repository(str(source), chat_template, revision)


def _like_repository(source: str) -> bool:
    """gpt2 and Qwen/Qwen3-0.6B name repositories; ./gpt2, /data/gpt2, a/b/c and a\\b name folders."""
    return not source.startswith((".", "~", os.sep)) and source.count("/") < 2 and "\\" not in source
