"""Any column of a run's tables as curves: metrics.csv and evaluations.csv, read with checks."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pomcp_jax.config import ConfigError

FILES = ("evaluations.csv", "metrics.csv")
"""Tables of a run; of a column that both have, the first that holds values is drawn."""
AXES = {"frames": ("frames", 1.0), "decisions": ("decisions", 1.0), "hours": ("seconds", 3600.0)}
"""Horizontal axes: the column and what divides it."""
KEYS = ("seconds", "decisions", "frames", "seed", "actor")
"""Columns that say where a row belongs; they are no metrics."""


class Series(NamedTuple):
    """One quantity of one seed; both arrays are [T], finite, sorted by ``x``."""

    x: np.ndarray
    y: np.ndarray


class Table(NamedTuple):
    """A file of rows with equal numbers of cells."""

    path: Path
    columns: dict[str, int]
    rows: list[list[str]]


def read(path: Path) -> Table | None:
    """The table of ``path``; None where there is no file or nothing in it.

    A last line without its line break is left out: its process writes or was killed.

    Raises:
      ConfigError: the file is unreadable, has no column ``seed``, or a row is too short or long.
    """
    if not path.is_file():
        return None
    try:
        text = path.read_text()
        lines = text[: text.rfind("\n") + 1].splitlines()
        table = [row for row in csv.reader(lines) if row]
    except (OSError, ValueError, csv.Error):
        raise ConfigError(f"{path}: is unreadable; must be a table of a run") from None
    if not table:
        return None
    header, rows = table[0], table[1:]
    for name in ("seed", "decisions", "frames", "seconds"):
        if name not in header:
            raise ConfigError(f"{path}: has no column {name}; must be a table of a run")
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise ConfigError(
                f"{path}: row {i + 2} has {len(row)} cells, the header {len(header)}; remove that"
                " row or resume the run, which restores its tables from the last checkpoint"
            )
    return Table(path, {name: i for i, name in enumerate(header)}, rows)


def series(table: Table, column: str, x: str) -> dict[int, Series]:
    """``{seed: series}`` of a column over an axis of :data:`AXES`; without values it is empty.

    Columns that describe an evaluation whoever acts (``std``) are those of the planner.

    Raises:
      ConfigError: a cell that is no number.
    """
    name, unit = AXES[x]
    seed, at, value = (table.columns[key] for key in ("seed", name, column))
    rows = [row for row in _of_planner(table, column) if row[value]]
    try:
        # Whole columns at once: a long run has a million cells.
        seeds = np.array([row[seed] for row in rows], int)
        points = np.array([[row[at] for row in rows], [row[value] for row in rows]], float)
    except (ValueError, OverflowError):
        raise _no_number(table, rows, (seed, at, value), column) from None
    points[0] /= unit
    finite = np.isfinite(points).all(axis=0)
    seeds, points = seeds[finite], points[:, finite]
    return {k: _sorted(points[:, seeds == k]) for k in dict.fromkeys(seeds.tolist())}


def _no_number(
    table: Table, rows: Sequence[list[str]], places: tuple[int, int, int], column: str
) -> ConfigError:
    """The error of the first row that holds no numbers."""
    for row in rows:
        seed, at, value = (row[place] for place in places)
        try:
            int(seed), float(at), float(value)
        except ValueError:
            break
    (name,) = (name for name, place in table.columns.items() if place == places[1])
    return ConfigError(
        f"{table.path}: {name} = {at!r:.40}, {column} = {value!r:.40} of seed {seed!r:.40}: must"
        " be numbers"
    )


def _of_planner(table: Table, column: str) -> list[list[str]]:
    actor = table.columns.get("actor")
    if actor is None or column.startswith("eval/"):
        return table.rows
    planner = [row for row in table.rows if row[actor] == "planner"]
    return planner or table.rows


def _sorted(points: np.ndarray) -> Series:
    order = np.argsort(points[0], kind="stable")
    return Series(*points[:, order])


def metrics(tables: Sequence[Table]) -> list[str]:
    """Names of everything that can be drawn, sorted."""
    return sorted({name for table in tables for name in table.columns} - set(KEYS))


def common(curves: Sequence[Series]) -> tuple[np.ndarray, np.ndarray]:
    """Curves on one grid: points [T] that all of them span, values [S, T] linear between points.

    The grid is that of the curve with most points, closed by the ends of the common range.

    Raises:
      ConfigError: some curves end before others begin.
    """
    low = max(curve.x[0] for curve in curves)
    high = min(curve.x[-1] for curve in curves)
    if low > high:
        raise ConfigError(f"a seed ends at {high:g}, before another begins at {low:g}")
    longest = max(curves, key=lambda curve: len(curve.x)).x
    grid = np.unique([low, *longest[(longest > low) & (longest < high)], high])
    return grid, np.array([np.interp(grid, *curve) for curve in curves])
