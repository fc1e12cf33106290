"""One cell of a suite, trained in its folder: its lock, its process, its record, its results.

Every launcher calls this where the cell trains: a thread of this machine, a job of SLURM, a task of
Ray. Only the standard library is imported, since workers need neither JAX nor NumPy themselves.

Beside the cell's folder METHOD there are METHOD.log, whose lock keeps other processes out of the
cell, and METHOD.job.json, which says where it trains and how its latest attempt ended.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from pomcp_jax import files
from pomcp_jax.reporting import keeping

TIME_IS_UP = 75
"""Exit code of a run that ``--minutes`` stopped."""
DIVERGED = 3
"""Exit code of a run whose training diverged."""
ENDINGS = ("finished", "broke", "stopped", "paused", "busy", "lost")
"""How an attempt ends: ``paused`` if its time is up, ``busy`` if another process trains the cell,
``lost`` if a signal ended it that no launcher sent (out of memory, a node that shuts down)."""
PATIENCE = 120.0
"""Seconds to wait for the lock of a cell whose earlier worker has just been lost: its run is still
saving."""
GUARD = Path(__file__).with_name("guard.py")


class Job(NamedTuple):
    """What a worker has to know of a cell; plain values, since it travels to other machines."""

    name: str
    command: tuple[str, ...]
    workdir: Path
    """Folder in which it trains, with checkpoints."""
    folder: Path
    """Folder of its results."""
    facts: Mapping[str, Any]
    """Entries added to run.json."""
    where: str = ""
    """Folder to which relative paths refer; "" is the current one."""

    def at(self, path: Path) -> Path:
        """``path``, independent of the current folder."""
        return Path(self.where, path)

    @property
    def log(self) -> Path:
        return beside(self.at(self.workdir), ".log")

    @property
    def record(self) -> Path:
        return beside(self.at(self.workdir), ".job.json")


class Ending(NamedTuple):
    """How an attempt ended."""

    kind: str
    text: str = ""
    host: str = ""
    code: int | None = None
    """Exit code of the run, None if there was none."""


class Lost(RuntimeError):
    """Raised for an attempt that should be repeated."""


def beside(workdir: Path, suffix: str) -> Path:
    """A file of the cell that is not one of the run's."""
    return workdir.with_name(workdir.name + suffix)


def read(path: Path) -> dict[str, Any]:
    """A JSON object, empty if it is missing or unreadable."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def attempts(record: Mapping[str, Any]) -> int:
    """Attempts that a cell's record counts; 0 where it says nothing sensible."""
    number = record.get("attempt")
    return number if type(number) is int and 0 < number < 2**31 else 0


def is_orphan(job: Job, by: str) -> bool:
    """Whether the cell's run was started by a process of this machine that is gone.

    Args:
      job: the cell.
      by: kind of launcher that started it.
    """
    record = read(job.record)
    pid, host = record.get("pid"), record.get("host")
    began = record.get("by") == by and host == socket.gethostname() and record.get("ending") is None
    if not began or type(pid) is not int:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def last_line(path: Path) -> str:
    """The last line of a log, ``""`` without one."""
    try:
        with path.open("rb") as file:
            # The end only: called twice a second for every running cell.
            file.seek(max(0, path.stat().st_size - 1000))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@contextlib.contextmanager
