"""Tables that compare methods: returns by task, aggregates over tasks, a baseline to beat."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pomcp_jax import nearest
from pomcp_jax.config import ConfigError
from pomcp_jax.reporting import aggregates, comparison, scores
from pomcp_jax.reporting import runs as runs_lib
from pomcp_jax.reporting.columns import Series
from pomcp_jax.reporting.comparison import Loaded
from pomcp_jax.reporting.statistics import Interval

Finals = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Return by method, task and seed."""
OLD = 0.1
"""How much earlier than asked for, relatively, a value may be without a note."""


class Row(NamedTuple):
    """One number of one method; a line of the csv."""

    task: str
    """"all" in aggregates over tasks."""
    method: str
    statistic: str
    value: float
    low: float
    """Ends of the 95 % interval; NaN where there is none."""
    high: float
    runs: int
    """Seeds, or pairs of seeds, that the number is made of."""
    tasks: int
    frames: float
    """Environment frames at which the seeds of the task are compared; NaN in aggregates."""


class Summary(NamedTuple):
    """Everything that a table shows."""

    rows: list[Row]
    baseline: str
    """Empty without one."""
    scale: str
    """What returns are divided by in aggregates."""
    notes: list[str]
    metric: str = comparison.RETURN
    """Column of the numbers."""


def summarise(
    loaded: Sequence[Loaded],
    baseline: str,
    max_return: float | None = None,
    metric: str = comparison.RETURN,
    at: float | None = None,
) -> Summary:
    """Rows of all methods.

    Seeds of a task are compared at the frames that all of them have reached, or at ``at``, by the
    latest evaluation before.

    Args:
      loaded: runs.
      baseline: label of the method that others are compared with, or empty.
      max_return: what returns are divided by in aggregates; None: by :func:`scores.scale`.
      metric: column that is compared.
      at: environment frames; None: where the shortest run of the task ends.

    Raises:
      ConfigError: no evaluation, a seed that appears twice, a run that ends before ``at``, or an
        unknown baseline or metric.
    """
    comparison.check_metrics([metric], loaded)
    finals, frames, notes = final_returns(loaded, metric, at)
    if baseline and baseline not in finals:
        hint = nearest.hint(baseline, finals) or f"; must be one of {', '.join(finals)}"
        raise ConfigError(f"--baseline = {baseline}: no method of these runs{hint}")
    rows = []
    scales = {task: max_return or scores.scale(task) for task in frames}
    for task, reached in frames.items():
        rows += [_task_row(task, m, of[task], reached) for m, of in finals.items() if task in of]
    for method, of in finals.items():
        rows += _aggregate_rows(method, of, scales)
    for method, of in finals.items():
        if baseline and method != baseline:
            rows += _baseline_rows(method, of, finals[baseline], scales)
    high = [
        task
        for of in finals.values()
        for task, v in of.items()
        # A success bar is no upper bound.
        if max(v.values()) > scales[task] and (max_return or task not in scores.SUCCESS_BARS)
    ]
    for task in dict.fromkeys(high):
        notes.append(f"{task}: returns above {scales[task]:g}, scores above 1; --max-return=NUMBER")
    few = [f"{m} on {task}" for m, of in finals.items() for task, v in of.items() if len(v) < 2]
    if few:
        notes.append(f"one seed only, so without intervals: {', '.join(few)}")
    by_task = scores.formula(frames).removeprefix("return / ")
    scale = f"{max_return:g}" if max_return else by_task
    return Summary(rows, baseline, scale, notes, metric)


def final_returns(
    loaded: Sequence[Loaded], metric: str = comparison.RETURN, at: float | None = None
) -> tuple[dict[str, dict[str, dict[int, float]]], dict[str, float], list[str]]:
    """Returns by method, task and seed; frames by task; notes.

    Args:
      loaded: runs.
      metric: column that is read.
      at: environment frames; None: where the shortest run of the task ends.

    Raises:
      ConfigError: a run without evaluations, a seed that appears twice, one that ends before
        ``at``, or one without an evaluation up to these frames.
    """
    tables = {one.run.folder: one for one in loaded}
    finals: dict[str, dict[str, dict[int, float]]] = {}
    frames: dict[str, float] = {}
    notes: list[str] = []
    for task, methods in runs_lib.by_task([one.run for one in loaded]).items():
        curves = {
            m: _curves([tables[r.folder] for r in runs], metric) for m, runs in methods.items()
        }
        ends = [curve.x[-1] for of in curves.values() for curve in of.values()]
        frames[task] = float(min(ends)) if at is None else at
        if at is not None:
            notes += _check_reached(task, curves, at)
        elif max(ends) > min(ends) * (1 + comparison.UNEVEN):
            notes.append(
                f"{task}: compared at {min(ends):,.6g} frames, where the shortest run ends; the"
                f" longest has {max(ends):,.6g}"
            )
        for method, of in curves.items():
            values = {seed: _at(curve, frames[task]) for seed, curve in of.items()}
            late = [seed for seed, value in values.items() if value is None]
            if late:
                raise ConfigError(
                    f"{method} on {task}: seed {late[0]} has no evaluation up to"
                    f" {frames[task]:,.6g} frames, where another run ends; leave that one out"
                )
            finals.setdefault(method, {})[task] = {s: v for s, v in values.items() if v is not None}
    lost = {one.run.folder: len(one.run.diverged) for one in loaded if one.run.diverged}
    notes += [f"{folder}: {count} diverged seeds are left out" for folder, count in lost.items()]
    return dict(sorted(finals.items())), frames, notes


