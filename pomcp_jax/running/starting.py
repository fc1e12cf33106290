"""Where a run starts: at the beginning, or at the newest undamaged checkpoint.

``--resume=auto`` resumes exactly where the checkpoint was made; ``never`` moves the earlier run
aside; ``reset_envs`` resumes with fresh episodes, for environments whose state format has changed;
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
    """None at the beginning of a run, and if nothing is left to do."""
    books: Books | None
    """None at the beginning of a run."""
    decisions: int
    notes: tuple[str, ...]
    """Lines for the user."""
    missing_seeds: int = 0
    """Number of seeds that ``state`` and ``books`` lack and that must catch up."""


def _books(manifest: Manifest) -> Books:
    """Books of the run from a manifest, with every type and length checked.

    Raises:
      CheckpointError: the fields are not those of :class:`Books`.
    """
    try:
        return bookkeeping.from_json(manifest.host, manifest.sizes[2])
    except (KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"checkpoint {manifest.decisions}: was not made by this command line (host: {text});"
            " --resume=never moves it aside and starts over"
        ) from None


SHORTAGES = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of a machine that lacks something at the moment: exit code 4."""


def begin(options: Options, program: Program) -> Start:
    """Decide where the run starts and prepare the workdir, which this process must have locked.

    Nothing is written, renamed or deleted before that is decided.

    Raises:
      ConfigError: one line for the user; no data are lost.
      Stop: the machine lacks something (files, memory, space); no data are lost.
    """
    folder = options.workdir / "checkpoints"
    try:
        if options.resume == "never":
            moved = workdirs.set_aside(options.workdir, _everything(options))
            notes = [f"the earlier run moved to {moved}/"] if moved else []
            start = Start(None, None, 0, tuple(notes))
        else:
            # Before looking: a process killed while it replaced a checkpoint leaves the old one
            # under another name.
            checkpoint.undo_replacement(folder)
            start = _newest(options, program, folder) or _from_scratch(options, folder)
        # After deciding: this deletes partial checkpoints.
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
        text = f"--workdir = {str(options.workdir)!r:.300}: {workdirs.reason(error)}"
        raise (Stop(4, text) if error.errno in SHORTAGES else ConfigError(text)) from None


def _everything(options: Options) -> list[str]:
    """Names of what an earlier run or sweep may have left, and of what this run writes."""
    cells = cells_lib.cells(options.config, options.grid)
    names = [*workdirs.contents(options.workdir), *(cell.name for cell in cells if cell.name)]
    return list(dict.fromkeys(names))


def _write_configs(options: Options) -> None:
    """Write config.json; for a sweep also each cell's, and the record with the cells' names."""
    cells = cells_lib.cells(options.config, options.grid)
    if options.grid:
        about = {"grid": options.grid, "cells": [cell.name for cell in cells]}
        record = options.workdir / options.record
        # First, since it tells a sweep's folder from a run's if the process is killed here. An
        # existing record has the status of earlier sittings, which must not be lost.
        if not record.exists():
            files.write_json(record, about)
        for cell in cells:
            folder = cell.folder(options.workdir)
            folder.mkdir(exist_ok=True)
            files.write_text(folder / "config.json", workdirs.config_text(cell.config))
    files.write_text(options.workdir / "config.json", workdirs.config_text(options.config))