def locked(log: Path, patience: float = 0.0) -> Iterator[TextIO | None]:
    """The log, opened and locked for this process and its children; None if another has it.

    Args:
      log: of the cell.
      patience: seconds to wait for another process.

    Raises:
      OSError: it cannot be written.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + patience
    with log.open("a") as file:
        while True:
            try:
                # The run inherits the lock, which lasts until both processes have ended: if this
                # one is killed, its orphaned run still keeps others out of the cell.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    yield None
                    return
                time.sleep(0.2)
                continue
            except OSError:  # a file system without locks
                pass
            break
        yield file


def is_locked(log: Path) -> bool:
    """Whether another process trains the cell of ``log``."""
    try:
        with log.open() as file:  # not "a", which would create it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False


class Training:
    """A run in progress, which :meth:`stop` may end from a signal handler or another thread."""

    def __init__(self, job: Job, log: TextIO, environment: Mapping[str, str]):
        """Start the run; its output goes to ``log``, whose lock it inherits."""
        cwd = job.where if job.where and os.path.isdir(job.where) else None
        self.stopped = False
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), str(log.fileno()), *job.command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            pass_fds=(log.fileno(),),
            cwd=cwd,
            start_new_session=True,
        )

    def stop(self) -> None:
        """Ask the run to save and exit."""
        if not self.stopped:
            self.send(signal.SIGTERM)

    def send(self, number: int) -> None:
        """Send a signal to the run: the first one asks it to save and exit, a second one ends it
        at once."""
        self.stopped = True
        self._process.send_signal(number)

    def join(self) -> None:
        """Wait for the end of the run inside of a signal handler, which may interrupt
        :meth:`wait`."""
        with contextlib.suppress(ChildProcessError):  # that has seen its end already
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def wait(self) -> int:
        """Exit code of the run, 128 + N for signal N; a ``KeyboardInterrupt`` stops it first."""
        pause = 0.01
        while True:
            try:
                # Short sleeps: a launcher interrupts a worker between two of them.
                while self._process.poll() is None:
                    time.sleep(pause)
                    pause = min(0.5, 1.3 * pause)
                break
            except KeyboardInterrupt:
                self.stop()
        self._process.stdin.close()  # type: ignore[union-attr]
        code = self._process.returncode
        return code if code >= 0 else 128 - code


def train(
    job: Job,
    environment: Mapping[str, str],
    attempt_of: str = "",
    *,
    patience: float = PATIENCE,
    on_lock: Callable[[TextIO], Job | None] = lambda log: None,
    on_start: Callable[[Training], None] = lambda training: None,
) -> Ending:
    """Train a cell to its end, or to that of this attempt; keeps its results.

    Args:
      job: the cell.
      environment: variables of its run.
      attempt_of: what started it, for the record: a job of SLURM, a node of Ray.
      patience: seconds to wait for another process that trains it.
      on_lock: called with the log once it is locked; may return the job to train instead.
      on_start: called with the :class:`Training`, which it may stop later.
    """
    host = socket.gethostname()
    try:
        with locked(job.log, patience) as log:
            if log is None:
                return Ending("busy", f"another process trains it, see {job.log}", host)
            job = on_lock(log) or job
            number = attempts(read(job.record)) + 1
            record = {"by": attempt_of, "host": host, "attempt": number, "began": time.time()}
            print(f"attempt {number} on {host}", file=log, flush=True)
            group = {"WANDB_RUN_GROUP": job.name.replace(" ", "/")}
            training = Training(job, log, group | dict(environment))
            on_start(training)
            # After the start: a process that is killed here leaves a run that is known.
            try:
                files.write_json(job.record, record | {"pid": os.getpid(), "ending": None})
            except OSError:  # nobody would wait for the run
                training.stop()
                training.wait()
                raise
            try:
                ending = finish(job, training.wait(), training.stopped)._replace(host=host)
            except BaseException:  # a job that is requeued exits here
                files.write_json(job.record, record | {"ending": "stopped", "ended": time.time()})
                raise
            about = {"ending": ending.kind, "text": ending.text, "code": ending.code}
            files.write_json(job.record, record | about | {"ended": time.time()})
            return ending
    except OSError as error:
        return Ending("broke", str(error), host)


def finish(job: Job, code: int, stopped: bool = False) -> Ending:
    """What the exit code of a run means; the results of one that ended are kept.

    Args:
      job: the cell.
      code: as a shell has it, 128 + N for signal N.
      stopped: by a launcher.

    Raises:
      OSError: its results cannot be kept.
    """
    workdir = job.at(job.workdir)
    if code in (0, DIVERGED, TIME_IS_UP):
        # A diverged training is a result too, and so is the part of one that its time allowed; they
        # do not count as finished.
        if (workdir / "run.json").is_file():
            keeping.keep(workdir, job.at(job.folder), dict(job.facts))
        kind = {0: "finished", DIVERGED: "broke", TIME_IS_UP: "paused"}[code]
        return Ending(kind, last_line(job.log), code=code)
    if code > 128:
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else code
        return Ending("stopped" if stopped else "lost", f"ended by {name}", code=code)
    return Ending("broke", f"exit code {code}; see {job.log}", code=code)
