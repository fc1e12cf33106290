"""Planar walker: stand, walk, run.

Source of every constant: ``dm_control/suite/walker.py``.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from pomcp_jax.envs import dm_control
from pomcp_jax.envs.protocol import Task
from pomcp_jax.envs.rewards import tolerance
from pomcp_jax.types import Key

_CONTROL_TIMESTEP = 0.025
_STAND_HEIGHT = 1.2
_MOVE_SPEED = {"stand": 0.0, "walk": 1.0, "run": 8.0}


class Measured(NamedTuple):
    """What observation and reward see besides joints."""

    orientations: Float[Array, "14"]
    """xx and xz of every body's frame."""
    height: Float[Array, ""]
    upright: Float[Array, ""]
    """zz of the torso's frame."""
    speed: Float[Array, ""]
    """Horizontal velocity of the centre of mass (sensor ``torso_subtreelinvel``)."""


def make(task: str) -> Task:
    """``stand``, ``walk`` or ``run``."""
    physics = dm_control.load("walker", _CONTROL_TIMESTEP)
    torso = physics.model.body("torso").id
    move_speed = _MOVE_SPEED[task]

    def begin(key: Key) -> tuple[Float[Array, "9"], Float[Array, "9"], None]:
        """Random joints, the root where the model has it (``initialize_episode``)."""
        qpos = dm_control.random_joints(physics, key)
        return qpos, jnp.zeros_like(qpos), None

    def measure(qpos: Float[Array, "9"], qvel: Float[Array, "9"], episode: None) -> Measured:
        data = dm_control.kinematics(physics, qpos)
        return Measured(
            orientations=jnp.ravel(data.xmat[1:, 0, 0::2]),
            height=data.xpos[torso, 2],
            upright=data.xmat[torso, 2, 2],
            speed=dm_control.subtree_velocity(physics, data, qvel, torso)[0],
        )

    def observe(state: dm_control.State) -> Float[Array, "24"]:
        """Orientations, height, velocities (``get_observation``)."""
        seen = state.measured
        return jnp.concatenate([seen.orientations, seen.height[None], state.qvel])

    def reward(state: dm_control.State) -> Float[Array, ""]:
        """Stand, and move unless told to stand (``get_reward``)."""
        seen = state.measured
        standing = tolerance(
            seen.height, bounds=(_STAND_HEIGHT, math.inf), margin=_STAND_HEIGHT / 2
        )
        stand = (3 * standing + (1 + seen.upright) / 2) / 4
        if not move_speed:
            return stand
        move = tolerance(
            seen.speed,
            bounds=(move_speed, math.inf),
            margin=move_speed / 2,
            value_at_margin=0.5,
            sigmoid="linear",
        )
        return stand * (5 * move + 1) / 6

    domain = dm_control.Domain(
        physics=physics,
        begin=begin,
        measure=measure,
        observe=observe,
        observation_size=24,
        episode_steps=1000,
    )
    return dm_control.make_task(f"walker-{task}", domain, reward)
