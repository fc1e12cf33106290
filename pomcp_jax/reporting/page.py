"""A report as one HTML file without anything from the network: :func:`render`.

The page is complete without JavaScript; its script adds values under the pointer, tables that
sort, and lines that can be hidden.
"""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from pomcp_jax.reporting import page_curves, page_text, palette, plots, report_data
from pomcp_jax.reporting.comparison import Loaded
from pomcp_jax.reporting.page_text import DASH, Td, chip, words
from pomcp_jax.reporting.published import Published, of_task
from pomcp_jax.reporting.report_data import Across, Difference, Entry, Group

MIME = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}
"""Suffixes of films that a page embeds."""
DARK = {
    "#0072B2": "#56A8DE", "#D55E00": "#F2854A", "#009E73": "#34BF96", "#CC79A7": "#E0A0C4",
    "#E69F00": "#F0B840", "#56B4E9": "#8CCBF2", "#000000": "#D8D8D4",
}  # fmt: skip
"""Colours of methods on a dark page, where black would be invisible."""
RAMP = ("#3B6FB6", "#2A9D8F", "#8AB17D", "#E0A93B", "#E07A3F", "#C8435C")
"""Colours of a sweep's cells in the order of its values."""
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
MATRIX = 14
"""Most methods that are compared in pairs."""
MANY = 6
"""Methods beyond which the comparison in pairs gets a row of its own."""


class Film(NamedTuple):
    """A film to embed."""

    name: str
    suffix: str
    data: bytes


class Base(NamedTuple):
    """Preset and size that a configuration is nearest to."""

    name: str
    fields: Mapping[str, Any]
    """Its fields by dotted name."""


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
    max_return: float
    """What returns are divided by in aggregates."""


def render(report: Report) -> str:
    """The page.

    Raises:
      ConfigError: one line about runs that cannot be shown.
    """
    found = report_data.groups(report.loaded)
    tasks = dict.fromkeys(group.task for group in found)
    beside = [curve for task in tasks for curve in of_task(list(report.published), task)]
    own = list(dict.fromkeys(group.label for group in found))
    # Published methods that we did not run have a place behind ours.
    labels = [*own, *sorted({curve.method for curve in beside} - {*own})]
    entries = [report_data.entry(group) for group in found]
    across, notes = _across(found, labels, report)
    body = [
        _header(report, found, entries),
        _notes([*report.notes, *notes]),
        _results(entries, labels, beside),
        _returns(found, own, labels, beside),
        _sweeps(report, found, labels),
        _across_tasks(across, labels, report.max_return) if across else "",
        _films(report.films),
        *_metrics(found, labels),
        _differences(found, report.bases),
        _provenance(report),
    ]
    parts = {
        "TITLE": words(_title(report.folders)),
        "STYLE": _asset("page.css") + _colours(labels, own, report),
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


def _colours(labels: Sequence[str], own: Sequence[str], report: Report) -> str:
    """CSS of every method: its colour on light and dark pages, its dashes."""
    place = palette.places(labels, report.known)
    swept = page_curves.sweeps(report.folders)
    ordered = len(report.folders) == 1 and swept and len(swept[0][1]) == 1 and len(own) > 1
    light, dark = [], []
    for i, label in enumerate(labels):
        style = palette.style(place[label])
        color, dashes = style["color"], style["linestyle"]
        if ordered and label in own:
            color, dashes = _ramp(own.index(label) / (len(own) - 1)), "-"
        steps = () if dashes == "-" else dashes[1]
        dashed = " ".join(f"{2 * step:g}" for step in steps) or "none"
        light.append(f".m{i}{{--c:{color};--d:{dashed}}}{_dashed_chip(i, steps)}")
        dark.append(f".m{i}{{--c:{DARK.get(color, color)}}}")
    return f"{''.join(light)}@media(prefers-color-scheme:dark){{{''.join(dark)}}}"


def _dashed_chip(method: int, steps: Sequence[float]) -> str:
    """CSS of a method's mark in legend and tables: a dashed line, or the usual dot."""
    if not steps:
        return ""
    ends = [2 * sum(steps[:i]) for i in range(len(steps) + 1)]
    colors = ["var(--c)", "transparent"] * len(steps)
    stops = ",".join(
        f"{color} {a:g}px {b:g}px"
        for color, a, b in zip(colors[: len(steps)], ends[:-1], ends[1:], strict=True)
    )
    return (
        f".chip.m{method}::before{{width:1.5em;height:.22em;border-radius:0;vertical-align:.2em;"
        f"background:repeating-linear-gradient(90deg,{stops})}}"
    )


def _ramp(share: float) -> str:
    """Colour at a share of :data:`RAMP`."""
    at = share * (len(RAMP) - 1)
    i = min(int(at), len(RAMP) - 2)
    pairs = zip(*(bytes.fromhex(color[1:]) for color in RAMP[i : i + 2]), strict=True)
    return "#" + "".join(f"{round(a + (at - i) * (b - a)):02x}" for a, b in pairs)


def _joined(values: Iterable[object], most: int = 2) -> str:
    every = list(dict.fromkeys(str(value) for value in values if value))
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more or DASH


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
        "device": _joined(about.get("device") for about in abouts),
        "CPU cores": _joined(about.get("cpu_cores") for about in abouts),
        "python": _joined(about.get("python") for about in abouts),
        "commit": _joined(about.get("commit") for about in abouts),
    }
    rows = "".join(
        f"<div><dt>{name}</dt><dd>{words(value)}</dd></div>" for name, value in facts.items()
    )
    packages = ", ".join(f"{name} {_joined(value)}" for name, value in versions.items())
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


