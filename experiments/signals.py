"""Signals end a run cleanly: the first asks, the second ends the process."""

import os
import signal
from typing import Any

from pomcp_jax.running.background import Control

ECHO = 0.5
"""Seconds within which a second signal is the same request: timeout(1) and shells send one to a
process and to its group."""


def install(control: Control) -> None:
    """Let SIGINT, SIGTERM and SIGHUP ask ``control`` for a clean end; another one ends at once.

    SIGHUP, which a closing terminal sends several times, never ends at once, and is ignored where
    it was ignored before (nohup).
    """

    def handle(number: int, _frame: Any) -> None:
        if control.requested:
            if number != signal.SIGHUP and control.age() > ECHO:
                os._exit(128 + number)
            return
        control.request(128 + number, f"stopped by {signal.Signals(number).name}")
        try:
            control.progress.say("stopping after this chunk; once more to stop at once")
        except RuntimeError:  # it came while this very stream was being written
            pass

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)
