"""Pictures that compare methods: a panel for every task, legible at a column's width."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax.config import ConfigError
from pomcp_jax.reporting import canvas, palette
from pomcp_jax.reporting.comparison import BANDS, RETURN, Panel
from pomcp_jax.reporting.figures import compact
from pomcp_jax.reporting.published import SLACK, Published, of_task

MARKERS = "os^Dv<>p"
"""Of published curves."""
NARROW = 4.5
"""Width in inches below which text is set in 7 points."""
PANEL = 3.4, 2.5
"""Size of a panel in inches where the picture's size is free."""
COLUMNS = 3
LEAST = 2.2
"""Least width of a panel in inches."""
FEW = 30
"""Most points of a line that are marked."""
MANY = 6
"""Methods beyond which a panel has faint bands, no marks and no training returns."""
WORDS = {"frames": "environment frames", "decisions": "decisions per seed", "hours": "hours"}
DPI = 300
LOWEST = 0.6
"""Least height and width of a panel's axes in inches."""


class Look(NamedTuple):
    """How a picture looks."""

    x: str
    """A key of :data:`WORDS`."""
    band: str
    """A key of :data:`pomcp_jax.reporting.comparison.BANDS`."""
    size: tuple[float, float] | None = None
    """Width and height in inches; None chooses by the number of panels."""
    known: Sequence[str] = ()
    """Methods that have the same colour in every picture; see :func:`palette.places`."""


def draw(panels: Sequence[Panel], out: Path, look: Look, beside: Sequence[Published] = ()) -> None:
    """Write one picture of ``panels``.

    Args:
      panels: tasks and metrics with their lines.
      out: file to replace; its suffix is its format.
      look: axis, band and size.
      beside: published curves of returns, drawn as points in the panels of their tasks.

    Raises:
      ImportError: without matplotlib (``pip install pomcp_jax[run]``).
      ValueError: for a suffix that is no format.
      OSError: the file cannot be written.
    """
    canvas.check_format(out)
    columns = _columns(panels, look.size)
    rows = math.ceil(len(panels) / columns)
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    others = [curve for panel in panels for curve in _shown(panel, beside, look.x)]
    place = palette.places([*labels, *sorted({curve.method for curve in others})], look.known)
    styles = {label: palette.style(place[label]) for label in labels}
    marks = _published_styles(others, place)
    width, height = look.size or _free_size(len(panels), rows, columns, len(labels))
    font = 7 if width < NARROW else 8
    figure = canvas.figure(width, height)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, ax in zip(panels, axes, strict=False):
        _panel(ax, panel, styles, look)
        for curve in _shown(panel, beside, look.x):
            _points(ax, curve, marks[curve.label], panel.repeat if look.x == "decisions" else 1)
        _finish(ax, panel, look.x, font)
    for i, ax in enumerate(axes):
        if i >= len(panels):
            ax.set_axis_off()
        elif i + columns < len(panels):  # the panel below says it
            ax.set_xlabel("")
        if i % columns and len({panel.metric for panel in panels}) == 1:
            ax.set_ylabel("")
    _legend(figure, axes, _caption(panels, look, others), font, width)
    if look.size:
        _check_room(figure, axes[0], rows)
    canvas.save(figure, out, dpi=DPI)


def _columns(panels: Sequence[Panel], size: tuple[float, float] | None) -> int:
    """Panels a row: a task's metrics side by side where they fit."""
    most = COLUMNS if size is None else max(1, int(size[0] / LEAST))
    metrics = len({panel.metric for panel in panels})
    if 1 < metrics <= most and len(panels) > metrics:
        return metrics
    return min(most, len(panels))


def _free_size(panels: int, rows: int, columns: int, labels: int) -> tuple[float, float]:
    if panels == 1:
        return 6.0, 3.6 + 0.17 * math.ceil(labels / 4)
    width = PANEL[0] * columns
    return width, PANEL[1] * rows + 0.3 + 0.17 * math.ceil(labels / (2 * columns))


def crowded(panel: Panel) -> bool:
    """Whether a panel has more than :data:`MANY` methods."""
    return len(panel.lines) > MANY


def _check_room(figure: Any, ax: Any, rows: int) -> None:
    """Refuse a size that legend and labels leave no room in.

    Raises:
      ConfigError: one line with the height that is enough.
    """
    width, height = figure.get_size_inches()
    with warnings.catch_warnings():
        # Axes that collapse to nothing are reported as a warning, and then overlap.
        warnings.simplefilter("ignore", UserWarning)
        figure.draw_without_rendering()
    place = ax.get_position()
    collapsed = place.height * height > height / rows
    if not collapsed and min(place.width * width, place.height * height) >= LOWEST:
        return
    raise ConfigError(
        f"--size = {width:g}x{height:g}: leaves no room for the panels above the legend; must"
        f" be higher, for example {max(width, 2):g}x{height + rows:g}"
    )


