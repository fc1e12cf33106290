"""The leaves of a pytree as arrays on disk: orbax writes them, nothing it reads is believed.

Leaves go by their path in the pytree, as plain data: no class of ours is inside orbax, and
reading runs no code that a file names.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomcp_jax import manifest as manifest_lib
from pomcp_jax import replay
from pomcp_jax.manifest import CheckpointError, DamagedError, Leaf, Manifest, ShortageError
from pomcp_jax.types import PyTree

Arrays = dict[str, np.ndarray]
"""Leaves by path; PRNG keys are their raw ``uint32`` data."""
RING = ".replay.rows"
"""Leaves below have the axis of C rows behind that of seeds; only rows in use are written."""
DTYPES = "bool bfloat16 float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64"


class MismatchError(CheckpointError):
    """A checkpoint is whole and does not fit: ``leaves`` are the names that differ."""

    def __init__(self, text: str, leaves: tuple[str, ...]):
        super().__init__(text)
        self.leaves = leaves


def named(tree: PyTree) -> dict[str, Any]:
    """Leaves by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_data(tree: PyTree) -> PyTree:
    """``tree`` with raw data instead of PRNG keys."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def write(place: Path, arrays: Arrays) -> None:
    """Write all arrays to the new folder ``place``."""
    import orbax.checkpoint as ocp

    # Not compressed: states hardly shrink, and a file then bounds the memory its arrays need.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    with ocp.Checkpointer(handler) as writer:  # orbax refuses arrays without elements
        writer.save(place, {name: array for name, array in arrays.items() if array.size})


def check(place: Path, shapes: PyTree, leaves: Mapping[str, Leaf]) -> None:
    """Compare what a checkpoint holds with what is wanted.

    Raises:
      MismatchError: names the leaves that differ, at most five in its text.
    """
    wanted = {name: str(x.dtype) for name, x in named(shapes).items()}
    data = named(jax.eval_shape(key_data, shapes))
    problems = {name: f"{name} is missing" for name in wanted.keys() - leaves.keys()}
    problems |= {name: f"{name} is unknown" for name in leaves.keys() - wanted.keys()}
    for name in wanted.keys() & leaves.keys():
        shape, limit = leaves[name].shape, data[name].shape
        fits = shape == limit
        if name.startswith(RING) and len(shape) == len(limit):
            fits = shape[1] <= limit[1] and shape[:1] + shape[2:] == limit[:1] + limit[2:]
        if not fits or leaves[name].dtype != wanted[name]:
            problems[name] = (
                f"{name} is {leaves[name].dtype}{list(shape)}, must be {wanted[name]}{list(limit)}"
            )
    if problems:
        names = sorted(problems)
        text = "; ".join(problems[name][:200] for name in names[:5])
        more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
        raise MismatchError(f"{place}: does not fit: {text}{more}", tuple(names))


EXPANSION = 16
"""Bytes of arrays that a byte of files may claim to hold."""


def read(place: Path, manifest: Manifest, item: str) -> Arrays:
    """All arrays of an item, every byte verified before and after orbax saw them.

    They need at most :data:`EXPANSION` times the bytes of the item's files, and a MiB: blocks
    of zeros (Adam's moments before the first update) are not on the disk.

    Raises:
      DamagedError: some byte is not what was written.
      ShortageError: the system could not read it.
      CheckpointError: the manifest asks for what its files cannot hold.
    """
    import orbax.checkpoint as ocp

    leaves = {}
    for name, leaf in manifest.leaves[item].items():
        if leaf.dtype not in DTYPES.split() and not re.fullmatch(r"key<\w+>", leaf.dtype):
            raise CheckpointError(f"{place}: {name} has dtype {leaf.dtype!r:.50}; not a number")
        dtype = jnp.dtype("uint32" if leaf.dtype.startswith("key") else leaf.dtype)
        leaves[name] = jax.ShapeDtypeStruct(leaf.shape, dtype)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values())
    on_disk = sum(f.size for name, f in manifest.files.items() if name.startswith(f"{item}/"))
    if size > EXPANSION * on_disk + 2**20:
        raise CheckpointError(f"{place}/{item}: {size} bytes of arrays in {on_disk} bytes of files")
    manifest_lib.verify_files(place, manifest, (item,))
    full = {name: leaf for name, leaf in leaves.items() if math.prod(leaf.shape)}
    folder = (place / item).absolute()  # orbax finds no metadata below a relative path
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            described = reader.metadata(folder).item_metadata.tree
            for name, leaf in full.items():
                found = described[name]
                chunk = found.storage.chunk_shape or found.shape
                if found.shape != leaf.shape or math.prod(chunk) > math.prod(leaf.shape):
                    raise ValueError(f"{name} is {found.shape} in chunks of {chunk}")
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in full}
            arguments = ocp.args.PyTreeRestore(item=full, restore_args=as_numpy)
            arrays = reader.restore(folder, args=arguments)
    except Exception as error:  # orbax and tensorstore raise many kinds
        text = (" ".join(str(error).split()) or type(error).__name__)[:200]
        kind = ShortageError if _is_shortage(error) else DamagedError
        raise kind(f"{place}/{item}: unreadable ({text})") from None
    for name, leaf in leaves.items():
        array = np.asarray(arrays[name]) if name in full else np.zeros(leaf.shape, leaf.dtype)
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise DamagedError(f"{place}: {name} is {array.dtype}{list(array.shape)}; damaged")
        if manifest_lib.digest(array) != manifest.leaves[item][name].sha256:
            raise DamagedError(f"{place}: {name} does not match its digest; the file is damaged")
        arrays[name] = array
    return arrays


_SHORTAGE = re.compile(
    "EMFILE|ENFILE|ENOMEM|EACCES|EPERM|EIO|Too many open files|Cannot allocate memory"
    "|Permission denied|Input/output error|RESOURCE_EXHAUSTED|start new thread"
)
"""What tensorstore and orbax, which raise ValueError for everything, say of the system."""


def _is_shortage(error: BaseException | None) -> bool:
    """Whether reading failed for want of memory, files or rights, by any link of the chain."""
    while error is not None:
        if isinstance(error, MemoryError) or _SHORTAGE.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def assemble(shapes: PyTree, arrays: Arrays) -> PyTree:
    """Arrays as the pytree ``shapes``, in buffers of their own (the state is donated)."""
    blank = {f"{RING}{name}": leaf for name, leaf in named(replay.init(1, 1, 1, 1).rows).items()}

    kinds: dict[str, Any] = {}

    def look(tree: PyTree) -> None:
        kinds.update({k: jax.random.key_impl(x) for k, x in named(tree).items() if is_key(x)})

    jax.eval_shape(look, shapes)

    def build(path, wanted):
        name = jax.tree_util.keystr(path)
        array = arrays[name]
        if name.startswith(RING) and array.shape[1] < wanted.shape[1]:
            ring = np.full(wanted.shape, np.asarray(blank[name]).ravel()[0], array.dtype)
            ring[:, : array.shape[1]] = array
            array = ring
        if name in kinds:
            return jax.random.wrap_key_data(jnp.array(array), impl=kinds[name])
        return jnp.array(array)

    return jax.tree_util.tree_map_with_path(build, shapes)
