"""llama2.c's tokenizer: pieces with scores, merged best first, and bytes where no piece fits.

The byte-pair encoding of SentencePiece as llama2.c runs it (Karpathy 2023, `encode` in run.c): a text begins
with an added space, falls into characters, those without a piece into UTF-8 bytes; then again and again the
two neighbours whose union is the piece of the highest score (the leftmost of equals) become one.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rljax.models.huggingface.llama2c import read_tokenizer, write_tokenizer
from rljax.text.tokenizer import Tokenizer, check_ids, check_text, no_template

UNKNOWN, BOS, EOS, FIRST_BYTE = 0, 1, 2, 3  # ids 3 to 258 are the bytes
SPACE = "\u2581"  # as SentencePiece writes one
_BYTE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


def load_pieces(path: str | Path) -> Tokenizer:
    """The tokenizer in a `tok*.bin` of llama2.c. Raises: ValueError where the file is none."""
    pieces, scores = read_tokenizer(Path(path))
    return pieces_tokenizer(pieces, scores.tolist(), f"the tokenizer of {path}")


def pieces_tokenizer(pieces: Sequence[bytes], scores: Sequence[float], name: str) -> Tokenizer:
    """A tokenizer of pieces: 0 unknown (which also pads), 1 begins and 2 ends a text, 3 to 258 the bytes.

    Raises: ValueError where there are no 259 pieces to begin with.
    """
    if len(pieces) < FIRST_BYTE + 256:
        raise ValueError(f"{name} has {len(pieces)} pieces: needs three marks and 256 bytes at the least")
    pieces, scores = list(pieces), [float(score) for score in scores]
    ids: dict[bytes, int] = {}
    for token, piece in enumerate(pieces):
        ids.setdefault(piece, token)
    raw = [bytes.fromhex(m[1].decode()) if (m := _BYTE.fullmatch(piece)) else piece for piece in pieces]

    def encode(text: str, add_special_tokens: bool = False) -> list[int]:
        check_text(text)
        start = [BOS] if add_special_tokens else []
        return start + merge(characters(" " + text), pieces, scores, ids) if text else start

    def characters(text: str) -> list[int]:
        try:
            parts = [character.encode() for character in text]
        except UnicodeEncodeError as error:
            raise ValueError(f"text that is not Unicode: {text[1:41]!a}") from error
        return [
            token
            for part in parts
            for token in ([ids[part]] if part in ids else [FIRST_BYTE + byte for byte in part])
        ]

    def decode(tokens: Iterable[int], skip_special_tokens: bool = False) -> str:
        tokens = check_ids(tokens, len(pieces), name)
        at = 1 if tokens and tokens[0] == BOS else 0
        marks, rest = tokens[:at], tokens[at:]
        if skip_special_tokens:
            marks, rest = [], [token for token in rest if token >= FIRST_BYTE]
        text = b"".join(raw[token] for token in rest).removeprefix(b" ")
        return (b"".join(raw[token] for token in marks) + text).decode(errors="replace")

    def save(folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_tokenizer(Path(folder) / f"tok{len(pieces)}.bin", pieces, scores)

    return Tokenizer(
        name=name,
        vocab_size=len(pieces),
        pad_id=UNKNOWN,
        eos_id=EOS,
        bos_id=BOS,
        encode=encode,
        decode=decode,
        chat=lambda *_, **__: no_template(name),
        save=save,
    )


def write_json(folder: Path) -> None:
    """Write what `save` has written there as tokenizer.json and tokenizer_config.json too, for transformers.
    Its merges are those of the pieces in the order of their scores. Nothing where no tok*.bin is there.

    Raises: ImportError without transformers.
    """
    from rljax.text.huggingface import transformers_package

    found = sorted(folder.glob("tok*.bin"))
    if not found:
        return
    transformers = transformers_package()
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, processors

    raw, scores = read_tokenizer(found[0])
    marks = {UNKNOWN: "<unk>", BOS: "<s>", EOS: "</s>"}
    names = [
        marks.get(token, piece.decode(errors="replace").replace(" ", SPACE))
        for token, piece in enumerate(raw)
    ]
    ids: dict[str, int] = {}
    for token, name in enumerate(names):
        ids.setdefault(name, token)
    pairs = [
        (-scores[token], place, name[:place], name[place:])
        for name, token in ids.items()
        if token >= FIRST_BYTE + 256
        for place in range(1, len(name))
        if name[:place] in ids and name[place:] in ids
    ]
    merges = [(left, right) for _, _, left, right in sorted(pairs)]
    backend: Any = Backend(
        models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    strip = decoders.Strip(content=" ", left=1)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    wrapped.save_pretrained(str(folder))


def merge(
    tokens: Sequence[int], pieces: Sequence[bytes], scores: Sequence[float], ids: dict[bytes, int]
) -> list[int]:
    """The tokens after all merges, best score first: O(n log n) with a heap over the pairs of neighbours."""
    tokens = list(tokens)
    end = len(tokens)
    left, right = list(range(-1, end - 1)), list(range(1, end + 1))
    heap: list[tuple[float, int, int, int, int]] = []

    def propose(a: int) -> None:
        b = right[a] if a >= 0 else end
        if a >= 0 and b < end:
            union = ids.get(pieces[tokens[a]] + pieces[tokens[b]])
            if union is not None:
                heapq.heappush(heap, (-scores[union], a, tokens[a], tokens[b], union))

    for place in range(end - 1):
        propose(place)
    while heap:
        _, a, first, second, union = heapq.heappop(heap)
        b = right[a]
        # a pair that has changed since it was proposed; a merged place holds −1
        if b >= end or tokens[a] != first or tokens[b] != second:
            continue
        tokens[a], tokens[b] = union, -1
        right[a] = right[b]
        if right[b] < end:
            left[right[b]] = a
        propose(left[a])
        propose(a)
    return [token for token in tokens if token >= 0]
