"""HumanoidBench's 14 locomotion tasks with the robots h1 and h1hand.

Actions are joint positions, from -1 to 1 over each joint's range; observations are all positions
and velocities. Observations are fresh; rewards mix fresh positions with frames, contacts and
forces that are one physics step old, as HumanoidBench's do.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pomcp_jax.envs import mujoco_rules
from pomcp_jax.envs.humanoid_bench import models, rewards, sensors
from pomcp_jax.envs.importing import load_mujoco
from pomcp_jax.envs.mujoco_rules import Body, Rules, State
from pomcp_jax.envs.physics import Start
from pomcp_jax.envs.protocol import Scene, Task
from pomcp_jax.types import Key, PyTree

CONTROL_TIMESTEP = 0.02
_NOISE = 0.01
_GOALS = (-2.0, -2.0, 0.2), (2.0, 2.0, 2.0)
_CAMERAS = {"hurdle": "cam_hurdle", "maze": "cam_maze"}
_CAMERA = "cam_default"
_SHADOW, _SHADOW_CLIP = 4096, 1.0
"""Size of the shadow map in pictures, as the models' own takes a gigabyte without a GPU; and its
reach, beyond which the coarser map would darken patches of the floor."""

_WALK = (sensors.FORCES, "head", "torso_up", "velocity")
_BALANCE = (*_WALK, "sphere", "sphere_floor", "sphere_board", "floor")
_CLIMB = (*_WALK, "left_foot", "right_foot")


class Rule(NamedTuple):
    """What distinguishes a task."""

    measures: tuple[str, ...]
    """What it reads; see :mod:`.sensors`."""
    reward: Callable[[Body], Float[Array, ""]]
    terminated: Callable[[Body], Bool[Array, ""]] | None
    """None: episodes end by their time limit only."""


_low = rewards.lower_than
RULES = {
    "walk": Rule(_WALK, rewards.walk(1.0), _low(0.2)),
    "stand": Rule(_WALK, rewards.stand_still, _low(0.2)),
    "run": Rule(_WALK, rewards.walk(5.0), _low(0.2)),
    "reach": Rule(("left_hand", "pelvis_up"), rewards.reach, None),
    "hurdle": Rule(
        (*_WALK, "left_barrier", "right_barrier", "behind_barrier"), rewards.hurdle, _low(0.2)
    ),
    "crawl": Rule((sensors.FORCES, "head", "imu", "velocity", "pelvis_quat"), rewards.crawl, None),
    "maze": Rule((*_WALK, "imu", "pelvis", "blocks"), rewards.maze, _low(0.2)),
    "sit_simple": Rule((*_WALK, "imu", "chair"), rewards.sit, _low(0.5)),
    "sit_hard": Rule((*_WALK, "imu", "chair"), rewards.sit, _low(0.5)),
    "balance_simple": Rule(_BALANCE, rewards.balance, rewards.off_board),
    "balance_hard": Rule(_BALANCE, rewards.balance, rewards.off_board),
    "stair": Rule(_CLIMB, rewards.climb, rewards.toppled),
    "slide": Rule(_CLIMB, rewards.climb, rewards.toppled),
    "pole": Rule((*_WALK, "poles"), rewards.pole, _low(0.5)),
}


def make(name: str, assets: str = "") -> Task:
    """Task ``ROBOT-TASK``, for example ``h1hand-walk``.

    Args:
      name: Robot h1 or h1hand, and a key of :data:`RULES`.
      assets: HumanoidBench's checkout; see :func:`models.find`.

    Raises:
      FileNotFoundError, ValueError: as :func:`models.read`.
    """
    robot, _, task = name.partition("-")
    return build(f"humanoid/{name}", task, models.read(robot, task, assets))


def build(name: str, task: str, spec: Any) -> Task:
    """Task on a model with HumanoidBench's names.

    Args:
      name: Name of the result.
      task: A key of :data:`RULES`.
      spec: ``mujoco.MjSpec`` with a keyframe ``qpos0`` and what the task's measures name; changed
        in place.
    """
    rule = RULES[task]
    names = sensors.add(spec, rule.measures)
    disable = load_mujoco().mjtDisableBit
    # Without these, 3.17 finds four contacts of a foot on a box where HumanoidBench's 3.1.6 finds
    # one (docs/environments.md).
    spec.option.disableflags |= int(disable.mjDSBL_NATIVECCD) | int(disable.mjDSBL_MULTICCD)
    model = mujoco_rules.load(spec)
    observe = _observe_goal if task == "reach" else _observe
    follow = rewards.next_stage if task == "maze" else None
    rules = Rules(_reset(model, task), observe, rule.reward, rule.terminated, follow)
    return mujoco_rules.make(
        name,
        model,
        rules,
        sensors=names,
        control_timestep=CONTROL_TIMESTEP,
        scene=_scene(task, spec, model),
    )


def _observe(body: Body) -> Float[Array, " O"]:
    return jnp.concatenate([body.qpos, body.qvel])


def _observe_goal(body: Body) -> Float[Array, " O"]:
    return jnp.concatenate([body.qpos, body.qvel, body.sensors["left_hand"], body.episode])


def _reset(model: Any, task: str) -> Callable[[Key], Start]:
    """Start of an episode: the keyframe with noise, and what the task draws besides."""
    home = np.array(model.key("qpos0").qpos)
    free = np.flatnonzero(model.jnt_type == load_mujoco().mjtJoint.mjJNT_FREE)
    quaternions = [slice(at + 3, at + 7) for at in model.jnt_qposadr[free]]

    def reset(key: Key) -> Start:
        noise_key, own_key = jax.random.split(key)
        noise = jax.random.uniform(noise_key, (model.nq,), minval=-_NOISE, maxval=_NOISE)
        qpos = jnp.asarray(home, noise.dtype) + noise
        # HumanoidBench's MuJoCo does so when it computes the first frames.
        for span in quaternions:
            qpos = qpos.at[span].divide(jnp.linalg.norm(qpos[span]))
        if task == "sit_hard":
            qpos = _beside_chair(qpos, own_key)
        return Start(qpos, episode=_episode(task, own_key))

    return reset


def _beside_chair(qpos: Float[Array, " Q"], key: Key) -> Float[Array, " Q"]:
    """Robot somewhere before the chair, turned by a random angle; it keeps its height."""
    low, high = jnp.asarray([0.2, -0.15, -1.8]), jnp.asarray([0.4, 0.15, 1.8])
    x, y, yaw = jax.random.uniform(key, (3,), minval=low, maxval=high)
    zero = jnp.zeros_like(yaw)
    quaternion = jnp.stack([jnp.cos(yaw / 2), zero, zero, jnp.sin(yaw / 2)])
    return qpos.at[:2].set(jnp.stack([x, y])).at[3:7].set(quaternion)


def _episode(task: str, key: Key) -> PyTree:
    if task == "reach":
        low, high = (jnp.asarray(corner) for corner in _GOALS)
        return jax.random.uniform(key, (3,), minval=low, maxval=high)
    return rewards.first_stage() if task == "maze" else None


def _scene(task: str, spec: Any, model: Any) -> Scene:
    """How to draw the task; a sphere marks the goal of reach."""
    mujoco, place = load_mujoco(), None
    drawn = copy.copy(model)
    if task == "reach":
        goal = spec.worldbody.add_geom(
            name="goal", size=[0.05, 0, 0], rgba=[1, 0, 0, 1], contype=0, conaffinity=0
        )
        goal.type = mujoco.mjtGeom.mjGEOM_SPHERE
        drawn = mujoco_rules.load(spec)
        place = drawn.geom("goal").id
    drawn.vis.quality.shadowsize = _SHADOW
    drawn.vis.map.shadowclip = _SHADOW_CLIP

    def pose(state: State) -> dict[str, Array]:
        shown = {"qpos": state.motion.qpos, "qvel": state.motion.qvel}
        if place is not None:
            here = state.episode
            shown["geom_pos"] = jnp.asarray(drawn.geom_pos, here.dtype).at[place].set(here)
        return shown

    cameras = {drawn.camera(i).name for i in range(drawn.ncam)}
    camera = _CAMERAS.get(task, _CAMERA)
    return Scene(drawn, pose, CONTROL_TIMESTEP, camera if camera in cameras else None)
