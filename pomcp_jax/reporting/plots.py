"""Plots as HTML: vector marks that stretch with the page beside tick labels that are text.

Coordinates are whole numbers on a canvas of :data:`WIDTH` x :data:`HEIGHT` units that the browser
stretches; lines keep their width in pixels (``vector-effect`` in page.css). Colours are those of
CSS classes: ``m3`` is the fourth method, ``k-planner`` a kind of line.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pomcp_jax.reporting.figures import compact

WIDTH, HEIGHT = 2000, 1000
"""Units of a canvas; fine enough that a pointer reads values to 0.1 % of the axis."""
MARGIN = 0.04
"""Room above and below the values, as a share of their range."""
EXPONENT = 150.0
"""Largest power of ten of an axis; beyond it differences and squares overflow."""
DECADES = 2.0
"""Powers of ten that positive values span on a logarithmic axis, at least."""
OUTLIER = 50.0
"""Largest value in units of the median, beyond which an axis is compressed."""
BEYOND = 1.02
"""Length of a horizontal axis in units of where the last line ends."""
TICKS = 5


class Scale(NamedTuple):
    """An axis: where values lie between its two ends."""

    kind: str
    """``linear``, ``log``, or ``asinh``: linear around zero and logarithmic far from it."""
    low: float
    high: float
    unit: float = 1.0
    """Extent of the linear part of ``asinh``."""

    def place(self, values: np.ndarray) -> np.ndarray:
        """Share of the axis, 0 at its low end and 1 at its high end."""
        low, high = self._bent(np.array([self.low, self.high]))
        return (self._bent(np.asarray(values, float)) - low) / (high - low)

    def _bent(self, values: np.ndarray) -> np.ndarray:
        if self.kind == "log":
            # Bands may reach below what a logarithm has; they end far outside of the axis.
            return np.log10(np.maximum(values, 10**-EXPONENT))
        return np.arcsinh(values / self.unit) if self.kind == "asinh" else values

    @property
    def text(self) -> str:
        """For the script of the page."""
        return f"{self.kind},{self.low:.7g},{self.high:.7g},{self.unit:.7g}"


class Mark(NamedTuple):
    """One line of a plot with its band, or single points; arrays are [T]."""

    method: int
    """Place among the methods of the page."""
    kind: str
    """``planner``, ``policy``, ``training``, ``published``, ``seed``, or ``mean`` of a metric."""
    x: np.ndarray
    y: np.ndarray
    band: tuple[np.ndarray, np.ndarray] | None = None
    """Low and high end."""
    points: bool = False
    """Whether points are drawn, and no line."""


class Plot(NamedTuple):
    """A panel."""

    title: str
    about: str
    """What is drawn, in a few words."""
    marks: Sequence[Mark]
    x: Scale
    y: Scale
    axis: str
    """Words at the horizontal axis."""
    task: str = ""
    """Its task, by which a page filters; empty for all."""
    labels: Sequence[tuple[float, str]] = ()
    """Words in place of numbers at the horizontal axis, with their values."""


def linear(values: np.ndarray, *, zero: bool = False) -> Scale:
    """A linear axis for finite ``values``; with ``zero`` it begins at zero where that is near."""
    low, high = _ends(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.1 * abs(high) or 1.0
        return Scale("linear", low - room, high + room)
    room = MARGIN * (high - low)
    bottom, top = low - room, high + room
    if low >= 0:  # what cannot be negative has no room below zero
        bottom = 0.0 if zero and low < 0.5 * high else max(bottom, 0.0)
    return Scale("linear", bottom, min(top, 0.0) if high <= 0 else top)


def upwards(end: float) -> Scale:
    """A linear axis from zero to a little beyond ``end``."""
    return Scale("linear", 0.0, end * BEYOND if end > 0 else 1.0)


def _ends(values: np.ndarray) -> tuple[float, float]:
    largest = 10**EXPONENT
    low, high = np.clip([np.min(values), np.max(values)], -largest, largest)
    return float(low), float(high)


def fitting(values: np.ndarray) -> Scale:
    """The axis on which finite ``values`` can be told apart: linear, logarithmic or compressed."""
    low, high = _ends(values)
    if low > 0 and math.log10(high) - math.log10(low) >= DECADES:
        first, last = math.log10(low), math.log10(high)
        room = MARGIN * (last - first)
        return Scale("log", 10 ** max(first - room, -EXPONENT), 10 ** min(last + room, EXPONENT))
    size = np.abs(values)
    middle = float(np.median(size))
    if middle > 0 and float(np.max(size)) > OUTLIER * middle:
        ends = Scale("asinh", low, high, middle)
        room = MARGIN * float(np.arcsinh(high / middle) - np.arcsinh(low / middle))
        low, high = (
            middle * math.sinh(math.asinh(end / middle) + sign * room)
            for end, sign in ((low, -1), (high, 1))
        )
        return ends._replace(low=low, high=high)
    return linear(values)


def ticks(scale: Scale, count: int = TICKS) -> list[float]:
    """At most ``count`` + 1 round numbers within an axis."""
    low, high = scale.low, scale.high
    if scale.kind == "linear":
        rough = (high - low) / count
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * 0.999)
        return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    if scale.kind == "log":
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        every = max(1, math.ceil((last - first + 1) / count))
        return [10.0**k for k in range(first, last + 1, every)]
    return _compressed(scale)


def _compressed(scale: Scale) -> list[float]:
    """Zero and powers of ten on both sides of it, as many as do not collide."""
    ends = max(abs(scale.low), abs(scale.high))
    first, last = math.floor(math.log10(scale.unit)), math.floor(math.log10(ends))
    sizes = [10.0**k for k in range(last, first - 1, -1)]
    found: list[float] = []
    for value in [0.0, *(sign * size for size in sizes for sign in (1, -1))]:
        places = scale.place(np.array([value, *found]))
        inside = scale.low <= value <= scale.high
        if inside and all(abs(places[0] - other) >= 0.9 / TICKS for other in places[1:]):
            found.append(value)
    return sorted(found)


def draw(plot: Plot, alt: str, *, keyboard: bool = False) -> str:
    """``<figure>`` of a plot.

    Args:
      plot: what to draw.
      alt: its content in words.
      keyboard: whether it can be focused and read with arrow keys.
    """
    about = f" <span>{html.escape(plot.about)}</span>" if plot.about else ""
    title = f"<b>{html.escape(plot.title)}</b>" if plot.title else ""
    compressed = {"log": "log scale", "asinh": "compressed scale"}.get(plot.y.kind, "")
    about += f' <span class="scale">{compressed}</span>' if compressed else ""
    focus = ' tabindex="0"' if keyboard else ""
    task = f' data-task="{html.escape(plot.task)}"' if plot.task else ""
    return (
        f'<figure class="plot"{task}><figcaption>{title}{about}'
        f'</figcaption><div class="area" data-x="{plot.x.text}" data-y="{plot.y.text}"{focus}>'
        f"{_y_labels(plot.y)}{_canvas(plot, alt)}{_x_labels(plot)}</div></figure>"
    )


def _y_labels(scale: Scale) -> str:
    values = ticks(scale)
    spans = [
        f'<i style="top:{100 * (1 - place):.2f}%">{_number(value)}</i>'
        for value, place in zip(values, scale.place(np.array(values)), strict=True)
    ]
    return f'<div class="ys" aria-hidden="true">{"".join(spans)}</div>'


def _x_labels(plot: Plot) -> str:
    pairs = plot.labels or [(value, compact(value)) for value in ticks(plot.x)]
    places = plot.x.place(np.array([value for value, _ in pairs]))
    spans = [
        f'<i style="left:{100 * place:.2f}%">{html.escape(text)}</i>'
        for (_, text), place in zip(pairs, places, strict=True)
    ]
    axis = f"<b>{html.escape(plot.axis)}</b>" if plot.axis else ""
    return f'<div class="xs" aria-hidden="true">{"".join(spans)}{axis}</div>'


def _number(value: float) -> str:
    """A tick's number, short: ``1e-5``, ``0.25``, ``40k``, with a true minus sign."""
    return compact(float(f"{value:.6g}")).replace("e-0", "e-").replace("-", "\u2212")


