"""Worker processes that hold the rows of a batch of gymnasium environments.

Each is a fresh interpreter (no fork, which JAX's threads forbid) without JAX. It belongs to a
session of its own, so that Ctrl-C reaches only the program, and it ends when its connection does.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax.envs.adapters import gymnasium_rows
from pomcp_jax.envs.adapters.gymnasium_rows import (
    FAULT,
    FIRST,
    FLAGS,
    INVALID,
    OVER,
    Layout,
    Settings,
)

MOST_FAILURES = 3
"""Starts of a worker in a row that fail before its rows are given up."""
PAUSE = 0.5
"""Seconds before a worker that failed starts again, doubled each time: a port or a licence that its
simulator held may take a moment to become free."""
PATIENCE = 600.0
"""Seconds after which a worker that does not answer is ended and replaced. Slow simulators step in
seconds; a socket or a lock that waits for something that never comes waits for ever."""
PATIENCE_PER_ROW = 60.0
"""Seconds more for each of its rows, which are made and stepped one after another."""
CLOSING = 2.0
"""Seconds that all workers together have to end before they are killed."""


class Limit(NamedTuple):
    """When answers are late."""

    seconds: float
    end: float
    """By ``time.monotonic``."""


def _limit(rows: int) -> Limit:
    """The limit, from now on, of a request to workers with at most so many rows."""
    seconds = PATIENCE + PATIENCE_PER_ROW * rows
    return Limit(seconds, time.monotonic() + seconds)


class _Worker:
    """One process and the connection to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        # -P: this file's folder has a module called gymnasium.
        command = [sys.executable, "-P", gymnasium_rows.__file__, str(theirs.fileno())]
        # Within a message, too: a process may stop half-way.
        limit = struct.pack("ll", int(PATIENCE), 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, limit)
        try:
            self.process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # stdout belongs to the program's own results
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.connection = Connection(ours.detach())
        self.ready = False
        """Its environments are made: it has answered the first message."""

    def send(self, call: dict[str, Any], *arrays: np.ndarray) -> None:
        shapes = [(x.dtype.name, x.shape) for x in arrays]
        text = json.dumps(call | {"arrays": shapes}).encode()
        data = b"".join(np.ascontiguousarray(x).tobytes() for x in arrays)
        self.connection.send_bytes(text + b"\n" + data)

    def receive(self, limit: Limit) -> tuple[dict[str, Any], bytes]:
        """Its next answer; raises TimeoutError when that is late, EOFError when it ended."""
        # In slices: while a child of the process holds its end, its death closes nothing.
        while not self.connection.poll(min(1.0, max(0.0, limit.end - time.monotonic()))):
            if self.process.poll() is not None and not self.connection.poll(0):
                raise EOFError
            if time.monotonic() >= limit.end:
                raise TimeoutError(f"it did not answer for {limit.seconds:g} s")
        text, _, data = self.connection.recv_bytes().partition(b"\n")
        return json.loads(text), data

    def end(self, seconds: float) -> None:
        """Wait until it ends, now that its connection is closed, and kill it after ``seconds``."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # What it started, such as a simulator, too: its port is needed by the next one.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _close(workers: list[_Worker | None]) -> None:
    held = [worker for worker in workers if worker is not None]
    for worker in held:
        worker.connection.close()
    # Together, or many that hang would take many times as long as one.
    latest = time.monotonic() + CLOSING
    for worker in held:
        worker.end(max(0.0, latest - time.monotonic()))
    workers.clear()


class Workers:
    """The rows of a batch in ``count`` processes; the interface of ``gymnasium_rows.Rows``."""

    def __init__(self, settings: Settings, layout: Layout, count: int):
        self.settings, self.layout = settings, layout
        self.notes: list[str] = []
        self._workers: list[_Worker | None] = [None] * count
        self._failures = [0] * count
        self._finalizer = weakref.finalize(self, _close, self._workers)

    def reset(self, keys: np.ndarray) -> np.ndarray:
        """As ``Rows.reset``."""
        return self._all("reset", keys)

    def step(
        self, rows: np.ndarray, keys: np.ndarray, actions: np.ndarray, saved: np.ndarray
    ) -> np.ndarray:
        """As ``Rows.step``."""
        return self._all("step", rows, keys, actions, saved)

    def snapshot(self, rows: np.ndarray, keys: np.ndarray, saved: np.ndarray) -> np.ndarray:
        """As ``Rows.snapshot``."""
        return self._all("snapshot", rows, keys, saved)

    def close(self) -> None:
        """End all processes."""
        self._finalizer()

    def pids(self) -> list[int]:
        """Numbers of the processes that were started."""
        return [worker.process.pid for worker in self._workers if worker is not None]

    def _all(self, do: str, *arrays: np.ndarray) -> np.ndarray:
        """Results of all processes, which work at the same time; each has a block of rows."""
        count = len(self._workers)
        parts = list(zip(*(np.array_split(x, count) for x in arrays), strict=True))
        busy = [k for k in range(count) if len(parts[k][0])]
        answers = self._ask(busy, do, parts)
        # All answers before any process is replaced, which takes its time.
        lost = [k for k in busy if answers[k] is None]
        if lost and do != "snapshot":
            for k in lost if do == "step" else ():
                rows = np.array(parts[k][0])
                rows[:, FLAGS] |= FAULT
                parts[k] = (rows, *parts[k][1:])
            answers |= self._ask(lost, do, parts)
        return np.concatenate(
            [self._broken(do, parts[k]) if (answer := answers[k]) is None else answer for k in busy]
        )

    def _ask(
        self, which: Sequence[int], do: str, parts: Sequence[tuple[np.ndarray, ...]]
    ) -> dict[int, np.ndarray | None]:
        """Answers of processes, which are started if they do not run; None of one that is lost."""
        self._pause(which)
        limit = _limit(max((len(parts[k][0]) for k in which), default=0))
        try:
            for k in which:
                self._start(k)
            sent = {k: self._send(k, do, parts[k], limit) for k in which}
            return {k: self._receive(k, limit) if ok else None for k, ok in sent.items()}
        except BaseException:
            # Interrupted: an answer left unread would be taken for that of the next request.
            every, self._workers[:] = self._workers[:], [None] * len(self._workers)
            _close(every)
            raise

    def _pause(self, which: Sequence[int]) -> None:
        """Wait before processes that failed start again."""
        failed = [self._failures[k] for k in which if self._workers[k] is None]
        again = [count for count in failed if 0 < count < MOST_FAILURES]
        if again:
            time.sleep(PAUSE * 2.0 ** (max(again) - 1))

    def _start(self, k: int) -> None:
        """Start process k unless it runs; its first answer is read later."""
        if self._workers[k] is None and self._failures[k] < MOST_FAILURES:
            try:
                worker = self._workers[k] = _Worker()
            except OSError as error:  # no descriptors, no memory, an interpreter that has gone
                self._failed(k, f"it cannot be started ({error.strerror or error})")
                return
            call = {"path": sys.path, "settings": self.settings, "layout": self.layout}
            try:
                worker.send(call)
            except OSError:
                self._lost(k)

    def _send(self, k: int, do: str, arrays: tuple[np.ndarray, ...], limit: Limit) -> bool:
        """Send a request; False if there is no process to send it to."""
        worker = self._workers[k]
        if worker is None:
            return False
        try:
            if not worker.ready:
                answer, _ = worker.receive(limit)
                if "error" in answer:
                    self._lost(k, answer["error"])
                    return False
                worker.ready = True
            worker.send({"do": do}, *arrays)
            return True
        except TimeoutError as error:
            self._lost(k, str(error))
            return False
        except (EOFError, OSError):
            self._lost(k)
            return False

    def _receive(self, k: int, limit: Limit) -> np.ndarray | None:
        """The answer of process k; None if it has ended."""
        worker = self._workers[k]
        assert worker is not None
        try:
            answer, data = worker.receive(limit)
        except TimeoutError as error:
            self._lost(k, str(error))
            return None
        except (EOFError, OSError):
            self._lost(k)
            return None
        self._failures[k] = 0
        self.notes += answer["notes"]
        dtype = np.dtype(answer["dtype"])
        return np.frombuffer(data, dtype).reshape(answer["shape"])

    def _lost(self, k: int, reason: str = "") -> None:
        worker, self._workers[k] = self._workers[k], None
        if worker is None:
            return
        _close([worker])
        self._failed(k, reason or f"it ended with code {worker.process.returncode}")

    def _failed(self, k: int, reason: str) -> None:
        self._failures[k] += 1
        then = "it starts again" if self._failures[k] < MOST_FAILURES else "its rows stay broken"
        self.notes.append(f"gym/{self.settings.name}: worker {k + 1} is lost: {reason}; {then}")

    def _broken(self, do: str, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
        """What rows are without a process: broken, and their snapshots as they were."""
        if do == "snapshot":
            return arrays[2]
        out = np.zeros((len(arrays[0]), self.layout.row), np.uint32)
        if do == "step":
            out[:, 0] = arrays[0][:, 0] + 1
        out[:, FLAGS] = FIRST | INVALID | OVER
        return out
