"""The numbers of a comparison: means and bands of every method on every task, in panels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pomcp_jax import nearest
from pomcp_jax.config import ConfigError
from pomcp_jax.reporting import columns, statistics
from pomcp_jax.reporting import runs as runs_lib
from pomcp_jax.reporting.columns import Series, Table
from pomcp_jax.reporting.runs import Run

RETURN, TRAINING = "eval/return", "train/return"
BANDS = {"ci95": "95 % interval", "std": "standard deviation", "range": "range", "none": ""}
"""What a band can show, with its words in a legend."""
FEWEST = {"ci95": 3, "std": 2, "range": 2}
"""Seeds that a band needs: the t interval of two is about ten times their distance."""
UNEVEN = 0.01
"""Relative difference of the ends of two seeds that is mentioned."""


class Line(NamedTuple):
    """A method in a panel; arrays are [T]."""

    label: str
    x: np.ndarray
    mean: np.ndarray
    band: tuple[np.ndarray, np.ndarray] | None
    """Low and high end."""
    extent: tuple[float, float]
    """Least and largest value of any seed."""
    seeds: int
    training: Series | None
    """Mean of training returns, drawn beside evaluations."""


class Panel(NamedTuple):
    """One metric on one task."""

    task: str
    metric: str
    repeat: int
    """Frames of a decision; 0 where the runs differ."""
    lines: list[Line]


class Loaded(NamedTuple):
    """A run with its tables, read once."""

    run: Run
    tables: list[Table]

    def series(self, column: str, x: str) -> dict[tuple[str, int], Series]:
        """Curves of the seeds that did not diverge, by folder and seed."""
        for table in self.tables:
            if column in table.columns and (found := columns.series(table, column, x)):
                lost = self.run.diverged
                return {(str(self.run.folder), k): v for k, v in found.items() if k not in lost}
        return {}


def band(values: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Low and high end [T] of ``values`` [S, T]; None with too few seeds (:data:`FEWEST`).

    Args:
      values: of every seed.
      kind: a key of :data:`BANDS`.
    """
    count = len(values)
    if kind == "none" or count < FEWEST[kind]:
        return None
    if kind == "range":
        return values.min(axis=0), values.max(axis=0)
    mean, half = values.mean(axis=0), values.std(axis=0, ddof=1)
    if kind == "ci95":
        half = half * (statistics.t_quantile(count - 1) / math.sqrt(count))
    return mean - half, mean + half


def load(runs: Sequence[Run]) -> list[Loaded]:
    """Runs with their tables.

    Raises:
      ConfigError: as :meth:`Run.tables`.
    """
    return [Loaded(run, run.tables()) for run in runs]


def check_metrics(metrics: Sequence[str], loaded: Sequence[Loaded]) -> None:
    """Refuse a metric that is no column of any run.

    Raises:
      ConfigError: one line with the nearest name.
    """
    known = columns.metrics([table for one in loaded for table in one.tables])
    for metric in metrics:
        if metric not in known:
            table = loaded[0].tables[-1].path
            hint = nearest.hint(metric, known) or f"; `head -1 {table}` lists them"
            raise ConfigError(f"--metric = {metric}: no column of the runs' tables{hint}")


def panels(
    loaded: Sequence[Loaded], metrics: Sequence[str], x: str, kind: str
) -> tuple[list[Panel], list[str]]:
    """A panel for every task and metric, tasks together, and notes for the reader.

    Args:
      loaded: runs; those of one task and label are pooled.
      metrics: columns.
      x: a key of :data:`columns.AXES`.
      kind: of the band, a key of :data:`BANDS`.

    Raises:
      ConfigError: a metric without any value.
    """
    tables = {one.run.folder: one for one in loaded}
    out, notes = [], []
    for task, methods in runs_lib.by_task([one.run for one in loaded]).items():
        repeats = {run.action_repeat for members in methods.values() for run in members}
        repeat = repeats.pop() if len(repeats) == 1 else 0
        for metric in metrics:
            lines = []
            for label, members in methods.items():
                group = [tables[run.folder] for run in members]
                line, said = _line(group, label, metric, x, kind)
                lines += [line] if line else []
                notes += [f"{label} on {task}: {text}" for text in said]
            if lines:
                out.append(Panel(task, metric, repeat, lines))
    for metric in metrics:
        if metric not in {panel.metric for panel in out}:
            mend = loaded[0].run.mend
            raise ConfigError(f"--metric = {metric}: has no value of a healthy seed yet; {mend}")
    return out, list(dict.fromkeys(notes))


def _line(
    group: Sequence[Loaded], label: str, metric: str, x: str, kind: str
) -> tuple[Line | None, list[str]]:
    """The curve of one method in one panel, None without values, and notes."""
    notes = []
    if lost := sum(len(one.run.diverged) for one in group):
        notes.append(f"{lost} diverged seeds are left out")
    found = _gather(group, metric, x)
    training = _gather(group, TRAINING, x) if metric == RETURN else {}
    if not found and training:
        found, training, label = training, {}, f"{label} (training)"
    if not found:
        return None, [*notes, f"no value of {metric}"]
    seeds = [seed for _, seed in found]
    if len(seeds) > len(set(seeds)):
        twice = next(seed for seed in seeds if seeds.count(seed) > 1)
        notes.append(f"seed {twice} is in several folders and counts once for each")
    grid, values = _pooled(found, label)
    ends = [curve.x[-1] for curve in found.values()]
    if max(ends) > min(ends) * (1 + UNEVEN):
        notes.append(f"drawn up to {min(ends):,.6g} {x}, where the first of its seeds ends")
    ends_of_band = band(values, kind)
    if kind != "none" and ends_of_band is None and len(values) > 1:
        notes.append(f"no {BANDS[kind]}: {len(values)} seeds, needs {FEWEST[kind]}")
    thin = None
    if training:
        points, trained = _pooled(training, label)
        thin = Series(points, trained.mean(axis=0))
    extent = float(values.min()), float(values.max())
    return Line(label, grid, values.mean(axis=0), ends_of_band, extent, len(values), thin), notes


def _gather(group: Sequence[Loaded], column: str, x: str) -> dict[tuple[str, int], Series]:
    return {key: curve for one in group for key, curve in one.series(column, x).items()}


def _pooled(found: dict[tuple[str, int], Series], label: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        return columns.common(list(found.values()))
    except ConfigError as error:
        raise ConfigError(f"{label}: {error}; --labels names runs apart") from None
