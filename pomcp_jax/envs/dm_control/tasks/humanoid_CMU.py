"""CMU's humanoid: stand, walk, run; see :mod:`humanoid`."""

from pomcp_jax.envs.dm_control.tasks import humanoid
from pomcp_jax.envs.protocol import Task


def make(task: str, backend: str = "mjx") -> Task:
    """One of stand, walk, run."""
    return humanoid.make(task, backend, humanoid.CMU)
