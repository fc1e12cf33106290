"""Reading and writing of result folders; each holds one cell: a task, a method, all its seeds.

A cell contains ``config.json``, ``run.json``, ``evaluations.csv`` and a thinned ``metrics.csv``,
as :mod:`experiments.run` writes them; ``run.json`` names the method.
:mod:`experiments.reproduce` arranges cells as ``RESULTS/TASK/METHOD``, but any folder below
RESULTS with these files is read.
"""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax import config as config_lib
from pomcp_jax import files
from pomcp_jax.config import Config, ConfigError

METRICS_ROWS = 50
"""Rows of metrics.csv to keep per seed."""
DIGITS = 6
"""Significant digits of numbers in a thinned metrics.csv."""


class Cell(NamedTuple):
    """A result folder."""

    folder: Path
    task: str
    method: str
    action_repeat: int
    """Frames per decision."""
    about: dict[str, Any]
    """Contents of run.json."""

    @property
    def finished(self) -> bool:
        """Whether the training reached its end."""
        return _finished(self.about)


def _finished(about: dict[str, Any]) -> bool:
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
        count = min(rows, len(indices))
        chosen = np.linspace(0, len(indices) - 1, count).round().astype(int)
        # linspace of one point returns the first index; the last row is the one to keep.
        kept |= {indices[i] for i in chosen} if count > 1 else {indices[-1]}
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
    """
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


def finished(folder: Path, config: Config) -> bool:
    """Whether ``folder`` holds the finished cell of ``config``; False if unreadable or missing.

    Raises:
      ConfigError: if it is finished but of another configuration. Fields that only one of the two
        configurations has are ignored, since settings may have been added in the meantime.
    """
    try:
        about = json.loads((folder / "run.json").read_text())
        stored = config_lib.flatten(json.loads((folder / "config.json").read_text()))
        if not (_finished(about) and (folder / "evaluations.csv").stat().st_size):
            return False
    except (OSError, ValueError, AttributeError):
        return False
    # Through JSON as well: tuples become lists, so that equal values compare equal.
    wanted = config_lib.flatten(json.loads(json.dumps(config_lib.to_dict(config))))
    for name in sorted(stored.keys() & wanted.keys()):
        if stored[name] != wanted[name]:
            raise ConfigError(
                f"{folder}: holds results with {name} = {stored[name]!r}, this suite has"
                f" {wanted[name]!r}; remove that folder or choose another --out"
            )
    return True


def read(results: Path) -> list[Cell]:
    """All cells below ``results``, sorted by task, method and folder.

    If run.json names no method, the name of ``results`` is used: its cells are then seeds of one
    training.

    Raises:
      ConfigError: if there is no cell, or one is unreadable.
    """
    if not results.is_dir():
        raise ConfigError(f"{results}: no such folder; must be a folder of results")
    cells = []
    for path in sorted(results.rglob("run.json")):
        folder = path.parent
        # Partial copies, and cells that experiments.reproduce moved aside.
        if any(part.startswith((".", "previous-")) for part in folder.relative_to(results).parts):
            continue
        try:
            about = json.loads(path.read_text())
            env = json.loads((folder / "config.json").read_text())["env"]
            method = about.get("method") or results.resolve().name
            cells.append(Cell(folder, env["task"], method, env["action_repeat"], about))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{folder}: its run.json or config.json is unreadable") from None
    if not cells:
        raise ConfigError(f"{results}: holds no cell (a folder with config.json and run.json)")
    return sorted(cells, key=lambda cell: (cell.task, cell.method, str(cell.folder)))
