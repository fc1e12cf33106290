"""What JAX and XLA need of this machine and its environment variables."""

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
"""Flags that XLA is known to have; any other is tried first, since XLA ends the process over it."""
CHOOSING = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_DEFAULT_DEVICE", "CUDA_VISIBLE_DEVICES")
"""Variables that choose a device."""


def save_memory() -> None:
    """Call before anything is computed; changes how CPU code is compiled, and no result's meaning.

    XLA's newer emitters take twice the memory to compile a training step (1.7 GB against 0.8 GB,
    measured with jax 0.10.2) for code that is no faster. Later releases know the flag no more
    and end the process over it. Flags in a file, which XLA_FLAGS may name, stay as they are.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    is_file = flags and not flags.startswith("-")
    if jax.__version_info__ < (0, 11) and EMITTERS not in flags and not is_file:
        os.environ["XLA_FLAGS"] = f"{flags} --{EMITTERS}=false".strip()


def begin(cache_dir: str | None) -> None:
    """Choose the cache, with a warning if it cannot be used, and check the environment.

    Raises:
      ConfigError: as :func:`check_environment`.
    """
    warning = use_cache(cache_dir)
    if warning:
        print(warning, file=sys.stderr)
    check_environment()


def check_environment() -> None:
    """Check that JAX has the devices and XLA the flags that the environment asks for.

    Raises:
      ConfigError: one line that names the variable and what there is.
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
    """Names of what JAX can compute on by itself, found in a process without those variables."""
    code = "import jax; print(*sorted({d.platform for d in jax.devices()}), sep=', ')"
    hidden = {name: value for name, value in os.environ.items() if name not in CHOOSING}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=hidden, text=True)
    return done.stdout.strip() or "none"


@functools.cache
def _try_flags(flags: str) -> None:
    """Let another process read XLA_FLAGS."""
    code = "import jax; jax.devices()"
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
    """Keep compiled programs in ``folder``; returns a warning where that is impossible.

    None keeps nothing, whatever JAX_COMPILATION_CACHE_DIR says.
    """
    warning = ""
    if folder is not None and "://" not in folder:  # JAX knows other places than folders
        reason = _unusable(Path(folder))
        if reason:
            warning = f"warning: --cache_dir = {folder!r}: {reason}; nothing compiled is kept"
            folder = None
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return warning


def _unusable(folder: Path) -> str:
    """Why nothing can be written to ``folder``, which need not exist yet; "" if it can be."""
    try:
        existing = folder.absolute()
        while not existing.exists():
            existing = existing.parent
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    if not existing.is_dir():
        return f"{existing} is a file"
    try:
        with tempfile.TemporaryFile(dir=existing):
            return ""
    except OSError as error:
        return f"nothing can be written in {existing} ({error.strerror or error})"
