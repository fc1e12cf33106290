"""A trained agent as the smallest folder that every command for trained runs accepts.

It looks like a run's folder, with one checkpoint of one seed that holds parameters alone: without
replay, optimiser and target networks it can be evaluated, filmed, exported again and loaded as a
controller. A run cannot resume from it, but start from it (``train.start_from``).
"""

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from pomcp_jax import checkpoint, controller, files
from pomcp_jax import config as config_lib
from pomcp_jax.agent import AgentState
from pomcp_jax.checkpoint import CheckpointError, Restored
from pomcp_jax.reporting import columns

FACTS = (
    "preset", "method", "suite", "commit", "versions", "python", "device", "cpu_cores", "started",
    "status", "seconds", "decisions_per_seed", "imported",
)  # fmt: skip
"""Entries of run.json that are kept; the others describe the machine."""
EVALUATIONS, RECORD, SETTINGS = "evaluations.csv", "run.json", "config.json"


def check(out: Path) -> None:
    """Refuse a folder that exists and holds anything, or that cannot be made.

    Raises:
      ValueError: one line.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        raise ValueError(f"--out = {str(out)!r}: exists; must be a new folder")
    files.check_writable(out, "--out")


def write(out: Path, run: Path, agents: Restored, index: int) -> int:
    """Write one agent of ``run`` to the new folder ``out``; returns its bytes.

    Args:
      out: as :func:`check` allows; complete or not there, whatever happens.
      run: from which ``agents`` were loaded; its evaluations of this seed are kept too.
      agents: from :func:`controller.load`.
      index: row of the agent.

    Raises:
      CheckpointError: it could not be written, or the run's record not be read.
      ConfigError: the run's evaluations could not be read.
    """
    seed, score = agents.config.train.seed + index, _score(run, agents, index)
    changes = {"train.seed": seed, "train.num_seeds": 1}
    config = config_lib.replace(agents.config, changes)
    nothing: Any = None
    params = jax.tree.map(lambda x: x[index : index + 1], agents.state.params)
    state = AgentState(params, nothing, nothing, nothing, nothing)
    agents = agents._replace(state=state, config=config)
    return save(out, agents, lambda folder: _describe(run, folder, seed), score)


def save(
    out: Path,
    agents: Restored,
    describe: Callable[[Path], None],
    score: float | None = None,
) -> int:
    """Write the one agent of ``agents`` to the new folder ``out``; returns its bytes.

    Args:
      out: as :func:`check` allows; complete or not there, whatever happens.
      agents: leading axis 1.
      describe: writes further files into the folder that it gets.
      score: return of the agent, if it was evaluated.

    Raises:
      CheckpointError: it could not be written.
    """
    config = agents.config
    place = None
    try:
        # A name of its own: one made of ``out``'s may be somebody's folder.
        out.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=".partial-", dir=out.parent))
        partial = place / "agent"
        folder = partial / "checkpoints"
        checkpoint.save(folder, agents.decisions, agents.state, config, agents.spec, score=score)
        files.write_json(partial / SETTINGS, config_lib.to_dict(config))
        describe(partial)
        partial.replace(out)
    except OSError as error:  # a full disk, or a mount point, which no folder can replace
        raise CheckpointError(f"{out}: not written: {error.strerror or error}") from None
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _score(run: Path, agents: Restored, index: int) -> float | None:
    """The seed's return when the checkpoint was evaluated, None if it was not."""
    folder, cell = controller.find(run)
    manifest = checkpoint.read(folder, agents.decisions)
    if agents.num_seeds == 1 and not cell:
        return manifest.score
    evaluated = manifest.host.get("evaluated", {}).get("eval/return", ())
    is_fresh = manifest.host.get("evaluated_at") == agents.decisions and not cell
    # A broken evaluation is stored as None or as text.
    known = is_fresh and len(evaluated) == agents.num_seeds and type(evaluated[index]) is float
    return evaluated[index] if known else None


def _describe(run: Path, out: Path, seed: int) -> None:
    """Keep what run.json says of the method, and the seed's rows of evaluations.csv."""
    if (run / RECORD).is_file():
        try:
            about = json.loads((run / RECORD).read_text())
            facts = {name: about[name] for name in FACTS if name in about}
        except (OSError, ValueError, TypeError, RecursionError):
            raise CheckpointError(
                f"{run / RECORD}: is unreadable; must be as a run writes it, or not there"
            ) from None
        files.write_json(out / RECORD, facts)
    table = columns.read(run / EVALUATIONS)
    if table is not None:
        text, at = io.StringIO(newline=""), table.columns["seed"]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(table.columns)
        writer.writerows(row for row in table.rows if row[at] == str(seed))
        files.write_text(out / EVALUATIONS, text.getvalue())
