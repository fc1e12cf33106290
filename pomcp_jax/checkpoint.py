"""Checkpoints: orbax for arrays, a manifest with the digest of every file.

A checkpoint is the folder ``<decisions>`` with ``agent/`` (all of
:class:`pomcp_jax.agent.AgentState`), ``run/`` (the rest of
:class:`pomcp_jax.train.TrainState`: replay, environments, plans, keys, counters) and
``manifest.json``. It appears under its name only when complete. The agent can be read
without any environment and without ``run/``.

orbax's ``CheckpointManager`` is not used: it would commit before a manifest of its own files
could exist, restores flipped bits without a word, refuses to replace a step, and deletes old
steps without asking whether the newer ones can be read (docs/reliability.md).
"""

import contextlib
import functools
import math
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pomcp_jax import __version__, acting, agent, arrays, digests, files, seed_axis, validation
from pomcp_jax import config as config_lib
from pomcp_jax.acting import AgentSpec
from pomcp_jax.agent import AgentState
from pomcp_jax.arrays import Arrays, MismatchError
from pomcp_jax.config import Config
from pomcp_jax.digests import CheckpointError, DamagedError, ShortageError
from pomcp_jax.packages import installed
from pomcp_jax.train import TrainState
from pomcp_jax.types import PyTree

__all__ = [
    "CheckpointError", "DamagedError", "Manifest", "MismatchError", "ShortageError", "entries",
    "read", "recover", "restore", "restore_run", "save", "scores", "set_aside", "snapshot",
    "steps",
]  # fmt: skip

FORMATS = (2, 3)
"""Manifest formats that can be read; the last is written. Format 2 also had digests of arrays."""
ENVIRONMENTS = (".env", ".timestep")
"""Prefixes of the leaves of a run's environments."""
PARAMETERS, TARGET = ".params", ".target_value"
"""Prefixes of an agent's parameters, the only leaves of an exported agent, and of its target value
heads, which an imported agent has too."""


class Manifest(NamedTuple):
    """All parts of a checkpoint that are not arrays, as plain JSON."""

    format: int
    decisions: int
    versions: dict[str, str]
    """Of the packages that decide whether a run resumes bit for bit, by name."""
    config: dict[str, Any]
    sizes: tuple[int, int, int]
    """Of an observation, of an action, and S."""
    score: float | None
    """Mean evaluation return at this very checkpoint, if there was an evaluation."""
    host: dict[str, Any]
    """From the caller of :func:`save`."""
    files: dict[str, Any]
    """Digests, see :func:`pomcp_jax.digests.of`."""


class Restored(NamedTuple):
    """What :func:`restore` returns."""

    state: AgentState
    """Leading axis S; of an exported agent only ``params``, of an imported one ``target_value``
    too, and None elsewhere."""
    spec: AgentSpec
    config: Config
    decisions: int

    @property
    def num_seeds(self) -> int:
        """S."""
        return len(jax.tree.leaves(self.state)[0])


class Snapshot(NamedTuple):
    """A copy of a state's leaves in host memory."""

    agent: Arrays
    run: Arrays
    """Empty when only an agent was given."""


def snapshot(state: AgentState | TrainState, num_seeds: int | None = None) -> Snapshot:
    """Copy a state to the host; of replay, the rows in use (one if there are none).

    The copy can be saved after the state was donated. ``num_seeds`` is the number of the first
    seeds that are copied, for a run with rows of padding; all by default.
    """
    rows = 0
    # Only rows in use: the capacity may be a hundred times what a young run has filled.
    if isinstance(state, TrainState):  # Replay.size ignores the axis of seeds
        rows = min(max(int(state.replay.inserted), 1), state.replay.rows.reward.shape[1])
    held = jax.device_get(arrays.key_data(state))
    if num_seeds is not None:
        before = len(jax.tree.leaves(held)[0])
        held = seed_axis.first(held, before, num_seeds)
    leaves = arrays.named(held)
    # Copies: on a CPU, device_get returns the device's own memory, which donation reuses.
    copies = {
        name: np.array(leaf[:, :rows] if name.startswith(arrays.RING) else leaf)
        for name, leaf in leaves.items()
    }
    if not isinstance(state, TrainState):
        return Snapshot(copies, {})
    # The agent is a separate item, so that it can be read without replay.
    mine = {name: copies.pop(name) for name in leaves if name.startswith(".agent.")}
    return Snapshot({name.removeprefix(".agent"): x for name, x in mine.items()}, copies)


