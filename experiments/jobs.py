"""Signals and background work of a run."""

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
    """The first SIGINT or SIGTERM asks for a clean end, the second ends at once."""

    def __init__(self, progress: Progress):
        self.received = 0
        self._progress = progress
        for number_ in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number_, self._handle)

    def _handle(self, number_: int, _frame: Any) -> None:
        if self.received:
            os._exit(128 + number_)
        self.received = number_
        self._progress.say("stopping after this chunk; once more to stop at once")

    def check(self) -> None:
        """Raise :class:`Stop` if a signal has come."""
        if self.received:
            name = signal.Signals(self.received).name
            raise Stop(128 + self.received, f"stopped by {name}")


class Worker:
    """Runs device work in a thread, so that signals and the progress line stay alive."""

    def __init__(self, progress: Progress):
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._progress = progress

    def __call__(self, function: Callable, *args: Any, busy: str = "") -> Any:
        """``function(*args)``, waited for; ``busy`` is shown meanwhile."""
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
                if busy:
                    self._progress.line(f"{busy} ({duration(time.monotonic() - begin)})")
