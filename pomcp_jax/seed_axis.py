"""The axis of seeds: rows of settings under ``vmap``, shares of a run over devices.

Rows: traced floats of ``config.agent`` with one value per row. A row is one seed of one setting; a
float that differs between rows is an array ``[S]``, all others stay plain numbers, and ``vmap``
maps exactly those that have the axis. Static fields (sizes, names, switches) decide the compiled
program, so they are the same in every row.

Devices: every array of a run has the axis S first (environments S N, seed-major), except three
counters. A share is therefore a run of S / k seeds by itself, and nothing is communicated. With one
device there is no mesh, and the compiled program is the plain one. With several devices for each
seed the mesh has a second axis, which only :mod:`pomcp_jax.data_axis` names inside of a share.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pomcp_jax import config as config_lib
from pomcp_jax import data_axis, fields
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.types import PyTree

C = TypeVar("C")


def traced_fields(config: Any) -> tuple[str, ...]:
    """Dotted names of the fields that may differ between rows: the traced floats."""
    specs = fields.all_specs(type(config))
    # Not the leaves: optional floats are none while they are off, and a sweep may switch them on.
    return tuple(name for name, spec in specs.items() if not spec.static)


def stack(configs: Sequence[C]) -> C:
    """One configuration of S rows, its traced floats ``[S]`` where the rows differ.

    Args:
      configs: one for each row, all of the same type.

    Raises:
      ConfigError: if a static field differs, with its name.
    """
    # Only traced floats may differ: everything else decides the program that all rows share.
    traced = traced_fields(configs[0])
    reference, *others = map(config_lib.flatten, configs)
    for other in others:
        for name, value in other.items():
            if value != reference[name] and name not in traced:
                raise ConfigError(
                    f"{name} = {value!r}: must be {reference[name]!r} in every row of a sweep"
                    " because it is part of the compiled program"
                )

    changes = {}
    for name in traced:
        values = [reference[name], *(other[name] for other in others)]
        if any(value != values[0] for value in values):
            # Stacked from weakly typed numbers, so that nothing is promoted that a float would not.
            changes[name] = jnp.stack([jnp.asarray(value) for value in values])
    return config_lib.replace(configs[0], changes)


def axes(config: C) -> C:
    """``in_axes`` of ``vmap`` for ``config``: 0 for floats with the seeds' axis, None else."""
    return jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, config)


def row(config: C, index: int) -> C:
    """The configuration of one row, by indexing; works under ``jit``."""
    return jax.tree.map(lambda x: x[index] if jnp.ndim(x) else x, config)


def over_seeds(function: Callable, config: Any, *args: Any) -> Any:
    """``vmap`` of ``function(config, *args)`` over the seeds' axis.

    All of ``args`` have the axis; floats of ``config`` may have it. One seed goes
    without: XLA's CPU code for the same arithmetic with a leading axis of one
    takes a third longer (docs/decisions.md).
    """
    if jax.tree.leaves(args)[0].shape[0] > 1:
        in_axes = (axes(config), *(0 for _ in args))
        return jax.vmap(function, in_axes=in_axes)(config, *args)
    out = function(row(config, 0), *jax.tree.map(lambda x: x[0], args))
    return jax.tree.map(lambda x: x[None], out)


def unstack(config: C, num_rows: int) -> list[C]:
    """The plain configuration of each of S rows; a single one if nothing differs.

    Raises:
      ConfigError: if a float is neither a number nor one for each row.
    """
    values = config_lib.flatten(config)
    shapes = {name: jnp.shape(values[name]) for name in traced_fields(config)}
    for name, shape in shapes.items():
        if shape not in ((), (num_rows,)):
            raise ConfigError(
                f"{name}: has shape {shape}; must be a number, or one for each of"
                f" {num_rows} rows of the seeds' axis"
            )

    def plain(x: Any) -> float:
        return x if isinstance(x, float) else float(str(x))  # 0.1, not its float32 digits

    if not any(shapes.values()):
        return [jax.tree.map(plain, config)]
    return [jax.tree.map(plain, row(config, i)) for i in range(num_rows)]


AXIS = data_axis.SEEDS
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()
"""Distribution of an argument over devices: by its first axis, or replicated."""
ROWS, SECOND = PartitionSpec((AXIS, data_axis.AXIS)), PartitionSpec(AXIS, data_axis.AXIS)
"""As :data:`SPLIT`; on several devices per seed also by environments, which are on the first axis,
seed-major, or on the second."""


