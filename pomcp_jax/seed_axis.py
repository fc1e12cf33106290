"""The axis of seeds: rows of settings under ``vmap``, shares of a run over devices.

Rows: traced floats of ``config.agent`` with one value per row. A row is one seed of one setting; a
float that differs between rows is an array ``[S]``, all others stay plain numbers, and ``vmap``
maps exactly those that have the axis. Static fields (sizes, names, switches) decide the compiled
program, so they are the same in every row.

Devices: every array of a run has the axis S first (environments S N, seed-major), except three
counters. A share is therefore a run of ceil(S / k) seeds by itself, and nothing is communicated. If
k does not divide S, copies of the last seed fill the last shares (:func:`pad`): compiled functions
compute them, and everything else has S rows (:func:`cut`). With one device there is no mesh, and
the compiled program is the plain one. With several devices for each seed the mesh has a second
axis, which only :mod:`pomcp_jax.data_axis` names inside of a share.
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


def fewest(num_seeds: int, available: int) -> int:
    """The fewest devices on which no device has more seeds than if all ``available`` computed."""
    # What counts is the largest share: 10 seeds on 8 devices take as long as on 5, 2 on each.
    largest = -(-num_seeds // min(num_seeds, available))
    return -(-num_seeds // largest)


def device_count(config: Config, available: int | None = None) -> int:
    """Number of devices of a run: ``train.num_devices``, or as many as help (:func:`fewest`).

    Args:
      config: of the run.
      available: devices present; those of JAX by default.

    Raises:
      ConfigError: ``train.num_devices`` exceeds the seeds or the devices.
    """
    wanted, seeds = config.train.num_devices, config.train.num_seeds
    if wanted == 1:
        return 1
    if wanted > seeds:
        raise ConfigError(
            f"train.num_devices = {wanted}: must be <= {seeds}, the number of seeds; 0 chooses as"
            " many as help"
        )
    available = jax.device_count() if available is None else available
    if wanted > available:
        raise ConfigError(
            f"train.num_devices = {wanted}: must be <= {available}, the devices there are"
        )
    return wanted or fewest(seeds, available)


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
    if train.num_devices // size > train.num_seeds:
        raise ConfigError(
            f"train.num_devices = {train.num_devices}: are {train.num_devices // size} groups of"
            f" train.devices_per_seed = {size}; must be at most as many as seeds, {train.num_seeds}"
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


def shares(mesh: Mesh | None) -> int:
    """Number of parts into which the seeds are divided."""
    return 1 if mesh is None else mesh.shape[AXIS]


def padding(num_seeds: int, parts: int) -> int:
    """Rows besides those of S seeds with which all parts have equally many."""
    return -num_seeds % parts


def pad(tree: PyTree, num_seeds: int, mesh: Mesh | None) -> PyTree:
    """``tree`` of S seeds with copies of the last one, so that all devices have equally many."""
    extra = padding(num_seeds, shares(mesh))

    # Copies of a real seed can do nothing that it does not do itself: no fault, no loop is theirs
    # alone. Zeros could diverge.
    def longer(x: Any) -> Any:
        if not jnp.ndim(x):  # counters
            return x
        width = x.shape[0] // num_seeds
        return jnp.concatenate([x, *[x[-width:]] * extra])

    return jax.tree.map(longer, tree) if extra else tree


def cut(tree: PyTree, num_seeds: int, mesh: Mesh | None) -> PyTree:
    """Inverse of :func:`pad`: the rows of S seeds."""
    extra = padding(num_seeds, shares(mesh))
    return first(tree, num_seeds + extra, num_seeds) if extra else tree


def without_padding(tree: PyTree, num_seeds: int, mesh: Mesh | None) -> PyTree:
    """Results of a compiled function without padding: NumPy arrays; a no-op without padding."""
    if not padding(num_seeds, shares(mesh)):
        return tree
    # On the host: a slice of rows that lie on several devices would be a program of its own.
    under_trace = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))
    return cut(tree if under_trace else jax.device_get(tree), num_seeds, mesh)


def first(tree: PyTree, before: int, num_seeds: int) -> PyTree:
    """The first S of ``before`` seeds of a pytree; its scalars are counters, shared by all."""

    def rows(x: Any) -> Any:  # environments are S N
        return x[: x.shape[0] // before * num_seeds] if jnp.ndim(x) else x

    return jax.tree.map(rows, tree)


PLATFORMS = {"cpu": "CPU devices", "gpu": "GPUs", "tpu": "TPUs"}


def describe(num_seeds: int, mesh: Mesh | None, what: str = "seeds") -> str:
    """``11 seeds on 6 GPUs (2 each, 1 row of padding)``; empty for a single device."""
    if mesh is None:
        return ""
    platform = mesh.devices.flat[0].platform
    extra = padding(num_seeds, shares(mesh))
    what = what.removesuffix("s") if num_seeds == 1 else what
    share = f"{(num_seeds + extra) // shares(mesh)} each"
    if mesh.size > shares(mesh):
        share = f"{(num_seeds + extra) // shares(mesh)} for every {mesh.size // shares(mesh)}"
    share += f", {extra} row{'s' * (extra > 1)} of padding" if extra else ""
    named = PLATFORMS.get(platform, f"{platform} devices")
    return f"{num_seeds} {what} on {mesh.size} {named} ({share})"


def _share(config: Config, mesh: Mesh) -> Config:
    """``config`` with the number of seeds of a device; ``shard_map`` splits its arrays."""
    # The number of seeds is static: inside ``shard_map`` it must be that of the share.
    share = -(-config.train.num_seeds // shares(mesh))
    train = dataclasses.replace(config.train, num_seeds=share)
    config = dataclasses.replace(config, train=train)
    return jax.tree.map(lambda x: pad(x, x.shape[0], mesh) if jnp.ndim(x) else x, config)


def spread(function: Callable, mesh: Mesh | None, in_specs: tuple, out_specs: Any) -> Callable:
    """``function`` with each device computing its share of seeds; to be jitted.

    Arguments and results are global: they have all seeds, padded (:func:`pad`). Inside, arrays and
    a :class:`Config` among the arguments, which need not be padded, are those of ceil(S / k) seeds.
    Without a mesh it is ``function``.

    Args:
      function: of one device.
      mesh: from :func:`mesh`.
      in_specs: for every argument :data:`SPLIT`, :data:`WHOLE` or a pytree of them that is a
        prefix of its structure; anything for a ``Config``.
      out_specs: the same for the result.
    """
    if mesh is None:
        return function
    has_data = data_axis.AXIS in mesh.axis_names

    def whole(*args: Any) -> Any:
        local, specs = list(args), list(_by_seeds(in_specs[: len(args)]))
        for i, arg in enumerate(args):
            if isinstance(arg, Config):
                local[i] = _share(arg, mesh)
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


def enter(tree: PyTree, num_seeds: int, mesh: Mesh | None, specs: Any) -> PyTree:
    """``tree`` of S seeds, padded and moved to the devices; a no-op for a single device."""
    if mesh is None:
        return tree

    def move(spec: PartitionSpec, part: PyTree) -> PyTree:
        # One array at a time: a padded copy of all of replay need not fit beside replay.
        own = placement(mesh, spec)
        return jax.tree.map(lambda x: jax.device_put(pad(x, num_seeds, mesh), own), part)

    return jax.tree.map(move, specs, tree)


def shapes(tree: PyTree, num_seeds: int, mesh: Mesh | None, specs: Any) -> PyTree:
    """Shapes and placements that :func:`enter` gives arrays of the shapes in ``tree``."""
    if mesh is None:
        return tree
    extra = padding(num_seeds, shares(mesh))

    def move(spec: PartitionSpec, part: PyTree) -> PyTree:
        own = placement(mesh, spec)

        def entered(x: Any) -> jax.ShapeDtypeStruct:
            length = x.shape[0] // num_seeds * (num_seeds + extra) if x.shape else 0
            shape = (length, *x.shape[1:]) if x.shape else ()
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=own)

        return jax.tree.map(entered, part)

    return jax.tree.map(move, specs, tree)
