"""Published learning curves, from files like those in ``experiments/results/published``."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

SLACK = 0.05
"""Relative difference in frames that is ignored: evaluations happen at ends of episodes, so the
frames of two curves rarely agree exactly."""


class Published(NamedTuple):
    """One curve; arrays have the shape [T]."""

    source: str
    """Name of the file without its suffix: the repository that published the curve."""
    method: str
    task: str
    frames: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    """Sample standard deviation over seeds."""

    @property
    def label(self) -> str:
        """The method, preceded by who ran it if not the method's authors."""
        return self.method if self.source == self.method else f"{self.source}'s {self.method}"

    def at(self, frames: float) -> tuple[float, float] | None:
        """Mean and std at ``frames``, interpolated linearly between points.

        Returns:
          None outside of the curve, and before its first evaluation during training, where the
          curve is unknown. A curve extends by :data:`SLACK` at both ends.
        """
        # The evaluation at 0 frames is of an untrained agent: no point to interpolate from.
        trained = self.frames > 0
        known = self.frames[trained]
        if not len(known) or not known[0] / (1 + SLACK) <= frames <= known[-1] * (1 + SLACK):
            return None
        mean, std = (np.interp(frames, known, v[trained]) for v in (self.mean, self.std))
        return float(mean), float(std)

    def until(self, frames: float) -> "Published":
        """The points up to and including the first one at or after ``frames``."""
        count = int(np.sum(self.frames < frames)) + 1
        return self._replace(
            frames=self.frames[:count], mean=self.mean[:count], std=self.std[:count]
        )


def load(folder: Path) -> list[Published]:
    """All curves of a folder with one file per source, ordered by source, method and task."""
    points: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                mean, std = float(row["mean_return"]), float(row["std_return"])
                key = (path.stem, row["method"], row["task"])
                points.setdefault(key, []).append((float(row["frames"]), mean, std))
    return [Published(*key, *np.array(sorted(rows)).T) for key, rows in sorted(points.items())]


def of_task(curves: list[Published], task: str) -> list[Published]:
    """Curves of one task by method; those of the method's authors come first."""
    own = [curve for curve in curves if curve.task == task]
    return sorted(own, key=lambda curve: (curve.method, curve.source != curve.method))


def band(
    curves: list[Published], task: str, method: str, frames: float
) -> tuple[float, float] | None:
    """Lowest mean - 2 std and highest mean + 2 std over a method's curves from all sources."""
    pairs = [c.at(frames) for c in of_task(curves, task) if c.method == method]
    # Curves that do not cover these frames say nothing about them.
    values = [pair for pair in pairs if pair is not None]
    if not values:
        return None
    return min(m - 2 * s for m, s in values), max(m + 2 * s for m, s in values)
