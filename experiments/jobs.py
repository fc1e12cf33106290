"""Signals and background work of a run: on the device, and saving to disk."""

import concurrent.futures
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import jax

from experiments import xla
from experiments.progress import Progress, duration


class Stop(Exception):
    """The run ends early, with everything so far kept."""

    def __init__(self, code: int, text: str):
        super().__init__(text)
        self.code = code


class Signals:
    """The first SIGINT, SIGTERM or SIGHUP asks for a clean end, another one ends at once.

    One that follows within ``ECHO`` seconds is the same request: timeout(1) and shells send a
    signal to a process and to its group. SIGHUP, which a closing terminal sends several times,
    never ends at once, and is ignored where it was ignored before (nohup).
    """

    ECHO = 0.5
    """Seconds."""

    def __init__(self, progress: Progress):
        self.received = 0
        self._since = 0.0
        self.progress = progress
        for number_ in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number_ != signal.SIGHUP or signal.getsignal(number_) != signal.SIG_IGN:
                signal.signal(number_, self._handle)

    def _handle(self, number_: int, _frame: Any) -> None:
        if self.received:
            if number_ != signal.SIGHUP and self.age() > self.ECHO:
                os._exit(128 + number_)
            return
        self.received = number_
        self._since = time.monotonic()
        try:
            self.progress.say("stopping after this chunk; once more to stop at once")
        except RuntimeError:  # it came while this very stream was being written
            pass

    def age(self) -> float:
        """Seconds since the first signal, 0 before it."""
        return time.monotonic() - self._since if self.received else 0.0

    def check(self) -> None:
        """Raise :class:`Stop` if a signal has come."""
        if self.received:
            name = signal.Signals(self.received).name
            raise Stop(128 + self.received, f"stopped by {name}")


class Worker:
    """Runs device work in a thread, so that signals and the progress line stay alive."""

    def __init__(self, progress: Progress, signals: Signals, grace: float = 15.0):
        """``grace``: seconds that work may go on after a signal."""
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._progress, self._signals, self._grace = progress, signals, grace
        self.abandoned = False
        """Work was left running: the process can only end by ``os._exit``."""

    def __call__(self, function: Callable, *args: Any, busy: str = "") -> Any:
        """``function(*args)``, waited for; ``busy`` is shown meanwhile.

        Raises:
          Stop: a signal came and the work did not end in time.
        """
        begin = time.monotonic()
        future = self._pool.submit(lambda: jax.block_until_ready(function(*args)))
        while True:
            try:
                result = future.result(timeout=0.5)
                if busy:
                    xla.return_memory()
                return result
            except concurrent.futures.TimeoutError:
                if future.done():  # the function's own TimeoutError
                    raise
                if self._signals.age() > self._grace:
                    self.abandoned = True
                    self._signals.check()
                if busy:
                    self._progress.line(f"{busy} ({duration(time.monotonic() - begin)})")


class Saver:
    """Runs one job at a time in a thread of its own: saving, while training goes on."""

    def __init__(self) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._job: concurrent.futures.Future | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is still running."""
        return self._job is not None and not self._job.done()

    def start(self, function: Callable, *args: Any) -> None:
        """Begin ``function(*args)``; the job before must have been collected."""
        try:
            self._job = self._pool.submit(function, *args)
        except RuntimeError as error:  # no further thread can be started
            self.failed(error)

    def failed(self, error: Exception) -> None:
        """Count as a job that raised ``error``."""
        self._job = concurrent.futures.Future()
        self._job.set_exception(error)

    def collect(self, *, wait: bool = False) -> Any:
        """The result of a job that has ended, once; None when there is none.

        Raises:
          Exception: whatever the job raised.
        """
        if self._job is None or (self.busy and not wait):
            return None
        job, self._job = self._job, None
        return job.result()