def _panel(ax: Any, panel: Panel, styles: dict[str, dict[str, Any]], look: Look) -> None:
    """Bands first, then training, then lines: a band must not hide another method's line."""
    many = crowded(panel)
    for line in panel.lines:
        if line.band:
            color, alpha = styles[line.label]["color"], 0.08 if many else 0.18
            ax.fill_between(line.x, *line.band, color=color, alpha=alpha, linewidth=0)
    for line in panel.lines:
        if line.training and not many:
            ax.plot(*line.training, linewidth=0.5, alpha=0.6, **styles[line.label])
    for line in panel.lines:
        # Marks fill the gaps of dashes; a single point would be invisible without one.
        marked = len(line.x) == 1 or (len(line.x) <= FEW and not many)
        kind = styles[line.label] | {"marker": "o" if marked else "", "markersize": 2}
        ax.plot(line.x, line.mean, linewidth=1.3, label=_plain(line.label), **kind)


def _plain(label: str) -> str:
    """A label as it is: matplotlib sets ``$`` as maths and hides what begins with ``_``."""
    return label.replace("$", r"\$") if label[:1] != "_" else " " + label.replace("$", r"\$")


def _shown(panel: Panel, beside: Sequence[Published], x: str) -> list[Published]:
    """Published curves up to where ours end, but their first evaluation in training at least."""
    if panel.metric != RETURN:
        return []
    scale = panel.repeat if x == "decisions" else 1
    end = max(float(line.x[-1]) for line in panel.lines) * scale * (1 + SLACK)
    out = []
    for curve in of_task(list(beside), panel.task):
        count = int(np.sum(curve.frames <= max(end, float(curve.until(1).frames[-1]))))
        parts = {name: getattr(curve, name)[:count] for name in ("frames", "mean", "std")}
        out.append(curve._replace(**parts))
    return out


def _published_styles(
    curves: Sequence[Published], places: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Colour and mark by label: the colour is that of the method in every picture."""
    names = {curve.label: curve.method for curve in curves}
    return {
        label: {
            "color": palette.style(places[names[label]])["color"],
            "marker": MARKERS[i % len(MARKERS)],
        }
        for i, label in enumerate(sorted(names))
    }


def _points(ax: Any, curve: Published, mark: dict[str, Any], scale: int) -> None:
    """A published curve; ``scale`` is frames per unit of the axis."""
    ax.plot(
        curve.frames / scale, curve.mean, linestyle="none", markersize=4, clip_on=False,
        markerfacecolor="none", markeredgewidth=0.9, label=f"{curve.label}, published", **mark,
    )  # fmt: skip


def _finish(ax: Any, panel: Panel, x: str, font: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.set_title(panel.task, fontsize=font + 1, pad=3)
    ax.set_xlabel(WORDS[x], fontsize=font)
    ax.set_ylabel("episode return" if panel.metric == RETURN else panel.metric, fontsize=font)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    if x != "hours":
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    ax.set_xlim(left=0)
    _limit(ax, panel)
    ax.tick_params(labelsize=font, length=2, pad=2)
    ax.grid(alpha=0.25, linewidth=0.5)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _limit(ax: Any, panel: Panel) -> None:
    """Vertical limits by seeds and lines: the t interval of few seeds would dwarf them."""
    drawn = [line.get_ydata() for line in ax.get_lines()]
    low, high = ax.get_ylim()
    ends = np.concatenate([*drawn, *(line.extent for line in panel.lines)])
    margin = 0.05 * max(float(np.ptp(ends)), 1e-9 * float(np.abs(ends).max()))
    if margin > 0:
        ax.set_ylim(max(low, ends.min() - margin), min(high, ends.max() + margin))


def _caption(panels: Sequence[Panel], look: Look, others: Sequence[Published]) -> str:
    """What lines, bands, thin lines and points are."""
    lines = [line for panel in panels for line in panel.lines]
    seeds = sorted({line.seeds for line in lines})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    band = f" and {BANDS[look.band]}" if any(line.band for line in lines) else ""
    text = f"mean{band} of {count} seeds" if seeds != [1] else "one seed"
    if any(line.training and not crowded(panel) for panel in panels for line in panel.lines):
        text += "; thin: training"
    every = {float(np.median(np.diff(c.frames))) for c in others if len(c.frames) > 1}
    steps = [compact(step) for step in sorted(every)]
    if steps:
        between = steps[0] if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        text += f"\npoints: published, every {between} frames"
    return text


def legend_columns(labels: Sequence[str], width: float) -> int:
    """Columns of a legend that fits ``width``, in sizes of its font: few rows, then few columns."""

    def needed(count: int) -> float:
        rows, extra = divmod(len(labels), count)
        ends = np.cumsum([rows + (i < extra) for i in range(count)])
        # A letter is about half as wide as high; handle and gaps take four heights.
        longest = [
            max(map(len, column)) for column in np.split(np.array(labels, object), ends[:-1])
        ]
        return sum(0.55 * letters + 4 for letters in longest)

    most = max((n for n in range(1, len(labels) + 1) if needed(n) <= width), default=1)
    return math.ceil(len(labels) / math.ceil(len(labels) / most))


def _legend(figure: Any, axes: Sequence[Any], title: str, font: int, width: float) -> None:
    """One legend for all panels below them, published curves last."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    order = sorted(handles, key=lambda label: ", published" in label)
    legend = figure.legend(
        [handles[label] for label in order], order, loc="outside lower center", frameon=False,
        ncols=legend_columns(order, width * 72 / font), fontsize=font, title=title,
        title_fontsize=font, columnspacing=1.0, handlelength=2.4, handletextpad=0.5,
        labelspacing=0.25, borderpad=0.1,
    )  # fmt: skip
    legend.get_title().set_multialignment("center")
