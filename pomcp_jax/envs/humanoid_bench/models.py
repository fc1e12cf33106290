"""HumanoidBench's MuJoCo models, read from a user's checkout or the installed package."""

import hashlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pomcp_jax.envs.importing import load_mujoco
from pomcp_jax.envs.physics import quiet_mujoco

VARIABLE = "HUMANOID_BENCH"
"""Environment variable with the folder of a checkout."""
KNOWN_MUJOCO = "3.17.0"
"""Version that docs/environments.md describes; HumanoidBench itself requires 3.1.6."""
_INSIDE = ("humanoid_bench/assets", "assets", ".")
"""Where the models may be in a folder: a checkout, the package in it, or its assets."""

_DIGESTS = {
    "h1_pos_balance_hard": "08dadf31d5a8e383",
    "h1_pos_balance_simple": "98e2cd80a1721a1c",
    "h1_pos_crawl": "861929026bb204a9",
    "h1_pos_hurdle": "74fac3eca4787ba2",
    "h1_pos_maze": "630cbbc991958a70",
    "h1_pos_pole": "786a301af201087b",
    "h1_pos_reach": "0cfc3138a3e15d6f",
    "h1_pos_run": "6d624ca2d4c8385a",
    "h1_pos_sit_hard": "978467fc13a9c293",
    "h1_pos_sit_simple": "0033f63687a3272a",
    "h1_pos_slide": "8c112664ddf64b77",
    "h1_pos_stair": "dedf70c3564148b8",
    "h1_pos_stand": "a45f30e815c40661",
    "h1_pos_walk": "d7c8ad50b71ceb22",
    "h1hand_pos_balance_hard": "dc5ea4c0981f7cf1",
    "h1hand_pos_balance_simple": "d41a9b8d5f5b7c9f",
    "h1hand_pos_crawl": "6f8b18136eb9b72f",
    "h1hand_pos_hurdle": "0f9102402f9f6f3e",
    "h1hand_pos_maze": "489aaf746910f75a",
    "h1hand_pos_pole": "7275e164760ac798",
    "h1hand_pos_reach": "97cceea4ee6bef57",
    "h1hand_pos_run": "71401137a3312232",
    "h1hand_pos_sit_hard": "9783735638329f63",
    "h1hand_pos_sit_simple": "dc3c615664f63d6b",
    "h1hand_pos_slide": "604adbaa5b6bbfcf",
    "h1hand_pos_stair": "c088c910868ba9c8",
    "h1hand_pos_stand": "a07a2f899d33a679",
    "h1hand_pos_walk": "0b18c27fbf4d1ebd",
}
"""First 64 bits of the SHA-256 of each model's files, as of May 2025."""


def find(folder: str = "") -> Path:
    """Folder with ``envs/h1_pos_walk.xml``.

    Args:
      folder: a checkout; without one, that of :data:`VARIABLE`, or else the installed package
        ``humanoid_bench``, which is not imported.

    Raises:
      FileNotFoundError: one line that says what to clone and what to set.
    """
    tried = folder or os.environ.get(VARIABLE, "")
    if tried:
        places = [Path(tried).expanduser()]
    else:
        package = importlib.util.find_spec("humanoid_bench")
        places = [Path(place) for place in (package and package.submodule_search_locations) or ()]
    for place in places:
        for inside in _INSIDE:
            if (place / inside / "envs" / "h1_pos_walk.xml").is_file():
                return place / inside
    where = f"{tried!r} has no humanoid_bench/assets/envs" if tried else "needs its model files"
    raise FileNotFoundError(
        f"{where}; git clone https://github.com/carlosferrazza/humanoid-bench and set {VARIABLE} or"
        " --config.env.assets to its folder"
    )


def read(robot: str, task: str, folder: str = "") -> Any:
    """``mujoco.MjSpec`` of a robot in the scene of a task, as HumanoidBench's file has it.

    Raises:
      FileNotFoundError: as :func:`find`, or a file of the model is missing.
      ValueError: MuJoCo cannot read the model; one line.
    """
    mujoco = load_mujoco()
    path = find(folder) / "envs" / f"{robot}_pos_{task}.xml"
    check_versions(f"humanoid/{robot}-{task}", path)
    try:
        with quiet_mujoco():
            return mujoco.MjSpec.from_file(str(path))
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def check_versions(name: str, path: Path) -> None:
    """Warn if MuJoCo or the files of a model differ from what these tasks were compared with."""
    mujoco = load_mujoco()
    if mujoco.__version__ != KNOWN_MUJOCO:
        warnings.warn(
            f"{name}: compared with HumanoidBench under MuJoCo {KNOWN_MUJOCO}, this is"
            f" {mujoco.__version__}; scores may differ",
            stacklevel=2,
        )
    if digest(path) != _DIGESTS.get(path.stem):
        warnings.warn(
            f"{name}: the model in {path.parent.parent} is not the one of May 2025 that this task"
            " was compared with; scores may differ",
            stacklevel=2,
        )


def digest(path: Path) -> str:
    """First 64 bits of the SHA-256 of a model's XML, what it includes, and its meshes.

    Raises:
      FileNotFoundError: a file is missing; one line.
    """
    digests = []
    for file in sorted(_files(path), key=str):
        if not file.is_file():
            raise FileNotFoundError(f"{path}: incomplete checkout, there is no {file}")
        # Line endings depend on how git is set up.
        content = file.read_bytes().replace(b"\r\n", b"\n")
        digests.append(hashlib.sha256(content).digest())
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _files(path: Path) -> set[Path]:
    """A model's file and those that it refers to; MuJoCo takes paths relative to the first."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        if file.suffix == ".xml" and file.is_file():
            waiting += [Path(os.path.normpath(path.parent / name)) for name in _references(file)]
    return found


def _references(file: Path) -> Iterator[str]:
    try:
        elements = ElementTree.parse(file).iter()
    except ElementTree.ParseError:  # MuJoCo's error, which follows, names the line
        return
    for element in elements:
        if element.tag in ("include", "mesh") and "file" in element.attrib:
            yield element.attrib["file"]
