"""Training from a command line: signal handlers, one-line errors and exit codes."""

import os
import sys
import threading
import time
from collections.abc import Callable

from experiments import clock, signals
from pomcp_jax.config import ConfigError
from pomcp_jax.running import crash, process
from pomcp_jax.running.background import RESUMES, Control, Stop
from pomcp_jax.running.trainer import CRASHED, Outcome, Trainer

Ending = Callable[[int, str], int]
"""Exit code of a process, from the code of its outcome and the reason."""


def train(
    trainer: Trainer,
    report: Callable[[Outcome], None],
    about: str = "",
    minutes: float | None = None,
    ending: Ending = lambda code, text: code,
) -> int:
    """Run ``trainer`` and print its outcome; returns the exit code.

    Args:
      trainer: not started yet.
      report: prints an outcome for the user.
      about: text for the first line, in addition to device and memory.
      minutes: from the start of the process to a clean stop; None for no limit.
      ending: what a run over several processes does with the exit code and its reason.
    """
    signals.install(trainer.control)
    if minutes is not None:
        limit(trainer.control, minutes)
    workdir = trainer.options.workdir
    device, replay = process.describe("")["device"], trainer.replay_bytes / 1e6
    print(f"{device}; {about}replay {replay:,.1f} MB; writing to {workdir}/", flush=True)
    try:
        outcome = trainer.attempt()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return ending(2, str(error))
    except Stop as stop:  # requested before training began
        print(f"error: {stop}", file=sys.stderr)
        return ending(stop.code, str(stop))
    except Exception as error:
        text = crash.report(error, workdir)
        print(f"error: {text}", file=sys.stderr)
        return ending(CRASHED, text)
    return end(outcome, report, ending)


def limit(control: Control, minutes: float) -> None:
    """Request a stop of ``control``, ``minutes`` after the start of the process."""

    def stop() -> None:
        control.request(clock.TIME_IS_UP, f"stopped after {minutes:g} minutes{RESUMES}")

    timer = threading.Timer(max(0.0, clock.STARTED + 60.0 * minutes - time.monotonic()), stop)
    timer.daemon = True  # a run that ends earlier does not wait for it
    timer.start()


def end(outcome: Outcome, report: Callable[[Outcome], None], ending: Ending) -> int:
    """Print the outcome of a run; returns the exit code."""
    if outcome.errors:
        print(f"error: {outcome.errors}", file=sys.stderr)
    report(outcome)
    code = ending(outcome.code, outcome.text)
    sys.stdout.flush()  # os._exit does not
    sys.stderr.flush()
    if outcome.abandoned:  # a chunk or a compiler is in a thread that cannot be stopped
        os._exit(code)
    return code
