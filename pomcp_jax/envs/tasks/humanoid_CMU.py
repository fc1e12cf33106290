"""CMU's humanoid: stand, walk, run; see :mod:`humanoid`."""

from pomcp_jax.envs.protocol import Task
from pomcp_jax.envs.tasks import humanoid


def make(task: str, backend: str = "mjx") -> Task:
    """One of stand, walk, run."""
    return humanoid.make(task, backend, humanoid.CMU)
