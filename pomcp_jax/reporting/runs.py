"""Runs to compare: found in folders, named by their method, seeds of one method pooled."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pomcp_jax import config as config_lib
from pomcp_jax import parts
from pomcp_jax.config import ConfigError
from pomcp_jax.reporting import columns
from pomcp_jax.reporting.columns import Table

DEPTH = 4
"""Levels of folders below which a folder of runs is searched."""
NAMED = 2
"""Most settings that a label names; runs that differ in more are named by their folders."""
BOOKKEEPING = frozenset(
    ["env.task"]
    + [
        f"train.{name}"
        for name in (
            "seed num_seeds total_decisions chunk_decisions eval_decisions eval_episodes"
            " checkpoint_decisions checkpoint_keep memory_limit_gb max_bad_updates on_broken_seed"
            " num_devices max_seed_resets"
        ).split()
    ]
)
"""Fields in which seeds of one method may differ."""


class Run(NamedTuple):
    """One run or one cell of a sweep."""

    folder: Path
    task: str
    action_repeat: int
    """Frames of a decision."""
    label: str
    """Of its method."""
    seeds: range
    """Numbers of its seeds by its configuration."""
    settings: dict[str, Any]
    """Fields that make it another method if they differ, by name."""
    diverged: frozenset[int]
    """Seeds that are left out of means."""
    about: dict[str, Any]
    """Contents of run.json; empty where there is none yet."""

    def tables(self) -> list[Table]:
        """Its tables that hold anything, in the order of :data:`columns.FILES`.

        Raises:
          ConfigError: an unreadable or ragged one, or none at all.
        """
        found = [columns.read(self.folder / name) for name in columns.FILES]
        held = [table for table in found if table is not None]
        if not held:
            names = " and ".join(columns.FILES)
            raise ConfigError(f"{self.folder}: {names} are missing or empty; {self.mend}")
        return held

    @property
    def mend(self) -> str:
        """What produces rows that are missing."""
        # Otherwise the command would move this run aside.
        command = str(self.about.get("command") or "").replace(" --resume=never", "")
        if self.about.get("status") == "imported":
            return "import the agent again with --episodes=10, which evaluates it"
        return f"`{command}` continues the run" if command else "resume the run first"


def find(paths: Sequence[Path], labels: Sequence[str] | None = None) -> list[Run]:
    """The runs of ``paths``, each once: workdirs, sweeps (all cells), folders of such.

    A method is called as run.json names it (``method`` or ``preset``), else as its folder; a
    sweep's cell as its folder. Runs of one task with equal names and unequal settings get
    the settings into their names, and those that share a seed their folders, so that equal names
    are seeds of one method.

    Args:
      paths: folders.
      labels: names instead, one for each run found; equal ones are seeds of one method.

    Raises:
      ConfigError: one line about a folder, or a wrong number of labels.
    """
    found = {run.folder.resolve(): run for path in paths for run in _runs(path)}
    runs = list(found.values())
    if labels is None:
        return _apart(runs)
    if not any(label.strip(" ,") for label in labels):
        raise ConfigError("--labels: names nothing")
    if len(labels) == 1 and len(runs) > 1:
        labels = labels[0].split(",")
    labels = [label.strip() for label in labels]
    if "" in labels:
        raise ConfigError(f"--labels = {','.join(labels)!r}: one of them is empty")
    if len(labels) != len(runs):
        raise ConfigError(f"--labels: {len(labels)} for {len(runs)} runs; must be one for each")
    return [run._replace(label=label) for run, label in zip(runs, labels, strict=True)]


def _runs(path: Path) -> list[Run]:
    if not path.exists():
        raise ConfigError(
            f"{path}: no such folder; `python -m experiments.run --config=FILE --workdir={path}`"
            " trains a run there"
        )
    if not path.is_dir():
        raise ConfigError(f"{path}: is a file; must be the folder of a run, a sweep or of several")
    parts.read(path)  # refuses a damaged one
    if (path / "sweep.json").exists():
        return [_run(cell, cell=True) for cell in _cells(path)]
    if (path / "config.json").exists():
        return [_run(path)]
    inner = [
        place.parent
        for depth in range(1, DEPTH + 1)
        for place in sorted(path.glob("*/" * depth + "config.json"))
        if _is_run(place.parent, path)
    ]
    if not inner:
        raise ConfigError(
            f"{path}: holds no config.json; must be a workdir of experiments.run or"
            " experiments.sweep, or a folder of such"
        )
    for parent in sorted({folder.parent for folder in inner}):
        parts.read(parent)
    return [_run(folder, cell=(folder.parent / "sweep.json").exists()) for folder in inner]


def _is_run(folder: Path, top: Path) -> bool:
    parts = folder.relative_to(top).parts
    hidden = any(part.startswith((".", "previous-")) for part in parts)
    # The folder of a sweep has a configuration too; its cells are found on their own.
    tables = any((folder / name).exists() for name in ("run.json", *columns.FILES))
    return tables and not hidden and not (folder / "sweep.json").exists()


def _cells(sweep: Path) -> list[Path]:
    try:
        names = [
            Path(name).name for name in json.loads((sweep / "sweep.json").read_text())["cells"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{sweep}: its sweep.json is unreadable; name its cells' folders"
        ) from None
    cells = [sweep / name for name in names if (sweep / name / "config.json").exists()]
    if not cells:
        raise ConfigError(f"{sweep}: a sweep without any cell's folder; resume it first")
    return cells


def _run(folder: Path, *, cell: bool = False) -> Run:
    config, about = _json(folder / "config.json"), {}
    if (folder / "run.json").exists():
        about = _json(folder / "run.json")
    try:
        env = config["env"]
        task, repeat = str(env["task"]), int(env["action_repeat"])
        train = config.get("train") or {}
        first = int(train.get("seed", 0))
        seeds = range(first, first + int(train.get("num_seeds", 1)))
        diverged = frozenset(int(seed) for seed in about.get("diverged") or {})
        flat = config_lib.flatten(config)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        raise ConfigError(
            f"{folder}: its config.json or run.json is not of a run of experiments.run"
        ) from None
    name = None if cell else about.get("method") or about.get("preset")
    settings = {field: value for field, value in flat.items() if field not in BOOKKEEPING}
    label = str(name or folder.resolve().name)
    return Run(folder, task, repeat, label, seeds, settings, diverged, about)


def _json(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        held = None
    if not isinstance(held, dict):
        raise ConfigError(f"{path}: is unreadable; must be a JSON object as a run writes it")
    return held


def _apart(runs: list[Run]) -> list[Run]:
    """``runs`` whose labels say in which settings those of equal names differ."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    names = {label: _differing(members) for label, members in groups.items()}
    named = [run._replace(label=_label(run, names[run.label])) for run in runs]
    twice = _twice(named)
    return [
        run._replace(label=f"{run.label} ({twice[run.folder]})") if run.folder in twice else run
        for run in named
    ]


