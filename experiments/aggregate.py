"""Tables that compare methods.

    python -m experiments.aggregate RUN [RUN ...] [--baseline=METHOD] [--csv | --latex] [--out=FILE]
    python -m experiments.aggregate runs/results/NAME [--out=FOLDER]

The first prints, for workdirs of experiments.run, sweeps and folders of such, the return of every
method on every task and the IQM, median, mean and optimality gap over tasks; with a baseline also
the probability of improvement over it and the difference by seed. --frames=40000 compares what
there was after so many frames, --metric=eval/policy_return policies alone. All have 95 % intervals
of the stratified bootstrap (:mod:`pomcp_jax.reporting.aggregates`). Runs of one method that share a
seed are named by their folders.

The second, for a result set of experiments.reproduce, prints its tables and published curves at the
same number of frames. With --out=FOLDER it writes there: ``summary.csv`` (a row per task and
method, then the aggregate of each method), ``returns.csv`` (a row per evaluation of each seed) and
``summary.png`` (:mod:`pomcp_jax.reporting.figures`).

Nothing is written without --out.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import usage  # isort: skip  # noqa: F401
from experiments import clock  # isort: skip  # noqa: F401

import argparse
import csv
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments import arguments, parsers, streams
from experiments import published as own
from pomcp_jax import files
from pomcp_jax.config import ConfigError
from pomcp_jax.reporting import (
    canvas,
    comparison,
    figures,
    markup,
    published,
    result_sets,
    results,
    scores,
    summary,
)
from pomcp_jax.reporting import runs as runs_lib
from pomcp_jax.reporting.published import Published
from pomcp_jax.reporting.result_sets import Runs
from pomcp_jax.running.progress import duration, number

FILES = ("summary.csv", "returns.csv", "summary.png")
"""What is written of a result set."""
VERSIONS = ("jax", "mujoco", "mujoco-mjx", "brax", "dm_control")
"""Packages named in returns.csv; run.json of every cell lists all."""


def _provenance(runs: Runs) -> dict[str, str]:
    """Preset, device and commit of the cells, each value once."""

    def joined(values: list[Any]) -> str:
        # dict.fromkeys: unique, but in the order of the cells.
        return "; ".join(dict.fromkeys(str(value) for value in values if value))

    abouts = [cell.about for cell in runs.cells]
    return {
        "preset": joined([about.get("preset") for about in abouts]),
        "device": joined([about.get("device") for about in abouts]),
        "cpu_cores": joined([about.get("cpu_cores") for about in abouts]),
        "commit": joined([about.get("commit") for about in abouts]),
    }


def judge(runs: Runs, curves: list[Published]) -> str:
    """Position of the mean relative to the same method's published band; "" without a band."""
    span = published.band(curves, runs.task, runs.method, runs.frames)
    if span is None:
        return ""
    mean = runs.final.mean()
    return "below" if mean < span[0] else "above" if mean > span[1] else "inside"


def task_rows(all_runs: list[Runs], curves: list[Published]) -> list[dict[str, Any]]:
    """Rows of summary.csv, one per task and method."""
    rows = []
    # Every row gets the columns of all published sources: a table needs one set of columns.
    labels = list(
        dict.fromkeys(c.label for r in all_runs for c in published.of_task(curves, r.task))
    )
    for runs in all_runs:
        final = runs.final
        row: dict[str, Any] = {
            "task": runs.task,
            "method": runs.method,
            "kind": "mean",
            "value": float(final.mean()),
            "std": float(final.std(ddof=1)) if len(final) > 1 else None,
            "low": float(final.min()),
            "high": float(final.max()),
            "n": len(final),
            "tasks": 1,
            "decisions": int(runs.decisions),
            "frames": int(runs.frames),
            "seconds": round(float(np.mean(runs.seconds)), 1),
            "cells": len(runs.cells),
            **_provenance(runs),
        }
        # Compared at our number of frames: published curves are longer than most of ours.
        at = {c.label: c.at(runs.frames) for c in published.of_task(curves, runs.task)}
        for label in labels:
            mean, std = at.get(label) or (None, None)
            row[f"published/{label}"] = mean
            row[f"published/{label}/std"] = std
        row["own_band"] = judge(runs, curves)
        rows.append(row)
    return rows


