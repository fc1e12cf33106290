"""Learning curves of single runs, read from their tables."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Curve(NamedTuple):
    """One quantity of one seed over decisions, without missing values."""

    decisions: np.ndarray
    values: np.ndarray


def read_curves(path: Path, column: str) -> dict[int, Curve]:
    """``{seed: curve}`` of a column of ``metrics.csv`` or ``evaluations.csv``."""
    points: dict[int, list[tuple[float, float]]] = {}
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            # Empty where there was no evaluation, and for seeds that were dropped.
            if row.get(column):
                pair = (float(row["decisions"]), float(row[column]))
                points.setdefault(int(row["seed"]), []).append(pair)
    return {seed: Curve(*np.array(pairs).T) for seed, pairs in points.items()}


def mean_curve(curves: dict[Any, Curve]) -> Curve:
    """Mean over seeds, on the range of decisions that all curves cover."""
    # Beyond the common range the mean would jump wherever a seed begins or ends.
    longest = max(curves.values(), key=lambda curve: len(curve.decisions))
    low = max(curve.decisions[0] for curve in curves.values())
    high = min(curve.decisions[-1] for curve in curves.values())
    grid = longest.decisions[(longest.decisions >= low) & (longest.decisions <= high)]
    values = [np.interp(grid, curve.decisions, curve.values) for curve in curves.values()]
    return Curve(grid, np.mean(values, axis=0))
