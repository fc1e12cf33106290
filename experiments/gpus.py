"""NVIDIA GPUs of this machine, and which of them a worker sees."""

import os
import subprocess
from collections.abc import Mapping, Sequence

from pomcp_jax.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
"""Variable with the part of a GPU's memory that JAX reserves."""
SHARE = 0.9
"""Part of a GPU's memory that its workers may reserve, all together."""


def present() -> tuple[str, ...]:
    """GPUs that this process may use, as CUDA names them; none without a driver."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip())
    try:
        # JAX is not asked: this process would keep memory on every GPU that it finds.
        asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = [line for line in asked.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(i) for i in range(len(lines))) if asked.returncode == 0 else ()


def chosen(text: str | None) -> tuple[str, ...]:
    """GPUs of ``--gpus``; all of them by default.

    Raises:
      ConfigError: it names none, one twice, or one that this process may not use.
    """
    found = present()
    if text is None:
        return found
    names = [name.strip() for name in text.split(",")]
    there = f"there is {', '.join(found)}" if found else "there is none"
    for i, name in enumerate(names):
        if name not in found:
            raise ConfigError(f"--gpus = {text!r}: no GPU {name!r}; {there}")
        if name in names[:i]:
            raise ConfigError(f"--gpus = {text!r}: has {name} twice")
    return tuple(names)


def environments(jobs: int, gpus: Sequence[str], base: Mapping[str, str]) -> list[dict[str, str]]:
    """Environment variables of each of ``jobs`` workers: its GPUs, and its share of their memory.

    GPUs are dealt out in turn; if there are fewer than workers, some workers share one.

    Args:
      jobs: number of workers.
      gpus: names of GPUs; without any, workers share what JAX finds.
      base: variables that they start from; what it says of memory is kept.
    """
    made = []
    for i in range(jobs):
        environment = dict(base)
        together = jobs
        if gpus:
            environment[VISIBLE] = ",".join(gpus[i::jobs] or [gpus[i % len(gpus)]])
            together = len(range(i % len(gpus), jobs, len(gpus)))
        if together > 1:
            # JAX reserves three quarters of a GPU by default: a second process would fail.
            environment.setdefault(FRACTION, f"{SHARE / together:.2f}")
        made.append(environment)
    return made
