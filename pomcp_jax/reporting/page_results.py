"""Tables of a report: cells, aggregates over tasks, methods in pairs."""

import math
from collections.abc import Sequence

from pomcp_jax.config import ConfigError
from pomcp_jax.reporting import page_curves, page_text, plots, report_data, scores
from pomcp_jax.reporting.page_text import DASH, Td, chip, words
from pomcp_jax.reporting.published import Published, of_task
from pomcp_jax.reporting.report_data import Across, Entry, Group

MATRIX = 14
"""Most methods that are compared in pairs."""
MANY = 6
"""Methods beyond which the comparison in pairs gets a row of its own."""


def cells(entries: Sequence[Entry], labels: Sequence[str], beside: Sequence[Published]) -> str:
    """The table of cells.

    Args:
      entries: its rows.
      labels: of all methods, in the order of the page.
      beside: published curves.
    """
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


def across(
    found: Sequence[Group], labels: Sequence[str], scale: float | None
) -> tuple[Across | None, list[str]]:
    """Aggregates over tasks, or why there are none."""
    try:
        out = report_data.across(found, labels, scale)
    except ConfigError as error:
        return None, [f"no aggregates over tasks: {error}"]
    if out is None:
        return None, []
    return out, [
        f"{label}: runs of {tasks} of {len(out.tasks)} tasks, left out of aggregates"
        for label, tasks in out.left_out.items()
    ]


def aggregates(among: Across, labels: Sequence[str], scale: float | None) -> str:
    """Statistics over tasks, the IQM over frames, and methods in pairs."""
    names = {
        "iqm": "IQM", "median": "median", "mean": "mean", "optimality_gap": "optimality gap",
    }  # fmt: skip
    finite = [
        float(part) for one in among.methods for part in one.statistics["iqm"]
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
        for one in among.methods
    ]  # fmt: skip
    count = len(among.tasks)
    about = (
        f"Scores are {scores.formula(among.tasks, scale)} at the frames that all runs of a task"
        f" have reached, over {count} task{'s' * (count != 1)} and all seeds; intervals are 95 % of"
        " the stratified bootstrap. A smaller optimality gap is better."
    )
    table = page_text.table(
        "Aggregates over tasks and seeds", ["method", *names.values(), "IQM, drawn", "runs"], rows
    )
    # With a single task the panel of its returns shows the same.
    plot = page_curves.iqm(among) if count > 1 else None
    curve = plots.draw(plot, page_curves.alt(plot, labels), keyboard=True) if plot else ""
    many = len(among.methods) > MANY
    parts = [part for part in (curve, _matrix(among, labels, many)) if part]
    inner = table + page_text.figures(parts, "stacked" if many else "")
    title = "Across tasks" if count > 1 else "Methods compared"
    return page_text.section("across", title, about, inner)


def _matrix(among: Across, labels: Sequence[str], many: bool) -> str:
    """Probability of improvement of every method over every other."""
    names = [one.label for one in among.methods]
    if not 2 <= len(names) <= MATRIX:
        return ""
    heads = "".join(f'<th scope="col">{chip(name, labels.index(name))}</th>' for name in names)
    rows = []
    for a in names:
        cells = []
        for b in names:
            p = among.better.get((a, b))
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
        f'<table class="matrix{" many" * many}"><caption>{caption}</caption>'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
