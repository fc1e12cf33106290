"""Reading and writing of result folders; each holds one cell: a task, a method, all its seeds.

A cell contains ``config.json``, ``run.json``, ``evaluations.csv`` and a thinned ``metrics.csv``,
as :mod:`experiments.run` writes them; ``run.json`` names the method.
:mod:`experiments.reproduce` arranges cells as ``RESULTS/TASK/METHOD``, but any folder below
RESULTS with these files is read. What writes them is in :mod:`pomcp_jax.reporting.keeping`.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pomcp_jax import config as config_lib
from pomcp_jax import parts
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.reporting.keeping import DIGITS, METRICS_ROWS, folder_name, is_finished, keep, thin

__all__ = ["DIGITS", "METRICS_ROWS", "Cell", "finished", "folder_name", "keep", "read", "thin"]


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
        return is_finished(self.about)


def finished(folder: Path, config: Config) -> bool:
    """Whether ``folder`` holds the finished cell of ``config``; False if unreadable or missing.

    Raises:
      ConfigError: if it is finished but of another configuration. Fields that only one of the two
        configurations has are ignored, since settings may have been added in the meantime.
    """
    try:
        about = json.loads((folder / "run.json").read_text())
        stored = config_lib.flatten(json.loads((folder / "config.json").read_text()))
        if not (is_finished(about) and (folder / "evaluations.csv").stat().st_size):
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
    # Of runs over several processes, whose parts are cells: a damaged one is refused.
    for parent in dict.fromkeys([results, *(cell.folder.parent for cell in cells)]):
        parts.read(parent)
    if not cells:
        raise ConfigError(f"{results}: holds no cell (a folder with config.json and run.json)")
    return sorted(cells, key=lambda cell: (cell.task, cell.method, str(cell.folder)))
