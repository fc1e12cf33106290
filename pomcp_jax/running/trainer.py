"""``Trainer``: a run from a script, a notebook, a thread or a command line.

A run that is started again in the same workdir resumes from its newest undamaged checkpoint, bit
for bit (docs/reliability.md). Signals, exit codes and terminals belong to the command line; here a
stop is requested through :class:`Control`, and :class:`Outcome` says how a run ended.
"""

import os
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pomcp_jax import cells as cells_lib
from pomcp_jax import checkpoint, files, presets, seed_axis, train, validation
from pomcp_jax import config as config_lib
from pomcp_jax.cells import Grid
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.envs.protocol import Env
from pomcp_jax.running import (
    add_seeds,
    crash,
    health,
    loggers,
    process,
    starting,
    sweeps,
    workdirs,
)
from pomcp_jax.running.background import Control, Stop, unsaved
from pomcp_jax.running.functions import Functions, build
from pomcp_jax.running.options import RESUME, Options, Together
from pomcp_jax.running.progress import Progress, duration, number
from pomcp_jax.running.run import Run
from pomcp_jax.running.sweeps import CellResult

BROKE, DISK, CRASHED, INTERRUPTED = 3, 4, 1, 130
"""Codes of an outcome other than 0 (done) and those passed to :meth:`Control.request`."""


class Outcome(NamedTuple):
    """How a run ended."""

    code: int
    """0 done; 1 an unexpected exception; 3 training diverged; 4 the disk is full or cannot be
    written or read; otherwise the code of the requested stop."""
    text: str
    """Description of ``code``."""
    decisions: int
    """Per seed, including earlier sittings."""
    seconds: float
    """Wall-clock time of all sittings."""
    training: np.ndarray
    """Mean return of the latest 8 training episodes ``[S]``; NaN if there are none. In a sweep
    the seeds of the first cell come first, then those of the second, and so on."""
    evaluation: np.ndarray
    """Mean return of the planner in the latest evaluation ``[S]``."""
    policy: np.ndarray
    """Mean return of the bare policy in the last evaluation ``[S]``."""
    workdir: Path
    cells: tuple[CellResult, ...] = ()
    """The same results by cell; one cell in a run."""
    nothing_to_do: bool = False
    """The run was already complete."""
    errors: str = ""
    """Error message for stderr, one line; empty if there is none."""
    error: Exception | None = None
    """The unexpected exception of code 1."""
    abandoned: bool = False
    """Device work is still running in a thread: the process can only end with ``os._exit``."""

    def __repr__(self) -> str:
        """One line; the fields have the details."""
        # That of a tuple is pages long: every cell holds a whole configuration.
        shown = [f"{self.text!r}", f"{self.decisions:,} decisions in {duration(self.seconds)}"]
        for name in ("training", "evaluation", "policy"):
            values = " ".join(number(value, 1) for value in getattr(self, name))
            shown.append(f"{name} [{textwrap.shorten(values, 60, placeholder=' ...')}]")
        if len(self.cells) > 1:
            shown.append(f"{len(self.cells)} cells")
        return f"Outcome({', '.join(shown)}, in {self.workdir}/)"


