"""A run's workdir: whether it can be used, its configuration, what ran where."""

import errno
import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pomcp_jax import config as config_lib
from pomcp_jax.cells import Grid
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.running import crash

FILES = (
    "config.json",
    "run.json",
    "metrics.jsonl",
    "metrics.csv",
    "evaluations.csv",
    "learning_curve.png",
    "checkpoints",
    "tensorboard",
    crash.NAME,
)
"""Everything a run may leave in its workdir."""
SWEEP_FILES = ("sweep.json", "summary.csv", "sweep.png")
"""What a sweep leaves beside these and its cells' folders."""
FOLDERS = (".", "checkpoints", "tensorboard")
"""Those of :data:`FILES` that are folders, and the workdir."""
LONGEST_NAME = 200
"""Bytes, about, of the longest name below a workdir: orbax' temporary files in a checkpoint."""


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
"""Fields of ``train`` that may change when a run resumes: they say how long and how often."""


def differences(before: Config, config: Config, resume: str = "auto") -> str:
    """What of ``config`` may not change when a run resumes and did: ``a = 1, this one has 2``."""
    old, new = config_lib.flatten(before), config_lib.flatten(config)
    found = [
        f"{name} = {old[name]!r}, this one has {new[name]!r}"
        for name in sorted(new)
        if old[name] != new[name]
        and name.removeprefix("train.") not in CHANGEABLE
        and not (name == "train.num_seeds" and resume == "change_seeds")
    ]
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    return "; ".join(found[:5]) + more


MOST_BYTES = 4 << 20
"""Of config.json and run.json, which have a few thousand."""


def read_json(path: Path) -> Any:
    """Contents of a small JSON file.

    Raises:
      OSError: it cannot be read, or is no file.
      ValueError: it is too large or no JSON.
    """
    if not path.is_file():  # a pipe would be waited for
        number = errno.EISDIR if path.is_dir() else errno.ENOENT
        raise OSError(number, os.strerror(number))
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"is larger than {MOST_BYTES >> 20} MiB")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def expanded(folder: Path | str, name: str = "--workdir") -> Path:
    """``folder`` with a home folder in place of ``~``.

    Raises:
      ConfigError: nobody has that home folder.
    """
    try:
        return Path(folder).expanduser()
    except RuntimeError:
        user = str(folder).partition("/")[0]
        raise ConfigError(f"{name} = {str(folder)!r}: there is no user {user}") from None


def check_workdir(
    workdir: Path, config: Config, resume: str = "auto", grid: Grid | None = None
) -> None:
    """Refuse a workdir that cannot be written or holds a run of another configuration.

    Fields that the earlier run did not know had their defaults. Writes nothing.

    Args:
      workdir: need not exist.
      config: of the run that is to use it; of a sweep, what its cells share.
      resume: ``change_seeds`` allows another number of seeds, ``never`` any other run, which
        will move aside.
      grid: of a sweep.

    Raises:
      ConfigError: one line for the user.
    """
    name = f"--workdir = {str(workdir)!r:.300}"
    try:
        _check_place(workdir, name)
        if resume == "never":
            return
        _check_kinds(workdir, name)
        held = workdir / "config.json"
        found = read_json(held) if held.exists() else None
        if type(found) not in (dict, type(None)):
            raise ValueError("is no configuration")
        before = None if found is None else config_lib.from_dict(Config, found)
        _check_grid(workdir, name, grid or {})
    except ConfigError as error:
        text = str(error)
        if not text.startswith("--workdir"):
            text = f"{name}: holds a run of another version ({text}); choose another folder"
        raise ConfigError(text) from None
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror or error}") from None
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(
            f"{name}: its config.json is unreadable; remove it (checkpoints hold it too) or"
            " --resume=never moves that run aside"
        ) from None
    differ = "" if before is None else differences(before, config, resume)
    if differ:
        hint = "--resume=change_seeds drops the last ones or adds some, or "
        hint = hint if "train.num_seeds = " in differ else ""
        raise ConfigError(f"{name}: holds a run with {differ}; {hint}choose another folder")


