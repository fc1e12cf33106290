"""What a sweep found: ``summary.csv``, a table and a picture, one line or point per cell."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import grid, intervals
from experiments.grid import Axis, Cell
from pomcp_jax import files
from pomcp_jax.reporting import canvas
from pomcp_jax.reporting.curves import mean_curve, read_curves
from pomcp_jax.running import health, metrics, workdirs
from pomcp_jax.running.health import Diverged
from pomcp_jax.running.progress import number

FILES = ("sweep.json", "summary.csv", "sweep.png")
"""What a sweep leaves beside its cells' folders."""


class Outcome(NamedTuple):
    """What is known of a cell; arrays have one entry per seed."""

    cell: Cell
    planner: np.ndarray
    """Mean return of each seed's latest evaluation, NaN where there is none."""
    policy: np.ndarray
    training: np.ndarray
    diverged: dict[int, Diverged]
    """By seed number."""

    @property
    def healthy(self) -> np.ndarray:
        """``[seeds]``: the seed did not diverge."""
        return np.array([seed not in self.diverged for seed in self.cell.seeds])


def open_workdir(workdir: Path, cells: Sequence[Cell]) -> Path | None:
    """Make all folders; an earlier sweep moves aside. Returns where it went."""
    workdir.mkdir(parents=True, exist_ok=True)
    names = [cell.name for cell in cells]
    moved = workdirs.set_aside(workdir, dict.fromkeys([*FILES, *grid.held(workdir), *names]))
    for cell in cells:
        workdirs.open_workdir(grid.folder(workdir, cell), cell.config)
    files.write_json(workdir / "sweep.json", {"cells": names})
    return moved


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % confidence interval of the mean: Student's t over seeds, NaN below two of them."""
    mean, half = intervals.mean_and_half(values)
    return mean - half, mean + half


def summary_row(outcome: Outcome) -> dict[str, Any]:
    """One line of summary.csv; means are over the seeds that did not diverge."""
    healthy = outcome.healthy
    low, high = interval(outcome.planner[healthy])
    numbers = {
        "eval/return": metrics.mean(outcome.planner[healthy]),
        "eval/low": low,
        "eval/high": high,
        "eval/policy_return": metrics.mean(outcome.policy[healthy]),
        "train/return": metrics.mean(outcome.training[healthy]),
    }
    return {
        "cell": outcome.cell.name,
        **outcome.cell.values,
        "seeds": len(outcome.cell.seeds),
        **{name: value if np.isfinite(value) else "" for name, value in numbers.items()},
        "diverged_seeds": len(outcome.diverged),
        "diverged": health.describe(outcome.diverged),
    }


def write_summary(outcomes: Sequence[Outcome], path: Path) -> None:
    """Replace summary.csv."""
    rows = [summary_row(outcome) for outcome in outcomes]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, out.getvalue())


def table(outcomes: Sequence[Outcome]) -> str:
    """The summary, aligned for reading."""
    lines = [("cell", "evaluation", "95 % interval", "bare policy", "training", "diverged")]
    for outcome in outcomes:
        row = summary_row(outcome)
        shown = {k: number(v, 1) if v != "" else "-" for k, v in row.items() if "/" in k}
        between = f"{shown['eval/low']} to {shown['eval/high']}" if row["eval/low"] != "" else "-"
        lines.append(
            (
                row["cell"],
                shown["eval/return"],
                between,
                shown["eval/policy_return"],
                shown["train/return"],
                f"{row['diverged_seeds']} of {row['seeds']}" if outcome.diverged else "-",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [word.rjust(width) for word, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in lines
    )


def draw(outcomes: Sequence[Outcome], axes: Sequence[Axis], workdir: Path) -> None:
    """``sweep.png``: learning curves of all cells, final return against the swept value.

    Curves are means over the seeds that did not diverge; with several swept
    fields the right panel has the one with most values across, and a line for
    every combination of the others.

    Raises:
      ImportError: without matplotlib (``pip install pomcp_jax[run]``).
    """
    figure = canvas.figure(11.0, 4.2)
    left, right = figure.subplots(1, 2)
    import matplotlib

    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, len(outcomes)))
    for outcome, color in zip(outcomes, shades, strict=True):
        cell, folder = outcome.cell, grid.folder(workdir, outcome.cell)
        label = cell.name + (f" ({len(outcome.diverged)} diverged)" if outcome.diverged else "")
        for file, column, style in (
            ("metrics.csv", "train/return", {"linewidth": 1.5, "label": label}),
            ("evaluations.csv", "eval/return", {"linestyle": "none", "marker": "o"}),
        ):
            curves = read_curves(folder / file, column)
            curves = {k: v for k, v in curves.items() if k not in outcome.diverged}
            if curves:
                left.plot(*mean_curve(curves), color=color, markersize=4, **style)
    config = outcomes[0].cell.config
    left.set(xlabel="decisions per seed", ylabel="episode return", title=config.env.task)
    left.set_xlim(left=0)
    if len(outcomes) <= 12 and left.get_legend_handles_labels()[0]:
        left.legend(loc="best", framealpha=0.7, edgecolor="none", fontsize="small")
    _draw_final(right, outcomes, axes)
    for panel in (left, right):
        panel.grid(alpha=0.3)
    canvas.save(figure, workdir / "sweep.png")


def _draw_final(panel: Any, outcomes: Sequence[Outcome], axes: Sequence[Axis]) -> None:
    """Mean evaluation with its interval, every seed as a small dot."""
    across = max(axes, key=lambda axis: len(axis.values))
    lines: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        others = {k: v for k, v in outcome.cell.values.items() if k != across.short}
        label = ", ".join(f"{name}={grid.text(value)}" for name, value in others.items())
        lines.setdefault(label, []).append(outcome)
    for i, (label, members) in enumerate(lines.items()):
        members = sorted(members, key=lambda outcome: outcome.cell.values[across.short])
        x = np.array([outcome.cell.values[across.short] for outcome in members])
        mean = np.array([metrics.mean(o.planner[o.healthy]) for o in members])
        bounds = np.array([interval(o.planner[o.healthy]) for o in members])
        # Of two seeds it would be ten times their distance and hide everything else.
        few = np.array([np.sum(o.healthy) < 3 for o in members])
        reach = np.where(few, 0.0, np.nan_to_num(np.abs(bounds - mean[:, None]).T))
        style = {"color": f"C{i}", "capsize": 3, "marker": "o", "label": label or None}
        panel.errorbar(x, mean, yerr=reach, **style)
        for outcome, value in zip(members, x, strict=True):
            healthy = outcome.planner[outcome.healthy]
            panel.plot(np.full(len(healthy), value), healthy, ".", color=f"C{i}", alpha=0.4)
    values = np.array(across.values)
    positive = values[values > 0]
    if len(positive) > 1 and np.all(values >= 0) and np.max(positive) / np.min(positive) >= 20:
        smallest = float(np.min(positive))
        panel.set_xscale("symlog", linthresh=smallest, linscale=0.5)
    panel.set_xticks(values, [grid.text(value) for value in values])
    panel.minorticks_off()
    panel.set(
        xlabel=across.short, ylabel="return of the latest evaluation", title="mean over seeds, 95 %"
    )
    if panel.get_legend_handles_labels()[0] and len(lines) > 1:
        panel.legend(loc="best", framealpha=0.7, edgecolor="none", fontsize="small")
