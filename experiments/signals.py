"""Signal handlers: the first signal requests a clean stop, the second exits at once."""

import os
import signal
import time
from typing import Any

from experiments.early import SIGNALS
from pomcp_jax.running.background import Control

ECHO = 0.5
"""Seconds within which a second signal counts as the same request: timeout(1) and shells signal
both a process and its group."""


def install(control: Control) -> None:
    """Let SIGINT, SIGTERM and SIGHUP request a clean stop of ``control``; a second exits at once.

    SIGHUP, which a closing terminal sends several times, never exits at once, and stays ignored
    if it was ignored before (nohup).
    """
    first: list[float] = []

    def handle(number: int, _frame: Any) -> None:
        # Of the first signal, not of the request: another process of the run may have passed on
        # the stop whose signal arrives here only now.
        age = time.monotonic() - first[0] if first else 0.0
        first[:] = first or [time.monotonic()]
        if control.requested:
            if number != signal.SIGHUP and age > ECHO:
                # Not sys.exit: it would wait for the chunk and for threads that are saving.
                os._exit(128 + number)
            return
        control.request(128 + number, f"stopped by {signal.Signals(number).name}")
        try:
            control.progress.say("stopping after this chunk; signal again to stop at once")
        except RuntimeError:  # a reentrant write: the signal interrupted a write to this stream
            pass

    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)


def interrupt() -> None:
    """Let the first signal raise ``KeyboardInterrupt(number)``, so that temporary files go.

    A second one exits at once. SIGHUP stays ignored if it was ignored before (nohup).
    """

    def handle(number: int, _frame: Any) -> None:
        for each in SIGNALS:
            signal.signal(each, lambda number, _frame: os._exit(128 + number))
        raise KeyboardInterrupt(number)

    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)