def _check_reached(
    task: str, curves: Mapping[str, Mapping[int, Series]], at: float
) -> Iterator[str]:
    """Notes about methods whose latest values before ``at`` frames are old.

    Raises:
      ConfigError: a seed has no value yet, or was not trained so far.
    """
    for method, of in curves.items():
        latest = []
        for seed, curve in of.items():
            reached = curve.x[_until(curve, at)]
            if not len(reached) or curve.x[-1] * (1 + comparison.UNEVEN) < at:
                raise ConfigError(
                    f"--frames = {at:,.6g}: must be from {curve.x[0]:,.6g} to {curve.x[-1]:,.6g},"
                    f" where {method} on {task} has values of seed {seed}"
                )
            latest.append(reached[-1])
        if min(latest) < (1 - OLD) * at:
            yield (
                f"{method} on {task}: the latest value before {at:,.6g} frames is at"
                f" {min(latest):,.6g}"
            )


def _curves(group: Sequence[Loaded], metric: str) -> dict[int, Series]:
    out: dict[int, tuple[str, Series]] = {}
    for one in group:
        found = one.series(metric, "frames")
        if not found:
            raise ConfigError(
                f"{one.run.folder}: holds no {metric} of a healthy seed; {one.run.mend}"
            )
        for (folder, seed), curve in found.items():
            if seed in out:
                raise ConfigError(
                    f"{folder}: seed {seed} of {one.run.label} is in {out[seed][0]} too; leave one"
                    " of them out or tell them apart with --labels"
                )
            out[seed] = folder, curve
    return {seed: curve for seed, (_, curve) in sorted(out.items())}


def _at(curve: Series, frames: float) -> float | None:
    """The latest value up to ``frames``; evaluations of equal runs lie a little apart."""
    reached = _until(curve, frames)
    return float(curve.y[reached][-1]) if reached.any() else None


def _until(curve: Series, frames: float) -> np.ndarray:
    return curve.x <= frames * (1 + comparison.UNEVEN)


def _row(task: str, method: str, name: str, found: Interval, runs: int, tasks: int) -> Row:
    value, low, high = (float(part) for part in found)
    return Row(task, method, name, value, low, high, runs, tasks, float("nan"))


def _task_row(task: str, method: str, of: Mapping[int, float], frames: float) -> Row:
    found = aggregates.bootstrap([np.array([*of.values()])], aggregates.mean)
    return _row(task, method, "return", found, len(of), 1)._replace(frames=frames)


def _aggregate_rows(
    method: str, of: Mapping[str, Mapping[int, float]], scales: Mapping[str, float]
) -> list[Row]:
    scaled = [np.array([*seeds.values()]) / scales[task] for task, seeds in of.items()]
    runs = sum(map(len, scaled))
    return [
        _row("all", method, name, aggregates.bootstrap(scaled, statistic), runs, len(scaled))
        for name, statistic in aggregates.STATISTICS.items()
    ]


def _baseline_rows(
    method: str,
    of: Mapping[str, Mapping[int, float]],
    base: Mapping[str, Mapping[int, float]],
    scales: Mapping[str, float],
) -> list[Row]:
    """Comparison with the baseline on the tasks, then the seeds, that both have."""
    tasks = [task for task in of if task in base]
    if not tasks:
        return []
    ours, theirs = ([np.array([*m[t].values()]) / scales[t] for t in tasks] for m in (of, base))
    count = sum(map(len, ours))
    found = aggregates.probability_of_improvement(ours, theirs)
    rows = [_row("all", method, "probability_of_improvement", found, count, len(tasks))]
    found = aggregates.difference(ours, theirs, aggregates.iqm)
    rows.append(_row("all", method, "iqm_difference", found, count, len(tasks)))
    pairs = [
        np.array([of[task][s] - base[task][s] for s in of[task] if s in base[task]]) / scales[task]
        for task in tasks
    ]
    pairs = [task for task in pairs if len(task)]
    if pairs:
        found = aggregates.bootstrap(pairs, aggregates.mean)
        rows.append(
            _row("all", method, "paired_difference", found, sum(map(len, pairs)), len(pairs))
        )
    return rows
