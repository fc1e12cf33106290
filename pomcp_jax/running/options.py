"""Options of a run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pomcp_jax.config import Config

RESUME = ("auto", "never", "reset_envs", "change_seeds")
"""What to do with an earlier run in the workdir (docs/reliability.md)."""


class Together(NamedTuple):
    """What a run has to do with the runs of other processes that train other seeds."""

    common: Callable[[Sequence[int]], int]
    """The newest checkpoint that all have, given the own ones; it is kept."""
    saved: Callable[[Sequence[int]], None]
    """Announces the own checkpoints, and waits for processes that are far behind."""


class Options(NamedTuple):
    """Configuration of a run, and where and how to run it."""

    config: Config
    """In a sweep, the first cell's; ``train.num_seeds`` is per cell."""
    workdir: Path
    tensorboard: bool = False
    """Also write TensorBoard events."""
    wandb: str = ""
    """Project of Weights & Biases to log to as well; empty for none."""
    resume: str = "auto"
    """One of :data:`RESUME`."""
    grid: Mapping[str, Sequence[float]] = {}
    """Swept fields, from :func:`pomcp_jax.cells.check_grid`; empty in a plain run."""

    together: Together | None = None
    """None for a process alone."""

    @property
    def record(self) -> str:
        """Name of the JSON file with the run's status."""
        return "sweep.json" if self.grid else "run.json"