def _results(entries: Sequence[Entry], labels: Sequence[str], beside: Sequence[Published]) -> str:
    """The table of cells."""
    ends = {task: _ends([e for e in entries if e.task == task]) for task in _tasks(entries)}
    finals = [float(part) for entry in entries for part in entry.final]
    decimals = page_text.digits(finals)
    published = {(c.task, c.method) for c in beside} & {(e.task, e.label) for e in entries}
    drawn = any(math.isfinite(float(entry.final.low)) for entry in entries)
    head = ["task", "method", "planner’s return", *["interval"] * drawn, "IQM", "bare / planner"]
    head += ["published"] if published else []
    head += ["seeds", "frames", "time", "diverged", "resets"]
    ended = all(entry.state == "done" for entry in entries)
    head += [] if ended else ["state"]
    rows = []
    for entry in entries:
        method = labels.index(entry.label)
        final = float(entry.final.value)
        row = [
            Td(words(entry.task), entry.task),
            Td(chip(entry.label, method), entry.label),
            Td(page_text.between(entry.final, decimals), final),
            *[Td(page_text.whisker(entry.final, ends[entry.task], method), final, "drawn")] * drawn,
            Td(page_text.number(entry.iqm, decimals), entry.iqm),
            Td(page_text.number(entry.ratio, 2), entry.ratio),
        ]
        if published:
            row.append(_published(entry, beside, decimals))
        lost = ", ".join(f"{seed} ({t})" if t else f"{seed}" for seed, t in entry.diverged.items())
        count = len(entry.diverged)
        row += [
            Td(str(entry.seeds), entry.seeds),
            Td(page_text.count(entry.frames), entry.frames),
            Td(page_text.hours(entry.seconds), entry.seconds),
            Td(f'<span title="seeds {words(lost)}">{count}</span>' if lost else "0", count,
               "bad" if count else "quiet"),
            Td(str(entry.resets), entry.resets, "bad" if entry.resets else "quiet"),
        ]  # fmt: skip
        if not ended:
            row.append(Td(words(entry.state), entry.state, "" if entry.state == "done" else "bad"))
        rows.append(row)
    about = (
        "Mean over seeds of the latest evaluation of the planner, with its 95 % bootstrap interval;"
        " the ratio is that of the bare policy’s mean return."
    )
    if published:
        about += " Published: mean ± 2 standard deviations at our number of frames."
    caption = "Cells: a task, a method, all its seeds"
    table = page_text.table(caption, head, rows, names=2)
    return page_text.section("results", "Results", about, table)


def _tasks(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(entry.task for entry in entries))


def _ends(entries: Sequence[Entry]) -> tuple[float, float]:
    """Ends of the axis that a task's intervals are drawn on."""
    numbers = [float(part) for e in entries for part in e.final if math.isfinite(float(part))]
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    room = 0.05 * (high - low)
    return low - room, high + room


def _published(entry: Entry, beside: Sequence[Published], decimals: int) -> Td:
    """The same method's published return; its authors' first."""
    for curve in of_task(list(beside), entry.task):
        at = curve.at(entry.frames) if curve.method == entry.label else None
        if at:
            mean, std = at
            text = f"{page_text.number(mean, decimals)} ± {page_text.number(2 * std, decimals)}"
            return Td(f'<span title="{words(curve.label)}">{text}</span>', mean)
    return Td(DASH, math.nan)


def _figures(parts: Iterable[str], kind: str = "") -> str:
    return f'<div class="grid {kind}">{"".join(parts)}</div>'


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
    about = " ".join(text for kind, text in LINES.items() if kind in kinds)
    figures = [plots.draw(plot, page_curves.alt(plot, labels), keyboard=True) for plot in drawn]
    legend = _legend(own, labels, kinds, list(dict.fromkeys(group.task for group in found)))
    size = "one" if len(drawn) == 1 else "two" if len(drawn) in (2, 4) else "wide"
    inner = _figures(figures, size)
    return legend + page_text.section("returns", "Returns", about, inner)


def _legend(
    own: Sequence[str], labels: Sequence[str], kinds: Iterable[str], tasks: Sequence[str]
) -> str:
    """The bar that names colours and hides lines; it stays in view."""

    def button(what: str, inner: str, kind: str = "") -> str:
        return (
            f'<button type="button" class="{kind}" data-hide="{what}" aria-pressed="true">'
            f"{inner}</button>"
        )

    methods = [
        button(f"m{i}", f'<span class="chip m{i}">{words(label)}</span>')
        for i, label in enumerate(labels)
    ]
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
    inner = _figures(drawn, "one" if len(drawn) == 1 else "wide")
    return page_text.section("sweep", "Over the swept values", about, inner)


def _across(
    found: Sequence[Group], labels: Sequence[str], report: Report
) -> tuple[Across | None, list[str]]:
    """Aggregates over tasks, or why there are none."""
    try:
        across = report_data.across(found, labels, report.max_return)
    except report_data.ConfigError as error:
        return None, [f"no aggregates over tasks: {error}"]
    if across is None:
        return None, []
    return across, [
        f"{label}: runs of {tasks} of {len(across.tasks)} tasks, left out of aggregates"
        for label, tasks in across.left_out.items()
    ]


def _across_tasks(across: Across, labels: Sequence[str], scale: float) -> str:
    names = {
        "iqm": "IQM", "median": "median", "mean": "mean", "optimality_gap": "optimality gap",
    }  # fmt: skip
    finite = [
        float(part) for one in across.methods for part in one.statistics["iqm"]
        if math.isfinite(float(part))
    ]  # fmt: skip
    room = 0.05 * (max(finite) - min(finite))
    ends = min(finite) - room, max(finite) + room
    decimals = max(page_text.digits(finite), 3)
    rows = [
        [
            Td(chip(one.label, labels.index(one.label)), one.label),
            *(
                Td(page_text.between(one.statistics[name], decimals),
                   float(one.statistics[name].value))
                for name in names
            ),
            Td(
                page_text.whisker(one.statistics["iqm"], ends, labels.index(one.label)),
                float(one.statistics["iqm"].value), "drawn",
            ),
            Td(str(one.seeds), one.seeds),
        ]
        for one in across.methods
    ]  # fmt: skip
    count = len(across.tasks)
    about = (
        f"Scores are returns / {scale:g} at the frames that all runs of a task have reached, over"
        f" {count} task{'s' * (count != 1)} and all seeds; intervals are 95 % of the stratified"
        " bootstrap. A smaller optimality gap is better."
    )
    table = page_text.table(
        "Aggregates over tasks and seeds", ["method", *names.values(), "IQM, drawn", "runs"], rows
    )
    plot = page_curves.iqm(across)
    curve = plots.draw(plot, page_curves.alt(plot, labels), keyboard=True) if plot else ""
    many = len(across.methods) > MANY
    parts = [part for part in (curve, _matrix(across, labels, many)) if part]
    inner = table + _figures(parts, "stacked" if many else "")
    title = "Across tasks" if count > 1 else "Methods compared"
    return page_text.section("across", title, about, inner)