def aggregate_rows(all_runs: list[Runs]) -> list[dict[str, Any]]:
    """Rows of summary.csv with the IQM of each method, best method first."""
    rows = []
    for method, members in result_sets.methods(all_runs).items():
        value, low, high = (float(part[0]) for part in result_sets.final_aggregate(members))
        rows.append(
            {
                "task": "all",
                "method": method,
                "kind": "iqm",
                "value": value,
                "low": low,
                "high": high,
                "n": sum(len(runs.seeds) for runs in members),
                "tasks": len(members),
                # The smallest: an aggregate is no better than its shortest run.
                "frames": int(min(runs.frames for runs in members)),
                "seconds": round(sum(sum(runs.seconds) for runs in members), 1),
                "cells": sum(len(runs.cells) for runs in members),
            }
        )
    return sorted(rows, key=lambda row: -row["value"])


def return_rows(all_runs: list[Runs]) -> list[dict[str, Any]]:
    """Rows of returns.csv, one per evaluation of the planner."""
    file, column = result_sets.SOURCES["evaluation"]
    rows = []
    for runs in all_runs:
        for cell in runs.cells:
            versions = cell.about.get("versions", {})
            facts = {
                "device": cell.about.get("device"),
                "commit": cell.about.get("commit"),
                "versions": " ".join(f"{k}={versions[k]}" for k in VERSIONS if k in versions),
            }
            with (cell.folder / file).open(newline="") as opened:
                # Rows of the bare policy leave the planner's column empty.
                evaluations = [row for row in csv.DictReader(opened) if row.get(column)]
            rows += [
                {
                    "method": runs.method,
                    "preset": cell.about.get("preset"),
                    "task": runs.task,
                    "seed": int(row["seed"]),
                    "decisions": int(row["decisions"]),
                    "frames": int(row["frames"]),
                    "return": float(row[column]),
                    "seconds": float(row["seconds"]),
                    **facts,
                }
                for row in evaluations
            ]
    return rows


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a csv file with the columns of all rows, in order of appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        # Six digits are far finer than the spread between seeds, and keep the file readable.
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    files.write_text(path, out.getvalue())


def _pair(mean: float | None, spread: float | None) -> str:
    if mean is None:
        return "-"
    return number(mean, 1) + (f" ± {number(spread, 1)}" if spread is not None else "")


def _line(values: list[Any]) -> str:
    return "| " + " | ".join(str(value) for value in values) + " |"


def markdown(rows: list[dict[str, Any]], totals: list[dict[str, Any]]) -> str:
    """Tables of tasks and of methods as markdown."""
    labels = [
        name.removeprefix("published/")
        for name in rows[0]
        if name.startswith("published/") and not name.endswith("/std")
    ]
    head = ["task", "method", "return, mean ± std", "n", "frames", "wall-clock of a cell"]
    head += [f"{label}, published ± 2 std" for label in labels]
    head += ["own published band"] if labels else []
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        cells = f" (mean of {row['cells']})" if row["cells"] > 1 else ""
        line = [row["task"], row["method"], _pair(row["value"], row["std"]), row["n"]]
        line += [f"{row['frames']:,}", duration(row["seconds"]) + cells]
        for label in labels:
            std = row[f"published/{label}/std"]
            # Two standard deviations: the width of the band that `judge` compares with.
            line.append(_pair(row[f"published/{label}"], None if std is None else 2 * std))
        lines.append(_line(line + ([row["own_band"] or "-"] if labels else [])))
    # An IQM over fewer tasks is over other, perhaps easier, tasks: marked as not comparable.
    most = max(row["tasks"] for row in totals)
    formula = scores.formula(row["task"] for row in rows)
    head = ["method", f"IQM of {formula}", "95 % interval", "runs", "tasks", "wall-clock"]
    lines += ["", _line(head), _line(["---"] * len(head))]
    for row in totals:
        tasks = f"{row['tasks']}" + ("" if row["tasks"] == most else f" of {most}, not comparable")
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        line = [row["method"], f"{row['value']:.3f}", interval, row["n"], tasks]
        lines.append(_line([*line, duration(row["seconds"])]))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(argv))


