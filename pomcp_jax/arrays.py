"""Leaves of a pytree as arrays on disk: written by orbax; everything read back is verified.

Leaves are named by their path in the pytree and saved as plain arrays: orbax sees no class of
ours, and reading executes no code that a file names.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomcp_jax import digests, replay
from pomcp_jax.digests import CheckpointError, ShortageError
from pomcp_jax.types import PyTree

Arrays = dict[str, np.ndarray]
"""Leaves by path; PRNG keys are their raw ``uint32`` data."""
RING = ".replay.rows"
"""Prefix of leaves with axes of seeds, then of C rows; only rows in use are written."""
EXPANSION = 16
"""Largest ratio of array bytes to file bytes: orbax does not store blocks of zeros."""


class MismatchError(CheckpointError):
    """An intact checkpoint that does not fit; ``leaves`` names the leaves that differ."""

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


def write(folder: Path, arrays: Arrays) -> None:
    """Write all arrays to the new ``folder``."""
    import orbax.checkpoint as ocp

    # Not compressed: states hardly shrink, and a file then bounds the memory its arrays need.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    with ocp.Checkpointer(handler) as writer:  # orbax refuses arrays without elements
        writer.save(folder, {name: array for name, array in arrays.items() if array.size})
    marker = folder / "commit_success.txt"
    if marker.is_file():  # holds an absolute path, which would travel with an exported agent
        marker.write_text("committed\n")


@contextlib.contextmanager
def _reader(folder: Path) -> Iterator[Any]:
    import orbax.checkpoint as ocp

    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            yield reader
    except Exception as error:  # orbax and tensorstore raise many kinds
        text = f"orbax cannot read it ({digests.reason(error)}); its files are as written"
        raise ShortageError(f"{folder}: {text}") from None


def stored(folder: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the arrays in a folder whose files were verified.

    Raises:
      ShortageError: orbax could not read it, or it claims more memory than :data:`EXPANSION`.
    """
    folder = folder.absolute()  # orbax finds no metadata below a relative path
    with _reader(folder) as reader:
        tree = reader.metadata(folder).item_metadata.tree
        for name, x in tree.items():  # reading takes the memory of whole chunks
            if math.prod(x.storage.chunk_shape or ()) > math.prod(x.shape):
                raise ValueError(f"{name} is {x.shape} in chunks of {x.storage.chunk_shape}")
        arrays = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tree.items()}
        needed = sum(x.size * x.dtype.itemsize for x in arrays.values())
        size = sum((folder / name).stat().st_size for name in digests.list_files(folder))
        if needed > EXPANSION * size + 2**20:
            raise ValueError(f"{needed} bytes of arrays in {size} bytes of files")
        return arrays


def check(place: Path, shapes: PyTree, saved: Mapping[str, Any]) -> None:
    """Compare the arrays :func:`stored` in a checkpoint with the expected leaves.

    Raises:
      MismatchError: names the leaves that differ.
    """
    wanted = named(jax.eval_shape(key_data, shapes))
    problems = {name: f"{name} is unknown" for name in saved.keys() - wanted.keys()}
    for name, x in wanted.items():
        if (have := saved.get(name)) is None:
            if x.size:  # arrays without elements are not stored
                problems[name] = f"{name} is missing"
            continue
        shape = have.shape
        # A ring that was not full is shorter on disk, along C alone.
        if name.startswith(RING) and shape[1:2] <= x.shape[1:2]:
            shape = (*shape[:1], x.shape[1], *shape[2:])
        if (shape, have.dtype) != (x.shape, x.dtype):
            texts = (f"{array.dtype}{list(array.shape)}" for array in (have, x))
            problems[name] = f"{name} is {', must be '.join(texts)}"
    if problems:
        text = " ".join("; ".join(problems[name] for name in sorted(problems)).split())
        text = text if len(text) < 600 else f"{text[:600]}... ({len(problems)} leaves)"
        raise MismatchError(f"{place}: does not fit: {text}", tuple(sorted(problems)))


def read(folder: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Arrays:
    """Read some of the arrays :func:`stored` in a folder.

    Raises:
      ShortageError: orbax could not read it.
    """
    import orbax.checkpoint as ocp

    folder = folder.absolute()
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in wanted}
    with _reader(folder) as reader:
        arguments = ocp.args.PyTreeRestore(wanted, as_numpy, partial_restore=True)
        return reader.restore(folder, args=arguments)


def assemble(shapes: PyTree, arrays: Arrays) -> PyTree:
    """Arrays as the pytree ``shapes``, in separate buffers (the state is donated)."""
    blank = {f"{RING}{name}": leaf for name, leaf in named(replay.init(1, 1, 1, 1).rows).items()}
    data = jax.eval_shape(key_data, shapes)

    def build(path: Any, x: Any, wanted: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        array = arrays[name] if name in arrays else np.zeros(x.shape, x.dtype)
        if array.shape != x.shape:
            # Rows not in use were not saved; the blank row marks them as ends of episodes.
            ring = np.full(x.shape, np.ravel(blank[name])[0], x.dtype)
            ring[:, : array.shape[1]] = array
            array = ring
        # A copy: orbax may still own the memory of what it read.
        leaf = jnp.array(array)
        return jax.random.wrap_key_data(leaf, impl=wanted.dtype) if is_key(wanted) else leaf

    return jax.tree_util.tree_map_with_path(build, data, shapes)
