"""Student's t: quantiles against tables, intervals of few values."""

import math

import numpy as np
import pytest
from scipy import stats

from pomcp_jax.reporting import statistics


@pytest.mark.parametrize(
    ("df", "wanted"),
    [
        (1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (9, 2.26216),
        (29, 2.04523), (30, 2.04227), (120, 1.97993), (1000, 1.96234), (1001, 1.96234),
        (math.inf, 1.95996),
    ],
)  # fmt: skip
def test_quantiles_of_tables(df, wanted):
    assert statistics.t_quantile(df) == pytest.approx(wanted, rel=5e-6)


def test_other_confidences():
    assert statistics.t_quantile(1, 0.99) == pytest.approx(63.6567, rel=1e-5)
    assert statistics.t_quantile(10, 0.9) == pytest.approx(1.81246, rel=1e-5)
    assert statistics.t_quantile(5000, 0.5) == pytest.approx(0.6745388, rel=1e-6)


@pytest.mark.parametrize(("df", "confidence"), [(0, 0.9), (math.nan, 0.9), (3, 1.0)])
def test_what_has_no_quantile(df, confidence):
    with pytest.raises(ValueError, match="must be"):
        statistics.t_quantile(df, confidence)


def test_intervals_of_few_values():
    mean, half = statistics.mean_and_half([1.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(12.7062 * math.sqrt(2) / math.sqrt(2), rel=1e-5)
    assert statistics.mean_and_half([1.0, 3.0, math.nan, math.inf]) == (mean, half)
    assert statistics.mean_and_half([5.0])[0] == 5.0
    assert all(map(math.isnan, [statistics.mean_and_half([5.0])[1], *statistics.mean_and_half([])]))


def test_bounds():
    low, high = statistics.bounds(np.array([1.0, 3.0, math.nan]))
    assert (low + high) / 2 == 2.0 and high - 2.0 == pytest.approx(12.7062, rel=1e-5)


@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (7,), (2, 9), (3, 2, 50)])
def test_interquartile_mean_is_scipys(shape):
    scores = np.random.default_rng(0).normal(size=shape)
    wanted = stats.trim_mean(scores, 0.25, axis=-1)
    np.testing.assert_array_equal(statistics.iqm(scores), wanted)
    assert np.isnan(statistics.iqm(np.zeros((2, 0)))).all()
