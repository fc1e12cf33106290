"""Threads of a run: device work, saving, and requests to stop."""

import concurrent.futures
import signal
import time
from collections.abc import Callable
from typing import Any

import jax

from pomcp_jax.compiled import Compiled
from pomcp_jax.running import process
from pomcp_jax.running.progress import Progress, duration

RESUMES = "; the same command resumes"
"""End of the reason of a stop after which that is worth saying."""
UNSAVED = "; nothing had been saved yet, the same command starts from the beginning"
"""What is said instead of a run that has no checkpoint."""


class Stop(Exception):
    """End of a run before its last decision; everything done so far is kept."""

    def __init__(self, code: int, text: str):
        super().__init__(text)
        self.code = code


def unsaved(reason: str) -> str:
    """The reason of a stop, for a run that has no checkpoint."""
    return reason.replace(RESUMES, "") + UNSAVED


class Control:
    """Progress output of a run and requests to stop it; usable from any thread."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self._stop: Stop | None = None
        self._since = 0.0
        self.interrupted = False
        """Whether a ``KeyboardInterrupt`` reached the latest run: it stops the caller as well."""

    @property
    def requested(self) -> bool:
        """Whether a stop was requested."""
        return self._stop is not None

    @property
    def reason(self) -> Stop | None:
        """The stop that was requested."""
        return self._stop

    def request(self, code: int, text: str) -> None:
        """Request a clean stop after the current chunk.

        Args:
          code: of :class:`Stop`; the exit code of a command line.
          text: reason, for the user and for run.json.
        """
        # Only the first request counts: timeout(1) sends its signal twice, and the deadline for
        # abandoning work starts with the first.
        if self._stop is None:
            self._since = time.monotonic()
            self._stop = Stop(code, text)

    def interrupt(self) -> None:
        """Request a stop because of a ``KeyboardInterrupt``."""
        self.interrupted = True
        self.request(128 + signal.SIGINT, "stopped by SIGINT")

    def forget(self) -> None:
        """Withdraw a request, after the run that it was for has ended."""
        self._stop = None

    def age(self) -> float:
        """Seconds since the request, 0 before it."""
        return time.monotonic() - self._since if self.requested else 0.0

    def check(self) -> None:
        """Raise :class:`Stop` if a stop was requested."""
        if self._stop is not None:
            raise self._stop


class Worker:
    """Runs device work in a thread, so that the main thread handles signals and shows progress.

    Python runs signal handlers between bytecodes of the main thread only, and a chunk or a
    compilation is a single call that may last minutes.
    """

    def __init__(self, control: Control, grace: float = 15.0):
        """``grace``: seconds that work may continue after a request to stop."""
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._control, self._grace = control, grace
        self.abandoned = False
        """Work was left running: the process can only end with ``os._exit``."""

    def __call__(self, function: Callable, *args: Any, busy: str = "") -> Any:
        """Return ``function(*args)``; show ``busy`` while waiting.

        Raises:
          Stop: a stop was requested and the work did not end in time.
        """
        begin = time.monotonic()
        # JAX dispatches asynchronously; errors of the computation must surface in this call.
        future = self._pool.submit(lambda: jax.block_until_ready(function(*args)))
        while True:
            try:
                result = future.result(timeout=0.5)
                if busy:
                    process.return_memory()
                return result
            except concurrent.futures.TimeoutError:
                # Done between the timeout and here, or the function itself raised TimeoutError.
                if future.done():
                    return future.result()
                if self._control.age() > self._grace:
                    self.abandoned = True
                    self._control.check()
                if busy:
                    self._control.progress.line(f"{busy} ({duration(time.monotonic() - begin)})")
            except KeyboardInterrupt:  # without a handler for SIGINT: in a notebook or a script
                if self._control.requested:
                    self.abandoned = True
                    raise
                self._control.interrupt()
                self._control.progress.say("stopping after this chunk; once more to stop at once")


class Ahead:
    """Compiles functions in a thread of its own while training runs."""

    def __init__(self) -> None:
        # One thread: compilers that run side by side would take a core each from training.
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._jobs: dict[Callable, concurrent.futures.Future] = {}

    def start(self, *functions: Callable, args: tuple[Any, ...]) -> None:
        """Compile those ``functions`` that are :class:`Compiled` for ``args``, one by one."""
        for function in functions:
            if not isinstance(function, Compiled):
                continue
            try:
                self._jobs[function] = self._pool.submit(function.prepare(*args))
            except RuntimeError:  # no thread can be started: the first call compiles
                return

    def wait(self, function: Callable) -> None:
        """Wait until ``function`` is compiled, if that was started."""
        job = self._jobs.pop(function, None)
        if job is not None:
            # The call compiles again after a failure, and reports it.
            job.exception()

    def stop(self) -> bool:
        """Leave what has not begun; returns whether a compiler is still at work."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        return any(job.running() for job in self._jobs.values())


class Saver:
    """Runs one job at a time in its own thread: saving, while training continues."""

    def __init__(self) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._job: concurrent.futures.Future | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is still running."""
        return self._job is not None and not self._job.done()

    def start(self, function: Callable, *args: Any) -> None:
        """Begin ``function(*args)``; the previous job must have been collected."""
        try:
            self._job = self._pool.submit(function, *args)
        except RuntimeError as error:  # the system has no thread left
            self.failed(error)

    def failed(self, error: Exception) -> None:
        """Record a job that raised ``error``."""
        self._job = concurrent.futures.Future()
        self._job.set_exception(error)

    def collect(self, *, wait: bool = False) -> Any:
        """Result of a job that has ended, returned once; None if there is none.

        Raises:
          Exception: whatever the job raised.
        """
        if self._job is None or (self.busy and not wait):
            return None
        # Forget the job first: a failure is reported once, not at every later chunk.
        job, self._job = self._job, None
        return job.result()
