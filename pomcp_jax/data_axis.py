"""The axis of data: environments and batch of one seed over ``train.devices_per_seed`` devices.

Functions of a run name the axis of an array that is spread; without such a mesh they return their
argument, so that programs of one device per seed contain nothing of it. Parameters, optimisers and
replay are replicated. XLA's partitioner then sums the devices' gradients: the program means what it
does on one device, and draws the same random numbers.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

AXIS = "data"
SEEDS = "seeds"
"""Name of the mesh's other axis (:mod:`pomcp_jax.seed_axis`)."""

T = TypeVar("T")


def _mesh() -> AbstractMesh | None:
    """The mesh of the program that is being traced; None unless data is spread in it."""
    mesh = jax.sharding.get_abstract_mesh()
    # Both names, because a user's own mesh may have an axis of this name, too.
    return mesh if {SEEDS, AXIS} <= set(mesh.axis_names) and AXIS in mesh.auto_axes else None


def split(tree: T, axis: int) -> T:
    """``tree`` whose arrays are spread along ``axis``, which the devices must divide."""
    return _constrained(tree, PartitionSpec(*[None] * axis, AXIS))


def whole(tree: T) -> T:
    """``tree`` whose arrays are complete on every device of a seed."""
    return _constrained(tree, PartitionSpec())


def _constrained(tree: T, spec: PartitionSpec) -> T:
    mesh = _mesh()
    return (
        tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))
    )


def rows(function: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
    """``function`` of arrays ``[B, ...]``, of whose rows each device computes its own.

    For functions of independent rows: environments, whose loops end with the last row and would
    ask all devices in every turn, and plans, whose sorting XLA does not split. If the devices do
    not divide B, each computes all rows.

    Args:
      function: closes over no traced values.
      shared: number of leading arguments that have no rows, as parameters.
    """
    mesh = _mesh()
    if mesh is None:
        return function
    spec, devices = PartitionSpec(AXIS), mesh.shape[AXIS]

    def spread(*args: Any) -> Any:
        if jax.tree.leaves(args[shared:])[0].shape[0] % devices:
            return function(*args)
        in_specs = tuple(PartitionSpec() if i < shared else spec for i in range(len(args)))
        own = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=in_specs,
            out_specs=spec,
            axis_names={AXIS},
            check_vma=False,
        )
        return own(*args)

    return spread
