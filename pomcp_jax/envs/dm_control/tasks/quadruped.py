"""Quadruped: walk, run.

Source of every constant: ``dm_control/suite/quadruped.py``.
"""

import math
from typing import NamedTuple
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Bool, Float

from pomcp_jax.envs.dm_control import models, suite
from pomcp_jax.envs.dm_control.rewards import tolerance
from pomcp_jax.envs.physics import View
from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key

_CONTROL_TIMESTEP = 0.02
_TIME_LIMIT = 20
_SPEED = {"walk": 0.5, "run": 5.0}
_TOES = ("toe_front_left", "toe_front_right", "toe_back_right", "toe_back_left")
_IMU = ("imu_gyro", "imu_accel")
_RISE, _RISES = 0.01, 10_000
"""Metres by which the body is lifted until it has no contact, and the most times."""


class Facts(NamedTuple):
    """Quantities that rewards depend on."""

    upright: Float[Array, ""]
    """zz of the torso's frame."""
    speed: Float[Array, ""]
    """Forward velocity in the torso's frame."""


def _plain(floor_size: float) -> models.Edit:
    """``make_model``: a larger floor; no terrain, walls, ball, target or rangefinders."""

    def edit(root: ElementTree.Element) -> None:
        models.find(root, "geom", "floor").set("size", f"{floor_size} {floor_size} .5")
        for wall in ("wall_px", "wall_py", "wall_nx", "wall_ny", "terrain"):
            models.remove(root, "geom", wall)
        models.remove(root, "body", "ball")
        models.remove(root, "site", "target")
        models.remove(root, "rangefinder")

    return edit


def make(task: str, backend: str = "mjx") -> Task:
    """``walk`` or ``run``."""
    goal = _SPEED[task]
    physics = suite.load(
        "quadruped",
        backend,
        _CONTROL_TIMESTEP,
        sensors=_sensors(),
        edit=_plain(_TIME_LIMIT * goal),
    )
    model = physics.model
    torso = model.body("torso").id
    hinges = np.nonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)[0]
    at, dof = model.jnt_qposadr[hinges], model.jnt_dofadr[hinges]
    # dm_control observes sensors in the model's order, not in the order of a list of names.
    by_id = sorted(_sensors(), key=lambda name: model.sensor(name).id)
    imu = [name for name in by_id if name in _IMU]
    loads = [name for name in by_id if name.startswith(("force_", "torque_"))]

    def begin(key: Key) -> suite.Start:
        """Uniform orientation, lowest height without contact (``_find_non_contacting_height``)."""
        quaternion = jax.random.normal(key, (4,))
        pose = jnp.asarray(model.qpos0, quaternion.dtype)
        pose = pose.at[3:7].set(quaternion / jnp.linalg.norm(quaternion)).at[:2].set(0.0)
        # A multiple of an integer, not a running sum: float32 would drift from dm_control's grid.
        at_height = lambda rises: pose.at[2].set(_RISE * rises.astype(pose.dtype))  # noqa: E731

        def unfinished(carry: tuple) -> Bool[Array, ""]:
            return carry[1] & (carry[0] < _RISES)

        def rise(carry: tuple) -> tuple:
            rises = carry[0] + 1
            return rises, physics.engine.touching(at_height(rises))

        # The first height tried is zero.
        start = (jnp.int32(-1), jnp.ones((), bool))
        return suite.Start(at_height(jax.lax.while_loop(unfinished, rise, start)[0]))

    def look(view: View, episode: None) -> suite.Seen:
        """Joints, activations, torso and inertial sensors, forces (``_common_observations``)."""
        upright, velocity = view.data.xmat[torso, 2, 2], view.sensors["velocimeter"]
        parts = [view.qpos[at], view.qvel[dof], view.motion.act, velocity, upright[None]]
        parts += [view.sensors[name] for name in imu]
        parts += [jnp.arcsinh(view.sensors[name]) for name in loads]
        return suite.Seen(jnp.concatenate(parts), Facts(upright, velocity[0]))

    def reward(seen: Facts, ctrl: Float[Array, "12"]) -> Float[Array, ""]:
        """Upright and at least at the goal speed (``Move.get_reward``)."""
        upright = tolerance(
            seen.upright, (1.0, math.inf), margin=2.0, value_at_margin=0, sigmoid="linear"
        )
        move = tolerance(
            seen.speed, (goal, math.inf), margin=goal, value_at_margin=0.5, sigmoid="linear"
        )
        return upright * move

    domain = suite.Domain(physics, begin, look)
    return suite.make_task(f"quadruped-{task}", domain, reward)


def _sensors() -> tuple[str, ...]:
    """Names of all observed sensors."""
    toes = tuple(f"{kind}_{toe}" for kind in ("force", "torque") for toe in _TOES)
    return ("velocimeter", *_IMU, *toes)
