"""Workdirs: whether one can be used, which run it holds, its lock."""

import errno
import fcntl
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pomcp_jax import config as config_lib
from pomcp_jax import files, parts
from pomcp_jax.cells import Grid, cells
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
    "wandb",
    "wandb.json",
    crash.NAME,
)
"""Everything that a run may leave in its workdir."""
SWEEP_FILES = ("sweep.json", "summary.csv", "sweep.png")
"""What a sweep leaves in addition, apart from its cells' folders."""
FOLDERS = (".", "checkpoints", "tensorboard", "wandb")
"""The entries of :data:`FILES` that are folders, and the workdir itself."""
LONGEST_NAME = 200
"""Approximate bytes of the longest path below a workdir: orbax's temporary files."""


def config_text(config: Config) -> str:
    """Resolved configuration as JSON."""
    return json.dumps(config_lib.to_dict(config), indent=1) + "\n"


CHANGEABLE = (
    "total_decisions",
    "offline",
    "chunk_decisions",
    "eval_decisions",
    "checkpoint_decisions",
    "checkpoint_keep",
    "memory_limit_gb",
    "num_devices",
    "devices_per_seed",
    "max_bad_updates",
    "on_broken_seed",
    "max_seed_resets",
    "env.assets",
    "env.workers",
)
"""Fields that may change when a run resumes; without a prefix, fields of ``train``: its length,
whether it acts, the schedule of evaluations and saves, the handling of failures, where the task's
files are, and which processes step it. Changes of any other field would make it another run."""


def differences(before: Config, config: Config, resume: str = "auto") -> str:
    """Changes that are not allowed when a run resumes, as ``a = 1, this one has 2``."""
    old, new = config_lib.flatten(before), config_lib.flatten(config)
    changed = [
        f"{name} = {old[name]!r}, this one has {new[name]!r}"
        for name in sorted(new)
        if old[name] != new[name]
        and name.removeprefix("train.") not in CHANGEABLE
        and not (name == "train.num_seeds" and resume == "change_seeds")
    ]
    more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
    return "; ".join(changed[:5]) + more


MOST_BYTES = 4 << 20
"""Size limit for config.json and run.json, which have a few thousand bytes."""


def read_json(path: Path) -> Any:
    """Contents of a small JSON file.

    Raises:
      OSError: it cannot be read or is not a file.
      ValueError: it is too large or not JSON.
    """
    # Opening a pipe would block until another process writes to it.
    if not path.is_file():
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
    """``folder`` with ``~`` replaced by a home folder.

    Raises:
      ConfigError: there is no such user.
    """
    try:
        return Path(folder).expanduser()
    except RuntimeError:
        user = str(folder).partition("/")[0]
        raise ConfigError(f"{name} = {str(folder)!r}: there is no user {user}") from None


def check_workdir(
    workdir: Path, config: Config, resume: str = "auto", grid: Grid | None = None
) -> None:
    """Refuse a workdir that is not writable or holds a run of another configuration.

    Fields that the earlier run did not have count as their defaults. Writes nothing.

    Args:
      workdir: need not exist.
      config: configuration of the run that will use it; for a sweep, what its cells share.
      resume: ``change_seeds`` allows another number of seeds, ``never`` any other run, which
        will be moved aside.
      grid: swept fields and values; empty or None for a run.

    Raises:
      ConfigError: one line for the user.
    """
    name = f"--workdir = {str(workdir)!r:.300}"
    try:
        _check_place(workdir, name)
        place = str(workdir.absolute())
        # Not ``isprintable``, which refuses the wide spaces and joiners of many languages.
        if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in place):
            raise ConfigError(
                f"--workdir = {place!r:.300}: must have no line breaks or control characters"
            )
        if resume == "never":
            return
        if (workdir / parts.RECORD).exists():
            raise ConfigError(
                f"{name}: holds a run over several processes; experiments.run resumes it"
            )
        _check_kinds(workdir, name, [cell.name for cell in cells(config, grid)] if grid else [])
        path = workdir / "config.json"
        values = read_json(path) if path.exists() else None
        if type(values) not in (dict, type(None)):
            raise ValueError("is no configuration")
        before = None if values is None else config_lib.from_dict(Config, values)
        _check_grid(workdir, name, grid or {})
    except ConfigError as error:
        text = str(error)
        if not text.startswith("--workdir"):
            text = f"{name}: holds a run of another version ({text}); choose another folder"
        raise ConfigError(text) from None
    except OSError as error:
        raise ConfigError(f"{name}: {reason(error)}") from None
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(
            f"{name}: its config.json is unreadable; remove it (checkpoints hold it too) or"
            " --resume=never moves that run aside"
        ) from None
    differ = "" if before is None else differences(before, config, resume)
    if differ:
        hint = "--resume=change_seeds drops the last ones or adds some, or "
        hint = hint if "train.num_seeds = " in differ and not grid else ""
        raise ConfigError(f"{name}: holds a run with {differ}; {hint}choose another folder")


def reason(error: OSError) -> str:
    """What the system says, with the file that it is about."""
    place = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{place}"


def _check_grid(workdir: Path, name: str, grid: Grid) -> None:
    """Refuse a workdir with another sweep, and a run's workdir for a sweep or the reverse.

    Raises:
      ConfigError: one line for the user.
    """
    before = swept(workdir, name)
    if before is None:
        if grid and (workdir / "config.json").exists():
            raise ConfigError(f"{name}: holds a run, no sweep; choose another folder")
        return
    if not grid:
        raise ConfigError(f"{name}: holds a sweep; choose another folder")
    old, new = ({k: [*map(float, v)] for k, v in g.items()} for g in (before.grid, grid))
    # Lists: the order of the fields decides which rows of the seed axis belong to a cell.
    if old and list(old.items()) != list(new.items()):
        shown = "; ".join(f"{k}={','.join(map(str, v))}" for k, v in old.items())
        raise ConfigError(
            f"{name}: holds a sweep of {shown:.300}; choose another folder, or --resume=never"
            " moves that one aside"
        )


