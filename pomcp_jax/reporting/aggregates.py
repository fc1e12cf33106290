"""Aggregates of scores over tasks and seeds, with stratified-bootstrap intervals.

Definitions of Agarwal et al. 2021 (arXiv 2108.13264) as google-research/rliable computes them.
Scores are a list with the runs of every task [..., R]; R may differ between tasks. Where it does
not, every number is that of rliable's [runs, tasks] matrix.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from pomcp_jax.reporting import statistics
from pomcp_jax.reporting.statistics import Interval

Scores = Sequence[np.ndarray]
Statistic = Callable[[Scores], np.ndarray]
TARGET = 1.0
"""Score from which a run adds nothing to the optimality gap."""


def iqm(scores: Scores) -> np.ndarray:
    """Interquartile mean: mean of the middle half of all runs of all tasks."""
    return statistics.iqm(np.concatenate(list(scores), axis=-1))


def mean(scores: Scores) -> np.ndarray:
    """Mean over tasks of the mean over runs."""
    return np.mean(_task_means(scores), axis=0)


def median(scores: Scores) -> np.ndarray:
    """Median over tasks of the mean over runs."""
    return np.median(_task_means(scores), axis=0)


def optimality_gap(scores: Scores) -> np.ndarray:
    """Amount by which scores, cut off at :data:`TARGET`, miss it on average; smaller is better."""
    return TARGET - mean([np.minimum(task, TARGET) for task in scores])


STATISTICS: dict[str, Statistic] = {
    "iqm": iqm, "median": median, "mean": mean, "optimality_gap": optimality_gap,
}  # fmt: skip


def _task_means(scores: Scores) -> np.ndarray:
    return np.stack([np.mean(task, axis=-1) for task in scores])


def bootstrap(
    scores: Scores,
    statistic: Statistic,
    resamples: int = statistics.RESAMPLES,
    confidence: float = statistics.CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """``statistic`` with its interval: percentiles over resamples of the runs within tasks.

    The interval is NaN where a task has a single run, whose spread is unknown.

    Args:
      scores: of every task [R].
      statistic: from scores [..., R] to [...].
      resamples: number of bootstrap samples.
      confidence: of the interval.
      seed: of the resampling.

    Returns:
      Arrays [].

    Raises:
      ValueError: without scores, with an empty task, or if numbers are not finite.
    """
    _check(scores)
    random = np.random.default_rng(seed)
    drawn = [task[_indices(random, resamples, len(task))] for task in scores]
    known = all(len(task) > 1 for task in scores)
    return _interval(statistic(scores), statistic(drawn), confidence, known)


def probability_of_improvement(
    ours: Scores,
    baseline: Scores,
    resamples: int = statistics.RESAMPLES,
    confidence: float = statistics.CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Probability that a run of ours beats one of the baseline on a task drawn at random.

    Mann and Whitney's U over the number of pairs, ties counting half, averaged over tasks. Runs of
    both sides are resampled independently.

    Args:
      ours: scores of every task [R].
      baseline: scores of the same tasks.
      resamples: number of bootstrap samples.
      confidence: of the interval.
      seed: of the resampling.

    Raises:
      ValueError: as :func:`bootstrap`, or for unequal numbers of tasks.
    """
    _check(ours)
    _check(baseline)
    random = np.random.default_rng(seed)
    value, again = [], []
    for x, y in zip(ours, baseline, strict=True):
        wins = np.where(x[:, None] == y, 0.5, x[:, None] > y)
        value.append(np.mean(wins))
        # How often every run is drawn: resampled wins without an array [resamples, R, R].
        left = _counts(_indices(random, resamples, len(x)), len(x))
        right = _counts(_indices(random, resamples, len(y)), len(y))
        again.append(np.sum((left @ wins) * right, axis=-1) / wins.size)
    known = all(len(task) > 1 for task in (*ours, *baseline))
    return _interval(np.mean(value), np.mean(again, axis=0), confidence, known)


def difference(
    ours: Scores,
    baseline: Scores,
    statistic: Statistic,
    resamples: int = statistics.RESAMPLES,
    confidence: float = statistics.CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """``statistic`` of ours less that of the baseline; both sides are resampled independently.

    Args:
      ours: scores of every task [R].
      baseline: scores of the same tasks.
      statistic: from scores [..., R] to [...].
      resamples: number of bootstrap samples.
      confidence: of the interval.
      seed: of the resampling.

    Raises:
      ValueError: as :func:`bootstrap`.
    """
    _check(ours)
    _check(baseline)
    random = np.random.default_rng(seed)
    drawn = [
        [task[_indices(random, resamples, len(task))] for task in side] for side in (ours, baseline)
    ]
    known = all(len(task) > 1 for task in (*ours, *baseline))
    again = statistic(drawn[0]) - statistic(drawn[1])
    return _interval(statistic(ours) - statistic(baseline), again, confidence, known)


def _indices(random: np.random.Generator, resamples: int, count: int) -> np.ndarray:
    return random.integers(count, size=(resamples, count))


def _counts(indices: np.ndarray, count: int) -> np.ndarray:
    return np.stack([np.sum(indices == i, axis=-1) for i in range(count)], axis=-1)


def _interval(
    value: np.ndarray | float, again: np.ndarray, confidence: float, known: bool
) -> Interval:
    tails = 50 * (1 - confidence), 50 * (1 + confidence)
    low, high = np.percentile(again, tails) if known else (math.nan, math.nan)
    return Interval(np.asarray(value), np.asarray(low), np.asarray(high))


def _check(scores: Scores) -> None:
    if not scores or any(len(task) == 0 for task in scores):
        raise ValueError("scores: must hold one run of every task at least")
    if not all(np.isfinite(task).all() for task in scores):
        raise ValueError("scores: must be finite")
