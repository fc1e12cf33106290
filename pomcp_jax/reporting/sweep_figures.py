"""Picture of a sweep: learning curves of all cells, and final returns over the swept value."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax.reporting import canvas, statistics
from pomcp_jax.reporting.curves import mean_curve, read_curves

LEGEND = 12
"""Largest number of cells with a legend."""
FEWEST = 3
"""Seeds that an interval needs."""


class SweptCell(NamedTuple):
    """One setting of a sweep."""

    name: str
    folder: Path
    """Folder of its tables."""
    values: Mapping[str, float]
    """Swept values by field."""
    returns: np.ndarray
    """Return of the latest evaluation of each seed that did not diverge."""
    diverged: frozenset[int]
    """Seed numbers that diverged."""


def draw(
    cells: Sequence[SweptCell],
    grid: Mapping[str, Sequence[float]],
    title: str,
    out: Path,
    text: Callable[[float], str],
) -> None:
    """Write the picture ``out``.

    Curves are means over the seeds that did not diverge. With several swept fields the horizontal
    axis of the right panel is the one with the most values, and there is a line for each
    combination of the others.

    Args:
      cells: in the order of the grid.
      grid: swept fields and their values.
      title: title of the left panel.
      out: file to replace.
      text: formats a swept value.

    Raises:
      ImportError: without matplotlib (``pip install pomcp_jax[run]``).
    """
    figure = canvas.figure(11.0, 4.2)
    left, right = figure.subplots(1, 2)
    # Imported here, after canvas.figure: it raises the documented error without matplotlib.
    import matplotlib

    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, len(cells)))
    for cell, color in zip(cells, shades, strict=True):
        _draw_curves(left, cell, color)
    left.set(xlabel="decisions per seed", ylabel="episode return", title=title)
    left.set_xlim(left=0)
    if len(cells) <= LEGEND and left.get_legend_handles_labels()[0]:
        left.legend(loc="best", framealpha=0.7, edgecolor="none", fontsize="small")
    across = max(grid, key=lambda field: len(grid[field]))
    _draw_final(right, cells, across, text)
    _scale(right, np.array(grid[across]), text)
    for panel in (left, right):
        panel.grid(alpha=0.3)
    canvas.save(figure, out)


def _draw_curves(panel: Any, cell: SweptCell, color: Any) -> None:
    label = cell.name + (f" ({len(cell.diverged)} diverged)" if cell.diverged else "")
    for file, column, style in (
        ("metrics.csv", "train/return", {"linewidth": 1.5, "label": label}),
        ("evaluations.csv", "eval/return", {"linestyle": "none", "marker": "o"}),
    ):
        curves = read_curves(cell.folder / file, column)
        curves = {seed: curve for seed, curve in curves.items() if seed not in cell.diverged}
        if curves:
            panel.plot(*mean_curve(curves), color=color, markersize=4, **style)


def _draw_final(
    panel: Any, cells: Sequence[SweptCell], across: str, text: Callable[[float], str]
) -> None:
    """Draw mean evaluations with their intervals, and each seed as a small dot."""
    lines: dict[str, list[SweptCell]] = {}
    for cell in cells:
        others = {field: value for field, value in cell.values.items() if field != across}
        label = ", ".join(f"{field}={text(value)}" for field, value in others.items())
        lines.setdefault(label, []).append(cell)
    for i, (label, members) in enumerate(lines.items()):
        members = sorted(members, key=lambda cell: cell.values[across])
        x = np.array([cell.values[across] for cell in members])
        mean = np.array([_mean(cell.returns) for cell in members])
        bounds = np.array([statistics.bounds(cell.returns) for cell in members])
        # With two seeds the t interval is about ten times their distance; omit it.
        few = np.array([len(cell.returns) < FEWEST for cell in members])
        reach = np.where(few, 0.0, np.nan_to_num(np.abs(bounds - mean[:, None]).T))
        style = {"color": f"C{i}", "capsize": 3, "marker": "o", "label": label or None}
        panel.errorbar(x, mean, yerr=reach, **style)
        for cell, value in zip(members, x, strict=True):
            seeds = np.full(len(cell.returns), value)
            panel.plot(seeds, cell.returns, ".", color=f"C{i}", alpha=0.4)
    panel.set(xlabel=across, ylabel="return of the latest evaluation", title=_title(cells))
    if panel.get_legend_handles_labels()[0] and len(lines) > 1:
        panel.legend(loc="best", framealpha=0.7, edgecolor="none", fontsize="small")


def _title(cells: Sequence[SweptCell]) -> str:
    """What lines, bars and dots of final returns are."""
    counts = [len(cell.returns) for cell in cells]
    most = max(counts, default=0)
    if most < 2:
        return "one seed"
    few = "" if min(counts) >= FEWEST else f" (of {FEWEST} seeds or more)"
    return "mean over seeds" + (f", 95 % interval{few}" if most >= FEWEST else "") + "; dots: seeds"


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.mean(finite)) if finite.size else float("nan")


def _scale(panel: Any, values: np.ndarray, text: Callable[[float], str]) -> None:
    """Set a tick at each swept value, and a logarithmic scale if they span a factor of 20."""
    positive = values[values > 0]
    # symlog instead of log because zero is a usual value of a coefficient.
    if len(positive) > 1 and np.all(values >= 0) and np.max(positive) / np.min(positive) >= 20:
        panel.set_xscale("symlog", linthresh=float(np.min(positive)), linscale=0.5)
    panel.set_xticks(values, [text(value) for value in values])
    panel.minorticks_off()
