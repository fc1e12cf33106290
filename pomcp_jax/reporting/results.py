"""Result folders: one cell (a task, a method, all its seeds) a folder, read and written here.

A cell holds ``config.json``, ``run.json``, ``evaluations.csv`` and a thinned ``metrics.csv``, as
:mod:`experiments.run` writes them; ``run.json`` names the method. :mod:`experiments.reproduce`
lays cells out as ``RESULTS/TASK/METHOD``; any folder below RESULTS that has the files counts.
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
"""Rows that a seed keeps of metrics.csv."""
DIGITS = 6
"""Significant digits that numbers of a thinned metrics.csv keep."""


class Cell(NamedTuple):
    """A result folder."""

    folder: Path
    task: str
    method: str
    action_repeat: int
    """Frames of a decision."""
    about: dict[str, Any]
    """Contents of run.json."""

    @property
    def finished(self) -> bool:
        """Whether the training reached its end."""
        return _finished(self.about)


def _finished(about: dict[str, Any]) -> bool:
    return about.get("exit_code") == 0 and about.get("status") == "done"


def folder_name(task: str) -> str:
    """A task's name as that of a folder."""
    return task.replace("/", "_")


def thin(source: Path, out: Path, rows: int = METRICS_ROWS) -> None:
    """Copy a table of metrics with at most ``rows`` rows of every seed, evenly, the last included.

    Numbers are rounded to :data:`DIGITS` significant digits, whole ones excepted.
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
        # One row alone would be the first one.
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
    """Copy what a finished run leaves to ``folder``, in one step; what was there goes.

    Args:
      workdir: of :mod:`experiments.run`.
      folder: of the cell.
      facts: added to its run.json, or replaced in it: what the cell is.
    """
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
    """Whether ``folder`` holds the finished cell of ``config``; False for a broken or missing one.

    Raises:
      ConfigError: if it is finished but of another configuration. Fields that only one of the two
        has do not count: settings may have been added since.
    """
    try:
        about = json.loads((folder / "run.json").read_text())
        held = config_lib.flatten(json.loads((folder / "config.json").read_text()))
        if not (_finished(about) and (folder / "evaluations.csv").stat().st_size):
            return False
    except (OSError, ValueError, AttributeError):
        return False
    wanted = config_lib.flatten(json.loads(json.dumps(config_lib.to_dict(config))))
    for name in sorted(held.keys() & wanted.keys()):
        if held[name] != wanted[name]:
            raise ConfigError(
                f"{folder}: holds results with {name} = {held[name]!r}, this suite has"
                f" {wanted[name]!r}; remove that folder or choose another --out"
            )
    return True


def read(results: Path) -> list[Cell]:
    """All cells below ``results``, sorted by task, method and folder.

    A cell whose run.json names no method is of the method called as ``results``: its cells are
    seeds of one training.

    Raises:
      ConfigError: if there is none, or one is unreadable.
    """
    if not results.is_dir():
        raise ConfigError(f"{results}: no such folder; must be one of results")
    found = []
    for path in sorted(results.rglob("run.json")):
        folder = path.parent
        if any(part.startswith((".", "previous-")) for part in folder.relative_to(results).parts):
            continue
        try:
            about = json.loads(path.read_text())
            env = json.loads((folder / "config.json").read_text())["env"]
            method = about.get("method") or results.resolve().name
            found.append(Cell(folder, env["task"], method, env["action_repeat"], about))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{folder}: its run.json or config.json is unreadable") from None
    if not found:
        raise ConfigError(f"{results}: holds no cell (a folder with config.json and run.json)")
    return sorted(found, key=lambda cell: (cell.task, cell.method, str(cell.folder)))
