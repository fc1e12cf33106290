"""What the CPU backend of XLA needs so that compiling stays small in memory."""

import ctypes
import os

import jax


def save_memory() -> None:
    """Call before anything is computed; changes how CPU code is compiled, and no result's meaning.

    XLA's newer emitters take twice the memory to compile a training step (1.7 GB against 0.8 GB,
    measured with jax 0.10.2) for code that is no faster. Later releases know the flag no more
    and end the process over it.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.__version_info__ < (0, 11) and "xla_cpu_use_fusion_emitters" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false".strip()


def return_memory() -> None:
    """Give the allocator's free memory back to the system; does nothing where that is unknown."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass
