"""Checks and settings of JAX and XLA: devices, flags, memory and the compilation cache."""

import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp

from pomcp_jax.config import ConfigError

Built = TypeVar("Built")

EMITTERS = "xla_cpu_use_fusion_emitters"
SAFE = re.compile(
    rf"--({EMITTERS}|xla_backend_optimization_level|xla_force_host_platform_device_count)"
    r"=(true|false|\d{1,4})"
)
"""Flags that XLA is known to have; others are tried first, since XLA aborts over unknown flags."""
CHOOSING = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_DEFAULT_DEVICE", "CUDA_VISIBLE_DEVICES")
"""Environment variables that choose a device."""


def save_memory() -> None:
    """Select XLA's older CPU emitters; must be called before anything is computed.

    The newer emitters take twice the memory to compile a training step (1.7 GB against 0.8 GB,
    measured with jax 0.10.2) for code that is no faster. Later releases removed the flag and abort
    when it is set. If XLA_FLAGS names a file, its flags are not changed.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    is_file = flags and not flags.startswith("-")
    if jax.__version_info__ < (0, 11) and EMITTERS not in flags and not is_file:
        os.environ["XLA_FLAGS"] = f"{flags} --{EMITTERS}=false".strip()


def begin(cache_dir: str | None) -> None:
    """Set the compilation cache, with a warning if it cannot be used, and check the environment.

    Raises:
      ConfigError: as :func:`check_environment`.
    """
    warning = use_cache(cache_dir)
    if warning:
        print(warning, file=sys.stderr)
    check_environment()


def check_environment() -> None:
    """Check that JAX has the devices and XLA the flags that environment variables request.

    Raises:
      ConfigError: one line that names the variable and the available devices.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if not all(SAFE.fullmatch(flag) for flag in flags.split()):
        _try_flags(flags)
    try:
        jnp.zeros(()).block_until_ready()
    except Exception as error:  # JAX has no type of its own for this, and asserts
        asked = [f"{name} = {os.environ[name]!r}" for name in CHOOSING if os.environ.get(name)]
        if not asked:
            text = " ".join(str(error).split())
            raise ConfigError(f"JAX finds no device: {text or type(error).__name__}") from None
        raise ConfigError(
            f"{', '.join(asked)}: JAX finds no such device; there is {_platforms()}"
        ) from None


def _platforms() -> str:
    """Platforms that JAX finds by itself, in a process without those variables."""
    # A process: JAX initialises its platforms once, and has already failed in this one.
    code = "import jax; print(*sorted({d.platform for d in jax.devices()}), sep=', ')"
    hidden = {name: value for name, value in os.environ.items() if name not in CHOOSING}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=hidden, text=True)
    return done.stdout.strip() or "none"


@functools.cache
def _try_flags(flags: str) -> None:
    """Raise if XLA rejects ``flags``, found in another process since XLA aborts."""
    code = "import jax; jax.devices()"
    # On a CPU: flags are parsed for all platforms alike, and a GPU takes seconds to start.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    for name in CHOOSING[1:]:
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ends the process ({done.returncode})"]
        reason = re.sub(r"^[A-Z]\d+ .*?\] ", "", lines[-1])
        own = f" --{EMITTERS}=false"
        raise ConfigError(f"XLA_FLAGS = {flags.removesuffix(own)!r}: {reason}")


def use_cache(folder: str | None) -> str:
    """Store compiled programs in ``folder``; returns a warning if that is impossible.

    None disables the cache, also one that JAX_COMPILATION_CACHE_DIR names.
    """
    warning = ""
    if folder is not None and "://" not in folder:  # JAX also accepts buckets
        reason = _unusable(Path(folder))
        if reason:
            warning = f"warning: --cache_dir = {folder!r}: {reason}; nothing compiled is kept"
            folder = None
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return warning


def _unusable(folder: Path) -> str:
    """Reason why ``folder``, which need not exist yet, cannot be written; "" if it can."""
    try:
        existing = folder.absolute()
        while not existing.exists():
            existing = existing.parent
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    if not existing.is_dir():
        return f"{existing} is a file"
    try:
        # Tried: permission bits say nothing of read-only file systems, quotas and root.
        with tempfile.TemporaryFile(dir=existing):
            return ""
    except OSError as error:
        return f"nothing can be written in {existing} ({error.strerror or error})"
