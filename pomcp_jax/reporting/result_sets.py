"""Curves of all runs of a result set, from which its pictures and tables are made."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pomcp_jax.config import ConfigError
from pomcp_jax.reporting import results as results_lib
from pomcp_jax.reporting import scores, statistics
from pomcp_jax.reporting.curves import Curve, read_curves
from pomcp_jax.reporting.results import Cell

SOURCES = {
    "evaluation": ("evaluations.csv", "eval/return"),
    "training": ("metrics.csv", "train/return"),
}
"""File and column of a curve: the planner's evaluations, or the latest training episodes."""


class Runs(NamedTuple):
    """All seeds of a method on a task."""

    task: str
    method: str
    cells: list[Cell]
    seeds: list[int]
    curves: list[Curve]
    """Curve of each seed, over decisions."""

    @property
    def repeat(self) -> int:
        """Frames per decision."""
        return self.cells[0].action_repeat

    @property
    def final(self) -> np.ndarray:
        """Last value of each seed, [S]."""
        return np.array([curve.values[-1] for curve in self.curves])

    @property
    def decisions(self) -> float:
        """Last decision that every seed has reached."""
        return min(curve.decisions[-1] for curve in self.curves)

    @property
    def frames(self) -> float:
        """Last environment frame that every seed has reached."""
        return self.decisions * self.repeat

    @property
    def seconds(self) -> list[float]:
        """Wall-clock time of each cell."""
        return [float(cell.about.get("seconds", np.nan)) for cell in self.cells]

    def on(self, frames: np.ndarray) -> np.ndarray:
        """Values of each seed at ``frames`` [T], interpolated linearly: [S, T]."""
        return np.array([np.interp(frames / self.repeat, *curve) for curve in self.curves])


def load(results: Path, returns: str = "evaluation") -> tuple[list[Runs], list[Cell]]:
    """Runs of all finished cells below ``results``, and the unfinished cells.

    Args:
      results: folder written by :mod:`experiments.reproduce`.
      returns: a key of :data:`SOURCES`.

    Raises:
      ConfigError: no cell, none finished, an unreadable one, a seed that appears twice, or unequal
        action repeats.
    """
    file, column = SOURCES[returns]
    cells = results_lib.read(results)
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.finished:
            groups.setdefault((cell.task, cell.method), []).append(cell)
    if not groups:
        raise ConfigError(f"{results}: holds no finished cell ({len(cells)} unfinished)")
    all_runs = []
    for (task, method), members in groups.items():
        seeds: dict[int, Curve] = {}
        for cell in members:
            try:
                by_seed = read_curves(cell.folder / file, column)
            except (ValueError, LookupError, TypeError, OSError, csv.Error):
                raise ConfigError(f"{cell.folder / file}: is unreadable") from None
            if not by_seed:
                raise ConfigError(f"{cell.folder / file}: holds no {column}")
            # A copied folder would otherwise count twice and narrow the intervals.
            if twice := seeds.keys() & by_seed.keys():
                raise ConfigError(
                    f"{cell.folder}: seed {min(twice)} of {method} appears twice; leave one of the"
                    " folders out, or name them as runs, not as a result set"
                )
            seeds |= by_seed
        if len({cell.action_repeat for cell in members}) > 1:
            raise ConfigError(f"{members[0].folder}: cells of {method} differ in action repeat")
        order = sorted(seeds)
        all_runs.append(Runs(task, method, members, order, [seeds[seed] for seed in order]))
    return all_runs, [cell for cell in cells if not cell.finished]


def grid(many: list[Runs]) -> np.ndarray:
    """Frames [T] within the range that all runs cover, at the points of the longest curve.

    Raises:
      ConfigError: if some runs end before others begin.
    """
    spans = [(c.decisions * runs.repeat) for runs in many for c in runs.curves]
    low, high = max(span[0] for span in spans), min(span[-1] for span in spans)
    longest = max(spans, key=len)
    # Both ends are added below, so that the grid covers the whole common range.
    inside = longest[(longest > low) & (longest < high)]
    if low > high:
        raise ConfigError(f"{many[0].method}: some runs end before others begin")
    return np.unique(np.concatenate([[low], inside, [high]]))


def methods(many: list[Runs]) -> dict[str, list[Runs]]:
    """Runs by method."""
    groups: dict[str, list[Runs]] = {}
    for runs in many:
        groups.setdefault(runs.method, []).append(runs)
    return dict(sorted(groups.items()))


def complete(groups: dict[str, list[Runs]]) -> dict[str, list[Runs]]:
    """The methods with runs of the most tasks; aggregates of the others are not comparable."""
    most = max((len(members) for members in groups.values()), default=0)
    return {method: members for method, members in groups.items() if len(members) == most}


def aggregate(many: list[Runs]) -> tuple[np.ndarray, statistics.Interval]:
    """Frames [T], and the IQM [T] of a method's normalised returns over its tasks and seeds."""
    frames = grid(many)
    return frames, statistics.stratified(
        [runs.on(frames) / scores.scale(runs.task) for runs in many]
    )


def final_aggregate(many: list[Runs]) -> statistics.Interval:
    """IQM of the last value of every run, [1]."""
    return statistics.stratified([runs.final[:, None] / scores.scale(runs.task) for runs in many])
