"""The written record of a run: metrics, evaluations, what ran where. Plain files, no wandb."""

import csv
import datetime
import fcntl
import json
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from pomcp_jax import config as config_lib
from pomcp_jax import manifest
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


CHANGEABLE = (
    "total_decisions",
    "chunk_decisions",
    "eval_decisions",
    "checkpoint_decisions",
    "checkpoint_keep",
    "memory_limit_gb",
    "num_devices",
    "max_bad_updates",
    "on_broken_seed",
    "max_seed_resets",
)
"""Fields of ``train`` that may change when a run goes on: they say how long and how often."""


def check_workdir(workdir: Path, config: Config, resume: str = "auto") -> None:
    """Refuse a workdir that cannot be written or holds a run of another configuration.

    Fields that the earlier run did not know had their defaults. Writes nothing.
    ``resume`` is the command line's: ``change_seeds`` allows another number of seeds.

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
        before = config_lib.from_dict(Config, json.loads(held.read_text()))
    except ConfigError as error:
        raise ConfigError(
            f"--workdir = {str(workdir)!r}: holds a run of another version ({error});"
            " choose another folder"
        ) from None
    except (OSError, ValueError, TypeError, AttributeError):
        raise ConfigError(f"--workdir = {str(workdir)!r}: its config.json is unreadable") from None
    old, new = config_lib.flatten(before), config_lib.flatten(config)
    for name in sorted(new):
        if name == "train.num_seeds" and resume == "change_seeds":
            continue
        if old[name] != new[name] and name.removeprefix("train.") not in CHANGEABLE:
            hint = "--resume=change_seeds drops the last ones or adds some, or "
            raise ConfigError(
                f"--workdir = {str(workdir)!r}: holds a run with {name} = {old[name]!r},"
                f" this one has {new[name]!r}; {hint if name == 'train.num_seeds' else ''}choose"
                " another folder"
            )


def lock(workdir: Path) -> int:
    """Make the folder and hold it for this process, until that ends in whatever way.

    Raises:
      ConfigError: when another process holds it, or it cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        place = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"--workdir = {str(workdir)!r}: {error.strerror}") from None
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"--workdir = {str(workdir)!r}: another process is writing to it; wait or end it"
        ) from None
    except OSError:  # a file system without locks
        pass
    return place


def open_workdir(workdir: Path, config: Config) -> Path | None:
    """Make the folder and save the configuration; an earlier run moves aside.

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
    """Replace a file in one step; it has the old text or the new one, whatever happens."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def commit() -> str | None:
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
        "commit": commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: manifest.installed(name) for name in packages},
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


class Written(NamedTuple):
    """How far a record has come; plain JSON."""

    columns: list[str]
    """Of metrics.csv and metrics.jsonl."""
    evaluation_columns: list[str]
    """Of evaluations.csv; empty before the first evaluation."""
    sizes: dict[str, int]
    """Bytes of every file."""
    decisions: int
    """The largest of any row."""


TABLES = ("metrics.jsonl", "metrics.csv", "evaluations.csv")


class Record:
    """Open files of one run; every row is with the system when ``row`` returns."""

    def __init__(
        self,
        workdir: Path,
        columns: list[str],
        tensorboard: bool = False,
        written: Written | None = None,
    ):
        """With ``written`` goes on where that was; later rows are cut off."""
        rest = sorted(set(columns) - set(FIRST))
        self._columns = [*FIRST, *rest] if written is None else written.columns
        self._evaluation_columns = [] if written is None else written.evaluation_columns
        self._decisions = -1 if written is None else written.decisions
        self._files = {}
        for name in TABLES:
            if written is not None:
                _cut(workdir / name, written.sizes[name])
            mode = "w" if written is None else "a"
            self._files[name] = (workdir / name).open(mode, newline="")
        empty = [name for name, size in self.written().sizes.items() if size == 0]
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            again = {} if written is None else {"purge_step": written.decisions + 1}
            self._events = SummaryWriter(str(workdir / "tensorboard"), **again)
        if "metrics.csv" in empty:
            self._write_csv("metrics.csv", self._columns)
        if "evaluations.csv" in empty:
            self._evaluation_columns = []

    def _write_csv(self, name: str, values: list[Any]) -> None:
        csv.writer(self._files[name]).writerow(values)
        self._files[name].flush()

    def row(self, values: dict[str, Any]) -> None:
        """One chunk of one seed."""
        values = {name: _plain(values.get(name)) for name in self._columns}
        self._files["metrics.jsonl"].write(json.dumps(values) + "\n")
        self._files["metrics.jsonl"].flush()
        self._write_csv("metrics.csv", list(values.values()))
        self._decisions = max(self._decisions, values["decisions"])
        if self._events is not None:
            for name, value in values.items():
                if value is not None and name not in ("seed", "decisions"):
                    tag = f"seed_{values['seed']}/{name}"
                    self._events.add_scalar(tag, value, values["decisions"])
            self._events.flush()

    def evaluation(self, values: dict[str, Any]) -> None:
        """One evaluation of one seed, every episode's return included."""
        if not self._evaluation_columns:
            self._evaluation_columns = list(values)
            self._write_csv("evaluations.csv", self._evaluation_columns)
        plain = [_plain(values.get(name)) for name in self._evaluation_columns]
        self._write_csv("evaluations.csv", plain)

    def written(self) -> Written:
        """How far the files have come."""
        sizes = {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}
        return Written(self._columns, self._evaluation_columns, sizes, self._decisions)

    def sync(self) -> None:
        """Force what was written to the disk."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close all files; safe to call twice."""
        for file in self._files.values():
            try:
                file.close()
            except OSError:  # the disk is full; the row that was lost has been reported
                pass
        if self._events is not None:
            self._events.close()
            self._events = None


def _cut(path: Path, size: int) -> None:
    """Shorten a table to ``size`` bytes, or to whole lines where it is shorter already."""
    if not path.exists():
        return
    if path.stat().st_size < size:
        size = path.read_bytes().rfind(b"\n") + 1
    os.truncate(path, size)


def missing(workdir: Path, written: Written) -> list[str]:
    """Files that are shorter than ``written`` says, or gone."""
    sizes = {name: (workdir / name).stat().st_size for name in TABLES if (workdir / name).exists()}
    return [name for name in TABLES if sizes.get(name, 0) < written.sizes[name]]