def _matrix(across: Across, labels: Sequence[str], many: bool) -> str:
    """Probability of improvement of every method over every other."""
    names = [one.label for one in across.methods]
    if not 2 <= len(names) <= MATRIX:
        return ""
    heads = "".join(f'<th scope="col">{chip(name, labels.index(name))}</th>' for name in names)
    rows = []
    for a in names:
        cells = []
        for b in names:
            p = across.better.get((a, b))
            if p is None:
                cells.append(f'<td class="same">{DASH}</td>')
            else:
                side = "more" if p >= 0.5 else "less"
                tint = f"{200 * abs(p - 0.5):.0f}%"
                cells.append(f'<td class="{side}" style="--p:{tint}">{p:.2f}</td>')
        head = f'<th scope="row">{chip(a, labels.index(a))}</th>'
        rows.append(f"<tr>{head}{''.join(cells)}</tr>")
    caption = "Probability that a run of the row’s method beats one of the column’s"
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">'
        f'<table class="matrix{" many" * many}"><caption>{caption}</caption><thead><tr><td></td>{heads}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _films(films: Sequence[Film]) -> str:
    if not films:
        return ""
    parts = []
    for film in films:
        data = base64.b64encode(film.data).decode()
        source = f"data:{MIME[film.suffix]};base64,{data}"
        name = words(film.name)
        if film.suffix == ".mp4":
            inner = f'<video controls loop muted playsinline aria-label="{name}" src="{source}"></video>'
        else:
            inner = f'<img alt="Film of the trained agent: {name}" src="{source}">'
        size = f"{len(film.data) / 1e6:.1f} MB"
        parts.append(
            f'<figure class="film {film.suffix[1:]}">{inner}<figcaption><b>{name}</b> <span>{size}'
            "</span></figcaption></figure>"
        )
    return page_text.section("film", "Film", "", _figures(parts, "films"))


def _metrics(found: Sequence[Group], labels: Sequence[str]) -> list[str]:
    """A section for every subject; metrics that never change are one line."""
    out = []
    names = page_curves.metric_names(found)
    single = len({group.task for group in found}) == 1
    for subject, members in page_curves.subjects(names).items():
        constant = report_data.constants(found, members)
        figures = "".join(
            _metric(list(page_curves.metric(found, name, labels)), name, labels)
            for name in members if name not in constant
        )  # fmt: skip
        same = ", ".join(f"{words(name)} = {value:g}" for name, value in constant.items())
        line = f'<p class="constant">The same in every row: {same}</p>' if same else ""
        if figures or line:
            inner = (_figures([figures]) if single else figures) + line
            about = f"{words(subject.about)} Bands: range of the seeds.".strip()
            shown = subject.anchor not in ("diagnostics", "other")
            out.append(page_text.folded(subject.anchor, subject.title, about, inner, shown=shown))
    return out


def _metric(drawn: Sequence[plots.Plot], name: str, labels: Sequence[str]) -> str:
    """Panels of a metric: of several tasks in a row below its name."""
    figures = [plots.draw(plot, page_curves.alt(plot, labels)) for plot in drawn]
    if not drawn or drawn[0].title == name:
        return "".join(figures)
    about = page_curves.WORDS.get(name, "")
    head = f"<h3>{words(name)} <span>{words(about)}</span></h3>"
    return head + _figures(figures, "tasks")


