"""Devices of a run from a command line: on a CPU, its cores.

JAX sees a CPU as one device, on which several seeds hardly use a second core. As one device per
core, they train at the same time (docs/benchmarks.md).
"""

import os

import jax

from experiments import settings
from pomcp_jax import config as config_lib
from pomcp_jax import seed_axis
from pomcp_jax.config import Config
from pomcp_jax.running import process, workdirs

FORCED = "xla_force_host_platform_device_count"


def on_cpu(options: settings.Settings, rows: int, record: str = "run.json") -> int:
    """Number of devices that a CPU should be for a run, at most its cores.

    Args:
      options: parsed command line.
      rows: seeds of the run, in all cells of a sweep.
      record: name of the file that says how many an earlier run in the workdir used.
    """
    cores, config = process.cpu_cores(), options.config
    if rows < 1 or config.train.devices_per_seed < 1:  # refused when the configuration is checked
        return 1
    if config.train.num_devices:  # more than there are is refused once JAX has counted them
        return min(config.train.num_devices, cores)
    size = config.train.devices_per_seed
    if not options.cores:
        earlier = workdirs.devices(options.workdir, record) if options.resume != "never" else 0
        if 0 < earlier <= min(rows * size, cores) and earlier % size == 0:
            return earlier
        if _is_outside(config):
            return 1
    return min(size, cores) if size >= cores else size * seed_axis.fewest(rows, cores // size)


def _is_outside(config: Config) -> bool:
    """Whether environments live outside of the compiled program, and so serve one device."""
    return config.env.task.startswith("gym/")


def use(number: int) -> None:
    """Let JAX see the CPU as ``number`` devices, unless that is fixed already.

    Must be called before anything is computed; later it changes nothing.
    """
    given = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    fixed = FORCED in os.environ.get("XLA_FLAGS", "") or given >= 0
    if number == 1 or fixed:
        return
    try:
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError:  # JAX has begun, in a notebook for example, with the devices that it has
        pass


def chosen(options: settings.Settings, rows: int) -> Config:
    """Configuration of a run after ``--num_devices=cores``; JAX counts its devices."""
    config = options.config
    size = config.train.devices_per_seed
    if not options.cores or _is_outside(config) or rows < 1 or size < 1:
        return config
    # As a number, or a run that resumes would keep that of its earlier sitting.
    number = size * seed_axis.fewest(rows, max(1, jax.device_count() // size))
    return config_lib.replace(config, {"train.num_devices": number})
