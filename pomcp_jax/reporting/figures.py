"""Picture of a result set: a panel for each task, and the aggregate over tasks."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pomcp_jax.reporting import canvas, palette, published, result_sets, scores, statistics
from pomcp_jax.reporting.published import Published
from pomcp_jax.reporting.result_sets import Runs

WIDTH, HEIGHT, COLUMNS = 3.6, 2.9, 3
"""Width and height of a panel in inches, and panels per row."""
FONT = 8
MOST = 60
"""Tasks with a panel each; a picture of more has the panels of all tasks together only."""
STYLES = ("--", ":")
"""Styles of published curves: from the method's authors, and from others who ran it."""


def compact(value: float) -> str:
    """``0``, ``500``, ``40k``, ``1.5M``."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.10g}{unit}"
    return f"{value:.10g}"


def colors(
    names: Sequence[str], curves_drawn: Sequence[Published], known: Sequence[str] = ()
) -> dict[str, str]:
    """Colour of each method, the same for our runs and published ones (:mod:`palette`)."""
    place = palette.places([*names, *sorted(curve.method for curve in curves_drawn)], known)
    return {name: palette.color(i) for name, i in place.items()}


def _published(axes: Any, curve: Published, color: str, band: bool) -> None:
    """Draw a published curve; the part before its first evaluation during training is faint."""
    style = STYLES[curve.source != curve.method]
    # That part joins the untrained agent to the first evaluation; nothing was measured between.
    first = int(np.sum(curve.frames <= 0))
    name = f"{curve.label} (published)"
    frames, mean = curve.frames, curve.mean
    axes.plot(frames[: first + 1], mean[: first + 1], style, color=color, linewidth=0.8, alpha=0.3)
    frames, mean, std = frames[first:], mean[first:], curve.std[first:]
    axes.plot(frames, mean, f".{style}", color=color, linewidth=1, markersize=4, label=name)
    if not band:
        return
    # Returns of dm_control are bounded; the normal approximation's band need not be.
    low, high = (np.clip(mean + sign * 2 * std, 0, statistics.MAX_RETURN) for sign in (-1, 1))
    if len(frames) > 1:
        axes.fill_between(frames, low, high, color=color, alpha=0.08, linewidth=0)
    else:  # a band over a single point would be invisible
        axes.vlines(frames, low, high, color=color, linewidth=5, alpha=0.2)


def _task(
    axes: Any,
    many: list[Runs],
    others: list[Published],
    color: dict[str, str],
    bands: Sequence[str],
) -> None:
    """Draw our methods on one task, and its published curves, over frames."""
    end = max(runs.frames for runs in many)
    # Show the first published evaluation even if our runs end before it.
    end = max([end, *(float(other.until(1).frames[-1]) for other in others)])
    for other in others:
        _published(axes, other.until(end), color[other.method], other.source in bands)
    axes.set_xlim(0, end * 1.04)
    for runs in many:
        frames = result_sets.grid([runs])
        values = runs.on(frames)
        shade = color[runs.method]
        axes.fill_between(
            frames, values.min(axis=0), values.max(axis=0), color=shade, alpha=0.2, linewidth=0
        )
        axes.plot(frames, values.mean(axis=0), color=shade, linewidth=1.8, label=runs.method)
    axes.set_title(many[0].task, fontsize=FONT + 1)
    axes.set_ylabel("episode return", fontsize=FONT)
    repeats = {runs.repeat for runs in many}
    if len(repeats) == 1 and (repeat := repeats.pop()) > 1:
        top = axes.secondary_xaxis("top", functions=(lambda x: x / repeat, lambda x: x * repeat))
        top.xaxis.set_major_formatter(lambda value, _: compact(value))
        top.set_xlabel("decisions", fontsize=FONT - 1)
        top.tick_params(labelsize=FONT - 1)


def _formula(many: dict[str, list[Runs]]) -> str:
    return scores.formula(runs.task for members in many.values() for runs in members)


def _aggregate(axes: Any, many: dict[str, list[Runs]], color: dict[str, str]) -> None:
    """Draw the IQM over tasks and seeds, over frames."""
    for method, members in many.items():
        frames, interval = result_sets.aggregate(members)
        axes.fill_between(
            frames, interval.low, interval.high, color=color[method], alpha=0.2, linewidth=0
        )
        axes.plot(frames, interval.value, color=color[method], linewidth=1.8, label=method)
    axes.set_title(
        f"all tasks ({len({r.task for m in many.values() for r in m})})", fontsize=FONT + 1
    )
    axes.set_ylabel(f"IQM of {_formula(many)}", fontsize=FONT)


def _intervals(axes: Any, many: dict[str, list[Runs]], color: dict[str, str]) -> None:
    """Draw the IQM of final returns as one interval per method, the best on top."""
    rows = sorted(
        ((result_sets.final_aggregate(members), method) for method, members in many.items()),
        key=lambda row: float(row[0].value[0]),
    )
    for y, (interval, method) in enumerate(rows):
        value, low, high = (float(part[0]) for part in interval)
        axes.barh(y, high - low, left=low, height=0.55, color=color[method], alpha=0.35)
        axes.plot([value, value], [y - 0.275, y + 0.275], color=color[method], linewidth=2.5)
        axes.text(high, y, f" {value:.3f}", ha="left", va="center", fontsize=FONT - 1)
    axes.set_yticks(range(len(rows)), [method for _, method in rows])
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.set_title("at the end", fontsize=FONT + 1)
    axes.set_xlabel(f"IQM of {_formula(many)}", fontsize=FONT)
    axes.use_sticky_edges = False
    axes.margins(x=0.16)
    axes.grid(axis="x", alpha=0.3)


def draw(
    results: Path,
    out: Path,
    returns: str = "evaluation",
    beside: Sequence[Published] = (),
    bands: Sequence[str] = (),
    known: Sequence[str] = (),
) -> None:
    """Write one picture of all finished cells below ``results``.

    Lines are means over seeds, and bands extend from the lowest to the highest seed. Aggregates
    are interquartile means with 95 % stratified-bootstrap intervals, for methods with runs of all
    tasks. Published curves are thin.

    More than :data:`MOST` tasks get no panel each, only those of all together.

    Args:
      results: folder written by :mod:`experiments.reproduce`.
      out: the picture; its suffix is its format.
      returns: a key of :data:`pomcp_jax.reporting.result_sets.SOURCES`.
      beside: published curves to draw as well.
      bands: sources of published curves whose ±2 std is also drawn.
      known: methods that have the same colour in every picture.

    Raises:
      ConfigError: one line about the results.
      ImportError: without matplotlib (``pip install pomcp_jax[run]``).
    """
    all_runs, _ = result_sets.load(results, returns)
    canvas.check_format(out)
    beside = list(beside)
    by_task = _by_task(all_runs)
    tasks, many = list(by_task) if len(by_task) <= MOST else [], result_sets.methods(all_runs)
    drawn = [curve for task in tasks for curve in published.of_task(beside, task)]
    color = colors(list(many), drawn, known)
    panels = len(tasks) + 2
    columns = min(COLUMNS, panels)
    rows = math.ceil(panels / columns)
    figure = canvas.figure(WIDTH * columns, HEIGHT * rows + 0.9)
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = list(grid.flat)
    for task, ax in zip(tasks, axes, strict=False):
        _task(ax, by_task[task], published.of_task(beside, task), color, bands)
    # Tasks differ in difficulty: a method without runs of the hard ones would look better.
    complete = result_sets.complete(many)
    _aggregate(axes[len(tasks)], complete, color)
    axes[len(tasks)].set_xlim(left=0)
    for ax in axes[: len(tasks) + 1]:
        ax.set_xlabel("environment frames", fontsize=FONT)
        ax.xaxis.set_major_formatter(lambda value, _: compact(value))
        ax.grid(alpha=0.3)
    _intervals(axes[len(tasks) + 1], complete, color)
    for ax in axes:
        ax.tick_params(labelsize=FONT)
    for ax in axes[panels:]:
        ax.set_axis_off()
    title = _title(all_runs, returns, bands, bool(drawn)) + "; no panels of tasks" * (not tasks)
    figure.suptitle(title, fontsize=FONT + 1)
    _legend(figure, axes)
    canvas.save(figure, out)


def _by_task(all_runs: Sequence[Runs]) -> dict[str, list[Runs]]:
    """Runs by task, in their order."""
    found: dict[str, list[Runs]] = {}
    for runs in all_runs:
        found.setdefault(runs.task, []).append(runs)
    return found


def _title(runs: Sequence[Runs], returns: str, bands: Sequence[str], published: bool) -> str:
    """Title that explains what is drawn, in one line."""
    seeds = sorted({len(r.seeds) for r in runs})
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    thin = "; dashed, dotted: published" if published else ""
    thin += f" (±2 std: {', '.join(bands)})" if published and bands else ""
    return (
        f"{returns} returns, mean and range of {count} seeds{thin};"
        " all tasks: IQM with 95 % bootstrap intervals"
    )


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    """Draw one legend for all panels, published curves last."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    order = sorted(handles, key=lambda label: ("(published)" in label, label))
    figure.legend(
        [handles[label] for label in order],
        order,
        loc="outside lower center",
        ncols=min(4, len(order)),
        frameon=False,
        fontsize=FONT,
    )
