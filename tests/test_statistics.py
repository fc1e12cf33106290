"""Interquartile means and their intervals against plain Python and exact enumeration."""

import itertools
import math

import numpy as np
import pytest

from pomcp_jax.reporting import statistics


def by_hand(values):
    """Sort, drop floor(n / 4) at either end, average."""
    values = sorted(float(v) for v in values)
    cut = len(values) // 4
    return math.fsum(values[cut : len(values) - cut]) / (len(values) - 2 * cut)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 15, 30])
def test_iqm_is_the_mean_of_the_middle_half(n):
    values = np.random.default_rng(n).normal(size=(3, n))
    np.testing.assert_allclose(statistics.iqm(values), [by_hand(row) for row in values], rtol=1e-12)


def test_an_outlier_among_four_does_not_count():
    assert statistics.iqm(np.array([0.5, 0.5, 0.5, -1e9])) == 0.5
    assert statistics.iqm(np.array([1e9, 0.25, 0.5, 0.75])) == 0.625
    # Of three runs nothing is cut off, as rliable does it.
    assert statistics.iqm(np.array([0.0, 0.0, 3.0])) == 1.0


def test_equal_runs_have_no_interval():
    found = statistics.stratified([np.full((3, 2), 0.7), np.full((5, 2), 0.7)], resamples=50)
    np.testing.assert_allclose(np.stack(found), 0.7, rtol=1e-12)


def test_interval_is_that_of_all_resamples():
    """Two tasks of three runs: 27 x 27 equally likely resamples, each run with its curve."""
    tasks = [np.array([[0.1, 1.0], [0.4, 0.9], [0.8, 0.2]]), np.array([[3, 5], [4, 4], [6, 3.0]])]
    every = itertools.product(itertools.product(range(3), repeat=3), repeat=2)
    exact = np.array(
        [
            [by_hand([task[i, t] for task, index in zip(tasks, pick, strict=True) for i in index])
             for t in range(2)]
            for pick in every
        ]
    )  # fmt: skip
    found = statistics.stratified(tasks, resamples=20_000)
    middle = [by_hand(np.concatenate([task[:, t] for task in tasks])) for t in range(2)]
    np.testing.assert_allclose(found.value, middle)
    # A percentile of a discrete distribution lies at one of its values, give or take a neighbour.
    for got, percent in ((found.low, 2.5), (found.high, 97.5)):
        below, above = np.percentile(exact, [percent - 0.5, percent + 0.5], axis=0)
        assert np.all((below - 1e-9 <= got) & (got <= above + 1e-9))


def test_tasks_are_strata():
    """Between tasks of equal runs nothing varies, however far apart they are."""
    found = statistics.stratified([np.zeros((4, 1)), np.ones((4, 1))], resamples=200)
    assert found.value == found.low == found.high == 0.5


def test_intervals_cover_the_truth():
    """Six symmetric tasks of ten runs: the IQM of the whole is 0 by symmetry."""
    random = np.random.default_rng(3)
    centres = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    hits = 0
    for i in range(150):
        tasks = [c + random.normal(size=(10, 1)) for c in centres]
        found = statistics.stratified(tasks, resamples=300, seed=i)
        hits += bool(found.low[0] <= 0.0 <= found.high[0])
    # Percentile intervals of ten runs are somewhat narrow; 150 trials have a std of 2 %.
    assert 0.87 <= hits / 150 <= 0.99


def test_same_seed_same_interval():
    tasks = [np.random.default_rng(0).normal(size=(4, 3))]
    a, b = statistics.stratified(tasks, seed=1), statistics.stratified(tasks, seed=1)
    np.testing.assert_array_equal(np.stack(a), np.stack(b))


@pytest.mark.parametrize("scores", [[], [np.zeros((0, 1))], [np.full((2, 1), np.nan)]])
def test_scores_that_are_none_are_refused(scores):
    with pytest.raises(ValueError, match="scores: must"):
        statistics.stratified(scores)
