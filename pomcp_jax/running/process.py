"""Facts about this process that results need for comparison: command, versions, device, memory."""

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

from pomcp_jax.packages import installed


def commit() -> str | None:
    """Commit of the source tree, with ``-dirty`` if modified; None outside of our own clone."""
    here = Path(__file__).parents[2]
    # An installed package may lie inside of another repository, whose commit says nothing here.
    if not (here / ".git").exists():
        return None
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        out = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None if out.returncode == 0 else None


def command(module: str, argv: Sequence[str]) -> str:
    """Command line of one of our programs; ``argv`` begins with the program's name."""
    return f"python -m {module} " + " ".join(argv[1:])


def describe(command: str) -> dict[str, Any]:
    """Command, commit, versions and device, for run.json."""
    packages = ("jax", "jaxlib", "flax", "optax", "mujoco", "mujoco-mjx", "brax", "dm_control")
    device = jax.devices()[0]
    return {
        "command": command,
        "commit": commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in packages},
        "device": f"{device.platform}: {device.device_kind}",
        "num_devices": jax.device_count(),
        "cpu_cores": cpu_cores(),
        "platform": platform.platform(),
    }


def cpu_cores() -> int:
    """Cores that this process may use."""
    # cpu_count() ignores taskset and container limits.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def peak_memory_gb() -> float:
    """Peak resident memory of this process so far."""
    # ru_maxrss is in bytes on macOS and in KiB on Linux.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def device_memory() -> int:
    """Bytes that JAX may use of its first device; on a CPU, of this machine or container."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such group, or "max"
        return machine


def return_memory() -> None:
    """Return the allocator's free memory to the system; does nothing without glibc.

    Compilation frees much memory, which malloc would otherwise keep for the rest of the run.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass
