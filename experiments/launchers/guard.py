"""A command that is asked to stop when the process that started it has died.

    python -I -S guard.py LOCK COMMAND [ARGUMENT ...]

Standard input is a pipe whose other end the starting process holds open. When that process ends,
however it ends, the pipe closes, and the command gets SIGTERM: a run then saves and exits. Without
this, a worker that is killed leaves a run behind that nobody waits for. If this process is killed
itself, the system sends the signal (on Linux). LOCK is a file descriptor
that the command inherits, so that a lock on it lasts as long as the command. Signals are forwarded.
Imports little: one such process accompanies every cell.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from typing import Any

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent dies."""


def main(lock: int, command: list[str]) -> int:
    """Run ``command``; returns its exit code, 128 + N if signal N ended it."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        pass_fds=(lock,),
        # A session of its own: a Ctrl-C of the terminal would reach it twice, here and forwarded.
        start_new_session=True,
        # Safe after the fork: no thread was started yet.
        preexec_fn=prctl and (lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)),
    )

    asked = threading.Event()

    def forward(number: int, _frame: Any = None) -> None:
        asked.set()
        child.send_signal(number)

    def watch() -> None:
        while os.read(0, 1):
            pass
        # A second signal would end a run at once that is saving already.
        if not asked.is_set():
            forward(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    try:
        sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(127)
