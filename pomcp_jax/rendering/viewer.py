"""A page that shows episodes in 3D in a browser, self-contained; needs no GL library here.

Poses of all visible geoms and sites are computed by MuJoCo and drawn by the browser (WebGL), with
the shapes and colours of the model but without textures and shadows. A model with a skin shows the
shapes that collide instead.
"""

import base64
import copy
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pomcp_jax import files
from pomcp_jax.envs.importing import load_mujoco
from pomcp_jax.envs.protocol import Scene
from pomcp_jax.rendering.episodes import Recording
from pomcp_jax.rendering.overlay import caption

GROUPS, SKINNED = 3, 4
"""MuJoCo draws geoms and sites of the groups below 3; dm_control's skins hide group 3."""
FLOOR = 100.0
"""Half side of an infinite plane, times the model's extent."""


def write(
    path: Path, scene: Scene, recordings: Sequence[Recording], name: str, camera: str | int | None
) -> None:
    """Write the page of all states of all episodes."""
    model = copy.copy(scene.model)  # poses may change its fields
    chosen = scene.camera if camera is None else camera
    drawn = [(kind, i) for kind in ("geom", "site") for i in _visible(model, kind)]
    joined = {
        field: np.concatenate([recording.poses[field] for recording in recordings])
        for field in recordings[0].poses
    }
    poses, look, view = _poses(model, joined, drawn, chosen)
    geoms, meshes = _shapes(model, drawn)
    data = {
        "seconds": recordings[0].seconds,
        "captions": [
            "\n".join(caption(name, recording, episode + 1, state))
            for episode, recording in enumerate(recordings)
            for state in range(recording.states)
        ],
        "geoms": geoms,
        "meshes": meshes,
        "poses": _text(poses),
        "look": _text(look),
        "camera": view,
        "tile": max(round(float(model.stat.extent) / 4, 1), 0.1),
    }
    page = Path(__file__).with_name("viewer.html").read_text()
    # "</" would end the script early; a task's name is the user's.
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    # Each where it belongs: a task may be called DATA, and text may hold TITLE.
    head, script, rest = page.partition("const data = DATA;")
    page = head.replace("TITLE", html.escape(name)) + script.replace("DATA", text) + rest
    files.write_text(path, page)


def _visible(model: Any, kind: str) -> list[int]:
    groups = getattr(model, f"{kind}_group")
    end = SKINNED if model.nskin and kind == "geom" else GROUPS
    return [i for i in range(len(groups)) if groups[i] < end and _colour(model, kind, i)[3] > 0]


def _colour(model: Any, kind: str, index: int) -> list[float]:
    """The own colour, or the material's if it is MuJoCo's default grey."""
    own = getattr(model, f"{kind}_rgba")[index]
    material = getattr(model, f"{kind}_matid")[index]
    is_default = np.allclose(own, (0.5, 0.5, 0.5, 1.0))
    colour = model.mat_rgba[material] if material >= 0 and is_default else own
    return [round(float(x), 3) for x in colour]


def _shapes(model: Any, drawn: Sequence[tuple[str, int]]) -> tuple[list[dict], list[str]]:
    """Kind, size and colour of everything drawn, and the triangles of the meshes used."""
    mujoco = load_mujoco()
    geoms: list[dict] = []
    meshes: dict[tuple[str, int], int] = {}
    for kind, i in drawn:
        shape = mujoco.mjtGeom(getattr(model, f"{kind}_type")[i]).name.removeprefix("mjGEOM_")
        size = getattr(model, f"{kind}_size")[i].astype(float)
        geom: dict = {"kind": shape.lower(), "rgba": _colour(model, kind, i)}
        if shape == "PLANE":
            size = np.where(size > 0, size, FLOOR * model.stat.extent)
        if shape == "HFIELD":
            geom["kind"] = "mesh"
            geom["mesh"] = meshes.setdefault(("hfield", int(model.geom_dataid[i])), len(meshes))
        elif kind == "geom" and model.geom_dataid[i] >= 0:
            geom["kind"] = "mesh"
            geom["mesh"] = meshes.setdefault(("mesh", int(model.geom_dataid[i])), len(meshes))
        geoms.append(geom | {"size": [round(float(x), 5) for x in size]})
    corners = {"mesh": _triangles, "hfield": _terrain}
    return geoms, [_text(corners[kind](model, index)) for kind, index in meshes]


