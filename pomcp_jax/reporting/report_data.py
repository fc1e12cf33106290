"""What a report shows, as numbers: cells, curves, aggregates, differences of configurations."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax import config as config_lib
from pomcp_jax.config import ConfigError
from pomcp_jax.reporting import aggregates, columns, comparison, statistics, summary
from pomcp_jax.reporting import runs as runs_lib
from pomcp_jax.reporting import scores as task_scores
from pomcp_jax.reporting.columns import Series
from pomcp_jax.reporting.comparison import RETURN, TRAINING, Loaded
from pomcp_jax.reporting.plots import Mark
from pomcp_jax.reporting.statistics import Interval

POLICY = "eval/policy_return"
POINTS = 110
"""Most points of a line of a metric; longer ones are means over neighbours, with their range."""
RETURN_POINTS = 240
"""Most points of a line of returns."""
AGGREGATE_POINTS = 50
"""Most points of a curve of aggregates."""
FEW = 2
"""Most methods of a panel that shows every seed."""
UNKNOWN = Interval(*(np.array(math.nan),) * 3)

Found = dict[tuple[str, int], Series]
"""Curves of seeds by folder and seed."""


class Group(NamedTuple):
    """All runs of a method on a task: a cell of the report."""

    task: str
    label: str
    members: list[Loaded]

    def series(self, column: str, x: str = "frames") -> Found:
        """Curves of the seeds that did not diverge."""
        return {k: v for one in self.members for k, v in one.series(column, x).items()}


class Entry(NamedTuple):
    """A row of the table of cells."""

    task: str
    label: str
    seeds: int
    """Seeds that count; those that diverged do not."""
    final: Interval
    """Mean of the planner's latest evaluations, with its 95 % bootstrap interval."""
    iqm: float
    training: float
    """Mean of the latest training returns."""
    ratio: float
    """Return of the bare policy over that of the planner; NaN where that says nothing."""
    frames: float
    """Frames at which the first of the seeds has its latest evaluation, or training row."""
    decisions: float
    seconds: float
    """Wall-clock time of all runs of the cell."""
    diverged: dict[int, str]
    """Seeds that diverged, with the term that did first."""
    resets: int
    state: str


class Aggregate(NamedTuple):
    """A method over all tasks; numbers are those of scores, returns over ``max_return``."""

    label: str
    tasks: int
    seeds: int
    statistics: dict[str, Interval]
    """By a key of :data:`aggregates.STATISTICS`."""


class Across(NamedTuple):
    """Methods over the tasks that they share."""

    methods: list[Aggregate]
    """Those with runs of most tasks, the best IQM first."""
    left_out: dict[str, int]
    """Methods with runs of fewer tasks, and of how many."""
    tasks: list[str]
    better: dict[tuple[str, str], float]
    """Probability that a run of the first method beats one of the second."""
    curves: list[Mark]
    """IQM over frames."""


class Difference(NamedTuple):
    """A field with its value for every method."""

    field: str
    values: dict[str, str]


def groups(loaded: Sequence[Loaded]) -> list[Group]:
    """Runs by task and label.

    Raises:
      ConfigError: two runs of a task and label have a seed in common, which would count twice.
    """
    tables = {one.run.folder: one for one in loaded}
    out = []
    for task, methods in runs_lib.by_task([one.run for one in loaded]).items():
        for label, runs in methods.items():
            seen: dict[int, Path] = {}
            for run in runs:
                for seed in run.seeds:
                    if seed in seen:
                        raise ConfigError(
                            f"{run.folder}: seed {seed} of {label} is in {seen[seed]} too; leave"
                            " one of them out or tell them apart with --labels"
                        )
                    seen[seed] = run.folder
            out.append(Group(task, label, [tables[run.folder] for run in runs]))
    return out


