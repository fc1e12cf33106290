"""Where a run starts: afresh, or at the newest checkpoint that is whole. Nothing is guessed.

``--resume=auto`` resumes exactly where the checkpoint was made; ``never`` moves the earlier
run aside; ``reset_envs`` resumes with fresh episodes, for environments that changed meanwhile;
``change_seeds`` allows another number of seeds (:mod:`pomcp_jax.running.add_seeds`).
"""

import errno
from pathlib import Path
from typing import NamedTuple

import jax

from pomcp_jax import cells as cells_lib
from pomcp_jax import checkpoint, digests, files, seed_axis, state_edits, train
from pomcp_jax import config as config_lib
from pomcp_jax.checkpoint import (
    CheckpointError,
    DamagedError,
    Manifest,
    MismatchError,
    ShortageError,
)
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.running import bookkeeping, process, tables, workdirs
from pomcp_jax.running.background import Stop
from pomcp_jax.running.bookkeeping import Books
from pomcp_jax.running.options import Options
from pomcp_jax.train import Program, TrainState

ENVIRONMENT_PACKAGES = ("mujoco", "mujoco-mjx", "brax")


class Start(NamedTuple):
    """Where a run starts."""

    state: TrainState | None
    """None: afresh, or there is nothing left to do."""
    books: Books | None
    """None: afresh."""
    decisions: int
    notes: tuple[str, ...]
    """Lines for the user."""
    missing_seeds: int = 0
    """Seeds that ``state`` and ``books`` lack: they are yet to be trained so far."""


def _books(found: Manifest) -> Books:
    """What a manifest says of the run, every type and length checked.

    Raises:
      CheckpointError: it is not what :class:`Books` is.
    """
    try:
        return bookkeeping.from_json(found.host, found.sizes[2])
    except (KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"checkpoint {found.decisions}: was not made by this command line (host: {text});"
            " --resume=never moves it aside and starts over"
        ) from None


SHORTAGES = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What a machine lacks for the moment: exit code 4."""


def begin(options: Options, program: Program) -> Start:
    """Find the start and prepare the workdir, which this process must have locked.

    Nothing is written, renamed or deleted before it is clear where the run starts.

    Raises:
      ConfigError: one line for the user; nothing was lost.
      Stop: the machine lacks something (files, memory, space); nothing was lost.
    """
    folder = options.workdir / "checkpoints"
    try:
        if options.resume == "never":
            moved = workdirs.set_aside(options.workdir, _everything(options))
            notes = [f"the earlier run moved to {moved}/"] if moved else []
            start = Start(None, None, 0, tuple(notes))
        else:
            checkpoint.undo_replacement(folder)
            start = _newest(options, program, folder) or _afresh(options, folder)
        checkpoint.recover(folder)
        _write_configs(options)
        return start
    except ShortageError as error:
        raise Stop(4, f"{error}; nothing was changed") from None
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    except MemoryError:
        raise Stop(4, f"{folder}: no memory to read a checkpoint; nothing was changed") from None
    except OSError as error:
        text = f"--workdir = {str(options.workdir)!r:.300}: {error.strerror or error}"
        raise (Stop(4, text) if error.errno in SHORTAGES else ConfigError(text)) from None


def _everything(options: Options) -> list[str]:
    """Names of what an earlier run or sweep left, and of what this one writes."""
    cells = cells_lib.cells(options.config, options.grid)
    names = [*workdirs.held(options.workdir), *(cell.name for cell in cells if cell.name)]
    return list(dict.fromkeys(names))


def _write_configs(options: Options) -> None:
    """Write config.json; of a sweep also each cell's, and the names of the cells."""
    files.write_text(options.workdir / "config.json", workdirs.config_text(options.config))
    if not options.grid:
        return
    cells = cells_lib.cells(options.config, options.grid)
    about = {"grid": options.grid, "cells": [cell.name for cell in cells]}
    record = options.workdir / options.record
    if not record.exists():
        files.write_json(record, about)
    for cell in cells:
        folder = cell.folder(options.workdir)
        folder.mkdir(exist_ok=True)
        files.write_text(folder / "config.json", workdirs.config_text(cell.config))


