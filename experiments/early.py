"""What has to be in place before JAX is imported; imported first by every program.

Importing takes seconds, in which a signal would end the process with a traceback, and a
standard stream that was closed would give its number to the next file that is opened: what
libraries write to number 2 would go into it. Does nothing in processes of other programs.
"""

import os
import signal
import sys
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def fill_streams() -> None:
    """Open the standard streams that are closed on ``/dev/null``."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


def end_quietly() -> None:
    """End at once on a signal: nothing has begun that could be saved."""

    def end(number: int, _frame: Any) -> None:
        os._exit(128 + number)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, end)


def _is_program() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name.startswith("experiments.")


if _is_program():
    fill_streams()
    end_quietly()
