"""Planar walker: stand, walk, run, and TD-MPC2's variations.

Source of every constant: ``dm_control/suite/walker.py``; of the variations,
[TD-MPC2] ``tdmpc2/envs/tasks/walker.py``.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from pomcp_jax.envs.dm_control import suite
from pomcp_jax.envs.dm_control.rewards import tolerance
from pomcp_jax.envs.physics import View, random_joints
from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key

_CONTROL_TIMESTEP = 0.025
_STAND_HEIGHT = 1.2
_MOVE_SPEED = {"stand": 0.0, "walk": 1.0, "run": 8.0, "walk_backwards": 1.0, "run_backwards": 8.0}
_SPEED = "torso_subtreelinvel"


class Facts(NamedTuple):
    """Quantities that rewards depend on."""

    height: Float[Array, ""]
    upright: Float[Array, ""]
    """zz of the torso's frame."""
    speed: Float[Array, ""]
    """Horizontal velocity of the centre of mass."""


def make(task: str, backend: str = "mjx") -> Task:
    """One of stand, walk, run, walk_backwards, run_backwards."""
    physics = suite.load("walker", backend, _CONTROL_TIMESTEP, sensors=(_SPEED,))
    torso = physics.model.body("torso").id
    direction = -1 if task.endswith("_backwards") else 1
    move_speed = _MOVE_SPEED[task]

    def begin(key: Key) -> suite.Start:
        """Random joints, with the root at its default position (``initialize_episode``)."""
        return suite.Start(random_joints(physics.model, key))

    def look(view: View, episode: None) -> suite.Seen:
        """Orientations (xx and xz of every body), height, velocities (``get_observation``)."""
        # Body 0 is the world; the walker is planar, so xx and xz determine its orientations.
        data = view.data
        height = data.xpos[torso, 2]
        frames = jnp.ravel(data.xmat[1:, 0, 0::2])
        facts = Facts(height, data.xmat[torso, 2, 2], view.sensors[_SPEED][0])
        return suite.Seen(jnp.concatenate([frames, height[None], view.qvel]), facts)

    def reward(seen: Facts, ctrl: Float[Array, "6"]) -> Float[Array, ""]:
        """Stand, and move unless the task is to stand (``get_reward``)."""
        standing = tolerance(
            seen.height, bounds=(_STAND_HEIGHT, math.inf), margin=_STAND_HEIGHT / 2
        )
        stand = (3 * standing + (1 + seen.upright) / 2) / 4
        if not move_speed:
            return stand
        move = tolerance(
            direction * seen.speed,
            bounds=(move_speed, math.inf),
            margin=move_speed / 2,
            value_at_margin=0.5,
            sigmoid="linear",
        )
        return stand * (5 * move + 1) / 6

    domain = suite.Domain(physics, begin, look)
    return suite.make_task(f"walker-{task}", domain, reward)