def _newest(options: Options, program: Program, folder: Path) -> Start | None:
    """The newest checkpoint that is whole, None where there is no checkpoint at all.

    Newer ones that are damaged are moved aside when a whole one was found, and only then.
    """
    damaged: list[tuple[int, DamagedError]] = []
    for decisions in reversed(checkpoint.steps(folder)):
        notes: list[str] = []
        try:
            start = _load(options, program, folder, checkpoint.read(folder, decisions), notes)
        except DamagedError as error:
            damaged.append((decisions, error))
            continue
        kept = [(checkpoint.set_aside(folder, step).name, error) for step, error in damaged]
        told = [f"warning: {error}; kept as {name}" for name, error in kept]
        return start._replace(notes=(*told, *start.notes))
    if held := checkpoint.entries(folder):
        shown = ", ".join(held[:5]) + (", ..." if len(held) > 5 else "")
        why = str(damaged[0][1]) if damaged else f"it holds {shown:.200}"
        more = f"; and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise ConfigError(
            f"{folder}: no checkpoint of this run is whole; --resume=never moves everything aside"
            f" and starts over ({why}{more})"
        )
    return None


def _afresh(options: Options, folder: Path) -> Start:
    """Start a run where no checkpoint is; its tables, if there are any, move aside.

    Raises:
      ConfigError: the run had saved, or nobody knows.
    """
    workdir, over = options.workdir, "--resume=never moves everything aside and starts over"
    places = [cell.name for cell in cells_lib.cells(options.config, options.grid)]
    rows = [
        str(Path(place, name))
        for place in places
        for name in tables.TABLES
        if _size(workdir / place / name)
    ]
    try:
        latest = workdirs.saved_at(workdir, options.record)
    except ValueError as error:
        if rows:
            raise ConfigError(
                f"{workdir}/{options.record}: {error}, and {folder} is empty; {over}"
            ) from None
        latest = None
    if latest is not None:
        when = f" at {latest:,} decisions" if latest >= 0 else ""
        raise ConfigError(
            f"{folder}: is empty, but this run had saved{when} by its {options.record}; put the"
            f" checkpoints back, or {over}"
        )
    pictures = ["learning_curve.png", "tensorboard"]
    names = _everything(options) if options.grid else [*rows, *pictures]
    moved = workdirs.set_aside(workdir, names) if rows else None
    note = f"an earlier start saved no checkpoint; its tables moved to {moved}/"
    return Start(None, None, 0, (note,) if moved else ())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _load(
    options: Options, program: Program, folder: Path, found: Manifest, notes: list[str]
) -> Start:
    """Resume at the checkpoint ``found``; appends to ``notes`` what the user should know."""
    books, config = _books(found), options.config
    cells = cells_lib.cells(config, options.grid)
    place = folder / str(found.decisions)
    before, wanted = found.sizes[2], sum(len(cell.seeds) for cell in cells)
    _check_fits(options, found, books, place)
    if books.finished and found.decisions >= config.train.total_decisions and before == wanted:
        digests.verify(place, found.files, ("agent", "run"))
        return Start(None, books, found.decisions, tuple(notes))
    if options.grid:
        stored = cells_lib.joined(cells)
    else:
        stored = config_lib.replace(config, {"train.num_seeds": before})
    changed = _changed_versions(found, place, options.resume)
    state = _restored(options, program, folder, found, stored)
    notes.append(f"resuming at {found.decisions:,} decisions from {place}/")
    if changed:
        notes.append(
            f"warning: versions changed ({', '.join(changed)}): the run resumes, but not bit for"
            " bit as it would have"
        )
    now = process.commit()
    if books.commit != now:
        notes.append(f"warning: the source changed ({books.commit} -> {now})")
    if options.resume == "reset_envs":
        notes.append("environments were reset: every episode under way starts again")
    if wanted < before:
        state = state_edits.keep_seeds(state, wanted)
        books = bookkeeping.keep_seeds(books, wanted)
        first, last = config.train.seed + wanted, config.train.seed + before - 1
        notes.append(f"dropped seeds {first} to {last}: their rows stay, training them ends")
    if wanted <= before:  # with seeds to come, the whole batch is placed once they have caught up
        state = seed_axis.place(state, program.mesh, train.SPECS)
    for cell, written in zip(cells, books.tables, strict=True):
        notes += tables.changed(cell.folder(options.workdir), written)
    return Start(state, books, found.decisions, tuple(notes), max(0, wanted - before))


