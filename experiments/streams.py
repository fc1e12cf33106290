"""Standard streams that never raise: closed pipes, full devices and other encodings included."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from pomcp_jax.running import crash

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""Nobody will ever read it: a pipe without a reader, a terminal that was closed."""


class Tolerant:
    """A text stream whose writes are dropped where they are impossible."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write ``text``; what the encoding lacks is escaped."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            return self.write(text.encode("ascii", "backslashreplace").decode())
        except (OSError, ValueError) as error:  # ValueError: closed
            self._failed(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write all ``lines``."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what was written, where that is possible."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error)

    def finish(self) -> None:
        """Flush for the last time; afterwards the interpreter's own flush succeeds too."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._leave()

    def _failed(self, error: Exception) -> None:
        if getattr(error, "errno", None) in _GONE:
            self._leave()

    def _leave(self) -> None:
        """Send what the stream still holds, and all that follows, to ``/dev/null``."""
        try:
            number, null = self._stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
        except (OSError, ValueError, AttributeError):  # a stream without a file
            pass


def guarded(program: Callable[[], int]) -> int:
    """Exit code of ``program``, run with tolerant streams; 1 and one line for an exception."""
    with tolerant():
        try:
            return program()
        except Exception as error:  # a mistake of ours: still one line
            print(f"error: {crash.report(error, None)}", file=sys.stderr)
            return 1


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
    """Make ``sys.stdout`` and ``sys.stderr`` tolerant, for as long as a program runs."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as null:
        sys.stdout, sys.stderr = (Tolerant(null if s is None else s) for s in before)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, Tolerant):
                    stream.finish()
            sys.stdout, sys.stderr = before
