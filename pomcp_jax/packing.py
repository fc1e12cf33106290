"""Networks whose small parameters are one vector, for devices on which kernels count.

A network has three matrices and eight vectors or so. Adam, target networks and norms launch work
for each of them, and on a GPU a launch costs more than the arithmetic of a bias. While training
runs, all leaves of a network but its kernels are therefore one vector; files and everything that
users see have the leaves by their names. Arrays may have any leading shape, as that of seeds.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from pomcp_jax.types import Params, PyTree

_ENSEMBLES = ("value", "target_value")
"""Fields of a state that hold an ensemble."""


class Layout(NamedTuple):
    """Where the leaves of a network are."""

    structure: Any
    """Of the network as flax has it, a ``jax.tree_util.PyTreeDef``."""
    sizes: tuple[int | None, ...]
    """For every leaf its share of the vector; None for kernels."""
    turned: tuple[bool, ...]
    """For every kernel whether it is stored as ``[M, D]``."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("kernels", "vector"),
    meta_fields=("layout",),
)
@dataclasses.dataclass(frozen=True)
class Packed:
    """A network's parameters, or anything of their structure."""

    kernels: tuple[Float[Array, "..."], ...]
    vector: Float[Array, "..."]
    """All other leaves, one after the other."""
    layout: Layout


def pack(tree: PyTree) -> PyTree:
    """``tree`` with every network in it packed; networks are its dictionaries."""

    def packed(path: tuple, x: Any) -> Any:
        if not isinstance(x, dict):
            return x
        return _pack(x, heads=getattr(path[-1], "name", "") in _ENSEMBLES if path else False)

    is_network = lambda x: isinstance(x, dict)  # noqa: E731
    return jax.tree_util.tree_map_with_path(packed, tree, is_leaf=is_network)


def unpack(tree: PyTree) -> PyTree:
    """Inverse of :func:`pack`; what is not packed stays as it is."""
    unpacked = lambda x: _unpack(x) if _is_packed(x) else x  # noqa: E731
    return jax.tree.map(unpacked, tree, is_leaf=_is_packed)


def norm(tree: PyTree) -> Float[Array, ""]:
    """Root of the sum of all squares."""
    if not any(map(_is_packed, jax.tree.leaves(tree, is_leaf=_is_packed))):
        return optax.tree.norm(tree)
    # Sums of rows first, then one sum for all leaves: a sum of one leaf is two kernels. Without the
    # barrier, XLA would sum every part of the concatenation by itself.
    squares = (jnp.square(x) for x in jax.tree.leaves(tree))
    rows = [x if x.ndim == 1 else jnp.sum(x, axis=-1).reshape(-1) for x in squares]
    return jnp.sqrt(jnp.sum(jax.lax.optimization_barrier(jnp.concatenate(rows))))


def of_rows(params: Params, shape: tuple[int, ...]) -> Float[Array, "*rows V"] | None:
    """A packed network's vector for every row of a batch; None for one that is not packed.

    Its gradient is one sum over all rows, not one for each use of each leaf.
    """
    if not _is_packed(params):
        return None
    return jnp.broadcast_to(params.vector, (*shape, *params.vector.shape))


def _is_packed(x: Any) -> bool:
    return isinstance(x, Packed)


def _pack(network: Params, heads: bool) -> Packed:
    leaves, structure = jax.tree_util.tree_flatten_with_path(network)
    kernels, small, sizes, turned = [], [], [], []
    for path, x in leaves:
        names = jax.tree_util.keystr(path, simple=True, separator="/")
        is_kernel = "/kernel" in names
        sizes.append(None if is_kernel else x.shape[-1])
        if not is_kernel:
            small.append(x)
            continue
        # All heads have the same inputs, so their first layer is one product, whose kernel is
        # ``[E M, D]`` where each head's is turned. Others would be transposed in every update.
        turned.append(heads and names.startswith("layer_0/"))
        kernels.append(jnp.swapaxes(x, -1, -2) if turned[-1] else x)
    layout = Layout(structure, tuple(sizes), tuple(turned))
    return Packed(tuple(kernels), jnp.concatenate(small, axis=-1), layout)


def _unpack(packed: Packed) -> Params:
    sizes = packed.layout.sizes
    *ends, _ = itertools.accumulate(size for size in sizes if size is not None)
    # One operation for all parts: its gradient is one concatenation.
    parts = iter(jnp.split(packed.vector, ends, axis=-1))
    kernels = (
        jnp.swapaxes(x, -1, -2) if turned else x
        for x, turned in zip(packed.kernels, packed.layout.turned, strict=True)
    )
    leaves = [next(kernels) if size is None else next(parts) for size in sizes]
    return jax.tree.unflatten(packed.layout.structure, leaves)
