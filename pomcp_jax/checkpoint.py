"""Checkpoints: orbax for arrays, a manifest with digests for everything else.

A checkpoint is the folder ``<decisions>`` with ``agent/`` (all of
:class:`pomcp_jax.agent.AgentState`), ``run/`` (the rest of
:class:`pomcp_jax.train.TrainState`: replay, environments, plans, keys, counters) and
``manifest.json``. It appears under its name only when complete. The agent can be read
without any environment and without ``run/``.

orbax's ``CheckpointManager`` is not used: it would commit before a manifest of its own files
could exist, restores flipped bits without a word, refuses to replace a step, and deletes old
steps without asking whether the newer ones can be read (docs/reliability.md).
"""

import functools
import math
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pomcp_jax import __version__, acting, agent, validation
from pomcp_jax import arrays as arrays_lib
from pomcp_jax import config as config_lib
from pomcp_jax import manifest as manifest_lib
from pomcp_jax.acting import AgentSpec
from pomcp_jax.agent import AgentState
from pomcp_jax.arrays import Arrays, MismatchError
from pomcp_jax.config import Config
from pomcp_jax.manifest import CheckpointError, DamagedError, Leaf, Manifest, ShortageError
from pomcp_jax.train import TrainState

__all__ = [
    "CheckpointError",
    "DamagedError",
    "Manifest",
    "MismatchError",
    "ShortageError",
    "entries",
    "read",
    "recover",
    "restore",
    "restore_run",
    "save",
    "set_aside",
    "snapshot",
    "steps",
]

ENVIRONMENTS = (".env", ".timestep")
"""Leaves of a run that belong to its environments."""


class Restored(NamedTuple):
    """What :func:`restore` returns."""

    state: AgentState
    """Leading axis S."""
    spec: AgentSpec
    config: Config
    decisions: int


class Snapshot(NamedTuple):
    """A state's leaves in the host's memory, independent of the device's buffers."""

    agent: Arrays
    run: Arrays
    """Empty when only an agent was given."""
    keys: dict[str, str]
    """Names of PRNG keys, and their type; their arrays are raw ``uint32`` data."""


def snapshot(state: AgentState | TrainState) -> Snapshot:
    """Copy a state to the host; of replay, the rows in use.

    The only part of saving that has to happen before the state is donated again.
    """
    whole = isinstance(state, TrainState)
    learner = state.agent if whole else state
    rest = state._replace(agent=None) if whole else ()
    leaves = arrays_lib.named(learner) | arrays_lib.named(rest)
    keys = {name: str(leaf.dtype) for name, leaf in leaves.items() if arrays_lib.is_key(leaf)}
    rows = _rows_in_use(state, int(state.replay.inserted)) if whole else 0
    learner, rest = jax.device_get(arrays_lib.key_data((learner, rest)))
    # Copies: on a CPU, what device_get returns is the device's own memory.
    copy = {name: np.array(leaf) for name, leaf in arrays_lib.named(learner).items()}
    run = {
        name: np.array(leaf[:, :rows] if name.startswith(arrays_lib.RING) else leaf)
        for name, leaf in arrays_lib.named(rest).items()
    }
    return Snapshot(copy, run, keys)


def _rows_in_use(state: TrainState, inserted: int) -> int:
    """Of every environment; the ring's own properties know nothing of the axis of seeds."""
    return min(inserted, state.replay.rows.reward.shape[1])


@functools.cache
def versions() -> dict[str, str]:
    """Of the packages that decide whether a run goes on bit for bit."""
    names = "jax jaxlib flax optax orbax-checkpoint mujoco mujoco-mjx brax".split()
    # Of the source, not of an installation: a checkout on the path needs none.
    return {"pomcp_jax": __version__} | {name: manifest_lib.installed(name) for name in names}


