"""Draw poses of a MuJoCo model and write raw RGB frames to stdout; a program of its own.

MuJoCo chooses its GL library when it is imported, once per process, and a GL driver may crash. A
process that only draws leaves that choice, and crashes, out of the caller's process. It imports
NumPy and MuJoCo and nothing else.

    python -P draw.py            # draws one small picture, to find out whether GL works
    python -P draw.py FOLDER     # draws what pomcp_jax.rendering.frames wrote there
"""

import json
import sys
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

SOFTWARE = ("llvmpipe", "softpipe", "swrast")
"""Names of renderers without a GPU."""
SHADOWS = 1024
"""Side of the shadow map of a renderer without a GPU; MuJoCo's default takes twice the time."""


def main(argv: list[str]) -> int:
    """The program; returns the exit code."""
    if not argv:
        model = mujoco.MjModel.from_xml_string("<mujoco/>")
        with mujoco.Renderer(model, 16, 16) as renderer:
            renderer.update_scene(mujoco.MjData(model))
            renderer.render()
        return 0
    folder = Path(argv[0])
    options = json.loads((folder / "options.json").read_text())
    with np.load(folder / "poses.npz") as file:
        poses = {name: file[name] for name in file.files}
    model = mujoco.MjModel.from_binary_path(str(folder / "model.mjb"))
    draw(model, poses, options["width"], options["height"], options["camera"])
    return 0


def draw(
    model: Any, poses: dict[str, np.ndarray], width: int, height: int, camera: str | int | None
) -> None:
    """Write a frame ``[height, width, 3]`` for each pose to stdout."""
    # The XML's buffer is 640 x 480 unless it says otherwise.
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    data = mujoco.MjData(model)
    frame = np.empty((height, width, 3), np.uint8)
    with mujoco.Renderer(model, height, width) as renderer:
        view = _camera(model, camera)
        for i in range(len(poses["qpos"])):
            for name, values in poses.items():
                getattr(data if hasattr(data, name) else model, name)[:] = values[i]
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, view)
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
            renderer.render(out=frame)
            sys.stdout.buffer.write(frame.data)
    sys.stdout.buffer.flush()


def _camera(model: Any, camera: str | int | None) -> Any:
    """The camera of that name or number; None is the first, or a free one that follows the body."""
    if camera is not None or model.ncam:
        return 0 if camera is None else camera
    free = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, free)
    joints = np.nonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)[0]
    if joints.size:
        free.type = mujoco.mjtCamera.mjCAMERA_TRACKING
        free.trackbodyid = int(model.jnt_bodyid[joints[0]])
    return free


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
