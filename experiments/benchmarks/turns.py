"""Benchmarks side by side: they compile at once, and time one at a time."""

import contextlib
import fcntl
import os
import pathlib
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Wait until no other benchmark of this user is timing anything; not to be nested."""
    path = pathlib.Path(tempfile.gettempdir()) / f"pomcp_jax-benchmark-{os.getuid()}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
