"""Writing of result folders, by the standard library alone.

Workers on the nodes of a cluster keep results too, and need not load NumPy or JAX for it.
"""

import csv
import errno
import io
import json
import shutil
from pathlib import Path
from typing import Any

from pomcp_jax import files

METRICS_ROWS = 50
"""Rows of metrics.csv to keep per seed."""
DIGITS = 6
"""Significant digits of numbers in a thinned metrics.csv."""


def is_finished(about: dict[str, Any]) -> bool:
    """Whether the training that a run.json describes reached its end."""
    return about.get("exit_code") == 0 and about.get("status") == "done"


def folder_name(task: str) -> str:
    """Folder name of a task."""
    return task.replace("/", "_").replace(":", "_")


def thin(source: Path, out: Path, rows: int = METRICS_ROWS) -> None:
    """Copy a metrics table with at most ``rows`` evenly spaced rows per seed, including the last.

    Numbers are rounded to :data:`DIGITS` significant digits, except integers.
    """
    with source.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        table = list(reader)
    of_seed: dict[str, list[int]] = {}
    for i, row in enumerate(table):
        of_seed.setdefault(row["seed"], []).append(i)
    kept: set[int] = set()
    for indices in of_seed.values():
        count, last = min(rows, len(indices)), len(indices) - 1
        kept.add(indices[last])
        kept |= {indices[round(i * (last / (count - 1)))] for i in range(count - 1)}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows({k: _short(v) for k, v in table[i].items()} for i in sorted(kept))
    files.write_text(out, text.getvalue())


def _short(text: str) -> str:
    try:
        return text if text.lstrip("-").isdigit() else f"{float(text):.{DIGITS}g}"
    except ValueError:
        return text


def keep(workdir: Path, folder: Path, facts: dict[str, Any]) -> None:
    """Copy the results of a finished run to ``folder`` and replace what was there.

    Args:
      workdir: of :mod:`experiments.run`.
      folder: of the cell.
      facts: added to its run.json, or replaced in it: what the cell is.

    Raises:
      OSError: ``folder`` is, holds or lies in ``workdir``, whose checkpoints would go with what is
        replaced, or something cannot be written. ``workdir`` is never changed.
    """
    if files.are_nested(workdir, folder):
        raise OSError(errno.EINVAL, "results cannot be kept where the run trains", str(folder))
    # Complete under another name first: a process killed at any point leaves either the old or the
    # new results, never a mixture, and dot names are not read as cells.
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in ("config.json", "evaluations.csv"):
        if (workdir / name).is_file():
            shutil.copyfile(workdir / name, partial / name)
    if (workdir / "metrics.csv").is_file():
        thin(workdir / "metrics.csv", partial / "metrics.csv")
    # First and last: what the suite says comes first in the file, and wins.
    about = facts | json.loads((workdir / "run.json").read_text()) | facts
    files.write_json(partial / "run.json", about)
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)