@functools.cache
def versions() -> dict[str, str]:
    """Of the packages that decide whether a run resumes bit for bit."""
    names = "jax jaxlib flax optax orbax-checkpoint mujoco mujoco-mjx brax".split()
    # Of the source, not of an installation: a checkout on the path needs none.
    return {"pomcp_jax": __version__} | {name: installed(name) for name in names}


def save(
    folder: Path | str,
    decisions: int,
    state: AgentState | TrainState | Snapshot,
    config: Config,
    spec: AgentSpec,
    *,
    keep: int = 3,
    since: int | None = None,
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
      since: checkpoints from these decisions on are kept as well, if it is not None.
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
    manifest = Manifest(
        format=FORMATS[-1],
        decisions=decisions,
        versions=versions(),
        config=config_lib.to_dict(config),
        sizes=(spec.obs_size, spec.action_size, len(next(iter(shot.agent.values())))),
        # JSON has no NaN, and NaN would win or lose the comparison for the best at random.
        score=score if score is not None and math.isfinite(score) else None,
        host=dict(host or {}),
        files={},
    )
    try:
        _write(partial, shot, manifest)
        _commit(partial, final)
    except Exception as error:  # orbax and tensorstore raise many kinds
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"{final}: not saved ({_reason(error)})") from None
    try:
        _prune(folder, max(keep, 1), since)
    except OSError as error:  # costs space only, and the next save tries again
        text = f"{folder}: older checkpoints were not deleted ({_reason(error)})"
        warnings.warn(text, stacklevel=2)
    return final


def _write(partial: Path, shot: Snapshot, manifest: Manifest) -> None:
    """Write all of a checkpoint and force it to the disk."""
    items = {"agent": shot.agent, "run": shot.run} if shot.run else {"agent": shot.agent}
    size = sum(array.nbytes for item in items.values() for array in item.values())
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # Before writing gigabytes: a disk that runs full would also break logs of the run.
    free = shutil.disk_usage(partial).free
    if free < size:
        raise OSError(f"needs {size / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free")
    for name, item in items.items():
        arrays.write(partial / name, item)
    # The manifest comes last: a folder without one was never complete.
    digests.write(partial, manifest._replace(files=digests.of(partial))._asdict())


def _reason(error: Exception) -> str:
    """One line; the system's own words where orbax' text has them somewhere."""
    text = digests.reason(error)
    known = re.search(r"No space left on device|File too large|Read-only file system", str(error))
    return known[0] if known else text


def _commit(partial: Path, final: Path) -> None:
    """Rename a complete folder; :func:`undo_replacement` repairs a kill between two renames."""
    replaced = final.with_name(f".{final.name}.replaced")
    # A rename does not replace a folder that has content, so the old one moves aside first.
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    try:
        partial.rename(final)
    except OSError:
        undo_replacement(final.parent)
        raise
    # The rename itself must reach the disk before the replaced copy is deleted.
    files.sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(folder: Path | str) -> None:
    """Clean up after a process that was killed while it wrote to ``folder``.

    Only the process that writes there may call it.
    """
    undo_replacement(folder)
    for kind in ("partial", "replaced", "deleted"):
        for path in Path(folder).glob(f".*.{kind}"):
            shutil.rmtree(path, ignore_errors=True)


def undo_replacement(folder: Path | str) -> None:
    """Rename checkpoints back whose replacement was killed half-way; deletes nothing."""
    # No checkpoint under the name: the new one was never moved there, so the old one returns.
    for path in Path(folder).glob(".*.replaced"):
        final = path.with_name(path.name.removesuffix(".replaced").removeprefix("."))
        if not final.exists():
            path.rename(final)


def _prune(folder: Path, keep: int, since: int | None) -> None:
    """Delete all but the ``keep`` newest, those from ``since`` on, and the best.

    Unreadable checkpoints do not count.
    """
    known = scores(folder)
    best = max(known, key=lambda step: (known[step], step), default=None)
    for old in sorted(known)[:-keep]:
        if since is not None and old >= since:
            break
        if old != best or known[old] == -math.inf:
            doomed = folder / f".{old}.deleted"
            # Renamed first: a kill half-way must not leave a partial checkpoint under this name.
            (folder / str(old)).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def scores(folder: Path | str) -> dict[int, float]:
    """Scores of the checkpoints whose manifest can be read; -inf where there was no evaluation."""
    known = {}
    for decisions in steps(folder):
        with contextlib.suppress(CheckpointError):
            score = read(folder, decisions).score
            known[decisions] = -math.inf if score is None else score
    return known


def steps(folder: Path | str) -> list[int]:
    """Decisions of the complete checkpoints in ``folder``, ascending."""
    names = (name for name in entries(folder) if (Path(folder) / name).is_dir())
    # No leading zeros: each number has exactly one folder. Fifteen digits bound what is parsed.
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,14}", name))


def entries(folder: Path | str) -> list[str]:
    """Names that checkpoints have or had in ``folder``: whole, damaged, replaced or deleted."""
    folder = Path(folder)
    names = (p.name for p in folder.iterdir()) if folder.is_dir() else ()
    pattern = re.compile(r"\.?[0-9]+(\..*)?", re.DOTALL)
    return sorted(x for x in names if pattern.fullmatch(x) and not x.endswith(".partial"))


def read(folder: Path | str, decisions: int) -> Manifest:
    """The manifest of a checkpoint, its types checked; no array is read.

    Raises:
      DamagedError: it is missing or does not match its own digest.
      ShortageError: the system could not read it.
      CheckpointError: it is of another format, another checkpoint's, or no manifest.
    """
    place = Path(folder) / str(decisions)
    path, record = place / digests.NAME, digests.read(place)
    try:
        if record["format"] not in FORMATS:
            raise CheckpointError(
                f"{path}: format {record['format']!r:.20}, this version reads {FORMATS}; use the"
                f" pomcp_jax that wrote it ({record['versions']['pomcp_jax']!r:.20}) or train again"
            )
        manifest = Manifest(*(record[name] for name in Manifest._fields))
        # The digest excludes accidents, not a manifest that someone wrote by hand.
        wrong = [name for name, fits in _CHECKS.items() if not fits(getattr(manifest, name))]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a manifest ({digests.reason(error)})") from None
    if wrong:
        raise CheckpointError(f"{path}: not a manifest ({', '.join(wrong)} of another type)")
    if manifest.decisions != decisions:
        raise CheckpointError(f"{place}: holds checkpoint {manifest.decisions}; rename it back")
    return manifest


def _natural(value: Any) -> bool:
    # ``type``, not ``isinstance``: True is an int.
    return type(value) is int and 0 <= value < 2**48


def _file_name(name: str) -> bool:
    return name.split("/")[0] in ("agent", "run") and name.isprintable()


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "decisions": _natural,
    "versions": lambda x: type(x) is dict and all(type(v) is str for v in x.values()),
    "config": lambda x: type(x) is dict,
    "sizes": lambda x: type(x) is list and len(x) == 3 and all(map(_natural, x)),
    "score": lambda x: x is None or type(x) is float and math.isfinite(x),
    "host": lambda x: type(x) is dict,
    "files": lambda x: type(x) is dict and all(map(_file_name, x)),
}


def restore(folder: Path | str, decisions: int | None = None) -> Restored:
    """Read the agent of a checkpoint without any environment.

    Args:
      folder: of checkpoints.
      decisions: which one; by default the newest that is whole, with a warning about
        every damaged one that is passed over.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged or from a
        configuration that this version cannot build.
    """
    folder = Path(folder).resolve()
    available = steps(folder)
    if not available:
        raise CheckpointError(
            f"{folder}: holds no checkpoint (a folder of numbered folders); must be the workdir of"
            " a run that has saved one"
        )
    if decisions is not None and decisions not in available:
        raise CheckpointError(f"{folder}: holds no checkpoint {decisions}; it has {available}")
    # Damage alone falls back to an older one; a shortage may pass, and a mismatch is the user's
    # to resolve. The last candidate raises its own error.
    *newer, last = available[::-1] if decisions is None else [decisions]
    for step in newer:
        try:
            return _restore(folder / str(step), read(folder, step))
        except DamagedError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
    return _restore(folder / str(last), read(folder, last))