def _check_grid(workdir: Path, name: str, grid: Grid) -> None:
    """Refuse a workdir that holds another sweep, a run for a sweep or a sweep for a run."""
    before = swept(workdir, name)
    if before is None:
        if grid and (workdir / "config.json").exists():
            raise ConfigError(f"{name}: holds a run, no sweep; choose another folder")
        return
    if not grid:
        raise ConfigError(f"{name}: holds a sweep; choose another folder")
    old, new = ({k: [*map(float, v)] for k, v in one.items()} for one in (before.grid, grid))
    if old and old != new:
        shown = "; ".join(f"{k}={','.join(map(str, v))}" for k, v in old.items())
        raise ConfigError(
            f"{name}: holds a sweep of {shown:.300}; choose another folder, or --resume=never"
            " moves that one aside"
        )


class Swept(NamedTuple):
    """What the record of a sweep says of its cells."""

    grid: dict[str, list[float]]
    """Empty where an earlier version or a killed process wrote it."""
    folders: list[str]
    """Of the cells."""


def swept(workdir: Path, name: str) -> Swept | None:
    """The cells of an earlier sweep; None where there was none. ``name`` is for the error.

    Raises:
      ConfigError: its record cannot be read.
    """
    path = workdir / "sweep.json"
    if not os.path.lexists(path):
        return None
    try:
        about = read_json(path)
        folders = [Path(cell).name for cell in about["cells"]]
        grid = {str(k): [*map(float, v)] for k, v in about.get("grid", {}).items()}
        return Swept(grid, folders)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{name}: its sweep.json is unreadable") from None


def held(workdir: Path) -> list[str]:
    """Names of everything that a run or a sweep may have left in ``workdir``."""
    try:
        before = swept(workdir, str(workdir))
    except ConfigError:
        before = None
    return [*FILES, *SWEEP_FILES, *(before.folders if before else ())]


def _check_place(workdir: Path, name: str) -> None:
    """Refuse what cannot be a folder of ours, or cannot be written."""
    if "\0" in str(workdir):
        raise ConfigError(f"{name}: holds a zero byte")
    whole = os.fsencode(os.path.abspath(workdir))
    try:
        whole.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: is not UTF-8; checkpoints need a path that is") from None
    if len(whole) + LONGEST_NAME > os.pathconf("/", "PC_PATH_MAX"):
        raise ConfigError(f"{name}: is too long for the names of checkpoints in it")
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"{name}: is a file; must be a folder")
    existing = workdir
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"{name}: {str(existing)!r:.300} is a file; must be a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{name}: {str(existing)!r:.300} is not writable")
    for part in workdir.parts:
        if len(os.fsencode(part)) > 255:
            raise ConfigError(f"{name}: a name in it is longer than 255 bytes")


def _check_kinds(workdir: Path, name: str) -> None:
    """Refuse files where a run has folders, folders where it has files, and what is read-only."""
    for entry in (*FILES, "."):
        path = workdir / entry
        if not os.path.lexists(path) or entry == "learning_curve.png":
            continue
        if not path.exists():
            raise ConfigError(f"{name}: its {entry} is a link to nothing")
        folder = entry in FOLDERS
        if path.is_dir() != folder or not (folder or path.is_file()):
            raise ConfigError(f"{name}: its {entry} is no {'folder' if folder else 'file'}")
        if not os.access(path, os.R_OK | os.W_OK):
            raise ConfigError(f"{name}: its {entry} cannot be read and written")


def saved_at(workdir: Path, record: str = "run.json") -> int | None:
    """Decisions of the latest checkpoint by the record; -1 if it says so of an unknown one.

    None: it had saved nothing, or there is no record.

    Raises:
      OSError, ValueError: the record is unreadable.
    """
    try:
        about = read_json(workdir / record)
    except FileNotFoundError:
        return None
    if type(about) is not dict:
        raise ValueError("is no record of a run")
    if "last_checkpoint" in about:
        latest = about["last_checkpoint"]
        if latest is not None and type(latest) is not int:
            raise ValueError("last_checkpoint must be a number of decisions")
        return latest
    return -1 if about.get("saves") else None  # of an earlier version


def lock(workdir: Path) -> int:
    """Make the folder and lock it for this process (``flock``), until that ends in whatever way.

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
        os.close(place)
        raise ConfigError(
            f"--workdir = {str(workdir)!r}: another process is writing to it; wait or end it"
        ) from None
    except OSError:  # a file system without locks
        pass
    return place


def set_aside(workdir: Path, names: Iterable[str]) -> Path | None:
    """Move what is there of ``names`` to a new ``previous-N``; where that is, if anything was."""
    old = [workdir / name for name in names if os.path.lexists(workdir / name)]
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
