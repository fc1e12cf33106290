"""A report as one HTML file without anything from the network: :func:`render`.

The page is complete without JavaScript; its script adds values under the pointer, tables that
sort, and lines that can be hidden.
"""

import base64
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax.reporting import (
    page_curves,
    page_results,
    page_settings,
    page_style,
    page_text,
    plots,
    report_data,
)
from pomcp_jax.reporting.comparison import Loaded
from pomcp_jax.reporting.page_settings import Base
from pomcp_jax.reporting.page_text import DASH, figures, joined, words
from pomcp_jax.reporting.published import Published, of_task
from pomcp_jax.reporting.report_data import Entry, Group

MIME = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}
"""Suffixes of films that a page embeds."""
KINDS = {
    "planner": "planner", "policy": "bare policy", "training": "training",
    "published": "published", "seed": "seeds", "bands": "bands",
}  # fmt: skip
"""What can be hidden, with its words in the legend."""
LINES = {
    "planner": "Lines are means over seeds of the planner’s evaluations.",
    "bands": "Bands are 95 % intervals of the mean (of three seeds or more).",
    "seed": "Fainter lines are seeds.",
    "training": "Thin lines are training episodes, with exploration noise.",
    "policy": "Squares and dotted lines are the bare policy.",
    "published": "Rings are published means, with ± 2 standard deviations.",
}
"""What is drawn of returns, by kind."""


class Film(NamedTuple):
    """A film to embed."""

    name: str
    suffix: str
    data: bytes


class Report(NamedTuple):
    """Everything that a page is made of."""

    folders: Sequence[Path]
    """As they were named."""
    loaded: Sequence[Loaded]
    bases: Mapping[Path, Base]
    """By folder of a run."""
    published: Sequence[Published]
    known: Sequence[str]
    """Methods that have the same colour in every picture; see :func:`palette.places`."""
    films: Sequence[Film]
    notes: Sequence[str]
    command: str
    """What makes this page."""
    made: str
    """When, and by which version."""
    max_return: float | None
    """What returns are divided by in aggregates; None: by :func:`scores.scale`."""


def render(report: Report) -> str:
    """The page.

    Raises:
      ConfigError: one line about runs that cannot be shown.
    """
    # Returns that a diverging critic or a broken table made enormous are shown, without warnings.
    with np.errstate(over="ignore", invalid="ignore"):
        return _render(report)


def _render(report: Report) -> str:
    found = report_data.groups(report.loaded)
    tasks = dict.fromkeys(group.task for group in found)
    beside = [curve for task in tasks for curve in of_task(list(report.published), task)]
    own = list(dict.fromkeys(group.label for group in found))
    # Published methods that we did not run have a place behind ours.
    labels = [*own, *sorted({curve.method for curve in beside} - {*own})]
    entries = [report_data.entry(group) for group in found]
    across, notes = page_results.across(found, labels, report.max_return)
    body = [
        _header(report, found, entries),
        _notes([*report.notes, *notes]),
        page_results.cells(entries, labels, beside),
        _returns(found, own, labels, beside),
        _sweeps(report, found, labels),
        page_results.aggregates(across, labels, report.max_return) if across else "",
        _films(report.films),
        *_metrics(found, labels),
        page_settings.differences(found, report.bases),
        page_settings.provenance(report.loaded),
        _footer(report),
    ]
    parts = {
        "TITLE": words(_title(report.folders)),
        "STYLE": _asset("page.css")
        + page_style.methods(labels, report.known, _ordered(report, own)),
        "SHADE": f"--n:{min(len(tasks), 4)};--shade:{0.4 / (len(own) + 1.5):.3f}",
        "BODY": "\n".join(part for part in body if part),
        "SCRIPT": _asset("page.js"),
    }
    # One pass: what a run is called must not be taken for a placeholder.
    pieces = _asset("page.html").split("@@")
    return "".join(parts.get(piece, piece) for piece in pieces)


def _asset(name: str) -> str:
    return resources.files("pomcp_jax.reporting").joinpath(name).read_text(encoding="utf-8")


def _title(folders: Sequence[Path]) -> str:
    return ", ".join(dict.fromkeys(folder.resolve().name or str(folder) for folder in folders))


