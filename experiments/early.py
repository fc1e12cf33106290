"""Signal handlers, standard streams and XLA's log level for the time before JAX is imported.

Imported first by every program. Importing JAX takes seconds, during which a signal would end the
process with a traceback. A closed standard stream would give its file descriptor to the next
file that is opened, and what libraries write to descriptor 2 would end up in that file. Does
nothing in processes of other programs.
"""

import os
import signal
import sys
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def fill_streams() -> None:
    """Open ``/dev/null`` for every standard stream that is closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: this one


def end_quietly() -> None:
    """Exit at once on a signal: there is nothing to save yet."""

    def end(number: int, _frame: Any) -> None:
        os._exit(128 + number)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup, and stays so
            signal.signal(number, end)


def hide_alarms() -> None:
    """Keep XLA's log lines, such as "Very slow compile?", off the terminal.

    They are of the level of errors, but real errors are exceptions too. ``TF_CPP_MIN_LOG_LEVEL=1``
    shows them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when jaxlib is loaded


def _is_program() -> bool:
    # Scripts and notebooks that import a command line keep their own handlers.
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name.startswith("experiments.")


if _is_program():
    fill_streams()
    end_quietly()
    hide_alarms()
