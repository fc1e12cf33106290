"""Train as a command line does: signals, one line for whatever ends it early, an exit code."""

import os
import sys
from collections.abc import Callable

from experiments import signals
from pomcp_jax.config import ConfigError
from pomcp_jax.running import crash, process
from pomcp_jax.running.background import Stop
from pomcp_jax.running.trainer import CRASHED, Outcome, Trainer


def train(trainer: Trainer, report: Callable[[Outcome], None], about: str = "") -> int:
    """Run ``trainer`` to its end; returns the exit code.

    Args:
      trainer: not started yet.
      report: prints an outcome for the user.
      about: what to say of the run beside its device and memory.
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
    except Stop as stop:  # before training
        print(f"error: {stop}", file=sys.stderr)
        return stop.code
    except Exception as error:
        print(f"error: {crash.report(error, workdir)}", file=sys.stderr)
        return CRASHED
    return end(outcome, report)


def end(outcome: Outcome, report: Callable[[Outcome], None]) -> int:
    """Tell the user how a run ended; returns the exit code."""
    if outcome.errors:
        print(f"error: {outcome.errors}", file=sys.stderr)
    report(outcome)
    sys.stdout.flush()
    sys.stderr.flush()
    if outcome.abandoned:  # a chunk that took too long is still running
        os._exit(outcome.code)
    return outcome.code
