"""Standard streams that never raise, even if closed, full or of another encoding.

A training must not end because nobody reads its progress any more.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from pomcp_jax.running import crash

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""Errors after which writing can never succeed: a pipe without a reader, a closed terminal."""


class Tolerant:
    """Text stream that drops what cannot be written."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write ``text``; characters that the encoding lacks are escaped."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            return self.write(text.encode("ascii", "backslashreplace").decode())
        except (OSError, ValueError) as error:  # ValueError: closed
            self._failed(error)
        # All of it, also if dropped: a caller that sees less would try again.
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write all ``lines``."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream if possible."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error)

    def finish(self) -> None:
        """Flush for the last time, so that the interpreter's own flush at exit cannot fail."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._leave()

    def _failed(self, error: Exception) -> None:
        # Other errors may pass, a full disk for example: only this text is lost.
        if getattr(error, "errno", None) in _GONE:
            self._leave()

    def _leave(self) -> None:
        """Send buffered text and everything that follows to ``/dev/null``."""
        try:
            number, null = self._stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
        except (OSError, ValueError, AttributeError):  # a stream without a file
            pass


def guarded(program: Callable[[], int]) -> int:
    """Exit code of ``program``, run with tolerant streams; an exception is one line and code 1."""
    with tolerant():
        try:
            return program()
        except Exception as error:  # a bug: its traceback is in crash.txt, the user gets one line
            print(f"error: {crash.report(error, None)}", file=sys.stderr)
            return 1


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
    """Make ``sys.stdout`` and ``sys.stderr`` tolerant while a program runs."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as null:
        # Python sets a stream that was closed at the start to None.
        sys.stdout, sys.stderr = (Tolerant(null if s is None else s) for s in before)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, Tolerant):  # a test or a notebook may have replaced it
                    stream.finish()
            sys.stdout, sys.stderr = before
