"""Import of MuJoCo without a GL library: a process of its own draws (pomcp_jax.rendering.draw)."""

import importlib
import os
import sys
import warnings
from types import ModuleType

_VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
_DRAWING = ("OpenGL", "glfw", "mujoco.egl", "mujoco.glfw", "mujoco.osmesa", "mujoco.rendering")


def load_mujoco() -> ModuleType:
    """``mujoco``, even if the GL library that ``MUJOCO_GL`` names cannot be loaded.

    Importing MuJoCo loads that library. If it fails, MuJoCo is imported without one; modules left
    half-loaded are dropped and the environment variables are restored, so that another library
    can still be chosen for rendering.
    """
    if "mujoco" in sys.modules:
        return sys.modules["mujoco"]
    before = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    loaded = set(sys.modules)
    try:
        return importlib.import_module("mujoco")
    except ModuleNotFoundError:
        raise
    except Exception:  # each GL library fails with its own exception type
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
        # Submodules that survived the first import are in sys.modules, so the second import does
        # not set them as attributes of the package.
        for name, module in list(sys.modules.items()):
            parent, _, child = name.rpartition(".")
            if parent == "mujoco" and not hasattr(mujoco, child):
                setattr(mujoco, child, module)
        return mujoco


def load_suite() -> ModuleType:
    """``dm_control.suite``, without a GL library and without the warnings that it has none.

    Raises:
      ImportError: dm_control is not installed.
    """
    load_mujoco()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("dm_control.suite")
