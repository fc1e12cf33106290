"""MuJoCo, imported without the need of a GL library: nothing here draws."""

import importlib
import os
import sys
from types import ModuleType

_VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
_DRAWING = ("OpenGL", "glfw", "mujoco.egl", "mujoco.glfw", "mujoco.osmesa", "mujoco.rendering")


def load_mujoco() -> ModuleType:
    """``mujoco``, whatever ``MUJOCO_GL`` asks for.

    Importing it loads the GL library of that name. Where that fails, MuJoCo is imported
    without; what it left half-loaded is dropped and the environment is as before, so that
    another library can still be chosen for drawing.
    """
    if "mujoco" in sys.modules:
        return sys.modules["mujoco"]
    before = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    loaded = set(sys.modules)
    try:
        return importlib.import_module("mujoco")
    except ModuleNotFoundError:
        raise
    except Exception:  # each GL library fails with an error of its own
        for name in set(sys.modules) - loaded:
            if name.startswith(_DRAWING):
                del sys.modules[name]
        try:
            os.environ["MUJOCO_GL"] = "disable"
            mujoco = importlib.import_module("mujoco")
        finally:
            for name in _VARIABLES:
                os.environ.pop(name, None)
            os.environ.update(before)
        # Importing anew does not bind what is loaded already.
        for name, module in list(sys.modules.items()):
            parent, _, child = name.rpartition(".")
            if parent == "mujoco" and not hasattr(mujoco, child):
                setattr(mujoco, child, module)
        return mujoco
