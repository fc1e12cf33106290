"""Planar hopper: stand, hop, and TD-MPC2's backward hop.

Source of every constant: ``dm_control/suite/hopper.py``; of ``hop_backwards``,
[TD-MPC2] ``tdmpc2/envs/tasks/hopper.py``.
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

_CONTROL_TIMESTEP = 0.02
_STAND_HEIGHT = 0.6
_HOP_SPEED = {"hop": 2.0, "hop_backwards": 1.0}
_SPEED, _TOUCH = "torso_subtreelinvel", ("touch_toe", "touch_heel")


class Facts(NamedTuple):
    """Quantities that rewards depend on."""

    height: Float[Array, ""]
    """Height of the torso above the foot."""
    speed: Float[Array, ""]
    """Horizontal velocity of the centre of mass."""


def make(task: str, backend: str = "mjx") -> Task:
    """One of stand, hop, hop_backwards."""
    physics = suite.load("hopper", backend, _CONTROL_TIMESTEP, sensors=(_SPEED, *_TOUCH))
    torso, foot = physics.model.body("torso").id, physics.model.body("foot").id
    direction = -1 if task == "hop_backwards" else 1

    def begin(key: Key) -> suite.Start:
        """Random joints, with the root at its default position (``initialize_episode``)."""
        return suite.Start(random_joints(physics.model, key))

    def look(view: View, episode: None) -> suite.Seen:
        """Positions except the horizontal one, velocities, touch (``get_observation``)."""
        # dm_control's height is between the bodies' centres of mass, not between their origins.
        height = view.data.xipos[torso, 2] - view.data.xipos[foot, 2]
        touch = jnp.log1p(jnp.concatenate([view.sensors[name] for name in _TOUCH]))
        obs = jnp.concatenate([view.qpos[1:], view.qvel, touch])
        return suite.Seen(obs, Facts(height, view.sensors[_SPEED][0]))

    def reward(seen: Facts, ctrl: Float[Array, "4"]) -> Float[Array, ""]:
        """Upright, and fast or with little control (``Hopper.get_reward``)."""
        standing = tolerance(seen.height, (_STAND_HEIGHT, 2))
        if task == "stand":
            small = tolerance(ctrl, margin=1, value_at_margin=0, sigmoid="quadratic")
            return standing * (jnp.mean(small) + 4) / 5
        goal = _HOP_SPEED[task]
        return standing * tolerance(
            direction * seen.speed,
            bounds=(goal, math.inf),
            margin=goal / 2,
            value_at_margin=0.5,
            sigmoid="linear",
        )

    domain = suite.Domain(physics, begin, look)
    return suite.make_task(f"hopper-{task}", domain, reward)
