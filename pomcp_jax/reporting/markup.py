"""Summaries as text: markdown, csv and LaTeX."""

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

from pomcp_jax.reporting import comparison
from pomcp_jax.reporting.summary import Row, Summary

FORMATS = {"markdown": (".md", ".txt"), "csv": (".csv",), "latex": (".tex",)}
"""Formats with the suffixes of their files."""
NAMES = {
    "iqm": "IQM", "median": "median", "mean": "mean", "optimality_gap": "optimality gap",
    "probability_of_improvement": "P(better than {})",
    "iqm_difference": "IQM less that of {}", "paired_difference": "difference to {} by seed",
}  # fmt: skip
ESCAPED = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


class Table(NamedTuple):
    """A table of words; the first ``left`` columns are names, the others numbers."""

    head: list[str]
    rows: list[list[str]]
    left: int


def text(summary: Summary, form: str) -> str:
    """The summary in one of :data:`FORMATS`, without a line break at the end."""
    if form == "csv":
        return _csv(summary.rows)
    render = {"markdown": markdown, "latex": latex}[form]
    return "\n\n".join(render(table) for table in tables(summary))


def tables(summary: Summary) -> list[Table]:
    """Returns by task, aggregates and, with a baseline, the comparison with it."""
    rows = summary.rows
    by_task = [row for row in rows if row.statistic == "return"]
    out = [
        Table(
            ["task", "method", f"{_word(summary)} (95 % interval)", "seeds", "frames"],
            [[r.task, r.method, _interval(r, 1), f"{r.runs}", f"{r.frames:,.0f}"] for r in by_task],
            2,
        ),
        _pivot(summary, ("iqm", "median", "mean", "optimality_gap"), "seeds"),
    ]
    if summary.baseline:
        names = ("probability_of_improvement", "iqm_difference", "paired_difference")
        out.append(_pivot(summary, names, "pairs"))
    return [table for table in out if table.rows]


def _pivot(summary: Summary, names: Sequence[str], counted: str) -> Table:
    """A row for every method, best first, a column for every statistic."""
    groups: dict[str, dict[str, Row]] = {}
    for row in summary.rows:
        if row.statistic in names:
            groups.setdefault(row.method, {})[row.statistic] = row
    most = max((row.tasks for of in groups.values() for row in of.values()), default=0)
    first = sorted(groups.items(), key=lambda item: -item[1][names[0]].value)
    scale = f"score = {_word(summary)} / {summary.scale}"
    head = [NAMES[name].format(summary.baseline) for name in names]
    lines = []
    for method, of in first:
        # Pairs are those of the last statistic; without any common seed there are none.
        last, tasks = of.get(names[-1]), of[names[0]].tasks
        cells = [_interval(of[name], 3) if name in of else "-" for name in names]
        over = f"{tasks}" if tasks == most else f"{tasks} of {most}, not comparable"
        lines.append([method, *cells, f"{last.runs if last else 0}", over])
    return Table([f"method ({scale})", *head, counted, "tasks"], lines, 1)


def _word(summary: Summary) -> str:
    """What the numbers are."""
    return "return" if summary.metric == comparison.RETURN else summary.metric


def _interval(row: Row, digits: int) -> str:
    value = f"{row.value:,.{digits}f}"
    if math.isnan(row.low):
        return value
    return f"{value} ({row.low:,.{digits}f} to {row.high:,.{digits}f})"


def markdown(table: Table) -> str:
    """A table with its numbers at the right."""
    rule = ["---"] * table.left + ["---:"] * (len(table.head) - table.left)
    lines = [table.head, rule, *([cell.replace("|", r"\|") for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex(table: Table) -> str:
    r"""A ``tabular`` with booktabs' rules."""
    columns = "l" * table.left + "r" * (len(table.head) - table.left)
    head, *body = (" & ".join(map(_escape, row)) + r" \\" for row in [table.head, *table.rows])
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head,
            r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
        ]
    )  # fmt: skip


def _escape(word: str) -> str:
    return "".join(ESCAPED.get(letter, letter) for letter in word)


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return out.getvalue().rstrip("\n")


def _cell(value: object) -> object:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"
