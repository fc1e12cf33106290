"""What a sweep found: summary.csv, a table, a picture and records, an entry for every cell."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax import files
from pomcp_jax.cells import Cell, short, text
from pomcp_jax.reporting import run_figures, statistics, sweep_figures
from pomcp_jax.reporting.sweep_figures import SweptCell
from pomcp_jax.running import health, metrics
from pomcp_jax.running.bookkeeping import Books
from pomcp_jax.running.health import Diverged
from pomcp_jax.running.options import Options
from pomcp_jax.running.progress import number

SUMMARY, PICTURE = "summary.csv", "sweep.png"


class CellResult(NamedTuple):
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


def results(cells: Sequence[Cell], books: Books) -> list[CellResult]:
    """What is known of every cell."""
    unknown = np.full(len(books.returns), np.nan)
    planner = books.evaluated.get("eval/return", unknown)
    policy = books.evaluated.get("eval/policy_return", unknown)
    return [
        CellResult(
            cell,
            planner[cell.rows],
            policy[cell.rows],
            books.returns[cell.rows],
            {seed: books.left[i] for i, seed in cell.row_seeds() if i in books.left},
        )
        for cell in cells
    ]


def best(cells: Sequence[Cell], books: Books) -> list[str]:
    """The cell that evaluates best so far, for the progress line; nothing before an evaluation."""
    means = [metrics.mean(found.planner[found.healthy]) for found in results(cells, books)]
    if not np.isfinite(means).any():
        return []
    first = int(np.nanargmax(means))
    return [f"best {cells[first].name}: {number(means[first], 1)}"]


def summary_row(found: CellResult) -> dict[str, Any]:
    """One line of summary.csv; means are over the seeds that did not diverge."""
    healthy = found.healthy
    low, high = statistics.bounds(found.planner[healthy])
    numbers = {
        "eval/return": metrics.mean(found.planner[healthy]),
        "eval/low": low,
        "eval/high": high,
        "eval/policy_return": metrics.mean(found.policy[healthy]),
        "train/return": metrics.mean(found.training[healthy]),
    }
    named = {f"seed {seed}": what for seed, what in found.diverged.items()}
    return {
        "cell": found.cell.name,
        **found.cell.values,
        "seeds": len(found.cell.seeds),
        **{name: value if np.isfinite(value) else "" for name, value in numbers.items()},
        "diverged_seeds": len(found.diverged),
        "diverged": health.describe(named),
    }


def write_summary(found: Sequence[CellResult], path: Path) -> None:
    """Replace summary.csv."""
    rows = [summary_row(one) for one in found]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, out.getvalue())


def table(found: Sequence[CellResult]) -> str:
    """The summary, aligned for reading."""
    lines = [("cell", "evaluation", "95 % interval", "bare policy", "training", "diverged")]
    for one in found:
        row = summary_row(one)
        shown = {k: number(v, 1) if v != "" else "-" for k, v in row.items() if "/" in k}
        between = f"{shown['eval/low']} to {shown['eval/high']}" if row["eval/low"] != "" else "-"
        lines.append(
            (
                row["cell"],
                shown["eval/return"],
                between,
                shown["eval/policy_return"],
                shown["train/return"],
                f"{row['diverged_seeds']} of {row['seeds']}" if one.diverged else "-",
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


def draw(options: Options, cells: Sequence[Cell], books: Books) -> None:
    """Replace the picture: ``learning_curve.png`` of a run, ``sweep.png`` of a sweep.

    Raises:
      ImportError: without matplotlib (``pip install pomcp_jax[run]``).
    """
    workdir = options.workdir
    if not options.grid:
        run_figures.draw(workdir, workdir / "learning_curve.png")
        return
    swept = [
        SweptCell(
            found.cell.name,
            found.cell.folder(workdir),
            found.cell.values,
            found.planner[found.healthy],
            frozenset(found.diverged),
        )
        for found in results(cells, books)
    ]
    values = {short(field): listed for field, listed in options.grid.items()}
    title = options.config.env.task
    sweep_figures.draw(swept, values, title, workdir / PICTURE, text)


def write_records(
    options: Options, cells: Sequence[Cell], books: Books, about: dict[str, Any]
) -> None:
    """Write what a sweep's own record does not say: every cell's run.json, and summary.csv.

    Args:
      options: of the sweep.
      cells: of the sweep.
      books: as they are at its end.
      about: record of the whole sweep; ``status`` and ``exit_code`` of its end.
    """
    found = results(cells, books)
    for one in found:
        lost = {str(seed): what._asdict() for seed, what in one.diverged.items()}
        named = {f"seed {seed}": what for seed, what in one.diverged.items()}
        status = f"diverged: {health.describe(named)}" if lost else about["status"]
        code = 3 if len(lost) == len(one.cell.seeds) else about["exit_code"]
        own = {"status": status, "exit_code": code, "diverged": lost}
        files.write_json(one.cell.folder(options.workdir) / "run.json", about | own)
    write_summary(found, options.workdir / SUMMARY)