def _twice(runs: Sequence[Run]) -> dict[Path, str]:
    """Names of the runs that share a seed with another of their task and label, by folder."""
    folders: set[Path] = set()
    for a, b in itertools.combinations(runs, 2):
        if (a.task, a.label) == (b.task, b.label) and set(a.seeds) & set(b.seeds):
            folders |= {a.folder, b.folder}
    return _tails(sorted(folders))


def _tails(folders: Sequence[Path]) -> dict[Path, str]:
    """The shortest ends of paths, equally long, that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts), default=0) + 1):
        tails = ["/".join(path[-count:]) for path in parts]
        if len(set(tails)) == len(tails):
            return dict(zip(folders, tails, strict=True))
    return {}


def _differing(runs: list[Run]) -> list[str]:
    """Fields in which runs of the same task differ; those that only some have do not count."""
    out: dict[str, None] = {}
    for task in dict.fromkeys(run.task for run in runs):
        every = [run.settings for run in runs if run.task == task]
        shared = [field for field in every[0] if all(field in other for other in every)]
        for field in shared:
            if any(other[field] != every[0][field] for other in every):
                out[field] = None
    return list(out)


def _label(run: Run, fields: list[str]) -> str:
    if not fields:
        return run.label
    if len(fields) > NAMED:
        return f"{run.label} ({run.folder.resolve().name})"
    named = (f"{field.rpartition('.')[2]}={run.settings.get(field)}" for field in fields)
    return f"{run.label}, {', '.join(named)}"


def by_task(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """Runs by task and label, in order of appearance."""
    out: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        out.setdefault(run.task, {}).setdefault(run.label, []).append(run)
    return out
