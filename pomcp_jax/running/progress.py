"""Progress on stderr: one live line on a terminal, a status line at intervals in a log file."""

import math
import shutil
import sys
import time
from typing import TextIO


def duration(seconds: float) -> str:
    """``1:05`` or ``2:03:04``."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def number(value: float, digits: int = 0) -> str:
    """Number with thousands separators, ``-`` if it is not known yet."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else "-"


class Progress:
    """Rewrites one line on a terminal; elsewhere prints one at most every ``interval`` seconds."""

    def __init__(self, stream: TextIO | None = None, interval: float = 10.0):
        """``stream`` is stderr by default, since stdout belongs to results."""
        self._stream, self._interval = stream or sys.stderr, interval
        self._live = self._stream.isatty()
        self._open, self._last = False, -math.inf

    def line(self, text: str, *, force: bool = False) -> None:
        """Show the current state; ``force`` also prints to a log file within the interval."""
        if self._live:
            # A longer line would wrap, and only its last part would be erased the next time.
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r\x1b[2K" + text[:width])
            self._open = True
        else:
            now = time.monotonic()
            if not force and now - self._last < self._interval:
                return
            self._last = now
            self._stream.write(text + "\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """Print a permanent line."""
        # Erase the live line first, or the end of a longer one would remain behind this text.
        self._stream.write(("\r\x1b[2K" if self._open else "") + text + "\n")
        self._stream.flush()
        self._open = False

    def close(self) -> None:
        """Move the cursor to a new line if the live line is showing."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False