class Trainer:
    """Trains the agents of a configuration in a workdir.

    ``Trainer(config, workdir).run()`` trains or resumes, evaluates, saves and returns an
    :class:`Outcome`. Invalid arguments are reported before anything is compiled or written. With
    ``grid`` it is a sweep: every combination of the values with ``train.num_seeds`` seeds each,
    trained as one program.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path | str,
        *,
        env: Env | None = None,
        resume: str = "auto",
        tensorboard: bool = False,
        wandb: str = "",
        control: Control | None = None,
        on_row: Sequence[Callable[[dict[str, Any]], None]] = (),
        grid: Grid | None = None,
        on_checked: Callable[["Trainer"], None] = lambda trainer: None,
        command: str = "pomcp_jax.Trainer",
        began: float | None = None,
        together: Together | None = None,
        programs: Path | str | None = None,
    ):
        """Check the arguments and prepare a run; compiles and writes nothing.

        Args:
          config: configuration of the run.
          workdir: folder for its tables, pictures and checkpoints.
          env: custom environments; by default those that ``config.env`` names.
          resume: what to do with an earlier run in the workdir, one of ``options.RESUME``.
          tensorboard: also write TensorBoard events, a folder for each seed with equal tags.
          wandb: project of Weights & Biases to log to as well, a run for each seed.
          control: progress output and requests to stop; by default progress goes to stderr.
          on_row: functions called with every row of metrics.csv, after it is written; in a
            sweep the row includes the cell's name and values.
          grid: for a sweep, ``{"policy.kl_coef": (0.1, 1.0)}``: floats of ``config.agent`` and
            their values. Diverged seeds are dropped, or reset if the configuration says so.
          on_checked: called before the environments are built, which may take seconds.
          command: how the run was started, for run.json.
          began: start of this sitting by ``time.monotonic``; the call of :meth:`run` by default.
          together: of a run over several processes, each with a Trainer of its own seeds.
          programs: folder of lowered programs for later runs (:mod:`pomcp_jax.program_store`).

        Raises:
          ConfigError: one line that names what is invalid.
        """
        options = Options(config, Path(workdir), tensorboard, wandb, resume, grid or {}, together)
        self.options = _checked(options)
        config = self.options.config
        self.cells = cells_lib.cells(config, self.options.grid)
        validate = validation.validate_config if env is None else validation.validate_run
        validate(self.cells[0].config)
        self.config = cells_lib.joined(self.cells)
        """Configuration of all seeds: swept floats have the axis S."""
        # The workdir first: building the functions imports the physics, which takes seconds.
        workdirs.check_workdir(self.options.workdir, config, resume, self.options.grid)
        on_checked(self)
        kept = None if programs is None else workdirs.expanded(programs, "programs")
        self.functions: Functions = build(_as_before(self.config, self.options), env, kept)
        self.replay_bytes = _replay_bytes(self.config, self.functions)
        _check_memory(self.config, self.replay_bytes, self.options, len(self.cells))
        _check_buffer(self.options, self.functions)
        self.control = Control(Progress()) if control is None else control
        self.on_row, self.command, self._began = tuple(on_row), command, began

    def run(self) -> Outcome:
        """Train to the end, or to the first reason to stop.

        Raises:
          ConfigError: the workdir's earlier run does not match; nothing was changed.
          KeyboardInterrupt: Ctrl-C in a script or a notebook, after saving, or with the reason why
            not all could be saved: what comes after this call is not wanted either.
          Exception: any unexpected exception, after saving what can be saved.
        """
        ended = self.attempt()
        if self.control.interrupted:
            # Whether all was saved is in ``errors``.
            said = "; ".join(dict.fromkeys(text for text in (ended.text, ended.errors) if text))
            raise KeyboardInterrupt(f"{said} (workdir {ended.workdir})") from ended.error
        if ended.error is not None:
            raise ended.error
        return ended

    def attempt(self) -> Outcome:
        """Like :meth:`run`, but return unexpected exceptions in the outcome instead of raising."""
        options, began = self.options, self._began
        # ``began`` is of the first run only: a second run of this trainer is a new sitting.
        began, self._began = time.monotonic() if began is None else began, None
        lock, self.control.interrupted = workdirs.lock(options.workdir), False
        ended: Outcome | None = None
        try:
            start = starting.begin(options, self.functions.program)
            run = Run(options, self.functions, start, self.control, began, self.on_row)
            is_idle = start.books is not None and start.state is None
            ended = idle(run, self.command) if is_idle else finish(run, self.command)
            return ended
        except Stop as stop:  # from starting.begin: nothing was read or changed
            unknown = np.full(self.config.train.num_seeds, np.nan)
            return Outcome(
                code=stop.code,
                text=str(stop),
                decisions=0,
                seconds=round(time.monotonic() - began, 3),
                training=unknown,
                evaluation=unknown,
                policy=unknown,
                workdir=options.workdir,
                errors=str(stop),
            )
        finally:
            # A control may be shared with later runs, which must not inherit this request.
            self.control.forget()
            try:
                # An abandoned step may hold its environments for ever.
                if ended is None or not ended.abandoned:
                    self.functions.close()
            finally:
                os.close(lock)


def _as_before(config: Config, options: Options) -> Config:
    """``config`` with the number of devices of the earlier run in the workdir, if it may resume.

    A number that is set stays, and so does one that is chosen if the devices are gone.
    """
    # Another number would round otherwise, and a resumed run is to be the same run.
    if config.train.num_devices or options.resume == "never":
        return config
    before, size = workdirs.devices(options.workdir, options.record), config.train.devices_per_seed
    most = min(config.train.num_seeds * size, jax.device_count())
    if not 1 <= before <= most or before % size:
        return config
    return config_lib.replace(config, {"train.num_devices": before})


def _replay_bytes(config: Config, functions: Functions) -> int:
    """Bytes of replay of all rows on the devices."""
    program = functions.program
    return train.replay_bytes(config, program.env, seed_axis.shares(program.mesh))


def _check_memory(config: Config, replay_bytes: int, options: Options, num_cells: int) -> None:
    try:
        validation.validate_memory(config, replay_bytes)
    except ConfigError as error:
        rows = f" ({num_cells} cells x {options.config.train.num_seeds} seeds)"
        raise ConfigError(f"{error}{rows * bool(options.grid)}") from None


def _check_buffer(options: Options, functions: Functions) -> None:
    """Read ``train.buffer`` if the run will: a checkpoint holds what it gave.

    Raises:
      ConfigError: one line about the file.
    """
    resumes = options.resume in ("auto", "reset_envs")
    if functions.buffer is not None and not (
        resumes and checkpoint.entries(options.workdir / "checkpoints")
    ):
        functions.buffer()


def _checked(options: Options) -> Options:
    """``options`` with full names of swept fields and the workdir's ``~`` expanded.

    Raises:
      ConfigError: one line that names what is invalid.
    """
    config, resume = options.config, options.resume
    if resume not in RESUME:
        raise ConfigError(f"resume = {resume!r}: must be one of {', '.join(RESUME)}")
    grid = cells_lib.check_grid(options.grid, config)
    if grid and resume == "change_seeds":
        raise ConfigError(
            "resume = 'change_seeds': not in a sweep; must be auto, never or reset_envs"
        )
    # In a sweep some settings are expected to diverge; one of them must not stop the others.
    # Of the swept fields the first cell's values: they fit, whatever the configuration has there.
    config = config_lib.replace(config, {field: values[0] for field, values in grid.items()})
    if grid and config.train.on_broken_seed == "stop":
        config = config_lib.replace(config, {"train.on_broken_seed": "leave"})
    loggers.check(options)
    place = workdirs.expanded(options.workdir)
    return options._replace(config=config, workdir=place, grid=grid)


def idle(run: Run, command: str) -> Outcome:
    """Outcome of a run that was already complete.

    Also writes run.json and the picture if the process was killed after its last save.
    """
    code, said = 0, ""
    for line in run.start.notes:
        run.progress.say(line)
    if not _says_done(run.options.workdir / run.options.record):
        status = _status(run)
        about = process.describe(command) | {"status": status, "exit_code": 0}
        code, said = write_about(run, about, run.done)
        run.draw()
    return outcome(run, code, "done before", said)._replace(nothing_to_do=True)


def finish(run: Run, command: str) -> Outcome:
    """Train to the end or to the first reason to stop, close all files and write run.json."""
    options = run.options
    for line in run.start.notes:
        run.progress.say(line)
    about, resumed_at = process.describe(command), run.done
    # A process that is killed leaves this status, not that of an earlier sitting.
    running = {"status": "running", "exit_code": None, "pid": os.getpid()}
    code, said = write_about(run, about | running, resumed_at)
    if code:
        close(run)
        return outcome(run, code, said, said)
    text, error = "done", None
    try:
        run.open_loggers()
        add_seeds.catch_up(run)
        run.go()
        status = text
    except Stop as stop:
        code, text = stop.code, str(stop)
        status = text
        said = text if code in (BROKE, DISK) else ""
    except KeyboardInterrupt:  # without a handler for SIGINT: in a notebook or a script
        run.control.interrupt()
        code, status = INTERRUPTED, "stopped by SIGINT"
        text = status
    except Exception as unexpected:  # a bug, or a failing device: keep what was trained
        code, text, error = CRASHED, crash.report(unexpected, options.workdir), unexpected
        status = f"failed: {crash.one_line(unexpected)}"
        said = text
    if code:
        said += wind_up(run, text, code)
        if code not in (BROKE, DISK, CRASHED) and run.checkpoints.committed is None:
            status = text = unsaved(text)
    if not code:
        status = text = _status(run)
    # The record comes last: a killed process must not leave "done" before its files are closed.
    close(run)
    failed, more = write_about(run, about | {"status": status, "exit_code": code}, resumed_at)
    # A copy on the network may keep the process waiting: the record is complete without it.
    run.loggers.close(code)
    said = "; ".join(line for line in (said.removeprefix("; "), more) if line)
    return outcome(run, failed or code, text, said)._replace(error=error)


def _status(run: Run) -> str:
    """Status of a run that reached its end."""
    lost = run.lost()
    if lost and run.options.grid:
        return f"done, {len(lost)} of {run.config.train.num_seeds} rows diverged"
    return f"diverged: {health.describe(lost)}" if lost else "done"


def outcome(run: Run, code: int, text: str, errors: str) -> Outcome:
    """Outcome of a run that has ended."""
    books = run.books
    unknown = np.full(len(books.returns), np.nan)
    return Outcome(
        code=code,
        text=text,
        decisions=run.done,
        seconds=run.seconds(),
        training=books.returns,
        evaluation=books.evaluated.get("eval/return", unknown),
        policy=books.evaluated.get("eval/policy_return", unknown),
        workdir=run.options.workdir,
        cells=tuple(sweeps.results(run.cells, books)),
        errors=errors,
        abandoned=run.ahead.stop() or run.work.abandoned,
    )


def _says_done(path: Path) -> bool:
    try:
        return workdirs.read_json(path)["exit_code"] == 0
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_about(run: Run, about: dict[str, Any], resumed_at: int) -> tuple[int, str]:
    """Write the record: ``about`` and the run's own facts.

    Returns:
      ``(0, "")``, or code 4 and the reason why it could not be written.
    """
    saves = run.checkpoints.seconds
    about = about | {
        "preset": presets.origin(run.options.config).preset,
        "seconds": run.seconds(),
        "peak_memory_gb": round(process.peak_memory_gb(), 3),
        "decisions_per_seed": run.done,
        "updates_per_seed": run.books.updates,
        "num_devices": seed_axis.mesh_size(run.functions.program.mesh),
        "resumed_at": resumed_at,
        "diverged": {label: what._asdict() for label, what in _by_seed(run).items()},
        "resets": int(run.books.resets.sum()),
        "saves": len(saves),
        "longest_save_seconds": round(max(saves, default=0.0), 4),
        "last_checkpoint": run.checkpoints.committed,
    }
    options = run.options
    if options.grid:
        names = [cell.name for cell in run.cells]
        about |= {"grid": options.grid, "cells": names, "rows": run.config.train.num_seeds}
    run.checkpoints.about = about
    try:
        # The whole sweep's record comes last: it says that all others are written.
        if options.grid:
            sweeps.write_records(options, run.cells, run.books, about)
        files.write_json(options.workdir / options.record, about)
    except OSError as error:
        place = error.filename or options.workdir / options.record
        return DISK, f"{place}: {error.strerror or error}"
    return 0, ""


def _by_seed(run: Run) -> dict[str, health.Diverged]:
    """Dropped seeds: by number in a run, by label in a sweep."""
    return {label if run.options.grid else label.split()[-1]: w for label, w in run.lost().items()}


def wind_up(run: Run, text: str, code: int) -> str:
    """Save the state of a run that ends early; returns what to add to the message for the user."""
    try:
        run.save()
        failed = run.collect_save()
    except Exception as error:
        failed = f"not saved ({crash.one_line(error)})"
    if failed:
        return "" if failed == text else f"{'; ' if code in (1, 3, 4) else ''}{failed}"
    if code != CRASHED and (run.state is not None or not run.tables):
        return ""
    newest = run.checkpoints.committed
    if newest is None:
        return "; nothing is saved"
    lost = "" if run.state is not None else "; the current chunk is lost"
    return f"{lost}; saved at {newest:,} decisions"


def close(run: Run) -> None:
    """Close all files and draw the final picture; errors are warnings at most."""
    run.progress.close()
    if run.tables:
        run.close()
        run.draw()
