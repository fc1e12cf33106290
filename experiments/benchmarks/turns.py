"""Benchmarks side by side: they compile at once, and time one at a time."""

import contextlib
import fcntl
import pathlib
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Wait until no other benchmark of this machine is timing anything."""
    path = pathlib.Path(tempfile.gettempdir()) / "pomcp_jax-benchmark.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
