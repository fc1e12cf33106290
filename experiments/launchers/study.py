"""A suite's folders: where each cell is, who launches it, which jobs were submitted; no JAX."""

import argparse
import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import suites
from experiments.launchers import cell
from experiments.suites import Suite
from pomcp_jax import files
from pomcp_jax.errors import ConfigError
from pomcp_jax.reporting.keeping import folder_name

LOCK = "launcher.lock"
JOBS = "launch.json"


class Place(NamedTuple):
    """Where a cell is."""

    task: str
    method: str
    workdir: Path
    """Folder in which it trains, with checkpoints."""
    folder: Path
    """Folder of its results."""

    @property
    def name(self) -> str:
        return f"{self.task} {self.method}"


class Study(NamedTuple):
    """A suite with its folders."""

    name: str
    suite: Suite
    out: Path
    """Folder of results."""
    work: Path
    """Folder of checkpoints and logs."""

    @property
    def jobs(self) -> Path:
        """File with the jobs that were submitted."""
        return self.work / JOBS


def of(args: argparse.Namespace) -> Study:
    """The suite of the command line.

    Raises:
      ConfigError: one line for the user.
    """
    if not args.suite:
        raise ConfigError("--suite: is missing; must be a name or a JSON file, --list shows names")
    suite, name = suites.get(args.suite), Path(args.suite).stem
    out = args.out or Path("runs/results") / name
    work = args.work or Path("runs/reproduce") / out.resolve().name
    found = Study(name, suite, out, work)
    if any(files.are_nested(place.folder, place.workdir) for place in places(found)):
        raise ConfigError(
            f"--out = {str(out)!r}: cells train there; must be another folder than"
            f" --work = {str(work)!r}"
        )
    return found


def places(study: Study, methods: Sequence[str] = (), tasks: Sequence[str] = ()) -> list[Place]:
    """Cells of a suite or of a selection, task after task.

    Raises:
      ConfigError: a name that the suite does not have.
    """
    suite = study.suite
    # Each once: two cells of one name would share a workdir.
    given, named = dict.fromkeys(tasks or suite.tasks), dict.fromkeys(methods or suite.methods)
    chosen_tasks = [suites.known("--tasks", task, suite.tasks) for task in given]
    chosen = [suites.known("--methods", method, suite.methods) for method in named]
    return [
        Place(task, method, study.work / folder / method, study.out / folder / method)
        for task in chosen_tasks
        for folder in [folder_name(task)]
        for method in chosen
    ]


@contextlib.contextmanager
def launching(work: Path, *, shared: bool = False) -> Iterator[None]:
    """Keep other launchers out of a suite; the lock ends with this process.

    Args:
      work: folder in which its cells train.
      shared: take no lock, for one of many processes with cells of their own.

    Raises:
      ConfigError: another process launches it.
    """
    if shared:
        yield
        return
    try:
        work.mkdir(parents=True, exist_ok=True)
        file = (work / LOCK).open("a+")
    except OSError as error:
        raise ConfigError(f"--work = {str(work)!r}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            by = cell.read(work / LOCK)
            who = f"process {by.get('pid')} on {by.get('host')}" if by else "another process"
            raise ConfigError(
                f"--work = {str(work)!r}: {who} launches this suite; wait for it or end it"
                " (--status shows the cells)"
            ) from None
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        about = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        file.write(json.dumps(about) + "\n")
        file.flush()
        yield


def submitted(study: Study) -> dict[str, Any]:
    """Contents of launch.json: ``launcher``, ``cluster``, and ``jobs`` by the cell's name.

    Raises:
      ConfigError: it is damaged, so that jobs may be at work that nobody knows.
    """
    about = cell.read(study.jobs)
    jobs = about.get("jobs")
    if isinstance(jobs, dict) and all(isinstance(number, str) for number in jobs.values()):
        return about
    if study.jobs.exists():
        raise ConfigError(
            f"{study.jobs}: is damaged; end the jobs that it listed, if there are any, and remove"
            " it"
        )
    return {"jobs": {}}


def remember(study: Study, about: Mapping[str, Any], over: Container[str] = ()) -> None:
    """Write launch.json in one step, with the jobs of other cells that it has already.

    Args:
      study: the suite.
      about: its new contents; ``jobs`` are those of some cells.
      over: numbers of jobs that have ended, which are left out.
    """
    with (study.work / f"{JOBS}.lock").open("a") as file:
        # Launches of single cells (--cell) share the file. Some file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        others = {name: n for name, n in submitted(study)["jobs"].items() if n not in over}
        files.write_json(study.jobs, {**about, "jobs": others | about["jobs"]})