def _terrain(model: Any, field: int) -> np.ndarray:
    """Corners ``[faces, 3, 3]`` of a height field's surface, two triangles for each cell."""
    rows, columns = int(model.hfield_nrow[field]), int(model.hfield_ncol[field])
    across, along, top, _ = model.hfield_size[field]
    first = model.hfield_adr[field]
    height = model.hfield_data[first : first + rows * columns].reshape(rows, columns) * top
    x, y = np.meshgrid(np.linspace(-across, across, columns), np.linspace(-along, along, rows))
    point = np.stack([x, y, height], axis=-1)
    a, b, c, d = point[:-1, :-1], point[:-1, 1:], point[1:, 1:], point[1:, :-1]
    faces = np.stack([np.stack([a, b, c], axis=2), np.stack([a, c, d], axis=2)], axis=2)
    return faces.reshape(-1, 3, 3)


def _triangles(model: Any, mesh: int) -> np.ndarray:
    """Corners ``[faces, 3, 3]`` of a mesh."""
    first, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    vertices = model.mesh_vert[model.mesh_vertadr[mesh] :]
    return vertices[model.mesh_face[first : first + count]]


def _poses(
    model: Any,
    poses: Mapping[str, np.ndarray],
    drawn: Sequence[tuple[str, int]],
    camera: str | int | None,
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Positions and quaternions ``[states, drawn, 7]``, points in view ``[states, 3]``, camera."""
    mujoco = load_mujoco()
    data, quaternion = mujoco.MjData(model), np.zeros(4)
    out = np.zeros((len(poses["qpos"]), len(drawn), 7), np.float32)
    look = np.zeros((len(out), 3))
    for t in range(len(out)):
        for name, values in poses.items():
            getattr(data if hasattr(data, name) else model, name)[:] = values[t]
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        for j, (kind, i) in enumerate(drawn):
            mujoco.mju_mat2Quat(quaternion, getattr(data, f"{kind}_xmat")[i])
            out[t, j, :3], out[t, j, 3:] = getattr(data, f"{kind}_xpos")[i], quaternion
        if t == 0:
            view, at, body = _view(model, data, camera)
            offset = at - _followed(data, body)
        look[t] = _followed(data, body) + offset
    return out, look, view


def _view(model: Any, data: Any, camera: str | int | None) -> tuple[dict, np.ndarray, int]:
    """Camera in the first state, the point that it looks at, and the body that it follows or 0."""
    mujoco = load_mujoco()
    if camera == -1 or (camera is None and not model.ncam):
        joints = np.nonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)[0]
        body = int(model.jnt_bodyid[joints[0]]) if joints.size else 0
        at = data.subtree_com[body] if body else model.stat.center
        view = {
            "azimuth": np.pi / 2,
            "elevation": -np.pi / 4,
            "fovy": float(model.vis.global_.fovy),
        }
        return view | {"distance": 1.5 * float(model.stat.extent)}, np.array(at), body
    i = model.camera(camera or 0).id
    forward, up = -data.cam_xmat[i].reshape(3, 3)[:, 2], data.cam_xmat[i].reshape(3, 3)[:, 1]
    body = int(model.body_rootid[model.cam_bodyid[i]])
    centre = data.subtree_com[body] if body else data.subtree_com[min(1, model.nbody - 1)]
    distance = max(float((centre - data.cam_xpos[i]) @ forward), 0.1 * float(model.stat.extent))
    # Straight down or up, the direction of the picture's upper edge says how it is turned.
    level = forward if abs(forward[2]) < 0.999 else -np.sign(forward[2]) * up
    view = {
        "azimuth": float(np.arctan2(level[1], level[0])),
        "elevation": float(np.arcsin(np.clip(forward[2], -1, 1))),
        "fovy": float(model.cam_fovy[i]),
        "distance": distance,
    }
    return view, data.cam_xpos[i] + distance * forward, body


def _followed(data: Any, body: int) -> np.ndarray:
    """Centre of mass of a body that a camera follows; the world stays where it is."""
    return data.subtree_com[body].copy() if body else np.zeros(3)


def _text(values: np.ndarray) -> str:
    """Little-endian float32 as base64."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()