def device_count(config: Config, available: int | None = None) -> int:
    """Number of devices of a run: ``train.num_devices``, or the most that divide its seeds.

    Args:
      config: of the run.
      available: devices present; those of JAX by default.

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
    # Shares must be equal: a device with one seed less would still wait for the others.
    return wanted or max(k for k in range(1, available + 1) if seeds % k == 0)


def mesh(config: Config) -> Mesh | None:
    """The devices of a run; None for a single device.

    Raises:
      ConfigError: as :func:`device_count`.
    """
    if config.train.devices_per_seed > 1:
        return _mesh_of_groups(config)
    k = device_count(config)
    # Without a mesh: ``shard_map`` over one device would be another program to compile.
    return None if k == 1 else Mesh(np.array(jax.devices()[:k]), (AXIS,))


def _mesh_of_groups(config: Config) -> Mesh:
    """Mesh of seeds x data: groups of ``train.devices_per_seed`` devices share the seeds."""
    train, available = config.train, jax.device_count()
    size = train.devices_per_seed
    for name in ("devices_per_seed", "num_devices"):
        if getattr(train, name) > available:
            raise ConfigError(
                f"train.{name} = {getattr(train, name)}: must be <= {available}, the devices there"
                " are"
            )
    if train.num_devices % size:
        raise ConfigError(
            f"train.num_devices = {train.num_devices}: must be a multiple of"
            f" train.devices_per_seed = {size}, or 0"
        )
    if train.num_devices and train.num_seeds % (train.num_devices // size):
        raise ConfigError(
            f"train.num_devices = {train.num_devices}: are {train.num_devices // size} groups of"
            f" train.devices_per_seed = {size}; groups must divide train.num_seeds ="
            f" {train.num_seeds}"
        )
    groups = dataclasses.replace(train, num_devices=train.num_devices // size)
    k = device_count(dataclasses.replace(config, train=groups), available // size)
    devices = np.array(jax.devices()[: k * size]).reshape(k, size)
    return Mesh(devices, (AXIS, data_axis.AXIS))


def _by_seeds(specs: Any) -> Any:
    """``specs`` that name the axis of seeds alone."""
    return jax.tree.map(lambda spec: SPLIT if spec in (ROWS, SECOND) else spec, specs)


def placement(mesh: Mesh, spec: PartitionSpec) -> NamedSharding:
    """Placement of an array of a run, as XLA names it in what it returns."""
    if data_axis.AXIS not in mesh.axis_names:
        spec = _by_seeds(spec)
    elif mesh.shape[AXIS] == 1:
        # XLA names no axis of one device. Arrays placed by other names, though in the same way,
        # would compile a program again.
        unnamed = {ROWS: PartitionSpec(data_axis.AXIS), SECOND: PartitionSpec(None, data_axis.AXIS)}
        spec = unnamed.get(spec, WHOLE)
    return NamedSharding(mesh, spec)


def mesh_size(mesh: Mesh | None) -> int:
    """Number of devices that compute."""
    return 1 if mesh is None else mesh.size


def _share(config: Config, devices: int) -> Config:
    """``config`` with the number of seeds of a device; ``shard_map`` splits its arrays."""
    # The number of seeds is static: inside ``shard_map`` it must be that of the share.
    train = dataclasses.replace(config.train, num_seeds=config.train.num_seeds // devices)
    return dataclasses.replace(config, train=train)


def spread(function: Callable, mesh: Mesh | None, in_specs: tuple, out_specs: Any) -> Callable:
    """``function`` with each device computing its share of seeds; to be jitted.

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
    groups, has_data = mesh.shape[AXIS], data_axis.AXIS in mesh.axis_names

    def whole(*args: Any) -> Any:
        local, specs = list(args), list(_by_seeds(in_specs[: len(args)]))
        for i, arg in enumerate(args):
            if isinstance(arg, Config):
                local[i] = _share(arg, groups)
                # Floats of a sweep have a value per seed; plain numbers are equal on all devices.
                specs[i] = jax.tree.map(lambda x: SPLIT if jnp.ndim(x) else WHOLE, local[i])
        # Counters are equal on all devices because their work is. The check of replication cannot
        # prove that, so it is off.
        shared = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=tuple(specs),
            out_specs=_by_seeds(out_specs),
            # The partitioner spreads data, from the names that the function gives (data_axis).
            axis_names={AXIS},
            check_vma=False,
        )
        out = shared(*local)
        if not has_data:
            return out
        # Placed as ``place`` does, or the next call would be compiled for another placement.
        wanted = jax.tree.map(lambda spec: placement(mesh, spec), out_specs)
        return jax.lax.with_sharding_constraint(out, wanted)

    return whole


def place(tree: PyTree, mesh: Mesh | None, specs: Any) -> PyTree:
    """Move ``tree`` to the devices as :func:`spread` expects; a no-op for a single device."""
    if mesh is None:
        return tree
    return jax.device_put(tree, jax.tree.map(lambda spec: placement(mesh, spec), specs))