def _check_fits(options: Options, found: Manifest, books: Books, place: Path) -> None:
    """Refuse a checkpoint of another run than ``options`` ask for.

    Raises:
      CheckpointError: names what differs.
    """
    config = options.config
    cells = cells_lib.cells(config, options.grid)
    before, wanted = found.sizes[2], sum(len(cell.seeds) for cell in cells)
    if books.grid != options.grid or len(books.tables) != len(cells):
        raise CheckpointError(
            f"{place}: has the grid {books.grid!r:.200}, must have {options.grid!r:.200};"
            " choose another folder"
        )
    if before != wanted and options.resume != "change_seeds":
        raise CheckpointError(
            f"{place}: has {before} seeds, train.num_seeds is {wanted}; --resume=change_seeds drops"
            " the last ones or adds some"
        )
    try:
        made = config_lib.from_dict(Config, found.config)
    except ConfigError as error:
        raise CheckpointError(f"{place}: is of another version ({error})") from None
    if differ := workdirs.differences(made, config, options.resume):
        raise CheckpointError(f"{place}: was made with {differ}; choose another folder")
    total = config.train.total_decisions
    # An old run may have ended a little beyond its own total; only a new total can be too small.
    if total != made.train.total_decisions and total < found.decisions:
        raise CheckpointError(
            f"train.total_decisions = {total}: this run has done {found.decisions};"
            f" must be >= {found.decisions}"
        )


def _changed_versions(found: Manifest, place: Path, resume: str) -> list[str]:
    """Packages whose version is not that of the checkpoint, as ``name old -> new``.

    Raises:
      CheckpointError: one of them decides what the environments' states mean.
    """
    changed = [
        f"{name} {found.versions.get(name)} -> {now}"
        for name, now in checkpoint.versions().items()
        if found.versions.get(name) != now
    ]
    states = any(text.split()[0] in ENVIRONMENT_PACKAGES for text in changed)
    if states and resume != "reset_envs":
        raise CheckpointError(
            f"{place}: its environments belong to other versions ({', '.join(changed)});"
            " --resume=reset_envs resumes with fresh episodes, or install those versions"
        )
    return changed


def _restored(
    options: Options, program: Program, folder: Path, found: Manifest, stored: Config
) -> TrainState:
    """The state of the checkpoint, with fresh environments where they are asked for.

    Raises:
      CheckpointError: its arrays are of other shapes or types; with the option that helps.
    """
    shapes = jax.eval_shape(lambda: train.init(stored, program.env, program.spec))
    reset = options.resume == "reset_envs"
    try:
        state = checkpoint.restore_run(folder, found, shapes, environments=not reset)
    except MismatchError as error:
        if all(name.startswith(checkpoint.ENVIRONMENTS) for name in error.leaves):
            hint = "--resume=reset_envs resumes with fresh episodes"
        else:
            hint = "it needs the version that wrote it; --resume=never starts over"
        raise CheckpointError(f"{error}; {hint}") from None
    if reset:
        renew = jax.jit(lambda state: state_edits.reset_environments(state, stored, program.env))
        state = renew(state)
    return state