def _header(report: Report, found: Sequence[Group], entries: Sequence[Entry]) -> str:
    abouts = [one.run.about for one in report.loaded]
    versions: dict[str, list[str]] = {}
    for about in abouts:
        for name, version in _mapping(about.get("versions")).items():
            versions.setdefault(str(name), []).append(str(version))
    started = sorted(str(about["started"])[:10] for about in abouts if about.get("started"))
    total = sum(entry.seconds for entry in entries if math.isfinite(entry.seconds))
    frames = [entry.frames for entry in entries if math.isfinite(entry.frames)]
    decisions = [entry.decisions for entry in entries if math.isfinite(entry.decisions)]
    done = sum(about.get("status") == "done" for about in abouts)
    facts = {
        "trained": _dates(started),
        "wall-clock": page_text.hours(total) + (" in all" if len(report.loaded) > 1 else ""),
        "decisions per seed": _span(decisions),
        "frames per seed": _span(frames),
        "finished": f"{done} of {len(abouts)}",
        "device": joined(about.get("device") for about in abouts),
        "CPU cores": joined(about.get("cpu_cores") for about in abouts),
        "python": joined(about.get("python") for about in abouts),
        "commit": joined(about.get("commit") for about in abouts),
    }
    rows = "".join(
        f"<div><dt>{name}</dt><dd>{words(value)}</dd></div>" for name, value in facts.items()
    )
    packages = ", ".join(f"{name} {joined(value)}" for name, value in versions.items())
    lines = f'<p class="versions">{words(packages)}</p>' if packages else ""
    return (
        f'<header><p class="kicker">pomcp_jax report</p><h1>{words(_title(report.folders))}</h1>'
        f'<p class="what">{_what(found, entries)}</p><dl class="facts">{rows}</dl>{lines}</header>'
    )


def _dates(days: Sequence[str]) -> str:
    """The first and the last of sorted dates; the second without the year if that is the same."""
    if not days or days[0] == days[-1]:
        return days[0] if days else DASH
    same = days[0][:5] == days[-1][:5]
    return f"{days[0]} to {days[-1][5:] if same else days[-1]}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _span(values: Sequence[float]) -> str:
    if not values:
        return DASH
    ends = dict.fromkeys(page_text.count(value) for value in (min(values), max(values)))
    return " to ".join(ends)


def _what(found: Sequence[Group], entries: Sequence[Entry]) -> str:
    """What was trained, in one sentence."""
    tasks = list(dict.fromkeys(group.task for group in found))
    labels = list(dict.fromkeys(group.label for group in found))
    seeds = sum(entry.seeds for entry in entries)
    lost = sum(len(entry.diverged) for entry in entries)
    named = [
        f"<b>{words(tasks[0])}</b>" if len(tasks) == 1 else f"<b>{len(tasks)}</b> tasks",
        f"<b>{words(labels[0])}</b>" if len(labels) == 1 else f"<b>{len(labels)}</b> methods",
        f"<b>{seeds}</b> seed{'s' * (seeds != 1)}"
        + (f", <b>{lost}</b> more diverged" if lost else ""),
    ]
    return " · ".join(named)


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{words(note)}</li>" for note in dict.fromkeys(notes))
    return f'<aside class="notes" aria-label="Notes"><ul>{items}</ul></aside>'


def _returns(
    found: Sequence[Group],
    own: Sequence[str],
    labels: Sequence[str],
    beside: Sequence[Published],
) -> str:
    drawn = page_curves.returns(found, labels, beside)
    if not drawn:
        return ""
    marks = [mark for plot in drawn for mark in plot.marks]
    kinds = {mark.kind for mark in marks} | (
        {"bands"} if any(m.band and not m.points for m in marks) else set()
    )
    shown = {mark.method for mark in marks} | {labels.index(label) for label in own}
    about = " ".join(text for kind, text in LINES.items() if kind in kinds)
    panels = [plots.draw(plot, page_curves.alt(plot, labels), keyboard=True) for plot in drawn]
    legend = _legend(labels, shown, kinds, list(dict.fromkeys(group.task for group in found)))
    size = "one" if len(drawn) == 1 else "two" if len(drawn) in (2, 4) else "wide"
    inner = figures(panels, size)
    return legend + page_text.section("returns", "Returns", about, inner)