def save(
    folder: Path | str,
    decisions: int,
    state: AgentState | TrainState | Snapshot,
    config: Config,
    spec: AgentSpec,
    *,
    keep: int = 3,
    score: float | None = None,
    host: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``folder/<decisions>`` atomically; keep the newest ``keep`` and the best one.

    Args:
      folder: made when missing.
      decisions: per seed; the checkpoint's name. One of that name is replaced.
      state: leading axis S; a whole run, or an agent only.
      config: of the run.
      spec: sizes of the environment.
      keep: checkpoints to keep, this one included; at least 1.
      score: mean evaluation return of this state, if it was evaluated.
      host: plain JSON that belongs to the state; comes back in the manifest.

    Returns:
      The checkpoint's folder.

    Raises:
      CheckpointError: nothing was saved; earlier checkpoints are as they were.
    """
    folder = Path(folder).resolve()
    final, partial = folder / str(decisions), folder / f".{decisions}.partial"
    shot = state if isinstance(state, Snapshot) else snapshot(state)
    items = {"agent": shot.agent} | ({"run": shot.run} if shot.run else {})
    size = sum(array.nbytes for arrays in items.values() for array in arrays.values())
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        free = shutil.disk_usage(folder).free
        if free < size:
            raise OSError(f"needs {size / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free")
        for item, arrays in items.items():
            arrays_lib.write(partial / item, arrays)
        manifest = Manifest(
            format=manifest_lib.FORMAT,
            decisions=decisions,
            versions=versions(),
            config=config_lib.to_dict(config),
            sizes=(spec.obs_size, spec.action_size, len(next(iter(shot.agent.values())))),
            score=score if score is not None and math.isfinite(score) else None,
            host=dict(host or {}),
            leaves={
                item: {
                    name: Leaf(
                        array.shape,
                        shot.keys.get(name, str(array.dtype)),
                        manifest_lib.digest(array),
                    )
                    for name, array in arrays.items()
                }
                for item, arrays in items.items()
            },
            files={
                name: manifest_lib.file_digest(partial / name, sync=True)
                for name in manifest_lib.list_files(partial)
            },
        )
        manifest_lib.write(partial, manifest)
        for inner in (*(p for p in partial.rglob("*") if p.is_dir()), partial):
            manifest_lib.sync_folder(inner)
        _commit(partial, final)
    except Exception as error:  # orbax and tensorstore raise many kinds
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"{final}: not saved ({_reason(error)})") from None
    _prune(folder, max(keep, 1))
    return final


def _reason(error: Exception) -> str:
    """One line; the system's own words where they are somewhere in it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    known = re.search(r"No space left on device|File too large|Read-only file system", text)
    return known[0] if known else text[:200]


def _commit(partial: Path, final: Path) -> None:
    """Give a complete folder its name; :func:`recover` finishes what is cut in between."""
    replaced = final.with_name(f".{final.name}.replaced")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    try:
        partial.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise
    manifest_lib.sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(folder: Path | str) -> None:
    """Clean up after a process that was killed while it wrote to ``folder``.

    Only for the one process that writes there.
    """
    folder = Path(folder)
    undo_replacement(folder)
    for kind in ("partial", "replaced", "deleted"):
        for path in folder.glob(f".*.{kind}"):
            shutil.rmtree(path, ignore_errors=True)


def undo_replacement(folder: Path | str) -> None:
    """Give back its name to a checkpoint whose replacement was killed; deletes nothing."""
    folder = Path(folder)
    for path in folder.glob(".*.replaced"):
        final = folder / path.name.removesuffix(".replaced").removeprefix(".")
        if not final.exists():
            path.rename(final)


def entries(folder: Path | str) -> list[str]:
    """Names that checkpoints have or had in ``folder``: whole, damaged, replaced or deleted."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    pattern = r"\.?[0-9]+(\..*)?"
    names = (p.name for p in folder.iterdir() if not p.name.endswith(".partial"))
    return sorted(name for name in names if re.fullmatch(pattern, name, re.DOTALL))


def _prune(folder: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest and the best; what cannot be read does not count."""
    scores: dict[int, float] = {}
    for decisions in steps(folder):
        try:
            score = manifest_lib.read(folder / str(decisions)).score
        except CheckpointError:
            continue
        scores[decisions] = -math.inf if score is None else score
    if not scores:  # none can be read just now
        return
    best = max(scores, key=lambda step: (scores[step], step))
    for old in sorted(scores)[:-keep]:
        if old != best or scores[best] == -math.inf:
            doomed = folder / f".{old}.deleted"
            try:  # Failing costs space only, and the next call tries again.
                (folder / str(old)).rename(doomed)
            except OSError:
                continue
            shutil.rmtree(doomed, ignore_errors=True)


def steps(folder: Path | str) -> list[int]:
    """Decisions of the complete checkpoints in ``folder``, ascending."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    names = (p.name for p in folder.iterdir() if p.is_dir())
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,14}", name))


def read(folder: Path | str, decisions: int) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
      CheckpointError: as :func:`pomcp_jax.manifest.read`, or it is another checkpoint's.
    """
    place = Path(folder) / str(decisions)
    found = manifest_lib.read(place)
    if found.decisions != decisions:
        raise CheckpointError(f"{place}: holds checkpoint {found.decisions}; rename it back")
    return found


def restore(folder: Path | str, decisions: int | None = None) -> Restored:
    """Read the agent of a checkpoint without any environment.

    Args:
      folder: of checkpoints.
      decisions: which one; by default the newest that is whole, with a warning about
        every damaged one that is passed over.

    Raises:
      CheckpointError: when there is none, or when it is damaged or from a
        configuration that this version cannot build.
    """
    folder = Path(folder).resolve()
    found = steps(folder)
    if not found:
        raise CheckpointError(f"{folder}: holds no checkpoint (a folder of numbered folders)")
    if decisions is not None and decisions not in found:
        raise CheckpointError(f"{folder}: holds no checkpoint {decisions}; it has {found}")
    for step in found[::-1] if decisions is None else [decisions]:
        try:
            return _restore(folder / str(step), read(folder, step))
        except DamagedError as error:
            if step == (found[0] if decisions is None else decisions):
                raise
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
    raise AssertionError("unreachable")


def _restore(place: Path, manifest: Manifest) -> Restored:
    obs_size, action_size, num_seeds = manifest.sizes
    try:
        config = config_lib.from_dict(Config, manifest.config)
        config_lib.check_finite(config)
        validation.validate_agent(config.agent)
        # What is not traced but looped over must not be believed.
        if config.agent.world_model.encoder_layers > len(manifest.leaves["agent"]):
            raise ValueError("agent.world_model.encoder_layers: more than there are arrays")
        spec = acting.build(config.agent, obs_size, action_size)
        shapes = jax.eval_shape(
            lambda: jax.vmap(lambda key: agent.init(key, config.agent, spec))(
                jax.random.split(jax.random.key(0), num_seeds)
            )
        )
    except Exception as error:  # whatever a configuration that nobody checked leads to
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{place}: its configuration cannot be built ({text})") from None
    arrays_lib.check(place, shapes, manifest.leaves["agent"])
    arrays = arrays_lib.read(place, manifest, "agent")
    return Restored(arrays_lib.assemble(shapes, arrays), spec, config, manifest.decisions)


def restore_run(
    folder: Path | str, manifest: Manifest, shapes: TrainState, *, environments: bool = True
) -> TrainState:
    """Read a whole run.

    Args:
      folder: of checkpoints.
      manifest: of the checkpoint wanted, from :func:`pomcp_jax.manifest.read`.
      shapes: ``jax.eval_shape`` of the program's ``init``.
      environments: False leaves ``env`` and ``timestep`` None.

    Raises:
      DamagedError: some byte is not what was written.
      MismatchError: names the leaves that differ from ``shapes``.
    """
    place = Path(folder) / str(manifest.decisions)
    rest = shapes._replace(agent=None)
    if not environments:
        rest = rest._replace(env=None, timestep=None)
    held = manifest.leaves.get("run", {})
    if not environments:
        held = {name: leaf for name, leaf in held.items() if not name.startswith(ENVIRONMENTS)}
    arrays_lib.check(place, shapes.agent, manifest.leaves["agent"])
    arrays_lib.check(place, rest, held)
    learner = arrays_lib.assemble(shapes.agent, arrays_lib.read(place, manifest, "agent"))
    arrays = arrays_lib.read(place, manifest, "run")
    rows = _rows_in_use(shapes, int(arrays[".replay.inserted"]))
    for name, array in arrays.items():
        if name.startswith(arrays_lib.RING) and array.shape[1] != rows:
            raise CheckpointError(f"{place}: {name} has {array.shape[1]} rows, must have {rows}")
    return arrays_lib.assemble(rest, arrays)._replace(agent=learner)


def set_aside(folder: Path | str, decisions: int) -> Path:
    """Rename a checkpoint that cannot be used to ``<decisions>.damaged``; deletes nothing."""
    place, number = Path(folder) / str(decisions), 1
    while (kept := place.with_name(f"{decisions}.damaged{'' if number == 1 else number}")).exists():
        number += 1
    return place.rename(kept)
