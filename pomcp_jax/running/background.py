"""What a run does beside its main thread: device work, saving; and how it is told to stop."""

import concurrent.futures
import signal
import time
from collections.abc import Callable
from typing import Any

import jax

from pomcp_jax.running import process
from pomcp_jax.running.progress import Progress, duration


class Stop(Exception):
    """The run ends early, with everything so far kept."""

    def __init__(self, code: int, text: str):
        super().__init__(text)
        self.code = code


class Control:
    """How a run is watched, and how it is asked to end early; usable from any thread."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self._stop: Stop | None = None
        self._since = 0.0

    @property
    def requested(self) -> bool:
        """Whether somebody asked for an end."""
        return self._stop is not None

    def request(self, code: int, text: str) -> None:
        """Ask for a clean end after the chunk under way.

        Args:
          code: of :class:`Stop`, what a command line exits with.
          text: why, for the user and for run.json.
        """
        if self._stop is None:
            self._since = time.monotonic()
            self._stop = Stop(code, text)

    def forget(self) -> None:
        """Withdraw a request: the run that it was for has ended."""
        self._stop = None

    def age(self) -> float:
        """Seconds since the request, 0 before it."""
        return time.monotonic() - self._since if self.requested else 0.0

    def check(self) -> None:
        """Raise :class:`Stop` if an end was asked for."""
        if self._stop is not None:
            raise self._stop


class Worker:
    """Runs device work in a thread, so that signals are handled and the progress line lives."""

    def __init__(self, control: Control, grace: float = 15.0):
        """``grace``: seconds that work may go on after a request to stop."""
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._control, self._grace = control, grace
        self.abandoned = False
        """Work was left running: the process can only end by ``os._exit``."""

    def __call__(self, function: Callable, *args: Any, busy: str = "") -> Any:
        """``function(*args)``, waited for; ``busy`` is shown meanwhile.

        Raises:
          Stop: it was requested and the work did not end in time.
        """
        begin = time.monotonic()
        future = self._pool.submit(lambda: jax.block_until_ready(function(*args)))
        while True:
            try:
                result = future.result(timeout=0.5)
                if busy:
                    process.return_memory()
                return result
            except concurrent.futures.TimeoutError:
                if future.done():  # meanwhile; or the function's own TimeoutError
                    return future.result()
                if self._control.age() > self._grace:
                    self.abandoned = True
                    self._control.check()
                if busy:
                    self._control.progress.line(f"{busy} ({duration(time.monotonic() - begin)})")
            except KeyboardInterrupt:  # nobody handles SIGINT: a notebook, a script
                if self._control.requested:
                    self.abandoned = True
                    raise
                self._control.request(128 + signal.SIGINT, "stopped by SIGINT")
                self._control.progress.say("stopping after this chunk; once more to stop at once")


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