def entry(group: Group) -> Entry:
    """The row of a cell."""
    planner, policy = group.series(RETURN), group.series(POLICY)
    training = group.series(TRAINING)
    finals = {key: float(curve.y[-1]) for key, curve in planner.items()}
    values = np.array([*finals.values()])
    known = bool(finals)
    reached = planner or training
    repeat = group.members[0].run.action_repeat
    frames = min((float(curve.x[-1]) for curve in reached.values()), default=math.nan)
    both = [(float(policy[k].y[-1]), finals[k]) for k in finals if k in policy]
    abouts = [one.run.about for one in group.members]
    return Entry(
        group.task,
        group.label,
        len(reached),
        aggregates.bootstrap([values], aggregates.mean) if known else UNKNOWN,
        float(statistics.iqm(values)) if known else math.nan,
        float(np.mean([curve.y[-1] for curve in training.values()])) if training else math.nan,
        _ratio(both),
        frames,
        frames / repeat if repeat > 0 else math.nan,
        sum(_seconds(one) for one in group.members),
        {
            seed: _term(about, seed)
            for one, about in zip(group.members, abouts, strict=True)
            for seed in sorted(one.run.diverged)
        },
        sum(_count(about.get("resets")) for about in abouts),
        "; ".join(dict.fromkeys(map(_state, abouts))),
    )


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Ratio of means; NaN where the planner earns nothing, or the signs differ."""
    if not pairs:
        return math.nan
    policy, planner = (float(np.mean(values)) for values in zip(*pairs, strict=True))
    return policy / planner if planner > 0 and policy >= 0 else math.nan


def _seconds(one: Loaded) -> float:
    told = one.run.about.get("seconds")
    known = [float(told)] if isinstance(told, int | float) else []
    if known and one.run.about.get("status") == "done":
        return known[0]
    # The record of a run that still trains is behind its tables, which count the same clock.
    rows = [table.rows[-1][table.columns["seconds"]] for table in one.tables if table.rows]
    try:
        return max([*known, *(float(value) for value in rows)], default=math.nan)
    except ValueError:
        return max(known, default=math.nan)


def _count(value: object) -> int:
    if isinstance(value, Mapping | list):
        return len(value)
    return int(value) if isinstance(value, int | float) else 0


def _term(about: Mapping[str, Any], seed: int) -> str:
    what = (about.get("diverged") or {}).get(str(seed))
    return str(what.get("term", "")) if isinstance(what, Mapping) else ""


def _state(about: Mapping[str, Any]) -> str:
    return str(about.get("status") or "no record yet: training, or killed")


def pooled(found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Points [T] and values of every seed [S, T]; the latest values where seeds share no range."""
    curves = list(found.values())
    low, high = max(c.x[0] for c in curves), min(c.x[-1] for c in curves)
    if low <= high:
        return columns.common(curves)
    return np.array([high]), np.array([[curve.y[-1]] for curve in curves])


def mean_mark(found: Found, method: int, kind: str, band: str, most: int) -> Mark:
    """Mean over seeds with a band, thinned to ``most`` points.

    Args:
      found: curves of one seed or more.
      method: place among the methods.
      kind: of the mark.
      band: a key of :data:`comparison.BANDS`.
      most: points to keep; each is the mean of its neighbours, and its band has their extremes.
    """
    x, values = pooled(found)
    ends = comparison.band(values, band)
    mean, count = values.mean(axis=0), len(x)
    if count <= most:
        return Mark(method, kind, x, mean, ends)
    low, high = ends or (mean, mean)
    starts = np.linspace(0, count, most + 1).astype(int)[:-1]
    sizes = np.diff([*starts, count])
    x, mean = (np.add.reduceat(part, starts) / sizes for part in (x, mean))
    return Mark(
        method, kind, x, mean, (np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts))
    )


