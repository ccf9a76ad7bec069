"""Statistics of a handful of seeds: the interquartile mean with stratified-bootstrap intervals.

As "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (Agarwal et al. 2021,
arXiv:2108.13264) recommends: the IQM is moved less by one lucky seed than the mean and wastes less than the
median, and an interval from resampled seeds says how much a comparison is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

FEWEST = 5  # seeds of which an interval is given: of fewer none of the resampled ones covers the truth
_BLOCK = 4_000_000  # resampled numbers in memory at once


def iqm(values: ArrayLike, axis: int | None = None) -> Any:
    """The interquartile mean: the mean without the lowest and the highest ⌊n/4⌋ of n values.

    Over all values, or over `axis`; under four values it is the mean. NaN where a value is NaN.
    ValueError for none at all.
    """
    from scipy import stats  # here and not above: it takes most of a second, and a run asks at its end

    array = np.asarray(values, np.float64)
    if array.size == 0:
        raise ValueError("iqm of no values")
    if axis is None:
        array, axis = array.ravel(), 0
    missing = np.isnan(array)  # a partition puts NaN last, where trimming would hide it
    trimmed = stats.trim_mean(np.where(missing, 0.0, array), 0.25, axis)
    return np.where(missing.any(axis), np.nan, trimmed)[()]


def means(values: ArrayLike, counted: ArrayLike) -> np.ndarray:
    """Of values (S, E) the mean over those of each row that are `counted`, (S,); NaN where none is."""
    values, counted = np.asarray(values, np.float64), np.asarray(counted, bool)
    total = np.where(counted, values, 0.0).sum(axis=1)
    number = counted.sum(axis=1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def stratified_bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., Any] = iqm,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """Expanded percentile-bootstrap interval (2,) of a statistic over seeds, [low, high].

    Percentiles of resampled seeds alone are too narrow for few of them: for 5 to 10 seeds of a normal
    distribution they cover the IQM in 90 to 93 of 100 cases, expanded in 93 to 97 (Hesterberg 2015,
    arXiv:1411.5279, section 4.3).

    Args:
        values: (S,) one number per seed, or (S, K) for K tasks, whose seeds are resampled independently of
            each other (strata) and then pooled.
        statistic: called as statistic(array, axis=1); `iqm`, `np.mean` and `np.median` are such.
        confidence: in (0, 1).
        samples: resamples.
        seed: of the resampling; equal arguments give equal intervals.

    Raises: ValueError for arguments of another kind.
    """
    array = np.asarray(values, np.float64)
    array = array[:, None] if array.ndim == 1 else array
    _check(array, confidence, samples)
    blocks = [
        statistic(np.take_along_axis(array[None], index, axis=1).reshape(len(index), -1), axis=1)
        for index in _indices(array.shape, samples, seed)
    ]
    return _percentiles(np.concatenate(blocks), _expanded(confidence, len(array)))


def curve_interval(
    values: ArrayLike,
    statistic: Callable[..., Any] = iqm,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """Pointwise intervals (T, 2) of curves (S, T): `stratified_bootstrap_interval` at each time point.

    Whole curves are resampled, so a band is as smooth as the curves. ValueError as there.
    """
    array = np.asarray(values, np.float64)
    _check(array, confidence, samples)
    index = np.concatenate(list(_indices((len(array), 1), samples, seed)))[..., 0]  # (samples, S)
    width, wider = max(1, _BLOCK // index.size), _expanded(confidence, len(array))
    blocks = [
        _percentiles(statistic(array[:, start : start + width][index], axis=1), wider)
        for start in range(0, array.shape[1], width)
    ]
    return np.concatenate(blocks) if blocks else np.zeros((0, 2))


def headline(per_seed: Sequence[float | None], episodes: int) -> dict[str, Any]:
    """The main block of summary.json: {"mean", "iqm", "ci95", "per_seed", "episodes"}, fit for JSON.

    Args:
        per_seed: the main number of each of S seeds, itself a mean over `episodes` episodes.
        episodes: how many complete episodes were counted per seed.

    `ci95` is the 95 % stratified-bootstrap interval [low, high] of the IQM, None under 5 seeds. A seed
    without a finite number is None in `per_seed`, and then so are mean, iqm and ci95: a diverged seed is not
    left out.
    ValueError for no seeds.
    """
    if not len(per_seed):
        raise ValueError("headline of no seeds")
    numbers = [None if value is None or not math.isfinite(value) else float(value) for value in per_seed]
    found = [number for number in numbers if number is not None]
    whole = len(found) == len(numbers)
    return {
        "mean": float(np.mean(found)) if whole else None,
        "iqm": float(iqm(found)) if whole else None,
        "ci95": stratified_bootstrap_interval(found).tolist() if whole and len(found) >= FEWEST else None,
        "per_seed": numbers,
        "episodes": int(episodes),
    }


class Measured(NamedTuple):
    """What an evaluation says of S members."""

    means: np.ndarray  # (S,) float64, NaN where nothing could be counted
    number: int  # episodes, completions or rows of each member that are counted, of the one with the fewest
    note: str  # what a reader has to know of those that are not ordinary, or nothing
    repeated: bool = False  # whether all episodes of some member have the same return and length


def measured(
    headline: str, text: bool, totals: ArrayLike, lengths: ArrayLike, complete: ArrayLike
) -> Measured:
    """The one rule of what an evaluation counts.

    Args:
        headline: "return", or the name of what is averaged over all tokens or rows of a text.
        text: whether E completions were scored, not E episodes played.
        totals, lengths: (S, E) returns, or sums, with what they are over.
        complete: (S, E) whether an episode ended, or a completion was scored.

    An episode that did not end within its bound counts with what it had got until then, so that a policy that
    avoids the end is not judged by the episodes in which it failed to. A completion without a score counts
    not at all, as in learning.
    """
    totals, lengths, complete = np.asarray(totals, np.float64), np.asarray(lengths), np.asarray(complete)
    if headline != "return":
        return Measured(totals.sum(1) / lengths.sum(1, dtype=np.float64), totals.shape[1], "")
    odd, size = int((~complete).sum()), complete.size
    if not text:
        bound = f"{lengths.max():,} steps"
        note = f"{odd} of {size} episodes did not end within {bound} and count as far as they went"
        same = (totals == totals[:, :1]).all(1) & (lengths == lengths[:, :1]).all(1)
        repeated = totals.shape[1] > 1 and bool(same.any())
        return Measured(totals.mean(1), totals.shape[1], note if odd else "", repeated)
    scored = complete.sum(1)
    note = f"{odd} of {size} completions could not be scored and are left out"
    return Measured(means(totals, complete), int(scored.min()), note if odd else "")


def _check(values: np.ndarray, confidence: float, samples: int) -> None:
    if values.ndim != 2 or values.shape[0] == 0:
        raise ValueError(f"values of shape {values.shape}: must be one number or one row per seed")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: must be between 0 and 1, such as 0.95")
    if samples < 1:
        raise ValueError(f"samples = {samples}: must be at least 1")


def _indices(shape: tuple[int, ...], samples: int, seed: int) -> Iterator[np.ndarray]:
    """Which seeds each resample draws, (samples, S, K) in blocks of resamples."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(1, math.prod(shape)))
    for start in range(0, samples, block):
        yield generator.integers(shape[0], size=(min(block, samples - start), *shape))


def _expanded(confidence: float, number: int) -> float:
    """The confidence at which percentiles of resamples of `number` seeds are as wide as Student's t makes an
    interval of the mean: resamples vary by (n − 1) / n too little, and a quantile of the normal distribution
    knows nothing of an estimated variance.
    """
    if number < 2:
        return confidence
    from scipy import stats

    reach = math.sqrt(number / (number - 1)) * stats.t.ppf((1 + confidence) / 2, number - 1)
    return float(2 * stats.norm.cdf(reach) - 1)


def _percentiles(resampled: np.ndarray, confidence: float) -> np.ndarray:
    tail = (1 - confidence) / 2
    return np.moveaxis(np.quantile(resampled, [tail, 1 - tail], axis=0), 0, -1)
