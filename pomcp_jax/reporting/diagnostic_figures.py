"""Picture of a run's diagnostics (``diag/...``, docs/method.md), one panel per question."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax.config import ConfigError
from pomcp_jax.reporting import canvas
from pomcp_jax.reporting.curves import Curve, mean_curve, read_curves


class Line(NamedTuple):
    """One line of a panel."""

    column: str
    """Column of metrics.csv, without ``diag/``."""
    label: str
    share_of: tuple[str, ...] = ()
    """Columns whose sum to divide by; empty to draw the column itself."""


class Panel(NamedTuple):
    """One panel of the picture."""

    title: str
    lines: tuple[Line, ...]
    scale: str = "linear"
    """Scale of the vertical axis, by matplotlib's name."""


_GRADIENTS = ("gradient_value", "gradient_kl", "gradient_entropy")
PANELS = (
    Panel(
        "value error: estimate - return",
        (Line("value_error_planner", "planner"), Line("value_error_critic", "critic")),
        "symlog",
    ),
    Panel(
        "value error, relative",
        (
            Line("value_error_relative_planner", "planner"),
            Line("value_error_relative_critic", "critic"),
        ),
    ),
    Panel(
        "KL at acting states, nats",
        (Line("kl_policy_planner", "policy‖planner"), Line("kl_planner_policy", "planner‖policy")),
        "log",
    ),
    Panel(
        "KL to stored records, nats",
        (Line("kl_policy_record", "policy‖record"), Line("kl_record_policy", "record‖policy")),
        "log",
    ),
    Panel(
        "distance of modes",
        (Line("distance_planner", "acting states"), Line("distance_record", "stored records")),
    ),
    Panel(
        "age of records, updates",
        (Line("record_age", "mean"), Line("record_age_p95", "95th percentile")),
    ),
    Panel(
        "policy gradient: signal / noise",
        (Line("snr", "own prior"), Line("snr_stored", "records as prior")),
        "symlog",
    ),
    Panel(
        "its KL term: signal / noise",
        (Line("snr_kl", "own prior"), Line("snr_kl_stored", "records as prior")),
        "symlog",
    ),
    Panel(
        "share of the policy gradient",
        tuple(Line(name, name.removeprefix("gradient_"), _GRADIENTS) for name in _GRADIENTS),
    ),
    Panel(
        "cosine with the policy gradient",
        tuple(Line(f"cosine_{name}", name) for name in ("value", "kl", "entropy")),
    ),
)
STYLES = ("-", "--", ":")


def curves(run: Path, line: Line) -> dict[int, Curve]:
    """``{seed: curve}`` of a line from the run's metrics.csv; empty if it is not defined."""
    by_seed = read_curves(run / "metrics.csv", f"diag/{line.column}")
    if not line.share_of:
        return by_seed
    parts = [read_curves(run / "metrics.csv", f"diag/{name}") for name in line.share_of]
    out = {}
    for seed, curve in by_seed.items():
        total = np.sum([part[seed].values for part in parts], axis=0)
        # The share of a vanishing sum is undefined.
        known = total > 0
        if known.any():
            out[seed] = Curve(curve.decisions[known], curve.values[known] / total[known])
    return out


def draw(runs: list[Path], out: Path, labels: list[str] | None = None) -> None:
    """Write one picture with a panel per question; colours distinguish runs, dashes lines.

    Runs with the same label count as seeds of one run. Bold lines are means over seeds, thin
    lines are seeds. If there is only one group, colours distinguish lines.

    Raises:
      ImportError: without matplotlib (``pip install pomcp_jax[run]``).
      ValueError: if no run holds any diagnostics.
    """
    canvas.check_format(out)
    groups: dict[str, list[Path]] = {}
    for i, run in enumerate(runs):
        groups.setdefault(labels[i] if labels else f"{run}", []).append(run)
    alone, drawn = len(groups) == 1, False
    figure = canvas.figure(17, 6.2)
    grid = figure.subplots(2, 5)
    for axes, panel in zip(grid.flat, PANELS, strict=True):
        for i, members in enumerate(groups.values()):
            for j, line in enumerate(panel.lines):
                by_seed = {
                    (run, seed): curve
                    for run in members
                    for seed, curve in curves(run, line).items()
                }
                drawn |= _line(axes, by_seed, f"C{j if alone else i}", STYLES[j])
        _finish(axes, panel, alone=alone)
    if not drawn:
        shown = ", ".join(str(run) for run in runs)
        raise ConfigError(f"{shown}: metrics.csv has no diagnostics; needs an evaluation")
    if not alone:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=f"C{i}") for i in range(len(groups))]
        figure.legend(handles, list(groups), loc="outside lower center", ncols=4, frameon=False)
    canvas.save(figure, out)


def _line(axes: Any, by_seed: dict[Any, Curve], color: str, style: str) -> bool:
    """Draw one quantity of one group; returns whether there was any."""
    if not by_seed:
        return False
    if len(by_seed) > 1:
        for curve in by_seed.values():
            axes.plot(*curve, style, color=color, alpha=0.25, linewidth=0.8)
    mean = mean_curve(by_seed)
    axes.plot(*mean, style, color=color, linewidth=1.6, marker="o", markersize=2.5)
    return True


def _finish(axes: Any, panel: Panel, *, alone: bool) -> None:
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("decisions per seed", fontsize=8)
    axes.tick_params(which="both", labelsize=8)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.set_yscale(panel.scale)
    if panel.scale != "log":
        axes.axhline(0.0, color="black", linewidth=0.6)
    # Empty lines for the legend: with several groups the dashes mean the same in every colour.
    for j, line in enumerate(panel.lines):
        color = f"C{j}" if alone else "black"
        axes.plot([], [], STYLES[j], color=color, label=line.label)
    axes.legend(fontsize=7, frameon=False)