def _main(argv: list[str] | None) -> int:
    args, _ = arguments.parse(parsers.aggregate(__doc__), argv)
    try:
        if _is_result_set(args):
            _result_set(args.runs[0], args.out)
        else:
            _compare(args)
    except (ConfigError, ValueError, LookupError, OSError, csv.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _is_result_set(args: argparse.Namespace) -> bool:
    """Whether the arguments are the folder of a suite's results, and at most a folder to write."""
    named = (args.baseline, args.labels, args.max_return, args.metric, args.frames)
    if len(args.runs) > 1 or args.csv or args.latex or any(x is not None for x in named):
        return False
    if args.out is not None and args.out.suffix and not _is_folder(args.out):
        return False
    one = args.runs[0]
    if (one / "config.json").exists() or (one / "sweep.json").exists():
        return False
    try:
        # Cells of a suite name their method, other runs their preset. Runs of an earlier version
        # name neither, and count as seeds of one method.
        abouts = [cell.about for cell in results.read(one)]
        return any(x.get("method") for x in abouts) or not any(x.get("preset") for x in abouts)
    except ConfigError:
        return True  # whose error says what is wrong with the folder


def _is_folder(out: Path) -> bool:
    endings = [ending for every in markup.FORMATS.values() for ending in every]
    return out.is_dir() and out.suffix.lower() not in endings


def _compare(args: argparse.Namespace) -> None:
    """Print or write the tables of runs.

    Raises:
      ConfigError: one line about a flag or a run; no file was changed.
    """
    form = _format(args)
    scale = args.max_return
    if scale is not None and not 0 < scale < float("inf"):
        raise ConfigError(f"--max-return = {scale:g}: must be > 0 and finite")
    if args.baseline == "":
        raise ConfigError("--baseline: is empty; must be a method of these runs")
    if args.frames is not None and not 0 < args.frames < float("inf"):
        raise ConfigError(f"--frames = {args.frames:g}: must be > 0 and finite")
    metric = comparison.RETURN if args.metric is None else args.metric
    loaded = comparison.load(runs_lib.find(args.runs, args.labels))
    found = summary.summarise(loaded, args.baseline or "", scale, metric, args.frames)
    text = markup.text(found, form)
    if args.out is None:
        print(text)
    else:
        try:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(args.out, text + "\n")
            print(f"written: {args.out}")
        except OSError as error:
            raise ConfigError(f"--out = {args.out}: cannot be written: {error.strerror}") from None
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)


def _format(args: argparse.Namespace) -> str:
    """The format by flag or suffix.

    Raises:
      ConfigError: an unknown suffix, or one that contradicts the flag.
    """
    wanted = "csv" if args.csv else "latex" if args.latex else ""
    if args.out is None:
        return wanted or "markdown"
    suffix = args.out.suffix.lower()
    names = [name for name, endings in markup.FORMATS.items() if suffix in endings]
    if not names:
        endings = ", ".join(ending for every in markup.FORMATS.values() for ending in every)
        raise ConfigError(f"--out = {args.out}: must end in one of {endings}")
    if wanted and wanted != names[0]:
        raise ConfigError(f"--out = {args.out}: is {names[0]} by its suffix, not {wanted}")
    return names[0]


def _result_set(folder: Path, out: Path | None) -> None:
    """Print the tables of a result set; write its files to ``out``.

    Raises:
      ConfigError: one line about the results, or about ``out``.
    """
    all_runs, unfinished = result_sets.load(folder)
    curves = published.load(own.FOLDER)
    rows, totals = task_rows(all_runs, curves), aggregate_rows(all_runs)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            if canvas.available():  # tables do not need matplotlib
                figures.draw(
                    folder, out / "summary.png",
                    beside=curves, bands=own.BANDS, known=own.COLORED,
                )  # fmt: skip
            write(rows + totals, out / "summary.csv")
            write(return_rows(all_runs), out / "returns.csv")
        except OSError as error:
            raise ConfigError(f"--out = {out}: cannot be written: {error.strerror}") from None
    print(markdown(rows, totals))
    for cell in unfinished:
        status = cell.about.get("status", "unknown")
        print(f"\nnot counted: {cell.task} {cell.method}: {status} ({cell.folder})")
    if out is not None:
        names = [name for name in FILES if (out / name).exists()]
        print(f"\nwritten: {', '.join(names)} in {out}/")


if __name__ == "__main__":
    sys.exit(main())
