"""Draw poses of a MuJoCo model and write raw RGB frames to stdout; a program of its own.

MuJoCo chooses its GL library when it is imported, once per process, and a GL driver may crash. A
process that only draws keeps both away from its caller. It imports NumPy and MuJoCo, nothing else.

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
SHADOW_SIZE = 1024
"""Side of the shadow map for fast drawing without a GPU."""


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
    draw(mujoco.MjModel.from_binary_path(str(folder / "model.mjb")), poses, **options)
    return 0


def draw(
    model: Any,
    poses: dict[str, np.ndarray],
    width: int,
    height: int,
    camera: str | int | None,
    fast: bool,
) -> None:
    """Write a frame ``[height, width, 3]`` for each pose to stdout.

    Args:
      model: changed in place.
      poses: fields of ``MjData`` or ``MjModel``, each with a leading axis of frames.
      width, height: in pixels.
      camera: name or number; -1 for a free one that follows the body; None for
        the model's first one, else a free one.
      fast: without a GPU, leave out what takes most of the time and shows least.
    """
    # The XML's buffer is 640 x 480 unless it says otherwise.
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    # On two cores a dog takes 0.1 s with, 0.035 s without reflections, multisampling and half
    # of the shadow map's resolution; a GPU draws either in milliseconds.
    cheap = fast and _is_software()
    if cheap:
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = min(model.vis.quality.shadowsize, SHADOW_SIZE)
    data = mujoco.MjData(model)
    frame = np.empty((height, width, 3), np.uint8)
    view = _camera(model, camera)
    with mujoco.Renderer(model, height, width) as renderer:
        for i in range(len(poses["qpos"])):
            for name, values in poses.items():
                getattr(data if hasattr(data, name) else model, name)[:] = values[i]
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, view)
            if cheap:
                renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
            renderer.render(out=frame)
            sys.stdout.buffer.write(frame.data)
    sys.stdout.buffer.flush()


def _is_software() -> bool:
    """Whether GL computes on the CPU."""
    context = mujoco.GLContext(16, 16)
    context.make_current()
    # After MuJoCo, which tells PyOpenGL the platform.
    from OpenGL import GL

    name = GL.glGetString(GL.GL_RENDERER).decode(errors="replace")
    context.free()
    return any(part in name.lower() for part in SOFTWARE)


def _camera(model: Any, camera: str | int | None) -> Any:
    if camera is None and model.ncam:
        return 0
    if camera is not None and camera != -1:
        return camera
    free = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, free)
    joints = np.nonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)[0]
    if joints.size:
        free.type = mujoco.mjtCamera.mjCAMERA_TRACKING
        free.trackbodyid = int(model.jnt_bodyid[joints[0]])
    return free


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
