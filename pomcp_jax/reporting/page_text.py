"""Pieces of HTML that all parts of a report share: escaped words, numbers, tables, sections."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pomcp_jax.reporting.statistics import Interval

LONG = 1e12
"""Numbers from which on powers of ten are shorter."""
DASH = "–"
"""Where there is no number."""


class Td(NamedTuple):
    """A cell of a table: HTML, and the number or text that it is sorted by."""

    inner: str
    key: float | str = ""
    kind: str = ""
    """CSS class."""


def words(text: object) -> str:
    """``text`` as HTML; quotes are escaped too, so it may be an attribute."""
    return html.escape(str(text), quote=True)


def chip(label: str, method: int) -> str:
    """A method's name with its colour."""
    return f'<span class="chip m{method}">{words(label)}</span>'


def digits(values: Sequence[float]) -> int:
    """Decimals that a column of ``values`` needs."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 0 if largest >= 1000 else 1 if largest >= 10 else 3 if largest >= 0.1 else 5


def number(value: float, decimals: int) -> str:
    """A number with thousands separators and a true minus sign."""
    if not math.isfinite(value):
        return DASH
    text = f"{value:,.{decimals}f}" if abs(value) < LONG else f"{value:.3g}"
    return text.replace("-", "\u2212")


def count(value: float) -> str:
    """A whole number."""
    return number(value, 0)


def between(interval: Interval, decimals: int) -> str:
    """``766.0 (650.1 to 880.2)``; without the brackets where there is no interval."""
    value, low, high = (number(float(part), decimals) for part in interval)
    return value if low == DASH else f'{value} <span class="ci">{low} to {high}</span>'


def hours(seconds: float) -> str:
    """``43 min``, ``3.9 h`` or ``2.1 days``."""
    if not math.isfinite(seconds):
        return DASH
    if seconds < 5400:
        return f"{max(seconds / 60, 0):.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def whisker(interval: Interval, ends: tuple[float, float], method: int) -> str:
    """A small drawing of an interval between two ends of a common axis."""
    low, high = ends
    value, bottom, top = (float(part) for part in interval)
    if not math.isfinite(value) or high <= low:
        return ""

    def place(number: float) -> str:
        return f"{min(max(100 * (number - low) / (high - low), 0), 100):.1f}"

    line = f"M{place(bottom)} 5H{place(top)}" if math.isfinite(bottom) else ""
    return (
        '<svg class="mini" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="axis" d="M0 5H100"/><path class="reach m{method}" d="{line}"/>'
        f'<path class="dot m{method}" d="M{place(value)} 5h0"/></svg>'
    )


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Td]], names: int = 1) -> str:
    """A table that the page's script sorts by any column.

    Args:
      caption: what the rows are; read out by screen readers, and shown.
      head: names of the columns.
      rows: cells; the first ``names`` are words, the others numbers.
      names: columns set to the left.
    """
    heads = "".join(
        f'<th scope="col" class="{"name" if i < names else "num"}" aria-sort="none">'
        f'<button type="button">{words(name)}</button></th>'
        for i, name in enumerate(head)
    )
    body = "".join(
        f"<tr>{''.join(_cell(cell, i < names) for i, cell in enumerate(row))}</tr>" for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{words(caption)}">'
        f'<table class="sort"><caption>{words(caption)}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Td, name: bool) -> str:
    key = cell.key
    if isinstance(key, float | int):
        # Without a number a row comes last, whichever way the column is sorted.
        key = f"{key:.9g}" if math.isfinite(key) else ""
    kinds = f"{'name' if name else 'num'} {cell.kind}".strip()
    return f'<td class="{kinds}" data-key="{words(key)}">{cell.inner}</td>'


def joined(values: Iterable[object], most: int = 2) -> str:
    """The first of all distinct values, and how many more there are."""
    every = list(dict.fromkeys(str(value) for value in values if value))
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more or DASH


def figures(parts: Iterable[str], kind: str = "") -> str:
    """Panels side by side; ``kind`` is a class of page.css."""
    return f'<div class="grid {kind}">{"".join(parts)}</div>'


def section(anchor: str, title: str, about: str, inner: str) -> str:
    """A part of the page with its heading."""
    lead = f'<p class="lead">{about}</p>' if about else ""
    return f'<section id="{anchor}"><h2>{words(title)}</h2>{lead}{inner}</section>'


def folded(anchor: str, title: str, about: str, inner: str, *, shown: bool) -> str:
    """A part of the page that can be closed."""
    lead = f'<p class="lead">{about}</p>' if about else ""
    return (
        f'<section id="{anchor}"><details{" open" if shown else ""}><summary><h2>{words(title)}'
        f"</h2></summary>{lead}{inner}</details></section>"
    )
