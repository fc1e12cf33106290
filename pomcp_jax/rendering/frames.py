"""Frames of a scene, drawn by a process of its own."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pomcp_jax.envs.importing import load_mujoco
from pomcp_jax.envs.protocol import Env, Scene
from pomcp_jax.rendering import gl


class Picture(NamedTuple):
    """How frames look."""

    width: int = 640
    height: int = 480
    camera: str | int | None = None
    """Name or number of a camera; None for the scene's own."""


def check(env: Env, camera: str | int | None = None) -> Scene:
    """The scene of an environment.

    Raises:
      ValueError: one line: it has none, its pose does not fit its model, or it lacks the camera.
    """
    scene = env.scene
    if scene is None:
        raise ValueError(
            f"task {env.name!r} has no picture; give its Task a"
            " scene=Scene(model=MjModel, pose=lambda state: {'qpos': ...}, timestep=seconds),"
            " or write .npz"
        )
    mujoco = load_mujoco()
    if not isinstance(scene, Scene):
        raise ValueError(f"task {env.name!r}: scene is {scene!r:.100}; must be a Scene")
    if not isinstance(scene.model, mujoco.MjModel):
        raise ValueError(
            f"task {env.name!r}: scene.model is {type(scene.model).__name__}; must be a"
            " mujoco.MjModel"
        )
    if not 0.0 < scene.timestep < float("inf"):
        raise ValueError(f"task {env.name!r}: scene.timestep = {scene.timestep}; must be > 0 s")
    _check_pose(env, scene)
    _check_camera(env.name, scene, camera)
    return scene


def _check_pose(env: Env, scene: Scene) -> None:
    data = load_mujoco().MjData(scene.model)
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    shapes = jax.eval_shape(lambda key: poses(scene, env.reset(key)[0].task), key)
    if not isinstance(shapes, Mapping) or "qpos" not in shapes:
        raise ValueError(f"task {env.name!r}: scene.pose returns no 'qpos'; must return it")
    for name, shape in shapes.items():
        field = getattr(data, name, getattr(scene.model, name, None))
        if not isinstance(field, np.ndarray):
            raise ValueError(
                f"task {env.name!r}: scene.pose returns {name!r}; must be an array of MjData or"
                " MjModel"
            )
        if field.shape != shape.shape[1:]:
            raise ValueError(
                f"task {env.name!r}: scene.pose returns {name} {list(shape.shape[1:])}; the model's"
                f" is {list(field.shape)}"
            )


def poses(scene: Scene, states: Any) -> Mapping[str, Any]:
    """Poses of a batch of states, with leading axis B."""
    return jax.vmap(scene.pose)(states)


def _check_camera(name: str, scene: Scene, camera: str | int | None) -> None:
    camera = scene.camera if camera is None else camera
    names = [scene.model.camera(i).name for i in range(scene.model.ncam)]
    is_known = camera in names if isinstance(camera, str) else -1 <= (camera or 0) < len(names)
    if camera is not None and not is_known:
        raise ValueError(
            f"camera = {camera!r}: {name} has {', '.join(names) or 'no camera'}; -1 is a free one"
        )


def draw(
    scene: Scene, poses: Mapping[str, np.ndarray], picture: Picture, library: str, fast: bool
) -> Iterator[np.ndarray]:
    """Frames ``uint8[height, width, 3]`` of the poses, one at a time.

    Args:
      scene: what to draw.
      poses: fields of the model and its data, each with a leading axis of frames.
      picture: size and camera.
      library: GL library, from :func:`gl.choose`.
      fast: without a GPU, draw fewer details.

    Raises:
      RuntimeError: one line about the drawing process, which failed.
    """
    size = picture.height * picture.width * 3
    camera = scene.camera if picture.camera is None else picture.camera
    options = picture._asdict() | {"camera": camera, "fast": fast}
    with tempfile.TemporaryDirectory(prefix="pomcp_jax_") as name:
        folder = Path(name)
        load_mujoco().mj_saveModel(scene.model, str(folder / "model.mjb"))
        np.savez(folder / "poses.npz", **dict[str, Any](poses))
        (folder / "options.json").write_text(json.dumps(options))
        with (folder / "errors.txt").open("wb") as errors:
            process = subprocess.Popen(
                [*gl.PROGRAM, name],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=gl.environment(library),
            )
        assert process.stdout is not None
        try:
            for i in range(len(poses["qpos"])):
                data = process.stdout.read(size)
                if len(data) < size:
                    process.wait()
                    error = gl.last_line((folder / "errors.txt").read_text(errors="replace"))
                    raise RuntimeError(
                        f"drawing frame {i} failed: {error or f'exit code {process.returncode}'}"
                    )
                yield np.frombuffer(data, np.uint8).reshape(picture.height, picture.width, 3)
        finally:
            # Also when the caller stops early.
            process.kill()
            process.stdout.close()
            process.wait()
