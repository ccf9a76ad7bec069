"""A tokenizer of one's own: byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; Radford et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rljax.text.huggingface import from_transformers, transformers_package
from rljax.text.tokenizer import Tokenizer

PAD, END = "<|pad|>", "<|endoftext|>"
SMALLEST = 2 + 256  # these and every byte


def byte_pair_tokenizer(texts: Iterable[str], vocab_size: int, *, fewer: bool = False) -> Tokenizer:
    """A byte-level BPE of exactly `vocab_size` tokens, trained on `texts`, each of which is read once; with
    `fewer`, of as many as the texts have pairs for, where those are fewer.

    Text falls into words as GPT-2's does, words into bytes, and again and again the pair of neighbours that
    the texts have most often becomes one token. Any text of Unicode can be written, whatever `texts` holds,
    and decodes to itself. Ids: 0 pads, 1 ends a text, then the 256 bytes, then unions in the order in which
    they were found. The same texts, in any order, give the same tokenizer. `save` writes a folder that
    `load_tokenizer`, and transformers, read.

        tokenizer = text.byte_pair_tokenizer(open("shakespeare.txt"), 1024)     a file: its lines

    Raises: ValueError where there is no text, one is not Unicode, `vocab_size` is below 258 or more than the
    texts have pairs for; TypeError where a text is not a string; ImportError without transformers.
    """
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < SMALLEST:
        raise ValueError(
            f"byte_pair_tokenizer: vocab_size = {vocab_size!r}: must be an integer of at least {SMALLEST}, "
            "256 bytes and two marks"
        )
    if isinstance(texts, str):
        raise ValueError("byte_pair_tokenizer: texts is one string: pass a list of texts, or [text]")
    transformers = transformers_package()
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend: Any = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(checked(texts), trainer)
    size = backend.get_vocab_size()
    if size < vocab_size and not fewer:
        raise ValueError(
            f"byte_pair_tokenizer: vocab_size = {vocab_size}: the texts have pairs for {size} tokens; pass "
            f"more text, or vocab_size={size}"
        )
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=END)
    return from_transformers(wrapped, f"the byte-pair tokenizer of {size} tokens")


def checked(texts: Iterable[str]) -> Iterator[str]:
    """`texts`. Raises: ValueError where there are none, and as `byte_pair_tokenizer` says of each."""
    some = False
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"byte_pair_tokenizer: text {number} is {type(text).__name__}, must be a string")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                at = text[error.start : error.start + 10]
                raise ValueError(
                    f"byte_pair_tokenizer: text {number} is not Unicode at place {error.start}: {at!a}"
                ) from None
        some = some or bool(text)
        yield text
    if not some:
        raise ValueError("byte_pair_tokenizer: no texts to learn from")
