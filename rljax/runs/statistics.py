"""Statistics of a handful of seeds: the interquartile mean with stratified-bootstrap intervals.

As "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (Agarwal et al. 2021,
arXiv:2108.13264) recommends: the IQM is moved less by one lucky seed than the mean and wastes less than the
median, and an interval from resampled seeds says how much a comparison is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

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
    """Percentile-bootstrap interval (2,) of a statistic over seeds, [low, high].

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
    return _percentiles(np.concatenate(blocks), confidence)


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
    width = max(1, _BLOCK // index.size)
    blocks = [
        _percentiles(statistic(array[:, start : start + width][index], axis=1), confidence)
        for start in range(0, array.shape[1], width)
    ]
    return np.concatenate(blocks) if blocks else np.zeros((0, 2))


def headline(per_seed: Sequence[float | None], episodes: int) -> dict[str, Any]:
    """The main block of summary.json: {"mean", "iqm", "ci95", "per_seed", "episodes"}, fit for JSON.

    Args:
        per_seed: the main number of each of S seeds, itself a mean over `episodes` episodes.
        episodes: how many complete episodes were counted per seed.

    `ci95` is the 95 % stratified-bootstrap interval [low, high] of the IQM, None under 3 seeds. A seed
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
        "ci95": stratified_bootstrap_interval(found).tolist() if whole and len(found) >= 3 else None,
        "per_seed": numbers,
        "episodes": int(episodes),
    }


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


def _percentiles(resampled: np.ndarray, confidence: float) -> np.ndarray:
    tail = (1 - confidence) / 2
    return np.moveaxis(np.quantile(resampled, [tail, 1 - tail], axis=0), 0, -1)