def _differences(found: Sequence[Group], bases: Mapping[Path, Base]) -> str:
    differing, some = report_data.differences(found)
    labels = list(dict.fromkeys(group.label for group in found))
    parts = []
    if differing and len(labels) > 1:
        rows = [_difference(one, labels) for one in differing]
        caption = "Fields in which configurations differ; faint: what most methods have"
        parts.append(page_text.table(caption, ["field", *labels], rows, names=len(labels) + 1))
    elif len(found) > 1 or any(len(group.members) > 1 for group in found):
        names = ", ".join(f"{d.field} ({'; '.join(d.values.values())})" for d in differing)
        text = f"All configurations are equal but for: {names}" if names else (
            "All configurations are equal but for the task."
        )  # fmt: skip
        parts.append(f"<p>{words(text)}</p>")
    changed = report_data.changes(found, {folder: base.fields for folder, base in bases.items()})
    parts += [_changes(label, found, rows, bases) for label, rows in changed.items()]
    if some:
        parts.append(
            f'<p class="constant">Only some configurations have {words(", ".join(some))}: they were'
            " written by different versions.</p>"
        )
    inner = "".join(parts)
    about = "Fields that differ between configurations, and from the nearest preset and size."
    return page_text.folded("configuration", "Configuration", about, inner, shown=True)


def _difference(one: Difference, labels: Sequence[str]) -> list[Td]:
    """A row: a field and its value for every method, faint where most have the same."""
    values = [one.values.get(label, DASH) for label in labels]
    usual = max(values, key=values.count)
    faint = usual if values.count(usual) > len(values) / 2 else None
    cells = [Td(words(v), v, "value quiet" if v == faint else "value") for v in values]
    return [Td(f"<code>{words(one.field)}</code>", one.field), *cells]


def _changes(
    label: str,
    found: Sequence[Group],
    rows: Sequence[tuple[str, str, str]],
    bases: Mapping[Path, Base],
) -> str:
    """Fields of one method that differ from its preset, closed where there are many methods."""
    folders = [one.run.folder for g in found if g.label == label for one in g.members]
    names = _joined(bases[folder].name for folder in folders if folder in bases)
    if names == DASH:
        return f"<p>{words(label)}: no preset is near enough to this version’s to compare.</p>"
    if not rows:
        return f"<p>{words(label)}: as {words(names)}.</p>"
    table = page_text.table(
        f"{label}: differences from {names} and the defaults",
        ["field", names, label],
        [
            [Td(f"<code>{words(field)}</code>", field), Td(words(old), old, "value quiet"),
             Td(words(new), new, "value")]
            for field, old, new in rows
        ],
        names=3,
    )  # fmt: skip
    if len({group.label for group in found}) == 1:
        return table
    return (
        f'<details class="inner"><summary>{words(label)}: {len(rows)} fields differ from'
        f" {words(names)}</summary>{table}</details>"
    )


def _provenance(report: Report) -> str:
    """Where every run is and what made it, and what made the page."""
    rows = []
    for one in report.loaded:
        about = one.run.about
        command = str(about.get("command") or DASH)
        started = str(about.get("started") or DASH)[:19].replace("T", " ")
        rows.append(
            [
                Td(f"<code>{words(one.run.folder)}</code>", str(one.run.folder)),
                Td(f'<code class="command">{words(command)}</code>', command),
                Td(words(started), started),
                Td(words(about.get("commit") or DASH), str(about.get("commit") or "")),
            ]
        )
    table = page_text.table("Runs", ["folder", "command", "started", "commit"], rows, names=4)
    footer = (
        f"<footer><p>{words(report.made)}</p><p><code>{words(report.command)}</code></p></footer>"
    )
    return page_text.folded("runs", "Where it comes from", "", table, shown=False) + footer
