"""dm_control's MuJoCo models, read from the installed package and edited in memory.

Nothing here renders, so only files are read: importing ``dm_control.suite``
would ask for a GL library.
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
"""The versions that docs/environments.md compares with."""

_SHARED = ("materials.xml", "skybox.xml", "visual.xml")
"""What every domain's XML includes; see ``dm_control/suite/common/__init__.py``."""

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
    """Warn when MuJoCo or a domain's XML is not the one these tasks were compared with."""
    mujoco = load_mujoco()
    if mujoco.__version__ != KNOWN_MUJOCO:
        warnings.warn(
            f"{domain}: compared with dm_control under MuJoCo {KNOWN_MUJOCO}, this is"
            f" {mujoco.__version__}; scores may differ",
            stacklevel=2,
        )
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
    """The element ``<tag name="...">``."""
    found = root.find(f".//{tag}[@name='{name}']")
    if found is None:
        raise KeyError(f"the model has no {tag} named {name}")
    return found


def remove(root: ElementTree.Element, tag: str, name: str | None = None) -> None:
    """Remove the element of that name, or every element with that tag."""
    path = f".//{tag}" if name is None else f".//{tag}[@name='{name}']"
    for parent in list(root.iter()):
        for child in parent.findall(f"./{path[3:]}"):
            parent.remove(child)


def compile_original(text: str, assets: dict[str, bytes]) -> Any:
    """The model as dm_control compiles it (``mujoco.MjModel``)."""
    import mujoco

    # cheetah.xml uses an attribute that MuJoCo deprecates; it still does what it says.
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
    """The model with what MJX lacks taken out, none of which moves it unless said.

    Energy flags are cleared and skins dropped. So are ``noslip`` iterations, which MJX
    refuses: :mod:`pomcp_jax.envs.mjx.noslip` does them. Matrices are dense: MJX' code for
    sparse ones grows with the tree, and the solver wants dense ones anyway.

    Args:
      text: The XML.
      assets: Files that the XML names.
      sensors: The sensors to keep; MJX would compute all others, too.
      simple_contacts: Keep contacts with planes, and of spheres and capsules with
        each other (the dog: MJX has no collision of ellipsoids with boxes, and
        there are 5,500 pairs of geoms).
      no_contacts: Drop all contacts, where the model disables them anyway.
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
    """Leave a compiled model contacts with planes, and of spheres and capsules with each other."""
    import mujoco

    kinds = mujoco.mjtGeom
    is_plane = model.geom_type == kinds.mjGEOM_PLANE
    simple = np.isin(model.geom_type, (kinds.mjGEOM_SPHERE, kinds.mjGEOM_CAPSULE))
    meets_plane = _meets_plane(model, is_plane)
    # Bit 1: plane meets geom. Bit 2: simple meets simple, as before.
    kind, affinity = model.geom_contype.copy(), model.geom_conaffinity.copy()
    model.geom_contype[:] = np.where(is_plane, 1, 2 * (simple & (kind != 0)))
    model.geom_conaffinity[:] = np.where(is_plane, 0, meets_plane + 2 * (simple & (affinity != 0)))


def _meets_plane(model: Any, is_plane: Any) -> Any:
    """Which geoms may touch some plane."""
    kind, affinity = model.geom_contype, model.geom_conaffinity
    planes = np.nonzero(is_plane)[0]
    meets = [((kind & affinity[p]) | (kind[p] & affinity)) != 0 for p in planes]
    return np.any(meets, axis=0) & ~is_plane
