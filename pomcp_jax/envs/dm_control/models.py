"""dm_control's MuJoCo models, read from the installed package and edited in memory.

The files are read without importing ``dm_control.suite``, which would load a GL library.
"""

import hashlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from pomcp_jax.envs.importing import load_mujoco
from pomcp_jax.envs.physics import quiet_mujoco

KNOWN_MUJOCO = "3.17.0"
KNOWN_DM_CONTROL = "1.0.50"
"""Versions that docs/environments.md compares with."""

_SHARED = ("materials.xml", "skybox.xml", "visual.xml")
"""Files that every domain's XML includes; see ``dm_control/suite/common/__init__.py``."""

_DIGESTS = {
    "acrobot": "e203285c5779113b",
    "ball_in_cup": "34c70aafdc3459db",
    "cartpole": "b1d184ffa2f74260",
    "cheetah": "47e3152e1213d689",
    "dog": "ef63b1aabd9c318e",
    "finger": "7d106eafc8c7ec95",
    "fish": "a08777b8b3623359",
    "hopper": "6e86c37515e34af7",
    "humanoid": "3aea178a6030ad10",
    "humanoid_CMU": "a3c1950d663225d8",
    "manipulator": "7f00a4b2c90104d6",
    "pendulum": "6ce0aceacde5bd30",
    "point_mass": "2567ced7cf592f28",
    "quadruped": "c6b0ade5f3160b15",
    "reacher": "849e1e3dd8e79b8f",
    "swimmer": "5ac233aa94bd0df6",
    "walker": "e8b6dd3bb40826df",
}
"""First 64 bits of the SHA-256 of each domain's XML in dm_control 1.0.50."""

Edit = Callable[[ElementTree.Element], None]
"""Changes a model's XML in place, as dm_control's own ``make_model`` functions do."""


def _suite(domain: str) -> Path:
    package = importlib.util.find_spec("dm_control")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(f"the {domain} tasks read their models from dm_control")
    return Path(package.submodule_search_locations[0]) / "suite"


def check_versions(domain: str, text: bytes) -> None:
    """Warn if MuJoCo or a domain's XML differs from what these tasks were compared with."""
    mujoco = load_mujoco()
    if mujoco.__version__ != KNOWN_MUJOCO:
        warnings.warn(
            f"{domain}: compared with dm_control under MuJoCo {KNOWN_MUJOCO}, this is"
            f" {mujoco.__version__}; scores may differ",
            stacklevel=2,
        )
    # The XML decides, not dm_control's version: a release that leaves a model unchanged is fine.
    if hashlib.sha256(text).hexdigest()[:16] != _DIGESTS[domain]:
        warnings.warn(
            f"{domain}: the model in dm_control {importlib.metadata.version('dm_control')} is not"
            f" the one of {KNOWN_DM_CONTROL} that this task was compared with; scores may differ",
            stacklevel=2,
        )


def read(domain: str, edit: Edit | None = None) -> tuple[str, dict[str, bytes]]:
    """The XML of ``dm_control/suite/<domain>.xml`` after ``edit``, and its assets."""
    suite = _suite(domain)
    text = (suite / f"{domain}.xml").read_bytes()
    check_versions(domain, text)
    assets = {f"./common/{name}": (suite / "common" / name).read_bytes() for name in _SHARED}
    folder = suite / f"{domain}_assets"
    if folder.is_dir():
        assets |= {
            f"{folder.name}/{path.name}": path.read_bytes()
            for path in folder.iterdir()
            if path.is_file()
        }
    if edit is None:
        return text.decode(), assets
    root = ElementTree.fromstring(text)
    edit(root)
    return ElementTree.tostring(root, encoding="unicode"), assets


def find(root: ElementTree.Element, tag: str, name: str) -> ElementTree.Element:
    """Element ``<tag name="...">``.

    Raises:
      KeyError: the model has none.
    """
    element = root.find(f".//{tag}[@name='{name}']")
    if element is None:
        raise KeyError(f"the model has no {tag} named {name}")
    return element


def remove(root: ElementTree.Element, tag: str, name: str | None = None) -> None:
    """Remove the element of that name, or every element with that tag."""
    path = f".//{tag}" if name is None else f".//{tag}[@name='{name}']"
    # ElementTree has no link from an element to its parent, so every element is tried as one.
    for parent in list(root.iter()):
        for child in parent.findall(f"./{path[3:]}"):
            parent.remove(child)


def compile_original(text: str, assets: dict[str, bytes]) -> Any:
    """Model as dm_control compiles it (``mujoco.MjModel``)."""
    import mujoco

    # cheetah.xml uses a deprecated attribute, which still has its effect.
    with quiet_mujoco():
        return mujoco.MjModel.from_xml_string(text, assets)


def compile_for_mjx(
    text: str,
    assets: dict[str, bytes],
    *,
    sensors: tuple[str, ...] = (),
    simple_contacts: bool = False,
    no_contacts: bool = False,
) -> Any:
    """Model without the features that MJX lacks; only ``simple_contacts`` changes its motion.

    Energy flags are cleared and skins dropped. So are ``noslip`` iterations, which MJX refuses
    and :mod:`pomcp_jax.envs.mjx.noslip` implements. Matrices are dense: MJX's code for sparse
    ones grows with the tree, and our solver needs dense ones anyway.

    Args:
      text: The XML.
      assets: Files that the XML refers to.
      sensors: Sensors to keep; MJX would compute all others too.
      simple_contacts: Keep only contacts with planes, and between spheres and capsules
        (for the dog: MJX has no collision of ellipsoids with boxes, and there are
        5,500 pairs of geoms).
      no_contacts: Drop all contacts, for models that disable them anyway.
    """
    import mujoco

    spec = mujoco.MjSpec.from_string(text, assets, assets)
    spec.option.enableflags = 0
    spec.option.noslip_iterations = 0
    spec.option.jacobian = mujoco.mjtJacobian.mjJAC_DENSE
    for skin in list(spec.skins):
        spec.delete(skin)
    for sensor in list(spec.sensors):
        if sensor.name not in sensors:
            spec.delete(sensor)
    with quiet_mujoco():
        model = spec.compile()
    if no_contacts:
        model.geom_contype[:] = 0
        model.geom_conaffinity[:] = 0
    elif simple_contacts:
        keep_simple_contacts(model)
    return model


def keep_simple_contacts(model: Any) -> None:
    """Restrict a model's contacts to those with planes, and between spheres and capsules."""
    import mujoco

    kinds = mujoco.mjtGeom
    is_plane = model.geom_type == kinds.mjGEOM_PLANE
    simple = np.isin(model.geom_type, (kinds.mjGEOM_SPHERE, kinds.mjGEOM_CAPSULE))
    meets_plane = _meets_plane(model, is_plane)
    # Two geoms may collide if one's contype shares a bit with the other's conaffinity.
    # Bit 1: plane and geom. Bit 2: simple and simple, where the original allows it.
    kind, affinity = model.geom_contype.copy(), model.geom_conaffinity.copy()
    model.geom_contype[:] = np.where(is_plane, 1, 2 * (simple & (kind != 0)))
    model.geom_conaffinity[:] = np.where(is_plane, 0, meets_plane + 2 * (simple & (affinity != 0)))


def _meets_plane(model: Any, is_plane: Any) -> Any:
    """Mask of the geoms that may touch some plane."""
    kind, affinity = model.geom_contype, model.geom_conaffinity
    planes = np.nonzero(is_plane)[0]
    meets = [((kind & affinity[p]) | (kind[p] & affinity)) != 0 for p in planes]
    return np.any(meets, axis=0) & ~is_plane
