"""What a run is asked to do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pomcp_jax.config import Config

RESUME = ("auto", "never", "reset_envs", "change_seeds")
"""What to do with an earlier run in the workdir (docs/reliability.md)."""


class Options(NamedTuple):
    """A configuration, and where and how it runs."""

    config: Config
    """In a sweep, what its cells share; ``train.num_seeds`` is of each cell."""
    workdir: Path
    tensorboard: bool = False
    """Write TensorBoard events too."""
    resume: str = "auto"
    """One of :data:`RESUME`."""
    grid: Mapping[str, Sequence[float]] = {}
    """Swept fields, from :func:`pomcp_jax.cells.check_grid`; empty in a plain run."""

    @property
    def record(self) -> str:
        """Name of the file that says how the run went."""
        return "sweep.json" if self.grid else "run.json"
