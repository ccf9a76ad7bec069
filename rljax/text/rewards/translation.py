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


def bleu(field: str = "completion", weight: float = 1.0, *, processes: int | None = 0) -> Reward:
    """BLEU of a sentence, 0 to 1 (Papineni et al. 2002), of the n-grams that it has, counts of 0 smoothed.

    `field` is as for `chrf`. Raises: ImportError without sacrebleu.
    """
    _package()
    return of_text(partial(_score, "bleu", 0, field), "bleu", weight, processes=processes, fields=[field])


def _package() -> None:
    if importlib.util.find_spec("sacrebleu") is None:
        raise ImportError('rewards of translation need sacrebleu: pip install "rljax[text]"')


@cache
def _metric(name: str, word_order: int) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=word_order) if name == "chrf" else BLEU(effective_order=True)


def _score(
    name: str, word_order: int, field: str, prompt: str, completion: str, record: Mapping[str, Any]
) -> float:
    reference = record[field]
    several = [reference] if isinstance(reference, str) else list(reference)
    return _metric(name, word_order).sentence_score(completion, several).score / 100
