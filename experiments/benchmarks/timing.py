"""Timing on a machine that several benchmarks share."""

import contextlib
import fcntl
import os
import pathlib
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Block until no other benchmark of this user is timing; must not be nested.

    Compiling happens outside, so several benchmarks may compile at once.
    """
    # Outside of the working tree: clones and worktrees share the cores, so they share the lock.
    path = pathlib.Path(tempfile.gettempdir()) / f"pomcp_jax-benchmark-{os.getuid()}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
