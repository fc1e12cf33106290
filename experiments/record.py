"""The written record of a run: metrics, evaluations, what ran where. Plain files, no wandb."""

import csv
import datetime
import importlib.metadata
import json
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from pomcp_jax import config as config_lib
from pomcp_jax.config import Config, ConfigError

FIRST = (
    "seconds",
    "decisions",
    "frames",
    "seed",
    "train/return",
    "eval/return",
    "decisions_per_second",
)
"""Columns of every row of metrics.csv, in this order; the rest follows by name."""
FILES = (
    "config.json",
    "run.json",
    "metrics.jsonl",
    "metrics.csv",
    "evaluations.csv",
    "learning_curve.png",
    "checkpoints",
    "tensorboard",
)
"""Everything a run may leave in its workdir."""


def config_text(config: Config) -> str:
    """The resolved configuration as JSON."""
    return json.dumps(config_lib.to_dict(config), indent=1) + "\n"


def check_workdir(workdir: Path, config: Config) -> None:
    """Refuse a workdir that cannot be written or holds a run of another configuration.

    Writes nothing.

    Raises:
      ConfigError: one line for the user.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir = {str(workdir)!r}: is a file; must be a folder")
    existing = workdir
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"--workdir = {str(workdir)!r}: {existing} is not writable")
    held = workdir / "config.json"
    if not held.is_file():
        return
    try:
        before = config_lib.flatten(json.loads(held.read_text()))
    except (OSError, ValueError):
        raise ConfigError(f"--workdir = {str(workdir)!r}: its config.json is unreadable") from None
    now = config_lib.flatten(json.loads(config_text(config)))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ConfigError(
                f"--workdir = {str(workdir)!r}: holds a run with {name} = {before.get(name)!r},"
                f" this one has {now.get(name)!r}; choose another folder"
            )


def open_workdir(workdir: Path, config: Config) -> Path | None:
    """Make the folder and save the configuration; an earlier run of the same one moves aside.

    Returns:
      Where the earlier run went, if there was one.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    moved = set_aside(workdir, FILES)
    write_text(workdir / "config.json", config_text(config))
    return moved


def set_aside(workdir: Path, names: Iterable[str]) -> Path | None:
    """Move what is there of ``names`` to a new ``previous-N``; where that is, if anything was."""
    old = [workdir / name for name in names if (workdir / name).exists()]
    if not old:
        return None
    number = 1
    while (workdir / f"previous-{number}").exists():
        number += 1
    moved = workdir / f"previous-{number}"
    moved.mkdir()
    for path in old:
        path.rename(moved / path.name)
    return moved


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def _commit() -> str | None:
    """Commit of the source tree, ``-dirty`` when it differs; None outside of git."""
    here = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        out = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None if out.returncode == 0 else None


def describe(argv: list[str], module: str = "experiments.run") -> dict[str, Any]:
    """Command, commit, versions and device: what a number has to be read with."""
    packages = ("jax", "jaxlib", "flax", "optax", "mujoco", "mujoco-mjx", "brax", "dm_control")
    device = jax.devices()[0]
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "command": f"python -m {module} " + " ".join(argv[1:]),
        "commit": _commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "device": f"{device.platform}: {device.device_kind}",
        "num_devices": jax.device_count(),
        "cpu_cores": len(affinity(0)) if affinity else os.cpu_count(),
        "platform": platform.platform(),
    }


def peak_memory_gb() -> float:
    """Largest resident size of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _plain(value: Any) -> Any:
    """A JSON number; what is not finite becomes null."""
    if isinstance(value, int | str) or value is None:
        return value
    value = float(value)
    return value if math.isfinite(value) else None


class Record:
    """Open files of one run; every row is on disk when ``row`` returns."""

    def __init__(self, workdir: Path, columns: list[str], tensorboard: bool = False):
        rest = sorted(set(columns) - set(FIRST))
        self._columns = [*FIRST, *rest]
        self._jsonl = (workdir / "metrics.jsonl").open("w")
        self._csv_file = (workdir / "metrics.csv").open("w", newline="")
        self._csv = csv.DictWriter(self._csv_file, self._columns)
        self._csv.writeheader()
        self._eval_file = (workdir / "evaluations.csv").open("w", newline="")
        self._eval: csv.DictWriter | None = None
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(workdir / "tensorboard"))

    def row(self, values: dict[str, Any]) -> None:
        """One chunk of one seed."""
        values = {name: _plain(values.get(name)) for name in self._columns}
        self._jsonl.write(json.dumps(values) + "\n")
        self._csv.writerow(values)
        self._jsonl.flush()
        self._csv_file.flush()
        if self._events is not None:
            for name, value in values.items():
                if value is not None and name not in ("seed", "decisions"):
                    tag = f"seed_{values['seed']}/{name}"
                    self._events.add_scalar(tag, value, values["decisions"])
            self._events.flush()

    def evaluation(self, values: dict[str, Any]) -> None:
        """One evaluation of one seed, every episode's return included."""
        if self._eval is None:
            self._eval = csv.DictWriter(self._eval_file, list(values))
            self._eval.writeheader()
        self._eval.writerow({k: "" if _plain(v) is None else _plain(v) for k, v in values.items()})
        self._eval_file.flush()

    def close(self) -> None:
        """Close all files; safe to call twice."""
        for file in (self._jsonl, self._csv_file, self._eval_file):
            file.close()
        if self._events is not None:
            self._events.close()
            self._events = None