def return_marks(group: Group, method: int, *, seeds: bool) -> tuple[list[Mark], np.ndarray]:
    """Marks of a cell's returns, and the values that its axis must show.

    Args:
      group: the cell.
      method: place of its method.
      seeds: whether to draw each seed as well.
    """
    planner, training, policy = (group.series(name) for name in (RETURN, TRAINING, POLICY))
    marks: list[Mark] = []
    if training:
        marks.append(mean_mark(training, method, "training", "none", RETURN_POINTS))
        if not planner:
            marks[0] = mean_mark(training, method, "training", "ci95", RETURN_POINTS)
    if planner:
        if seeds and len(planner) > 1:
            one_by_one = [{key: curve} for key, curve in planner.items()]
            marks += [mean_mark(o, method, "seed", "none", RETURN_POINTS) for o in one_by_one]
        marks.append(mean_mark(planner, method, "planner", "ci95", RETURN_POINTS))
    if policy:
        marks.append(_policy_mark(policy, method))
    shown = [mark.y for mark in marks]
    extent = [pooled(found)[1].ravel() for found in (planner or training,) if found]
    return marks, np.concatenate([*shown, *extent]) if shown else np.zeros(0)


def _policy_mark(policy: Found, method: int) -> Mark:
    """The bare policy: a curve where it was evaluated often, else a point at the end."""
    if all(len(curve.x) > 1 for curve in policy.values()):
        return mean_mark(policy, method, "policy", "none", RETURN_POINTS)
    last = np.array([[curve.y[-1]] for curve in policy.values()])
    end = np.array([min(curve.x[-1] for curve in policy.values())])
    return Mark(method, "policy", end, last.mean(axis=0), points=True)


def across(found: Sequence[Group], labels: Sequence[str], scale: float | None) -> Across | None:
    """Aggregates over tasks; None with a single method, or none that was evaluated.

    Args:
      found: cells.
      labels: of all methods, in the order of the page.
      scale: what returns are divided by; None: by :func:`task_scores.scale`.

    Raises:
      ConfigError: runs that cannot be compared (:func:`summary.final_returns`).
    """
    known = [group for group in found if group.series(RETURN)]
    finals, _, _ = summary.final_returns(
        [one for group in known for one in group.members if one.series(RETURN, "frames")]
    ) if known else ({}, {}, [])  # fmt: skip
    most = max(map(len, finals.values()), default=0)
    full = {label: of for label, of in finals.items() if len(of) == most}
    if len(full) < 2:
        return None
    shared = [task for task in next(iter(full.values())) if all(task in of for of in full.values())]
    if not shared:
        return None
    scores = {
        label: [
            np.array([*of[task].values()]) / (scale or task_scores.scale(task)) for task in shared
        ]
        for label, of in full.items()
    }
    methods = [
        Aggregate(
            label, len(shared), sum(map(len, tasks)),
            {name: aggregates.bootstrap(tasks, f) for name, f in aggregates.STATISTICS.items()},
        )
        for label, tasks in scores.items()
    ]  # fmt: skip
    return Across(
        sorted(methods, key=lambda one: -float(one.statistics["iqm"].value)),
        {label: len(of) for label, of in finals.items() if label not in full},
        shared,
        {
            (a, b): float(
                aggregates.probability_of_improvement(scores[a], scores[b], resamples=1).value
            )
            for a in scores for b in scores if a != b
        },
        [
            mark for i, label in enumerate(labels) if label in full
            for mark in _iqm_curve(known, label, shared, i, scale)
        ],
    )  # fmt: skip


