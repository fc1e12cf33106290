"""Pins that should go when their reason goes; these tests fail on that day, which is good news."""

import importlib.metadata


def test_dm_control_still_needs_mujoco_3():
    """dm_control 1.0.50 fails to load its models under MuJoCo 4 (``flex_vertedge``).

    A newer dm_control may have caught up: try MuJoCo 4, run tests/test_envs_dm_control.py, and
    loosen the pin in pyproject.toml.
    """
    assert importlib.metadata.version("dm_control") == "1.0.50"
    version = importlib.metadata.version("mujoco")
    assert version == importlib.metadata.version("mujoco-mjx") and version.startswith("3.")