def _newest(options: Options, program: Program, folder: Path) -> Start | None:
    """Start at the newest undamaged checkpoint; None if there are no checkpoints at all.

    Newer, damaged ones are moved aside, but only once an undamaged one was read: otherwise they
    may be all that is left of the run.

    Raises:
      ConfigError: there are checkpoints, but all are damaged.
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
        warned = [f"warning: {error}; kept as {name}" for name, error in kept]
        return start._replace(notes=(*warned, *start.notes))
    # Damaged checkpoints only, perhaps set aside by an earlier start: starting over would hide
    # that a run was lost.
    if entries := checkpoint.entries(folder):
        shown = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "")
        why = str(damaged[0][1]) if damaged else f"it holds {shown:.200}"
        more = f"; and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise ConfigError(
            f"{folder}: no checkpoint of this run is intact; --resume=never moves everything aside"
            f" and starts over ({why}{more})"
        )
    return None


def _from_scratch(options: Options, folder: Path) -> Start:
    """Start a run without checkpoints; tables of an earlier start are moved aside.

    Raises:
      ConfigError: the run had saved a checkpoint, or that cannot be determined.
    """
    workdir, over = options.workdir, "--resume=never moves everything aside and starts over"
    places = [cell.name for cell in cells_lib.cells(options.config, options.grid)]
    before = workdirs.swept(workdir, str(workdir))
    places = list(dict.fromkeys([*places, *(before.folders if before else ())]))
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
    pictures = ["learning_curve.png", "tensorboard", "wandb", "wandb.json"]
    # Rows without a checkpoint cannot be continued: no state matches them.
    names = _everything(options) if options.grid else [*rows, *pictures]
    moved = workdirs.set_aside(workdir, names) if rows else None
    note = f"an earlier start saved no checkpoint; its tables moved to {moved}/"
    return Start(None, None, 0, (note,) if moved else ())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _load(
    options: Options, program: Program, folder: Path, manifest: Manifest, notes: list[str]
) -> Start:
    """Resume at the checkpoint of ``manifest``; appends lines for the user to ``notes``."""
    place = folder / str(manifest.decisions)
    if not any(name.startswith("run/") for name in manifest.files):
        raise CheckpointError(
            f"{place}: holds a trained agent without replay and optimiser; choose another --workdir"
            f" (--config.train.start_from={options.workdir} starts a run from it)"
        )
    books, config = _books(manifest), options.config
    cells = cells_lib.cells(config, options.grid)
    before, wanted = manifest.sizes[2], sum(len(cell.seeds) for cell in cells)
    _check_fits(options, manifest, books, place)
    # A finished run needs no arrays, but it only counts as finished if they are undamaged.
    if books.finished and manifest.decisions >= config.train.total_decisions and before == wanted:
        digests.verify(place, manifest.files, ("agent", "run"))
        return Start(None, books, manifest.decisions, tuple(notes))
    if options.grid:
        stored = cells_lib.joined(cells)
    else:
        stored = config_lib.replace(config, {"train.num_seeds": before})
    _check_sizes(config, manifest, program, place)
    changed = _changed_versions(manifest, place, options.resume)
    state = _restored(options, program, folder, manifest, stored)
    notes.append(f"resuming at {manifest.decisions:,} decisions from {place}/")
    if changed:
        notes.append(
            f"warning: versions changed ({', '.join(changed)}): the run resumes, but not bit for"
            " bit as it would have"
        )
    now = process.commit()
    if books.commit != now:
        notes.append(f"warning: the source changed ({books.commit} -> {now})")
    if options.resume == "reset_envs":
        notes.append("environments were reset: every current episode starts again")
    if wanted < before:
        state = state_edits.keep_seeds(state, wanted)
        books = bookkeeping.keep_seeds(books, wanted)
        first, last = config.train.seed + wanted, config.train.seed + before - 1
        notes.append(f"dropped seeds {first} to {last}: their rows stay, their training ends")
    # With missing seeds, the whole batch is placed on the devices once they have caught up.
    if wanted <= before:
        state = seed_axis.enter(state, wanted, program.mesh, train.SPECS)
    for cell, written in zip(cells, books.tables, strict=True):
        notes += tables.changed(cell.folder(options.workdir), written)
    return Start(state, books, manifest.decisions, tuple(notes), max(0, wanted - before))


def _check_fits(options: Options, manifest: Manifest, books: Books, place: Path) -> None:
    """Refuse a checkpoint of a different run.

    Raises:
      CheckpointError: names what differs.
    """
    config = options.config
    cells = cells_lib.cells(config, options.grid)
    before, wanted = manifest.sizes[2], sum(len(cell.seeds) for cell in cells)
    # Lists: the order of the fields decides which rows of the seed axis belong to a cell.
    same = list(books.grid.items()) == list(options.grid.items())
    if not same or len(books.tables) != len(cells):
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
        made = config_lib.from_dict(Config, manifest.config)
    except ConfigError as error:
        raise CheckpointError(f"{place}: is of another version ({error})") from None
    if differ := workdirs.differences(made, config, options.resume):
        raise CheckpointError(f"{place}: was made with {differ}; choose another folder")
    total = config.train.total_decisions
    # A run of an earlier version may have ended a little beyond its own total, so only a new total
    # can be too small.
    if total != made.train.total_decisions and total < manifest.decisions:
        raise CheckpointError(
            f"train.total_decisions = {total}: this run has done {manifest.decisions};"
            f" must be >= {manifest.decisions}"
        )


def _check_sizes(config: Config, manifest: Manifest, program: Program, place: Path) -> None:
    """Refuse a task whose sizes have changed since the checkpoint was made.

    Raises:
      CheckpointError: names both.
    """
    sizes = program.spec.obs_size, program.spec.action_size
    if sizes != tuple(manifest.sizes[:2]):
        raise CheckpointError(
            f"{place}: has {manifest.sizes[0]} observations and {manifest.sizes[1]} actions,"
            f" env.task = {config.env.task!r} has {sizes[0]} and {sizes[1]}; must be the same"
            " (--resume=never starts over)"
        )


def _changed_versions(manifest: Manifest, place: Path, resume: str) -> list[str]:
    """Packages whose version differs from the checkpoint's, as ``name old -> new``.

    Raises:
      CheckpointError: one of them defines the format of the environments' states.
    """
    changed = [
        f"{name} {manifest.versions.get(name)} -> {now}"
        for name, now in checkpoint.versions().items()
        if manifest.versions.get(name) != now
    ]
    # Their states are pytrees of the package's own classes: another version may give the same
    # leaves another meaning, which no check of shapes would notice.
    states = any(text.split()[0] in ENVIRONMENT_PACKAGES for text in changed)
    if states and resume != "reset_envs":
        raise CheckpointError(
            f"{place}: its environments are of other versions ({', '.join(changed)});"
            " --resume=reset_envs resumes with fresh episodes, or install those versions"
        )
    return changed


def _restored(
    options: Options, program: Program, folder: Path, manifest: Manifest, stored: Config
) -> TrainState:
    """State of the checkpoint, with fresh environments under ``--resume=reset_envs``.

    Raises:
      CheckpointError: its arrays have other shapes or dtypes; names the option that helps.
    """
    # Shapes come from the configuration, never from the checkpoint, which may be damaged.
    shapes = jax.eval_shape(lambda: train.init(stored, program.env, program.spec))
    reset = options.resume == "reset_envs"
    try:
        state = checkpoint.restore_run(folder, manifest, shapes, environments=not reset)
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
