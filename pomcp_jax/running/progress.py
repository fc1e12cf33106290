"""Progress on stderr: one live line on a terminal, a status line at intervals in a log file."""

import contextlib
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
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


def fit(text: str, width: int) -> str:
    """``text`` in ``width`` characters: parts between ``|`` are left out after the first."""
    first, *others = text.split(" | ")
    while len(" | ".join([first, *others])) > width and len(others) > 1:
        del others[0]
    return " | ".join([first, *others])[:width]


def bar(share: float, width: int, *, color: bool = False, symbols: str = "━╸─") -> str:
    """A bar of ``width`` characters with the percentage at its end."""
    full, half, empty = tuple(symbols)
    cells = width - 5
    halves = int(2 * cells * min(max(share, 0.0), 1.0))
    done = full * (halves // 2) + half * (halves % 2)
    rest = empty * (cells - len(done))
    if color:  # green and grey
        done, rest = f"\x1b[32m{done}\x1b[0m", f"\x1b[90m{rest}\x1b[0m"
    # Rounded down: 100 % are reached at the end only.
    return f"{done}{rest} {int(100 * share + 1e-9):3}%"


BAR = 14, 25
"""Least and largest width of the bar, with its percentage."""


class Progress:
    """Rewrites one line on a terminal; elsewhere prints one at most every ``interval`` seconds."""

    def __init__(self, stream: TextIO | None = None, interval: float = 10.0):
        """``stream`` is stderr by default, since stdout belongs to results."""
        self._stream, self._interval = stream or sys.stderr, interval
        self._live = self._stream.isatty()
        utf = (getattr(self._stream, "encoding", None) or "").lower().startswith("utf")
        self._symbols = "━╸─" if utf else "=--"
        self._color = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._open, self._last = False, -math.inf

    def line(self, text: str, *, share: float | None = None, force: bool = False) -> None:
        """Show the current state.

        Args:
          text: parts with ``|`` between them; where they do not fit, those after the first are
            left out, from the left.
          share: share of the whole that is done, as a bar on a terminal.
          force: also print to a log file within the interval.
        """
        if self._live:
            # A longer line would wrap, and only its last part would be erased the next time.
            width = shutil.get_terminal_size().columns - 1
            if share is None or width < 3 * BAR[0]:
                text = fit(text, width)
            else:
                text = fit(text, width - BAR[0] - 1)
                room = min(BAR[1], width - len(text) - 1)
                text = f"{bar(share, room, color=self._color, symbols=self._symbols)} {text}"
            self._stream.write("\r\x1b[2K" + text)
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


@contextlib.contextmanager
def waiting(text: str, progress: Progress | None = None) -> Iterator[None]:
    """Show ``text`` and the time since the block began until it ends, for a single long call.

    The block must not print: a thread rewrites the line.
    """
    shown, begin, over = progress or Progress(interval=60.0), time.monotonic(), threading.Event()
    shown.line(text)

    def show() -> None:
        # A closed stderr is no reason to lose the result of the call.
        with contextlib.suppress(OSError, ValueError):
            while not over.wait(0.5):
                shown.line(f"{text} ({duration(time.monotonic() - begin)})")

    thread = threading.Thread(target=show, daemon=True)
    try:
        thread.start()
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join()
        with contextlib.suppress(OSError, ValueError):
            shown.close()
