"""Find a GL library that draws without a display: EGL, else OSMesa."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

LIBRARIES = ("egl", "osmesa")
"""Values of ``MUJOCO_GL`` that need no display, in the order in which they are tried."""
OFF = ("disable", "disabled", "off", "false", "0")
"""Values of ``MUJOCO_GL`` that switch rendering off."""
PROGRAM = (sys.executable, "-P", str(Path(__file__).with_name("draw.py")))
"""Command of the drawing process."""
FILES = {
    "egl": {"libEGL.so.1": "libegl1", "libGL.so.1": "libgl1"},
    "osmesa": {"libOSMesa.so.8": "libosmesa6"},
}
"""Shared libraries that each needs, with their Debian packages."""
DRIVER = "libgl1-mesa-dri"
"""Debian package of the driver that needs no GPU."""
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
    # PyOpenGL's own message is about an attribute of None.
    absent = missing(library)
    if absent:
        return f"{' and '.join(absent)} not found"
    return last_line(done.stderr) or f"exit code {done.returncode}"


def last_line(text: str) -> str:
    """The line of a traceback that names the exception, else the last one; 200 characters."""
    lines = [line for line in text.splitlines() if line.strip()]
    # Destructors of half-made renderers add tracebacks of their own behind the first one.
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return (named or lines[-1:] or [""])[0].strip()[:200]


def choose(chosen: str = "") -> str:
    """The first library that draws; ``chosen``, the user's ``MUJOCO_GL``, is the only one tried.

    Values that switch MuJoCo's rendering off count as no choice: a program that has loaded
    dm_control without GL has one of them, and who asks for a film wants it drawn.

    Raises:
      RuntimeError: one line with the reasons and the Debian packages that mend it.
    """
    errors: dict[str, str] = {}
    chosen = "" if chosen.lower() in OFF else chosen
    for library in (chosen.lower(),) if chosen else LIBRARIES:
        errors[library] = attempt(library)
        if not errors[library]:
            return library
    tried = "; ".join(f"{name}: {error}" for name, error in errors.items())
    if chosen:
        tried = f"MUJOCO_GL={tried}; unset it to try {' and '.join(LIBRARIES)}"
    # If all libraries load, they find no device: the driver without a GPU is missing.
    packages = " ".join([*(FILES["egl"][name] for name in missing("egl")), DRIVER])
    raise RuntimeError(
        f"no GL library draws ({tried}); `apt-get install {packages}` installs EGL;"
        " .html and .npz need none"
    )


def missing(library: str) -> list[str]:
    """Shared libraries that a GL library needs and that cannot be loaded."""
    absent = []
    for name in FILES.get(library, {}):
        try:
            ctypes.CDLL(name)
        except OSError:
            absent.append(name)
    return absent
