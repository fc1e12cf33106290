"""Facts about this process: what a number has to be read with, and its memory."""

import ctypes
import datetime
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from pomcp_jax import checkpoint


def commit() -> str | None:
    """Commit of the source tree, ``-dirty`` when it differs; None outside of its own clone."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():  # installed somewhere in a repository of somebody else
        return None
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        out = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None if out.returncode == 0 else None


def command(module: str, argv: Sequence[str]) -> str:
    """The command line of a program of ours; ``argv`` begins with its name."""
    return f"python -m {module} " + " ".join(argv[1:])


def describe(command: str) -> dict[str, Any]:
    """Command, commit, versions and device: what a number has to be read with."""
    packages = ("jax", "jaxlib", "flax", "optax", "mujoco", "mujoco-mjx", "brax", "dm_control")
    device = jax.devices()[0]
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "command": command,
        "commit": commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: checkpoint.installed(name) for name in packages},
        "device": f"{device.platform}: {device.device_kind}",
        "num_devices": jax.device_count(),
        "cpu_cores": len(affinity(0)) if affinity else os.cpu_count(),
        "platform": platform.platform(),
    }


def peak_memory_gb() -> float:
    """Largest resident size of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def return_memory() -> None:
    """Give the allocator's free memory back to the system; does nothing where that is unknown."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass
