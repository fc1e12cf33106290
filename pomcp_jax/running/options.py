"""What a run is asked to do."""

from pathlib import Path
from typing import NamedTuple

from pomcp_jax.config import Config

RESUME = ("auto", "never", "reset_envs", "change_seeds")
"""What to do with an earlier run in the workdir (docs/reliability.md)."""


class Options(NamedTuple):
    """A configuration, and where and how it runs."""

    config: Config
    workdir: Path
    tensorboard: bool = False
    """Write TensorBoard events too."""
    resume: str = "auto"
    """One of :data:`RESUME`."""
