"""Checks of a launcher's flags, before anything is started."""

import argparse
import math
from collections.abc import Iterable

from experiments.launchers.plans import Plan
from pomcp_jax.config import ConfigError

FLAGS = {
    "gpus": ("local",),
    "minutes": ("local",),
    "cpus_per_cell": ("slurm", "ray"),
    "gpus_per_cell": ("slurm", "ray"),
    "memory_per_cell": ("slurm", "ray"),
    "retries": ("slurm", "ray"),
    "time": ("slurm",),
    "partition": ("slurm",),
    "account": ("slurm",),
    "sbatch": ("slurm",),
    "cluster": ("slurm",),
    "detach": ("slurm",),
    "address": ("ray",),
    "fetch": ("ray",),
}
"""Flags that only some launchers have."""


def check_flags(args: argparse.Namespace) -> None:
    """Refuse flags without effect, and values that cannot be right anywhere.

    Raises:
      ConfigError: one line that names the flag.
    """
    for flag, launchers in FLAGS.items():
        value = getattr(args, flag)
        if value not in (None, False) and args.launcher not in launchers:
            of = " or ".join(f"--launcher={name}" for name in launchers)
            raise ConfigError(f"--{flag} = {value!r}: has no effect here; is a flag of {of}")
    if args.launcher == "local":
        return
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError(f"--jobs = {args.jobs}: must be at least 1")
    if args.cpus_per_cell is not None and args.cpus_per_cell < 1:
        raise ConfigError(f"--cpus_per_cell = {args.cpus_per_cell}: must be at least 1")
    gpus = args.gpus_per_cell or 0.0
    if not 0.0 <= gpus < math.inf or gpus % 1 and gpus > 1:
        raise ConfigError(f"--gpus_per_cell = {gpus:g}: must be a whole number, or a part of one")
    if args.launcher == "slurm" and gpus % 1:
        raise ConfigError(f"--gpus_per_cell = {gpus:g}: must be a whole number on SLURM")
    memory = args.memory_per_cell
    if memory is not None and not 0.0 < memory <= 1e6:
        raise ConfigError(f"--memory_per_cell = {memory:g}: must be above 0 and <= 1e6, in GB")
    if args.retries is not None and args.retries < 0:
        raise ConfigError(f"--retries = {args.retries}: must be at least 0")


def check_memory(todo: Iterable[Plan], most: float, what: str) -> None:
    """Refuse cells whose replay alone needs more memory than there is.

    Args:
      todo: the cells.
      most: gigabytes of a cell.
      what: that limits them, for the error.

    Raises:
      ConfigError: one line that names the cell.
    """
    from pomcp_jax import train  # only here: environments take seconds to import
    from pomcp_jax.running import functions

    known: dict[tuple[str, ...], float] = {}
    for plan in todo:
        config = plan.config
        if config.train.memory_limit_gb <= most:
            continue  # the run itself refuses a larger replay
        key = tuple(map(repr, (config.env, config.train.capacity, config.train.num_seeds)))
        if key not in known:
            known[key] = train.replay_bytes(config, functions.environment(config)) / 1e9
        if known[key] > most:
            raise ConfigError(
                f"{plan.name}: train.capacity = {config.train.capacity}: its replay needs"
                f" {known[key]:.3g} GB; must be below {most:.3g}, {what}"
            )
