"""Checkpoints of a trained agent: orbax for arrays, JSON for everything else.

A checkpoint is the folder ``<decisions>`` with ``agent/`` (all of
:class:`pomcp_jax.agent.AgentState`, leading axis S), ``checkpoint.json``
(configuration, sizes, versions) and a digest of every array: orbax restores
flipped bits without a word. It appears under its name only when complete.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pomcp_jax
from pomcp_jax import acting, agent
from pomcp_jax import config as config_lib
from pomcp_jax.acting import Agent
from pomcp_jax.agent import AgentState
from pomcp_jax.config import Config, ConfigError


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message is one line for the user."""


class Restored(NamedTuple):
    """What :func:`restore` returns."""

    state: AgentState
    """Leading axis S."""
    static: Agent
    config: Config
    decisions: int


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _plain(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by path: plain data, so that restoring needs no class of ours inside orbax."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def save(
    folder: Path | str,
    decisions: int,
    state: AgentState,
    config: Config,
    static: Agent,
    *,
    keep: int = 3,
) -> Path:
    """Write ``folder/<decisions>`` atomically and drop all but the ``keep`` newest.

    Args:
      folder: made when missing.
      decisions: per seed; the checkpoint's name.
      state: leading axis S.
      config: of the run.
      static: sizes of the environment.
      keep: checkpoints to keep, this one included; at least 1.

    Returns:
      The checkpoint's folder.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).resolve()
    final, partial = folder / str(decisions), folder / f".{decisions}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    arrays = _plain(jax.device_get(state))
    record = {
        "pomcp_jax": pomcp_jax.__version__,
        "decisions": decisions,
        "num_seeds": int(next(iter(arrays.values())).shape[0]),
        "observation_size": static.obs_size,
        "action_size": static.action_size,
        "config": config_lib.to_dict(config),
        "sha256": {name: _digest(array) for name, array in arrays.items()},
    }
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(partial / "agent", arrays)
    (partial / "checkpoint.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in steps(folder)[: -max(keep, 1)]:
        shutil.rmtree(folder / str(old))
    return final


def steps(folder: Path | str) -> list[int]:
    """Decisions of the complete checkpoints in ``folder``, ascending."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def restore(folder: Path | str, decisions: int | None = None) -> Restored:
    """Read a checkpoint (the newest by default) without any environment.

    Raises:
      CheckpointError: when there is none, or when it is damaged or from a
        configuration that this version cannot build.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).resolve()
    found = steps(folder)
    if not found:
        raise CheckpointError(f"{folder}: holds no checkpoint (a folder of numbered folders)")
    decisions = found[-1] if decisions is None else decisions
    if decisions not in found:
        raise CheckpointError(f"{folder}: holds no checkpoint {decisions}; it has {found}")
    place = folder / str(decisions)
    try:
        record = json.loads((place / "checkpoint.json").read_text())
        config = config_lib.from_dict(Config, record["config"])
        sizes = record["observation_size"], record["action_size"], record["num_seeds"]
        digests = record["sha256"]
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{place}/checkpoint.json: unreadable ({error})") from None
    static = acting.build(config.agent, *sizes[:2])
    shapes = jax.eval_shape(
        lambda: jax.vmap(lambda key: agent.init(key, config.agent, static))(
            jax.random.split(jax.random.key(0), sizes[2])
        )
    )
    wanted = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(shapes)}
    blank = {name: np.zeros(x.shape, x.dtype) for name, x in wanted.items()}
    try:
        with ocp.PyTreeCheckpointer() as reader:
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), blank)
            arrays = reader.restore(place / "agent", item=blank, restore_args=as_numpy)
    except Exception as error:  # orbax and tensorstore raise many kinds
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{place}/agent: unreadable ({text})") from None
    for name, leaf in wanted.items():
        array = np.asarray(arrays[name])
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise CheckpointError(
                f"{place}: {name} is {array.dtype}{array.shape}, must be {leaf.dtype}{leaf.shape}"
            )
        if _digest(array) != digests.get(name):
            raise CheckpointError(f"{place}: {name} does not match its digest; the file is damaged")
    structure = jax.tree.structure(shapes)
    state = jax.tree.unflatten(structure, [jnp.asarray(arrays[name]) for name in wanted])
    return Restored(state, static, config, decisions)
