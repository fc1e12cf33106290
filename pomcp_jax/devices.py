"""Seeds spread over devices: each computes its share with the functions that one device has.

Every array of a run has the seeds' axis S first (environments S N, seed-major), except three
counters. A share is therefore a run of S / k seeds by itself, and nothing is communicated.
With one device there is no mesh, and the compiled program is the plain one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pomcp_jax.config import Config, ConfigError
from pomcp_jax.types import PyTree

AXIS = "seeds"
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()
"""How an argument is spread: by its first axis, or not at all."""


def count(config: Config, available: int | None = None) -> int:
    """How many devices a run uses: ``train.num_devices``, or the most that divide its seeds.

    Args:
      config: of the run.
      available: devices there are; those of JAX by default.

    Raises:
      ConfigError: they do not divide ``train.num_seeds``, or there are fewer.
    """
    wanted, seeds = config.train.num_devices, config.train.num_seeds
    if wanted == 1:
        return 1
    if wanted and seeds % wanted:
        raise ConfigError(
            f"train.num_devices = {wanted}: must divide train.num_seeds = {seeds}, or be 0 for the"
            " most devices that do"
        )
    available = jax.device_count() if available is None else available
    if wanted > available:
        raise ConfigError(
            f"train.num_devices = {wanted}: must be <= {available}, the devices there are"
        )
    return wanted or max(k for k in range(1, available + 1) if seeds % k == 0)


def mesh(config: Config) -> Mesh | None:
    """The devices of a run; None for one, where nothing is to be spread.

    Raises:
      ConfigError: as :func:`count`.
    """
    k = count(config)
    return None if k == 1 else Mesh(np.array(jax.devices()[:k]), (AXIS,))


def size(mesh: Mesh | None) -> int:
    """How many devices compute."""
    return 1 if mesh is None else mesh.size


def _share(config: Config, devices: int) -> Config:
    """``config`` of one device's seeds; floats with the seeds' axis are yet to be split."""
    train = dataclasses.replace(config.train, num_seeds=config.train.num_seeds // devices)
    return dataclasses.replace(config, train=train)


def spread(function: Callable, mesh: Mesh | None, in_specs: tuple, out_specs: Any) -> Callable:
    """``function`` with every device doing its seeds; to be jitted.

    Arguments and results are global: they have all S seeds. Inside, a :class:`Config` among
    the arguments and all arrays are those of S / k seeds. Without a mesh it is ``function``.

    Args:
      function: of one device.
      mesh: from :func:`mesh`.
      in_specs: for every argument :data:`SPLIT`, :data:`WHOLE` or a pytree of them that is a
        prefix of its structure; anything for a ``Config``.
      out_specs: the same for the result.
    """
    if mesh is None:
        return function

    def whole(*args: Any) -> Any:
        local, specs = list(args), list(in_specs[: len(args)])
        for i, arg in enumerate(args):
            if isinstance(arg, Config):
                local[i] = _share(arg, mesh.size)
                specs[i] = jax.tree.map(lambda x: SPLIT if jnp.ndim(x) else WHOLE, local[i])
        # Counters are equal on all devices because their work is; nothing could check that.
        shared = jax.shard_map(
            function, mesh=mesh, in_specs=tuple(specs), out_specs=out_specs, check_vma=False
        )
        return shared(*local)

    return whole


def place(tree: PyTree, mesh: Mesh | None, specs: Any) -> PyTree:
    """Put ``tree`` where the functions of :func:`spread` want it; one device needs nothing."""
    if mesh is None:
        return tree
    return jax.device_put(tree, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
