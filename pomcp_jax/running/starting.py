"""Where a run starts: afresh, or at the newest checkpoint that is whole. Nothing is guessed.

``--resume=auto`` goes on exactly where the checkpoint was made; ``never`` moves the earlier
run aside; ``reset_envs`` goes on with fresh episodes, for environments that changed meanwhile;
``change_seeds`` allows another number of seeds (:mod:`pomcp_jax.running.add_seeds`).
"""

import errno
from pathlib import Path
from typing import Any, NamedTuple

import jax

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
from pomcp_jax.running import process, tables, workdirs
from pomcp_jax.running.background import Stop
from pomcp_jax.running.bookkeeping import Host, host_of
from pomcp_jax.running.options import Options
from pomcp_jax.train import Program, TrainState

ENVIRONMENT_PACKAGES = ("mujoco", "mujoco-mjx", "brax")


class Start(NamedTuple):
    """Where a run starts."""

    state: TrainState | None
    """None: afresh, or there is nothing left to do."""
    host: Host | None
    """None: afresh."""
    decisions: int
    notes: tuple[str, ...]
    """Lines for the user."""
    missing_seeds: int = 0
    """Seeds that ``state`` and ``host`` lack: they are yet to be trained so far."""


def _host(found: Manifest) -> Host:
    """What a manifest says of the run, every type and length checked.

    Raises:
      CheckpointError: it is not what :class:`Host` is.
    """
    try:
        return host_of(found.host, found.sizes[2])
    except (KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"checkpoint {found.decisions}: was not made by this command line (host: {text});"
            " --resume=never moves it aside and starts anew"
        ) from None


def _keep_seeds(host: Host, num_seeds: int) -> Host:
    """What is known of the first seeds."""

    def first(values: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: value[:num_seeds] for name, value in values.items()}

    pending = host.pending
    return host._replace(
        evaluated=first(host.evaluated),
        returns=host.returns[:num_seeds],
        invalid=host.invalid[:num_seeds],
        pending=None if pending is None else pending._replace(values=first(pending.values)),
        left=[one for one in host.left if one[0] < num_seeds],
        resets=host.resets[:num_seeds],
    )


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
            moved = workdirs.set_aside(options.workdir, workdirs.FILES)
            notes = [f"the earlier run moved to {moved}/"] if moved else []
            start = Start(None, None, 0, tuple(notes))
        else:
            checkpoint.undo_replacement(folder)
            start = _newest(options, program, folder) or _afresh(options.workdir, folder)
        checkpoint.recover(folder)
        files.write_text(options.workdir / "config.json", workdirs.config_text(options.config))
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
            f" and starts anew ({why}{more})"
        )
    return None


def _afresh(workdir: Path, folder: Path) -> Start:
    """Start a run where no checkpoint is; its tables, if there are any, move aside.

    Raises:
      ConfigError: the run had saved, or nobody knows.
    """
    anew = "--resume=never moves everything aside and starts anew"
    rows = [name for name in tables.TABLES if _size(workdir / name)]
    try:
        latest = workdirs.saved_at(workdir)
    except ValueError as error:
        if rows:
            raise ConfigError(
                f"{workdir}/run.json: {error}, and {folder} is empty; {anew}"
            ) from None
        latest = None
    if latest is not None:
        when = f" at {latest:,} decisions" if latest >= 0 else ""
        raise ConfigError(
            f"{folder}: is empty, but this run had saved{when} by its run.json; put the"
            f" checkpoints back, or {anew}"
        )
    moved = (
        workdirs.set_aside(workdir, [*rows, "learning_curve.png", "tensorboard"]) if rows else None
    )
    note = f"an earlier start saved no checkpoint; its tables moved to {moved}/"
    return Start(None, None, 0, (note,) if moved else ())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _load(
    options: Options, program: Program, folder: Path, found: Manifest, notes: list[str]
) -> Start:
    host, config = _host(found), options.config
    place = folder / str(found.decisions)
    before, wanted = found.sizes[2], config.train.num_seeds
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
    if total != made.train.total_decisions and total < found.decisions:
        raise CheckpointError(
            f"train.total_decisions = {total}: this run has done {found.decisions};"
            f" must be >= {found.decisions}"
        )
    over = host.finished and found.decisions >= config.train.total_decisions
    if over and before == wanted:
        digests.verify(place, found.files, ("agent", "run"))
        return Start(None, host, found.decisions, tuple(notes))
    held = config_lib.replace(config, {"train.num_seeds": before})
    shapes = jax.eval_shape(lambda: train.init(held, program.env, program.spec))
    reset = options.resume == "reset_envs"
    changed = [
        f"{name} {found.versions.get(name)} -> {now}"
        for name, now in checkpoint.versions().items()
        if found.versions.get(name) != now
    ]
    if not reset and any(text.split()[0] in ENVIRONMENT_PACKAGES for text in changed):
        raise CheckpointError(
            f"{place}: its environments belong to other versions ({', '.join(changed)});"
            " --resume=reset_envs goes on with fresh episodes, or install those versions"
        )
    try:
        state = checkpoint.restore_run(folder, found, shapes, environments=not reset)
    except MismatchError as error:
        if all(name.startswith(checkpoint.ENVIRONMENTS) for name in error.leaves):
            hint = "--resume=reset_envs goes on with fresh episodes"
        else:
            hint = "it needs the version that wrote it; --resume=never starts anew"
        raise CheckpointError(f"{error}; {hint}") from None
    notes.append(f"resuming at {found.decisions:,} decisions from {place}/")
    if changed:
        notes.append(
            f"warning: versions changed ({', '.join(changed)}): the run goes on, but not bit for"
            " bit as it would have"
        )
    now = process.commit()
    if host.commit != now:
        notes.append(f"warning: the source changed ({host.commit} -> {now})")
    if reset:
        renew = jax.jit(lambda state: state_edits.reset_environments(state, held, program.env))
        state = renew(state)
        notes.append("environments were reset: every episode under way starts anew")
    if wanted < before:
        state, host = state_edits.keep_seeds(state, wanted), _keep_seeds(host, wanted)
        first, last = config.train.seed + wanted, config.train.seed + before - 1
        notes.append(f"dropped seeds {first} to {last}: their rows stay, their agents do not go on")
    if wanted <= before:
        state = seed_axis.place(state, program.mesh, train.SPECS)
    notes += tables.changed(options.workdir, host.written)
    return Start(state, host, found.decisions, tuple(notes), max(0, wanted - before))
