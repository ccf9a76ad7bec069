"""Rewards of machine translation, by `sacrebleu` (Post 2018, arXiv:1804.08771)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from rljax.text.rewards.host import of_text
from rljax.types import Reward


def chrf(
    field: str = "completion", weight: float = 1.0, *, word_order: int = 0, processes: int | None = 0
) -> Reward:
    """chrF of a sentence, 0 to 1 (Popović 2015): the F-score of its character n-grams up to 6.

    `field` of the record is the reference, or a list of references of which the best counts. word_order=2 is
    chrF++. Raises: ImportError without sacrebleu.
    """
    _package()
    function = partial(_score, "chrf", word_order, field)
    return of_text(function, "chrf", weight, processes=processes, fields=[field])


def bleu(
    field: str = "completion", weight: float = 1.0, *, tokenize: str = "13a", processes: int | None = 0
) -> Reward:
    """BLEU of a sentence, 0 to 1 (Papineni et al. 2002), of the n-grams that it has, counts of 0 smoothed.

    `field` is as for `chrf`. `tokenize` cuts sentences into words, as sacrebleu names it: "13a" at white
    space and punctuation, which languages without spaces between words do not have; for those "zh",
    "ja-mecab", "ko-mecab" or "char". Raises: ImportError without sacrebleu; ValueError for a name that it
    does not know.
    """
    _package()
    from sacrebleu.metrics.bleu import BLEU

    known = BLEU.TOKENIZERS
    if tokenize not in known:
        raise ValueError(f"bleu: tokenize = {tokenize!r}: must be one of {', '.join(sorted(known))}")
    function = partial(_score, "bleu", tokenize, field)
    return of_text(function, "bleu", weight, processes=processes, fields=[field])


def _package() -> None:
    if importlib.util.find_spec("sacrebleu") is None:
        raise ImportError('rewards of translation need sacrebleu: pip install "rljax[text]"')


@cache
def _metric(name: str, how: Any) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=how) if name == "chrf" else BLEU(effective_order=True, tokenize=how)


def _score(name: str, how: Any, field: str, prompt: str, completion: str, record: Mapping[str, Any]) -> float:
    reference = record[field]
    several = [reference] if isinstance(reference, str) else list(reference)
    return _metric(name, how).sentence_score(completion, several).score / 100
