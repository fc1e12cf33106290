"""Unexpected exceptions: one line for the user, the traceback in a file."""

import datetime
import tempfile
import traceback
from pathlib import Path

NAME = "crash.txt"
"""File in the workdir; later tracebacks are appended."""


def one_line(error: BaseException) -> str:
    """``ValueError: text`` without line breaks."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def report(error: BaseException, folder: Path | None) -> str:
    """Write the traceback to ``folder`` or the temporary folder; return the line for the user."""
    stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = f"{stamp}\n{''.join(traceback.format_exception(error))}\n"
    # The workdir may be what failed (a full or read-only disk), so there is a second place.
    for place in (folder, Path(tempfile.gettempdir())):
        if place is None or not place.is_dir():
            continue
        try:
            with (place / NAME).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            continue
        return f"{one_line(error)} (traceback: {place / NAME})"
    return f"{one_line(error)} (no traceback: no file can be written)"
