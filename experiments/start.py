"""Training from a command line: signal handlers, one-line errors and exit codes."""

import os
import sys
from collections.abc import Callable

from experiments import signals
from pomcp_jax.config import ConfigError
from pomcp_jax.running import crash, process
from pomcp_jax.running.background import Stop
from pomcp_jax.running.trainer import CRASHED, Outcome, Trainer


def train(trainer: Trainer, report: Callable[[Outcome], None], about: str = "") -> int:
    """Run ``trainer`` and print its outcome; returns the exit code.

    Args:
      trainer: not started yet.
      report: prints an outcome for the user.
      about: text for the first line, in addition to device and memory.
    """
    signals.install(trainer.control)
    workdir = trainer.options.workdir
    device, replay = process.describe("")["device"], trainer.replay_bytes / 1e6
    print(f"{device}; {about}replay {replay:,.1f} MB; writing to {workdir}/", flush=True)
    try:
        outcome = trainer.attempt()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stop as stop:  # requested before training began
        print(f"error: {stop}", file=sys.stderr)
        return stop.code
    except Exception as error:
        print(f"error: {crash.report(error, workdir)}", file=sys.stderr)
        return CRASHED
    return end(outcome, report)


def end(outcome: Outcome, report: Callable[[Outcome], None]) -> int:
    """Print the outcome of a run; returns the exit code."""
    if outcome.errors:
        print(f"error: {outcome.errors}", file=sys.stderr)
    report(outcome)
    sys.stdout.flush()  # os._exit does not
    sys.stderr.flush()
    if outcome.abandoned:  # a chunk or a compiler is in a thread that cannot be stopped
        os._exit(outcome.code)
    return outcome.code