def _iqm_curve(
    found: Sequence[Group], label: str, tasks: Sequence[str], method: int, scale: float | None
) -> Iterator[Mark]:
    """IQM of a method over tasks and seeds at every frame that all of them cover."""
    groups = [group for group in found if group.label == label and group.task in tasks]
    members = [[*group.series(RETURN).values()] for group in groups]
    scales = [scale or task_scores.scale(group.task) for group in groups]
    curves = [curve for of_task in members for curve in of_task]
    low, high = max(c.x[0] for c in curves), min(c.x[-1] for c in curves)
    if low >= high:
        return
    grid = max((c.x for c in curves), key=len)
    grid = np.unique([low, *grid[(grid > low) & (grid < high)], high])
    if len(grid) > AGGREGATE_POINTS:  # a bootstrap at every point takes milliseconds
        grid = grid[np.linspace(0, len(grid) - 1, AGGREGATE_POINTS).round().astype(int)]
    scores = [
        np.array([np.interp(grid, *curve) for curve in of]) / one
        for of, one in zip(members, scales, strict=True)
    ]
    if all(len(of) > 1 for of in scores):
        value, low_end, high_end = statistics.stratified(scores)
        yield Mark(method, "planner", grid, value, (low_end, high_end))
    else:
        yield Mark(method, "planner", grid, statistics.iqm(np.concatenate(scores).T))


def constants(curves: Mapping[str, Sequence[Found]]) -> dict[str, float]:
    """Metrics with the same value in every row of every cell, with that value.

    Args:
      curves: of every cell by metric.
    """
    out = {}
    for name, cells in curves.items():
        every = [curve.y for found in cells for curve in found.values()]
        values = np.concatenate(every) if every else np.zeros(0)
        if len(values) and np.ptp(values) == 0:
            out[name] = float(values[0])
    return out


def configuration(run: runs_lib.Run) -> dict[str, Any]:
    """Fields of a run's configuration by dotted name."""
    # runs.find has read the same file: it is a JSON object.
    return config_lib.flatten(json.loads((run.folder / "config.json").read_text()))


def differences(found: Sequence[Group]) -> tuple[list[Difference], list[str]]:
    """Fields in which configurations differ, and the fields that only some of them have."""
    configs = [(group, one, configuration(one.run)) for group in found for one in group.members]
    fields = sorted({name for _, _, config in configs for name in config} - {"env.task"})
    out, some = [], []
    for field in fields:
        having = [(group, config[field]) for group, _, config in configs if field in config]
        if len(having) < len(configs):
            some.append(field)
        if any(value != having[0][1] for _, value in having):
            out.append(Difference(field, _by_label(having)))
    return out, some


def _by_label(pairs: Sequence[tuple[Group, Any]]) -> dict[str, str]:
    """Values of every method; where its runs differ, each value with its tasks."""
    out = {}
    for label in dict.fromkeys(group.label for group, _ in pairs):
        tasks: dict[str, list[str]] = {}
        for group, value in pairs:
            if group.label == label:
                tasks.setdefault(shown(value), []).append(group.task)
        sets = [frozenset(of) for of in tasks.values()]
        if len(tasks) == 1 or len(set(sets)) == 1:  # seeds of a task in several folders
            out[label] = ", ".join(tasks)
        else:
            out[label] = "; ".join(f"{v} ({', '.join(dict.fromkeys(t))})" for v, t in tasks.items())
    return out


def changes(
    found: Sequence[Group], bases: Mapping[Path, Mapping[str, Any]]
) -> dict[str, list[tuple[str, str, str]]]:
    """For each method, fields that differ from its base: name, value of the base, own value.

    Args:
      found: cells.
      bases: fields of the preset and size that each run's folder is nearest to.
    """
    out: dict[str, list[tuple[str, str, str]]] = {}
    for label in dict.fromkeys(group.label for group in found):
        members = [(g, one) for g in found if g.label == label for one in g.members]
        known = [(g, configuration(one.run), bases.get(one.run.folder)) for g, one in members]
        rows = []
        for field in sorted({name for _, config, _ in known for name in config} - {"env.task"}):
            pairs = [(g, config[field]) for g, config, base in known if base and field in config]
            before = [base[field] for _, _, base in known if base and field in base]
            if pairs and before and any(value != before[0] for _, value in pairs):
                rows.append((field, shown(before[0]), _by_label(pairs)[label]))
        out[label] = rows
    return out


def shown(value: Any) -> str:
    """A value of a configuration, short."""
    text = f"{value:.7g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
