"""What runs on the nodes of a Ray cluster; the standard library and Ray only.

A cell is a subprocess of Ray's worker, which loads no JAX itself.
"""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import experiments
import pomcp_jax
from experiments.launchers import cell
from experiments.launchers.cell import Ending, Job

SCRATCH = Path("~/.cache/pomcp_jax/cells")
"""Folder on a node for cells of a study that it has no folder of."""
SMALL = (".csv", ".json", ".png")
"""Files that are brought back without a shared folder."""


class Order(NamedTuple):
    """What all cells of a launch have in common."""

    by: str
    """Name of the launch, for records."""
    token: str
    """File in the study's folder, with ``by`` as its text."""
    environment: Mapping[str, str]
    """Variables of the launcher that its cells need."""
    fetch: str = ""
    """``results`` or ``all`` if there is no shared folder."""
    scratch: str = ""
    """Name of the study in :data:`SCRATCH`."""


def sees(order: Order) -> bool:
    """Whether this node has the study's folder."""
    try:
        return Path(order.token).read_text() == order.by
    except OSError:
        return False


def probe(order: Order) -> dict[str, Any]:
    """Facts about a node."""
    return {
        "host": socket.gethostname(),
        "sees": sees(order),
        "version": pomcp_jax.__version__,
    }


def train(job: Job, order: Order) -> tuple[Ending, dict[str, bytes]]:
    """Train a cell on this node.

    Returns:
      How it ended, and its files if they are to be brought back, by their path in its folder.

    Raises:
      Lost: the attempt should be repeated.
    """
    job = job._replace(command=(sys.executable, *job.command[1:]))
    if order.fetch:
        job = at_home(job, order)
        job.at(job.workdir).parent.mkdir(parents=True, exist_ok=True)
    elif not sees(order):
        host = socket.gethostname()
        text = f"node {host} does not see {Path(order.token).parent}"
        return Ending("broke", text, host), {}
    root = str(Path(experiments.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    ending = cell.train(job, {**os.environ, **order.environment, "PYTHONPATH": path}, order.by)
    if ending.kind == "lost":
        raise cell.Lost(ending.text)
    return ending, files(job, order.fetch) if order.fetch else {}


def at_home(job: Job, order: Order) -> Job:
    """The cell in a folder of this node."""
    home = SCRATCH.expanduser() / order.scratch
    here = Path(job.workdir.parent.name, job.workdir.name)
    flags = [text for text in job.command if not text.startswith("--workdir=")]
    moved = len(flags) < len(job.command)
    return job._replace(
        command=(*flags, f"--workdir={here}") if moved else job.command,
        workdir=here,
        folder=Path("results", here),
        where=str(home),
    )


def files(job: Job, which: str) -> dict[str, bytes]:
    """Files of a cell that are brought back, and its log as ``.log``."""
    workdir = job.at(job.workdir)
    paths = workdir.rglob("*") if which == "all" else workdir.glob("*")
    found = {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(paths)
        if path.is_file() and (which == "all" or path.suffix in SMALL)
    }
    return found | ({".log": job.log.read_bytes()} if job.log.is_file() else {})
