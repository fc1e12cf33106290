"""Where a run starts: afresh, or at the newest checkpoint that is whole. Nothing is guessed.

``--resume=auto`` goes on exactly where the checkpoint was made; ``never`` moves the earlier
run aside; ``reset_envs`` goes on with fresh episodes, for environments that changed meanwhile;
``change_seeds`` allows another number of seeds (:mod:`experiments.seeds`).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import record
from experiments.record import Written
from experiments.settings import Settings
from pomcp_jax import checkpoint, devices, manifest, resume, train
from pomcp_jax import config as config_lib
from pomcp_jax.checkpoint import CheckpointError, DamagedError, Manifest, MismatchError
from pomcp_jax.config import ConfigError
from pomcp_jax.train import Program, TrainState

ENVIRONMENT_PACKAGES = ("mujoco", "mujoco-mjx", "brax")


class Pending(NamedTuple):
    """A chunk whose row is not written yet because its evaluation is not over."""

    phase: str
    values: dict[str, list[Any]]
    seconds: float
    decisions: int
    """Of this chunk, per seed."""
    stop: str = ""
    """Why the run ends after it; empty if it goes on."""


class Host(NamedTuple):
    """What a run knows besides its training state; plain JSON inside of a checkpoint."""

    finished: bool
    updates: int
    seconds: float
    """Wall-clock of all sittings."""
    last_evaluation: int
    """Decisions at the latest evaluation that was due, 0 before it."""
    last_checkpoint: int
    evaluated_at: int
    evaluated: dict[str, list[float | None]]
    returns: list[float | None]
    invalid: list[int]
    pending: Pending | None
    written: Written
    commit: str | None
    left: Sequence[tuple[int, int, str]] = ()
    """Seeds that are left behind: index, and :class:`experiments.broken.Diverged`."""
    resets: Sequence[int] = ()
    """How often each seed's agent started anew; empty stands for never."""


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


def listed(values: np.ndarray) -> list[Any]:
    """JSON of an array, NaN as null."""
    return [None if value != value else value for value in np.asarray(values).tolist()]


def array(values: list[Any]) -> np.ndarray:
    """Inverse of :func:`listed`: integers stay integers."""
    whole = all(type(value) is int for value in values)
    return np.array(values, np.int64 if whole else np.float64)


def _host(found: Manifest) -> Host:
    try:
        pending = found.host["pending"]
        return Host(**found.host)._replace(
            pending=None if pending is None else Pending(*pending),
            written=Written(*found.host["written"]),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {found.decisions}: was not made by this command line ({error});"
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


def begin(options: Settings, program: Program) -> Start:
    """Find the start and prepare the workdir, which this process must have locked.

    Raises:
      ConfigError: one line for the user; nothing was lost.
    """
    folder = options.workdir / "checkpoints"
    try:
        checkpoint.recover(folder)
        notes: list[str] = []
        if options.resume == "never":
            moved = record.set_aside(options.workdir, record.FILES)
            notes += [f"the earlier run of this configuration moved to {moved}/"] if moved else []
        start = _newest(options, program, folder, notes)
        if start is None:
            start = Start(None, None, 0, tuple(notes))
        record.write_text(options.workdir / "config.json", record.config_text(options.config))
        return start
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--workdir = {str(options.workdir)!r}: {reason}") from None


def _newest(options: Settings, program: Program, folder: Path, notes: list[str]) -> Start | None:
    """The newest checkpoint that is whole; damaged ones are moved aside and named in ``notes``."""
    damaged = 0
    for decisions in reversed(checkpoint.steps(folder)):
        try:
            found = checkpoint.read(folder, decisions)
            start = _load(options, program, folder, found, notes)
        except DamagedError as error:
            kept = checkpoint.set_aside(folder, decisions)
            notes.append(f"warning: {error}; kept as {kept.name}")
            damaged += 1
            continue
        return start
    if damaged:
        for line in notes:
            print(line, file=sys.stderr)
        raise ConfigError(
            f"{folder}: no checkpoint of this run is whole; --resume=never moves everything aside"
            " and starts anew"
        )
    return None


def _load(
    options: Settings, program: Program, folder: Path, found: Manifest, notes: list[str]
) -> Start:
    host, config = _host(found), options.config
    place = folder / str(found.decisions)
    total, before = config.train.total_decisions, found.config["train"]["total_decisions"]
    if total != before and total < found.decisions:
        raise CheckpointError(
            f"train.total_decisions = {total}: this run has done {found.decisions};"
            f" must be >= {found.decisions}"
        )
    before, wanted = found.sizes[2], config.train.num_seeds
    if before != wanted and options.resume != "change_seeds":
        raise CheckpointError(
            f"{place}: has {before} seeds, train.num_seeds is {wanted}; --resume=change_seeds drops"
            " the last ones or adds some"
        )
    over = host.finished and found.decisions >= config.train.total_decisions
    if over and before == wanted:
        manifest.verify_files(place, found, ("agent", "run"))
        return Start(None, host, found.decisions, tuple(notes))
    held = config_lib.replace(config, {"train.num_seeds": before})
    shapes = jax.eval_shape(lambda: train.init(held, program.env, program.static))
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
    now = record.commit()
    if host.commit != now:
        notes.append(f"warning: the source changed ({host.commit} -> {now})")
    if reset:
        renew = jax.jit(lambda state: resume.reset_environments(state, held, program.env))
        state = renew(state)
        notes.append("environments were reset: every episode under way starts anew")
    if wanted < before:
        state, host = resume.keep_seeds(state, wanted), _keep_seeds(host, wanted)
        first, last = config.train.seed + wanted, config.train.seed + before - 1
        notes.append(f"dropped seeds {first} to {last}: their rows stay, their agents do not go on")
    if wanted <= before:
        state = devices.place(state, program.mesh, train.SPECS)
    short = record.missing(options.workdir, host.written)
    if short:
        notes.append(f"warning: {', '.join(short)}: lines are missing; later ones are appended")
    return Start(state, host, found.decisions, tuple(notes), max(0, wanted - before))
