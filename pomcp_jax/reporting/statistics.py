"""Means with Student's t intervals; interquartile means with stratified-bootstrap intervals.

The latter as defined by Agarwal et al. 2021 (arXiv 2108.13264) and in google-research/rliable: the
mean of the middle half of all runs of all tasks; intervals are percentiles of that number over
resamples in which every task keeps its number of runs.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 2_000
CONFIDENCE = 0.95
MAX_RETURN = 1000.0
"""Of an episode of dm_control: what returns are divided by."""


class Interval(NamedTuple):
    """A number with its interval; arrays of equal shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def t_quantile(df: float, confidence: float = CONFIDENCE) -> float:
    """Half width, in standard errors, of the two-sided t interval.

    Args:
      df: degrees of freedom, >= 1; may be infinite.
      confidence: in (0, 1).

    Raises:
      ValueError: for other ``df`` or ``confidence``.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: must be in (0, 1)")
    if not df >= 1:
        raise ValueError(f"df = {df}: must be >= 1")
    return float(stats.t.ppf((1 + confidence) / 2, df))


def mean_and_half(
    values: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Mean of the finite ``values`` and half the width of its t interval; NaN where unknown.

    Below two values there is no interval, below one no mean.
    """
    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    mean = float(np.mean(array)) if array.size else math.nan
    if array.size < 2:
        return mean, math.nan
    error = float(np.std(array, ddof=1)) / math.sqrt(array.size)
    return mean, t_quantile(array.size - 1, confidence) * error


def bounds(values: np.ndarray) -> tuple[float, float]:
    """The t interval of the mean of ``values``; NaN below two of them."""
    mean, half = mean_and_half(values)
    return mean - half, mean + half


def iqm(scores: np.ndarray) -> np.ndarray:
    """Mean of what is left of ``scores`` [..., N] without floor(N / 4) at either end."""
    return stats.trim_mean(scores, 0.25, axis=-1)


def stratified(
    scores: Sequence[np.ndarray],
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """IQM over the runs of all tasks at every time, with its bootstrap interval.

    Args:
      scores: of every task [R, T]; R, the number of runs, may differ between tasks.
      resamples: number of bootstrap samples.
      confidence: of the interval.
      seed: of the resampling; a run is drawn with its whole curve.

    Returns:
      Arrays [T].

    Raises:
      ValueError: without scores, with an empty task, or if numbers are not finite.
    """
    if not scores or any(len(task) == 0 for task in scores):
        raise ValueError("scores: must hold one run of every task at least")
    if not all(np.isfinite(task).all() for task in scores):
        raise ValueError("scores: must be finite")
    random = np.random.default_rng(seed)
    drawn = [random.integers(len(task), size=(resamples, len(task))) for task in scores]
    tails = 50 * (1 - confidence), 50 * (1 + confidence)
    value, low, high = [], [], []
    for t in range(scores[0].shape[1]):
        value.append(iqm(np.concatenate([task[:, t] for task in scores])))
        again = [task[index, t] for task, index in zip(scores, drawn, strict=True)]
        ends = np.percentile(iqm(np.concatenate(again, axis=1)), tails)
        low.append(ends[0])
        high.append(ends[1])
    return Interval(np.array(value), np.array(low), np.array(high))
