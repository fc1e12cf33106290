"""Results of a sweep by cell: summary.csv, a printed table, a picture and records."""

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
    """Results of a cell; arrays have one entry per seed."""

    cell: Cell
    planner: np.ndarray
    """Mean return of each seed's latest evaluation, NaN if there is none."""
    policy: np.ndarray
    training: np.ndarray
    diverged: dict[int, Diverged]
    """Diverged seeds by seed number."""

    @property
    def healthy(self) -> np.ndarray:
        """Mask ``[seeds]`` of the seeds that did not diverge."""
        return np.array([seed not in self.diverged for seed in self.cell.seeds])


def results(cells: Sequence[Cell], books: Books) -> list[CellResult]:
    """Results of every cell so far."""
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
    """Best cell by evaluation so far, for the progress line; empty before the first evaluation."""
    means = [metrics.mean(result.planner[result.healthy]) for result in results(cells, books)]
    # nanargmax raises if all values are NaN.
    if not np.isfinite(means).any():
        return []
    first = int(np.nanargmax(means))
    return [f"best {cells[first].name}: {number(means[first], 1)}"]


def summary_row(result: CellResult) -> dict[str, Any]:
    """Row of summary.csv; means are over the seeds that did not diverge."""
    # Dropping diverged seeds favours unstable settings, so their number is a column of its own.
    healthy = result.healthy
    low, high = statistics.bounds(result.planner[healthy])
    numbers = {
        "eval/return": metrics.mean(result.planner[healthy]),
        "eval/low": low,
        "eval/high": high,
        "eval/policy_return": metrics.mean(result.policy[healthy]),
        "train/return": metrics.mean(result.training[healthy]),
    }
    named = {f"seed {seed}": what for seed, what in result.diverged.items()}
    return {
        "cell": result.cell.name,
        **result.cell.values,
        "seeds": len(result.cell.seeds),
        **{name: value if np.isfinite(value) else "" for name, value in numbers.items()},
        "diverged_seeds": len(result.diverged),
        "diverged": health.describe(named),
    }


def write_summary(cell_results: Sequence[CellResult], path: Path) -> None:
    """Replace summary.csv."""
    rows = [summary_row(result) for result in cell_results]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, out.getvalue())


def table(cell_results: Sequence[CellResult]) -> str:
    """Summary as an aligned text table."""
    lines = [("cell", "evaluation", "95 % interval", "bare policy", "training", "diverged")]
    for result in cell_results:
        row = summary_row(result)
        shown = {k: number(v, 1) if v != "" else "-" for k, v in row.items() if "/" in k}
        between = f"{shown['eval/low']} to {shown['eval/high']}" if row["eval/low"] != "" else "-"
        lines.append(
            (
                row["cell"],
                shown["eval/return"],
                between,
                shown["eval/policy_return"],
                shown["train/return"],
                f"{row['diverged_seeds']} of {row['seeds']}" if result.diverged else "-",
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
            result.cell.name,
            result.cell.folder(workdir),
            result.cell.values,
            result.planner[result.healthy],
            frozenset(result.diverged),
        )
        for result in results(cells, books)
    ]
    # Cells name their values without ``agent.``, and the picture looks them up by field.
    values = {short(field): listed for field, listed in options.grid.items()}
    title = options.config.env.task
    sweep_figures.draw(swept, values, title, workdir / PICTURE, text)


def write_records(
    options: Options, cells: Sequence[Cell], books: Books, about: dict[str, Any]
) -> None:
    """Write every cell's run.json, and summary.csv.

    Args:
      options: options of the sweep.
      cells: cells of the sweep.
      books: books at the end of the sweep.
      about: record of the whole sweep; ``status`` and ``exit_code`` of its end.
    """
    all_results = results(cells, books)
    # "done, 2 of 4 rows diverged" is about the sweep, not about a cell without such rows.
    whole = "done" if about["exit_code"] == 0 else about["status"]
    for result in all_results:
        lost = {str(seed): what._asdict() for seed, what in result.diverged.items()}
        named = {f"seed {seed}": what for seed, what in result.diverged.items()}
        status = f"diverged: {health.describe(named)}" if lost else whole
        # A cell without healthy seeds has the code of a run that broke, whatever the sweep's is.
        code = 3 if len(lost) == len(result.cell.seeds) else about["exit_code"]
        own = {"status": status, "exit_code": code, "diverged": lost}
        files.write_json(result.cell.folder(options.workdir) / "run.json", about | own)
    write_summary(all_results, options.workdir / SUMMARY)
