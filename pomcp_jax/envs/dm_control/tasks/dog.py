"""Dog: stand, walk, trot, run.

Source of every constant: ``dm_control/suite/dog.py``. On MJX the dog lacks contacts between
its own ellipsoids and boxes; the host backend has the original.
"""

import math
from collections.abc import Callable
from typing import NamedTuple
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float

from pomcp_jax.envs.dm_control import models, suite
from pomcp_jax.envs.dm_control.rewards import tolerance
from pomcp_jax.envs.physics import View
from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key

_CONTROL_TIMESTEP = 0.015
_TIME_LIMIT = 15
_SPEED = {"stand": 0.0, "walk": 1.0, "trot": 3.0, "run": 9.0}
_UPRIGHT_COSINE = math.cos(math.radians(30))
_STAND_FRACTION = 0.9
_INERTIAL = ("accelerometer", "velocimeter", "gyro")
_FORCES = ("foot_L", "foot_R", "hand_L", "hand_R")
_TOUCH = ("palm_L", "palm_R", "sole_L", "sole_R")
_CONTACTS = {1: 16, 3: 24, 6: 6}
"""Contacts of each condim that MJX solves for; random poses had at most 12, 22 and 3."""


class Facts(NamedTuple):
    """Quantities that rewards depend on."""

    heights: Float[Array, "2"]
    """Heights of torso and pelvis."""
    upright: Float[Array, "3"]
    """zz of skull, torso and pelvis."""
    touch: Float[Array, ""]
    """Force on the soles and palms."""
    forward: Float[Array, ""]
    """Velocity of the centre of mass along the torso."""


def _plain(floor_size: float) -> models.Edit:
    """``make_model``: a floor of this size; no ball, target, walls or their cameras."""

    def edit(root: ElementTree.Element) -> None:
        models.find(root, "geom", "floor").set("size", f"{floor_size} {floor_size} .1")
        models.remove(root, "body", "ball")
        models.remove(root, "geom", "target")
        for camera in ("ball", "head"):
            models.remove(root, "camera", camera)
        for side in ("px", "nx", "py", "ny"):
            models.remove(root, "geom", f"wall_{side}")

    return edit


def make(task: str, backend: str = "mjx") -> Task:
    """One of stand, walk, trot, run."""
    goal = _SPEED[task]
    physics = suite.load(
        "dog",
        backend,
        _CONTROL_TIMESTEP,
        sensors=("torso_linvel", *_INERTIAL, *_FORCES, *_TOUCH),
        # As in dm_control: large enough that a dog at the goal speed stays on the floor.
        edit=_plain(_TIME_LIMIT * max(goal, 1.0)),
        simple_contacts=True,
        max_contacts=_CONTACTS,
    )
    model = physics.model
    trunk = np.array([model.body(name).id for name in ("torso", "pelvis")])
    uprights = np.array([model.body(name).id for name in ("skull", "torso", "pelvis")])
    hinges = np.nonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)[0]
    at, dof = model.jnt_qposadr[hinges], model.jnt_dofadr[hinges]
    default = mujoco.MjData(model)
    mujoco.mj_forward(model, default)
    stand_heights = _STAND_FRACTION * default.xpos[trunk, 2]
    # dm_control's "body weight" is that of the torso's subtree, and so is ours.
    weight = float(-model.opt.gravity[2] * model.body_subtreemass[trunk[0]])
    low, high = model.actuator_ctrlrange.T

    def begin(key: Key) -> suite.Start:
        """Uniform heading, random velocity and activations (``Stand.initialize_episode``)."""
        key_turn, key_velocity, key_act = jax.random.split(key, 3)
        half = jax.random.uniform(key_turn, (), minval=0, maxval=2 * jnp.pi) / 2
        zero = jnp.zeros_like(half)
        quaternion = jnp.stack([jnp.cos(half), zero, zero, jnp.sin(half)])
        share = jax.random.uniform(key_act, (model.nu,))
        velocity = 2 * jax.random.normal(key_velocity, (3,))
        # Velocities 0, 1 and 5 of the free joint: horizontal translation and rotation about z.
        return suite.Start(
            qpos=jnp.asarray(model.qpos0, share.dtype).at[3:7].set(quaternion),
            qvel=jnp.zeros((model.nv,), share.dtype).at[np.array([0, 1, 5])].set(velocity),
            act=jnp.asarray(low, share.dtype) + share * jnp.asarray(high - low, share.dtype),
        )

    def look(view: View, episode: None) -> suite.Seen:
        """Joints, heights, verticals, sensors, activations (``get_observation_components``)."""
        data, sensors = view.data, view.sensors
        heights, verticals = data.xpos[trunk, 2], data.xmat[uprights, 2]
        velocity = sensors["torso_linvel"] @ data.xmat[trunk[0]]
        touch = jnp.concatenate([sensors[name] for name in _TOUCH])
        parts = [view.qpos[at], view.qvel[dof], heights, verticals.ravel(), velocity]
        parts += [sensors[name] for name in (*_INERTIAL, *_FORCES)]
        parts += [touch, view.motion.act]
        facts = Facts(heights, verticals[:, 2], jnp.sum(touch), velocity[0])
        return suite.Seen(jnp.concatenate(parts), facts)

    domain = suite.Domain(physics, begin, look)
    return suite.make_task(f"dog-{task}", domain, _reward(goal, stand_heights, weight))


def _reward(goal: float, stand_heights: np.ndarray, weight: float) -> Callable:
    """Product of all reward factors (``get_reward_factors`` of ``Stand`` and ``Move``).

    Args:
      goal: speed, m/s; 0 to stand.
      stand_heights: lowest rewarded heights of torso and pelvis, m.
      weight: of the whole body, N.
    """

    def reward(seen: Facts, ctrl: Float[Array, "38"]) -> Float[Array, ""]:
        product = jnp.ones_like(seen.touch)
        for height, least in zip(seen.heights, stand_heights, strict=True):
            product = product * tolerance(height, (float(least), math.inf), float(least))
        upright = tolerance(
            seen.upright,
            bounds=(_UPRIGHT_COSINE, math.inf),
            margin=_UPRIGHT_COSINE + 1,
            value_at_margin=0,
            sigmoid="linear",
        )
        product = product * jnp.prod(upright)
        product = product * tolerance(
            seen.touch, (weight, math.inf), weight, value_at_margin=0.9, sigmoid="linear"
        )
        # ``goal`` is a Python number: standing compiles no speed term.
        if not goal:
            return product
        forward = tolerance(
            seen.forward,
            bounds=(goal, 2 * goal),
            margin=max(1.0, goal),
            value_at_margin=0,
            sigmoid="linear",
        )
        return product * (4 * forward + 1) / 5

    return reward