class Swept(NamedTuple):
    """Cells of an earlier sweep, from its record."""

    grid: dict[str, list[float]]
    """Empty if an earlier version or a killed process wrote the record."""
    folders: list[str]
    """Names of the cells' folders."""


def swept(workdir: Path, name: str) -> Swept | None:
    """Cells of an earlier sweep, None if there was none; ``name`` is for the error.

    Raises:
      ConfigError: its record cannot be read.
    """
    path = workdir / "sweep.json"
    if not os.path.lexists(path):
        return None
    try:
        about = read_json(path)
        # Last components only: a name like ../.. must not reach folders outside of the workdir.
        folders = [name for cell in about["cells"] if (name := Path(cell).name) not in ("", "..")]
        grid = {str(k): [*map(float, v)] for k, v in about.get("grid", {}).items()}
        return Swept(grid, folders)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{name}: its sweep.json is unreadable") from None


def contents(workdir: Path) -> list[str]:
    """Names of everything that a run or a sweep may have left in ``workdir``."""
    try:
        before = swept(workdir, str(workdir))
    except ConfigError:
        before = None
    try:
        record = parts.read(workdir)
    except ConfigError:
        record = None
    folders = [part.folder for part in record.parts] if record else []
    return [
        *FILES, *SWEEP_FILES, *(before.folders if before else ()), parts.RECORD, *folders
    ]  # fmt: skip


def _check_place(workdir: Path, name: str) -> None:
    """Refuse a path that cannot be a run's folder or is not writable.

    Raises:
      ConfigError: one line for the user.
    """
    if "\0" in str(workdir):
        raise ConfigError(f"{name}: holds a zero byte")
    absolute = os.fsencode(os.path.abspath(workdir))
    try:
        absolute.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: is not UTF-8; checkpoints need a path that is") from None
    if len(absolute) + LONGEST_NAME > os.pathconf("/", "PC_PATH_MAX"):
        raise ConfigError(f"{name}: is too long for the names of checkpoints in it")
    for part in workdir.parts:
        if len(os.fsencode(part)) > 255:
            raise ConfigError(f"{name}: a name in it is longer than 255 bytes")
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"{name}: is a file; must be a folder")
    existing = files.nearest_existing(workdir)
    if not existing.is_dir():
        raise ConfigError(f"{name}: {str(existing)!r:.300} is no folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{name}: {str(existing)!r:.300} is not writable")


def _check_kinds(workdir: Path, name: str, cell_names: Sequence[str]) -> None:
    """Refuse files in place of folders, folders in place of files, and anything read-only.

    Raises:
      ConfigError: one line for the user.
    """
    for entry in (*FILES, *SWEEP_FILES, *cell_names, "."):
        path = workdir / entry
        # A picture that cannot be replaced is a warning while training, not a reason to refuse.
        if not os.path.lexists(path) or entry.endswith(".png"):
            continue
        if not path.exists():
            raise ConfigError(f"{name}: its {entry} is a link to nothing")
        folder = entry in (*FOLDERS, *cell_names)
        if path.is_dir() != folder or not (folder or path.is_file()):
            raise ConfigError(f"{name}: its {entry} is no {'folder' if folder else 'file'}")
        if not os.access(path, os.R_OK | os.W_OK):
            raise ConfigError(f"{name}: its {entry} cannot be read and written")


def saved_at(workdir: Path, record: str = "run.json") -> int | None:
    """Decisions of the latest checkpoint according to the record, -1 if their number is unknown.

    Returns:
      None if nothing was saved or there is no record.

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
    # Earlier versions recorded only how many times they had saved.
    return -1 if about.get("saves") else None


def devices(workdir: Path, record: str = "run.json") -> int:
    """Number of devices of the run in the workdir by its record; 0 if there is none, or no record.

    The number is a preference, so a record that cannot be read is no error here.
    """
    try:
        number = read_json(workdir / record)["num_devices"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return number if type(number) is int and 0 < number < 2**31 else 0


def lock(workdir: Path) -> int:
    """Create the folder and lock it for this process; returns the descriptor to close.

    Two processes would overwrite each other's rows and checkpoints. The system releases the lock
    (``flock``) when the process ends, even by SIGKILL, so no stale lock file can remain.

    Raises:
      ConfigError: another process has locked it, or it cannot be created.
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
    except OSError:  # some network file systems have no locks; refusing to run would not help
        pass
    return place


def set_aside(workdir: Path, names: Iterable[str]) -> Path | None:
    """Move what exists of ``names`` to a new folder ``previous-N``; returns it, None if nothing."""
    old = [workdir / name for name in names if os.path.lexists(workdir / name)]
    if not old:
        return None
    moved = free_previous(workdir)
    moved.mkdir()
    for path in old:
        path.rename(moved / path.name)
    return moved


def free_previous(workdir: Path) -> Path:
    """The first of ``previous-1``, ``previous-2`` ... that does not exist."""
    # A new number each time: nothing that was moved aside is ever overwritten.
    number = 1
    while (workdir / f"previous-{number}").exists():
        number += 1
    return workdir / f"previous-{number}"
