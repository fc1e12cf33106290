"""Confidence intervals of a mean by Student's t, for however few values there are."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
_LARGE = 1_000
"""Degrees of freedom from which the expansion below is exact to 1e-7."""


def _within(angle: float, df: int) -> float:
    """P(|t| < sqrt(df) tan(angle)), Abramowitz and Stegun 26.7.3 and 26.7.4."""
    sine, square = math.sin(angle), math.cos(angle) ** 2
    term = 1.0 if df % 2 == 0 else math.cos(angle)
    total = 0.0 if df == 1 else term
    for k in range(3 if df % 2 else 2, df - 1, 2):
        term *= square * (k - 1) / k
        total += term
    return sine * total if df % 2 == 0 else 2 / math.pi * (angle + sine * total)


def t_quantile(df: float, confidence: float = CONFIDENCE) -> float:
    """Half width, in standard errors, of the two-sided interval with ``df`` degrees of freedom.

    Args:
      df: a whole number >= 1, or infinity.
      confidence: in (0, 1).

    Raises:
      ValueError: for other ``df`` or ``confidence``.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: must be in (0, 1)")
    if not df >= 1 or (df != math.inf and df != int(df)):
        raise ValueError(f"df = {df}: must be a whole number >= 1, or infinity")
    if df > _LARGE:  # Abramowitz and Stegun 26.7.5
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
        return z + first / df + second / df**2
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, int(df)) < confidence else (low, middle)
    return math.sqrt(df) * math.tan(low)


def mean_and_half(
    values: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Mean of the finite ``values`` and half the width of its interval; NaN where unknown.

    Below two values there is no interval, below one no mean.
    """
    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    mean = float(np.mean(array)) if array.size else math.nan
    if array.size < 2:
        return mean, math.nan
    error = float(np.std(array, ddof=1)) / math.sqrt(array.size)
    return mean, t_quantile(array.size - 1, confidence) * error