def _canvas(plot: Plot, alt: str) -> str:
    rows = HEIGHT * (1 - plot.y.place(np.array(ticks(plot.y))))
    grid = "".join(f"M0 {y:.0f}h{WIDTH}" for y in rows)
    parts = [f'<path class="grid" d="{grid}"/>']
    if plot.y.kind != "log" and plot.y.low < 0 < plot.y.high:
        zero = float(HEIGHT * (1 - plot.y.place(np.zeros(1))[0]))
        parts.append(f'<path class="zero" d="M0 {zero:.0f}h{WIDTH}"/>')
    # Bands first: a band must not hide another method's line.
    parts += [_band(mark, plot) for mark in plot.marks if mark.band is not None]
    parts += [_line(mark, plot) for mark in plot.marks]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{html.escape(alt)}">{"".join(parts)}</svg>'
    )


def _band(mark: Mark, plot: Plot) -> str:
    assert mark.band is not None
    low, high = (_units(mark.x, end, plot) for end in mark.band)
    if mark.points:  # a whisker for each point
        whiskers = [
            f"M{x} {top}V{bottom}"
            for (x, top), (_, bottom) in zip(high.tolist(), low.tolist(), strict=True)
        ]
        return f'<path class="whisker m{mark.method} k-{mark.kind}" d="{"".join(whiskers)}"/>'
    around = np.concatenate([high, low[::-1]])
    return f'<path class="band m{mark.method} k-{mark.kind} k-bands" d="{_path(around)}z"/>'


def _line(mark: Mark, plot: Plot) -> str:
    units = _units(mark.x, mark.y, plot)
    if mark.points or len(units) == 1:
        # Lines without length are drawn as their caps: round or square, whatever the stretch.
        dots = "".join(f"M{x} {y}h0" for x, y in units.tolist())
        inner = f'<path class="hole k-{mark.kind} m{mark.method}" d="{dots}"/>'
        ring = inner if mark.kind == "published" else ""
        return f'<path class="dot m{mark.method} k-{mark.kind}" d="{dots}"/>{ring}'
    return f'<path class="line m{mark.method} k-{mark.kind}" d="{_path(units)}"/>'


def _units(x: np.ndarray, y: np.ndarray, plot: Plot) -> np.ndarray:
    """Canvas units [T, 2] as whole numbers; what is outside is drawn at the edge."""
    # Intervals of few seeds reach far outside; the axis is that of the seeds themselves.
    places = np.stack([plot.x.place(x), 1 - plot.y.place(y)], axis=-1)
    return np.rint(np.clip(np.nan_to_num(places), 0, 1) * [WIDTH, HEIGHT]).astype(int)


def _path(units: np.ndarray) -> str:
    """Relative steps of whole numbers, the shortest form of a path."""
    (x, y), steps = units[0].tolist(), np.diff(units, axis=0).tolist()
    return f"M{x} {y}l" + "".join(
        f"{' ' if i and dx >= 0 else ''}{dx}{' ' if dy >= 0 else ''}{dy}"
        for i, (dx, dy) in enumerate(steps)
    )