def _legend(
    labels: Sequence[str], drawn: Collection[int], kinds: Iterable[str], tasks: Sequence[str]
) -> str:
    """The bar that names colours and hides lines; it stays in view.

    Args:
      labels: of all methods, in the order of the page.
      drawn: places of the methods that any panel shows.
      kinds: of lines that any panel shows.
      tasks: of all panels.
    """

    def button(what: str, inner: str, kind: str = "") -> str:
        return (
            f'<button type="button" class="{kind}" data-hide="{what}" aria-pressed="true">'
            f"{inner}</button>"
        )

    methods = [
        button(f"m{i}", f'<span class="chip m{i}">{words(label)}</span>')
        for i, label in enumerate(labels) if i in drawn
    ]  # fmt: skip
    lines = [
        button(f"k-{kind}", f'<span class="key key-{kind}"></span>{text}')
        for kind, text in KINDS.items() if kind in kinds
    ]  # fmt: skip
    groups = [("methods", methods), ("lines", lines)]
    if len(tasks) > 1:
        groups.append(("tasks", [button("task", words(task), "task") for task in tasks]))
    inner = "".join(
        f'<div class="keys" role="group" aria-label="{name}">{"".join(buttons)}</div>'
        for name, buttons in groups
    )
    return f'<nav class="legend" aria-label="Legend; press to hide">{inner}</nav>'


def _sweeps(report: Report, found: Sequence[Group], labels: Sequence[str]) -> str:
    drawn = []
    for folder, grid in page_curves.sweeps(report.folders):
        cells = [
            group for group in found
            if any(one.run.folder.parent == folder for one in group.members)
        ]  # fmt: skip
        plot = page_curves.sweep(cells, grid, labels)
        if plot:
            drawn.append(plots.draw(plot, page_curves.alt(plot, labels), keyboard=True))
    if not drawn:
        return ""
    about = "Mean return at the end with its 95 % bootstrap interval; small dots are seeds."
    inner = figures(drawn, "one" if len(drawn) == 1 else "wide")
    return page_text.section("sweep", "Over the swept values", about, inner)


def _ordered(report: Report, own: Sequence[str]) -> list[str]:
    """Labels of a sweep's cells where a single field is swept, in the order of its values."""
    swept = page_curves.sweeps(report.folders)
    single = len(report.folders) == 1 and swept and len(swept[0][1]) == 1
    return list(own) if single and len(own) > 1 else []


def _footer(report: Report) -> str:
    command = f"<p><code>{words(report.command)}</code></p>"
    return f"<footer><p>{words(report.made)}</p>{command}</footer>"


def _films(films: Sequence[Film]) -> str:
    if not films:
        return ""
    parts = []
    for film in films:
        data = base64.b64encode(film.data).decode()
        source = f"data:{MIME[film.suffix]};base64,{data}"
        name = words(film.name)
        if film.suffix == ".mp4":
            inner = (
                f'<video controls loop muted playsinline aria-label="{name}" src="{source}">'
                "</video>"
            )
        else:
            inner = f'<img alt="Film of the trained agent: {name}" src="{source}">'
        size = f"{len(film.data) / 1e6:.1f} MB"
        parts.append(
            f'<figure class="film {film.suffix[1:]}">{inner}<figcaption><b>{name}</b> <span>{size}'
            "</span></figcaption></figure>"
        )
    return page_text.section("film", "Film", "", figures(parts, "films"))


def _metrics(found: Sequence[Group], labels: Sequence[str]) -> list[str]:
    """A section for every subject; metrics that never change are one line."""
    out = []
    names = page_curves.metric_names(found)
    single = len({group.task for group in found}) == 1
    for subject, members in page_curves.subjects(names).items():
        curves = {name: [group.series(name) for group in found] for name in members}
        constant = report_data.constants(curves)
        panels = "".join(
            _metric(list(page_curves.metric(found, curves[name], name, labels)), name, labels)
            for name in members if name not in constant
        )  # fmt: skip
        same = ", ".join(f"{words(name)} = {value:g}" for name, value in constant.items())
        line = f'<p class="constant">The same in every row: {same}</p>' if same else ""
        if panels or line:
            inner = (figures([panels]) if single else panels) + line
            about = f"{words(subject.about)} Bands: range of the seeds.".strip()
            shown = subject.anchor not in ("diagnostics", "other")
            out.append(page_text.folded(subject.anchor, subject.title, about, inner, shown=shown))
    return out


def _metric(drawn: Sequence[plots.Plot], name: str, labels: Sequence[str]) -> str:
    """Panels of a metric: of several tasks in a row below its name."""
    if not drawn or drawn[0].title == name:
        return "".join(plots.draw(plot, page_curves.alt(plot, labels)) for plot in drawn)
    panels = [plots.draw(plot, f"{name}, {page_curves.alt(plot, labels)}") for plot in drawn]
    about = page_curves.WORDS.get(name, "")
    head = f"<h3>{words(name)} <span>{words(about)}</span></h3>"
    return head + figures(panels, "tasks")
