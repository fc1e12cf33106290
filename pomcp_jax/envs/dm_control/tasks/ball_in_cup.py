"""Ball in cup: catch a ball on a string, and TD-MPC2's spin.

Source of every constant: ``dm_control/suite/ball_in_cup.py``; of ``spin``,
[TD-MPC2] ``tdmpc2/envs/tasks/ball_in_cup.py``.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pomcp_jax.envs.dm_control import suite
from pomcp_jax.envs.dm_control.rewards import tolerance
from pomcp_jax.envs.physics import View, draw_until
from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key

_CONTROL_TIMESTEP = 0.02
_SPIN_DISTANCE = 0.5
_SPIN_SPEED = 6.0


class Facts(NamedTuple):
    """Quantities that rewards depend on."""

    to_target: Float[Array, "2"]
    """Vector from the ball to the centre of the cup."""
    inside: Float[Array, ""]
    speed: Float[Array, ""]


def _spin(seen: Facts) -> Float[Array, ""]:
    """Fast and far from the cup (``CustomBallInCup.get_reward``)."""

    def more(value: Float[Array, ""], goal: float) -> Float[Array, ""]:
        return tolerance(value, (goal, math.inf), goal / 2, value_at_margin=0.5, sigmoid="linear")

    distance = more(jnp.linalg.norm(seen.to_target), _SPIN_DISTANCE)
    return (1 - seen.inside) * (distance + 2 * more(seen.speed, _SPIN_SPEED)) / 3


def make(task: str, backend: str = "mjx") -> Task:
    """``catch`` or ``spin``."""
    physics = suite.load("ball_in_cup", backend, _CONTROL_TIMESTEP)
    model = physics.model
    target, ball = model.site("target").id, model.body("ball").id
    room = model.site_size[target][[0, 2]] - model.geom_size[model.geom("ball").id, 0]
    at = np.array([model.joint("ball_x").qposadr[0], model.joint("ball_z").qposadr[0]])

    cup = model.body_pos[model.body("cup").id] + model.site_pos[target]
    cup_to_ball = (model.body_pos[ball] - cup)[[0, 2]]

    def draw(key: Key) -> Float[Array, "4"]:
        low, high = jnp.asarray([-0.2, 0.2]), jnp.asarray([0.2, 0.5])
        place = jax.random.uniform(key, (2,), minval=low, maxval=high)
        return jnp.asarray(model.qpos0, place.dtype).at[at].set(place)

    def begin(key: Key) -> suite.Start:
        """A random position of the ball without contact (``initialize_episode``).

        TD-MPC2's spin starts inside the cup in nine of ten episodes.
        """
        key_draw, key_outside = jax.random.split(key)
        anywhere = jax.random.uniform(key_outside) < 0.1 if task == "spin" else jnp.ones((), bool)

        # Both positions are offsets from fixed bodies, so this needs no kinematics for a draw.
        def good(qpos: Float[Array, "4"]) -> Bool[Array, ""]:
            offset = jnp.abs(jnp.asarray(cup_to_ball, qpos.dtype) + qpos[at])
            inside = jnp.all(offset < jnp.asarray(room, qpos.dtype))
            return ~physics.engine.touching(qpos) & (inside | anywhere)

        return suite.Start(draw_until(key_draw, draw, good))

    def look(view: View, episode: None) -> suite.Seen:
        """Positions and velocities (``get_observation``)."""
        data = view.data
        to_target = data.site_xpos[target, 0::2] - data.xpos[ball, 0::2]
        inside = jnp.all(jnp.abs(to_target) < jnp.asarray(room, to_target.dtype))
        speed = jnp.linalg.norm(view.qvel[at])
        facts = Facts(to_target, inside, speed)
        return suite.Seen(jnp.concatenate([view.qpos, view.qvel]), facts)

    def reward(seen: Facts, ctrl: Float[Array, "2"]) -> Float[Array, ""]:
        """One while the ball is in the cup (``BallInCup.get_reward``)."""
        return _spin(seen) if task == "spin" else seen.inside

    domain = suite.Domain(physics, begin, look)
    return suite.make_task(f"ball_in_cup-{task}", domain, reward)
