"""Tables that compare methods: returns by task, aggregates over tasks, a baseline to beat."""

from collections.abc import Mapping, Sequence
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
    """Environment frames that every seed of the task has reached; NaN in aggregates."""


class Summary(NamedTuple):
    """Everything that a table shows."""

    rows: list[Row]
    baseline: str
    """Empty without one."""
    scale: str
    """What returns are divided by in aggregates."""
    notes: list[str]


def summarise(loaded: Sequence[Loaded], baseline: str, max_return: float | None = None) -> Summary:
    """Rows of all methods.

    Seeds of a task are compared at the frames that all of them have reached, by the latest
    evaluation before.

    Args:
      loaded: runs.
      baseline: label of the method that others are compared with, or empty.
      max_return: what returns are divided by in aggregates; None: by :func:`scores.scale`.

    Raises:
      ConfigError: no evaluation, a seed that appears twice, or an unknown baseline.
    """
    finals, frames, notes = final_returns(loaded)
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
    return Summary(rows, baseline, f"{max_return:g}" if max_return else by_task, notes)


def final_returns(
    loaded: Sequence[Loaded],
) -> tuple[dict[str, dict[str, dict[int, float]]], dict[str, float], list[str]]:
    """Returns by method, task and seed; frames by task; notes.

    Raises:
      ConfigError: a run without evaluations, a seed that appears twice, or one without an
        evaluation up to where the shortest run ends.
    """
    tables = {one.run.folder: one for one in loaded}
    finals: dict[str, dict[str, dict[int, float]]] = {}
    frames, notes = {}, []
    for task, methods in runs_lib.by_task([one.run for one in loaded]).items():
        curves = {m: _curves([tables[r.folder] for r in runs]) for m, runs in methods.items()}
        ends = [curve.x[-1] for of in curves.values() for curve in of.values()]
        frames[task] = float(min(ends))
        if max(ends) > min(ends) * (1 + comparison.UNEVEN):
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


def _curves(group: Sequence[Loaded]) -> dict[int, Series]:
    out: dict[int, tuple[str, Series]] = {}
    for one in group:
        found = one.series(comparison.RETURN, "frames")
        if not found:
            raise ConfigError(
                f"{one.run.folder}: holds no {comparison.RETURN} of a healthy seed; {one.run.mend}"
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
    reached = curve.x <= frames * (1 + comparison.UNEVEN)
    return float(curve.y[reached][-1]) if reached.any() else None


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
    found = aggregates.probability_of_improvement(ours, theirs)
    rows = [
        _row("all", method, "probability_of_improvement", found, sum(map(len, ours)), len(tasks))
    ]
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
