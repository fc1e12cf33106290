"""Version pins: these tests report when the reason for a pin may be gone."""

import importlib.metadata

import pytest


def test_mujoco_and_mjx_are_one_version_before_4():
    version = importlib.metadata.version("mujoco")
    assert version == importlib.metadata.version("mujoco-mjx") and version.startswith("3.")


def test_dm_control_still_needs_mujoco_3():
    """dm_control 1.0.50 fails to load its models under MuJoCo 4 (``flex_vertedge``).

    Skips, rather than fails, when there is a newer one: users run these tests too.
    """
    version = importlib.metadata.version("dm_control")
    if version != "1.0.50":
        pytest.skip(
            f"dm_control {version} is out: try MuJoCo 4 and loosen the pin in pyproject.toml"
        )
