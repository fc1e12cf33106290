"""Means with Student's t intervals; interquartile means with stratified-bootstrap intervals.

Interquartile means follow Agarwal et al. 2021 (arXiv 2108.13264) and google-research/rliable: the
mean of the middle half of all runs of all tasks; intervals are percentiles of that mean over
resamples that keep each task's number of runs.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2_000
"""Number of bootstrap resamples."""
CONFIDENCE = 0.95
MAX_RETURN = 1000.0
"""Largest return of an episode of dm_control; divides returns to normalise them."""


class Interval(NamedTuple):
    """An estimate with its interval; arrays of equal shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def t_quantile(df: float, confidence: float = CONFIDENCE) -> float:
    """Half-width of the two-sided t interval, in standard errors.

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
    from scipy import special  # 0.3 s, and not every command draws an interval

    return float(special.stdtrit(df, (1 + confidence) / 2))


def mean_and_half(
    values: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Mean of the finite ``values`` and half-width of its t interval.

    The half-width is NaN with fewer than two values, the mean with none.
    """
    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    mean = float(np.mean(array)) if array.size else math.nan
    if array.size < 2:
        return mean, math.nan
    error = float(np.std(array, ddof=1)) / math.sqrt(array.size)
    return mean, t_quantile(array.size - 1, confidence) * error


def bounds(values: np.ndarray) -> tuple[float, float]:
    """The t interval of the mean of ``values``; NaN with fewer than two of them."""
    mean, half = mean_and_half(values)
    return mean - half, mean + half


def iqm(scores: np.ndarray) -> np.ndarray:
    """Mean of ``scores`` [..., N] without the lowest and the highest floor(N / 4).

    NaN where N is 0.
    """
    scores = np.asarray(scores, np.float64)
    count = scores.shape[-1]
    if not count:
        return np.full(scores.shape[:-1], np.nan)
    cut = count // 4
    # Partitioned, not sorted: only the middle half must be in its place.
    middle = np.partition(scores, (cut, count - cut - 1), axis=-1)[..., cut : count - cut]
    return np.mean(middle, axis=-1)


def stratified(
    scores: Sequence[np.ndarray],
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """IQM over the runs of all tasks at each time, with its bootstrap interval.

    Args:
      scores: of each task [R, T]; R, the number of runs, may differ between tasks.
      resamples: number of bootstrap samples.
      confidence: confidence level of the interval, in (0, 1).
      seed: seed of the resampling.

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
    # Whole curves are drawn, once for all times: independent draws would ignore that the values of
    # a run are correlated, and make the edges of the interval jagged.
    drawn = [random.integers(len(task), size=(resamples, len(task))) for task in scores]
    tails = 50 * (1 - confidence), 50 * (1 + confidence)
    value, low, high = [], [], []
    for t in range(scores[0].shape[1]):
        value.append(iqm(np.concatenate([task[:, t] for task in scores])))
        resampled = [task[index, t] for task, index in zip(scores, drawn, strict=True)]
        ends = np.percentile(iqm(np.concatenate(resampled, axis=1)), tails)
        low.append(ends[0])
        high.append(ends[1])
    return Interval(np.array(value), np.array(low), np.array(high))
