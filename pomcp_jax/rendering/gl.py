"""Find a GL library that draws without a display: EGL, else OSMesa."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

LIBRARIES = ("egl", "osmesa")
"""Values of ``MUJOCO_GL`` that need no display, in the order in which they are tried."""
PROGRAM = (sys.executable, "-P", str(Path(__file__).with_name("draw.py")))
"""Command of the drawing process."""
PACKAGES = {"libEGL.so.1": "libegl1", "libGL.so.1": "libgl1", "libOSMesa.so.8": "libosmesa6"}
"""Shared libraries and the Debian packages that have them."""
PATIENCE = 60
"""Seconds that a library may take for its first picture; a loaded machine takes 10."""


def environment(library: str) -> dict[str, str]:
    """Environment variables of a process that draws with ``library``."""
    others = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
    # MuJoCo sets PyOpenGL's platform itself, but believes a wrong one that it finds.
    return others | {"MUJOCO_GL": library}


def attempt(library: str) -> str:
    """Draw one picture with a library, in a process of its own; the error's last line, or ""."""
    try:
        done = subprocess.run(
            PROGRAM,
            env=environment(library),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no picture within {PATIENCE} s"
    if done.returncode == 0:
        return ""
    return last_line(done.stderr) or f"exit code {done.returncode}"


def last_line(text: str) -> str:
    """The last line of a traceback that says something, at most 200 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Destructors of a half-made renderer complain after the error itself, indented.
    errors = [line for line in text.splitlines() if ": " in line and line[:1].isalpha()]
    errors = [line for line in errors if not line.startswith(("Exception ignored", "Traceback"))]
    return (errors or lines or [""])[0 if errors else -1][:200]


def choose(
    chosen: str = "",
    attempt: Callable[[str], str] = attempt,
    missing: Callable[[], list[str]] | None = None,
) -> str:
    """The first library that draws; ``chosen``, the user's ``MUJOCO_GL``, is the only one tried.

    Raises:
      RuntimeError: one line with the reason and the Debian package that is missing.
    """
    errors: dict[str, str] = {}
    for library in (chosen.lower(),) if chosen else LIBRARIES:
        errors[library] = attempt(library)
        if not errors[library]:
            return library
    raise RuntimeError(_message(errors, (missing or missing_packages)(), bool(chosen)))


def missing_packages() -> list[str]:
    """Debian packages of the libraries of EGL that cannot be loaded."""
    absent = []
    for library in ("libEGL.so.1", "libGL.so.1"):
        try:
            ctypes.CDLL(library)
        except OSError:
            absent.append(PACKAGES[library])
    return absent


def _message(errors: Mapping[str, str], missing: list[str], chosen: bool) -> str:
    tried = "; ".join(f"{name}: {error}" for name, error in errors.items())
    if chosen:
        tried = f"MUJOCO_GL = {tried}; unset it to try {' and '.join(LIBRARIES)}"
    # Both libraries load but find no device: the software driver is missing.
    packages = " ".join([*missing, "libgl1-mesa-dri"])
    return (
        f"no GL library draws ({tried}): `apt-get install {packages}` installs EGL;"
        " .html and .npz need none"
    )