def _restore(place: Path, manifest: Manifest) -> Restored:
    # Verified before orbax opens a file: its readers were not written for damaged input.
    obs_size, action_size, num_seeds = manifest.sizes
    digests.verify(place, manifest.files, ("agent",))
    stored = arrays.stored(place / "agent")
    try:
        config = config_lib.from_dict(Config, manifest.config)
        config_lib.check_finite(config)
        validation.validate_agent(config.agent)
        # Building loops over it in Python: a forged value would keep it busy for ever.
        if config.agent.world_model.encoder_layers > len(stored):
            raise ValueError("agent.world_model.encoder_layers: more than there are arrays")
        spec = acting.build(config.agent, obs_size, action_size)
        shapes = jax.eval_shape(
            lambda: jax.vmap(lambda key: agent.init(key, config.agent, spec))(
                jax.random.split(jax.random.key(0), num_seeds)
            )
        )
    except Exception as error:  # an unchecked configuration may raise anything
        text, writer = digests.reason(error), manifest.versions.get("pomcp_jax")
        hint = f"; pomcp_jax {writer} wrote it, this is {__version__}" * (writer != __version__)
        raise CheckpointError(
            f"{place}: its configuration cannot be built ({text}){hint}"
        ) from None
    try:
        arrays.check(place, shapes, stored)
    except MismatchError:
        # An exported agent, or one whose optimisers an earlier version wrote: both can act.
        nothing: Any = None
        stored = {name: x for name, x in stored.items() if name.startswith((PARAMETERS, TARGET))}
        has_target = any(name.startswith(TARGET) for name in stored)
        target = shapes.target_value if has_target else nothing
        shapes = AgentState(shapes.params, target, nothing, nothing, nothing)
        arrays.check(place, shapes, stored)
    state = arrays.assemble(shapes, arrays.read(place / "agent", stored))
    return Restored(state, spec, config, manifest.decisions)


def restore_run(
    folder: Path | str, manifest: Manifest, shapes: TrainState, *, environments: bool = True
) -> TrainState:
    """Read a whole run.

    Args:
      folder: of checkpoints.
      manifest: of the checkpoint wanted, from :func:`read`.
      shapes: ``jax.eval_shape`` of the program's ``init``.
      environments: False leaves ``env`` and ``timestep`` None.

    Raises:
      DamagedError: some file differs from the one written.
      MismatchError: names the leaves that differ from ``shapes``.
    """
    place = Path(folder) / str(manifest.decisions)
    nothing: Any = None
    run_shapes = shapes._replace(agent=nothing)
    if not environments:
        run_shapes = run_shapes._replace(env=nothing, timestep=nothing)
    digests.verify(place, manifest.files, ("agent", "run"))
    # All digests first: a damaged ``run/`` is noticed before the agent takes memory.
    learner = _read(place, "agent", shapes.agent)
    run = _read(place, "run", run_shapes, () if environments else ENVIRONMENTS)
    return run._replace(agent=learner)


def _read(place: Path, item: str, shapes: PyTree, skip: tuple[str, ...] = ()) -> PyTree:
    """The pytree ``shapes`` from the arrays of an item; those below ``skip`` are left out."""
    stored = arrays.stored(place / item)
    wanted = {name: x for name, x in stored.items() if not name.startswith(skip)}
    arrays.check(place, shapes, wanted)
    return arrays.assemble(shapes, arrays.read(place / item, wanted))


def set_aside(folder: Path | str, decisions: int) -> Path:
    """Rename a checkpoint that cannot be used to ``<decisions>.damaged``; deletes nothing."""
    place, number = Path(folder) / str(decisions), 1
    while (kept := place.with_name(f"{decisions}.damaged{'' if number == 1 else number}")).exists():
        number += 1
    return place.rename(kept)
