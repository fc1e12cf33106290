"""Humanoids, the simplified one and CMU's: stand, walk, run.

Source of every constant: ``dm_control/suite/humanoid.py`` and ``humanoid_CMU.py``.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pomcp_jax.envs.dm_control import suite
from pomcp_jax.envs.dm_control.rewards import tolerance
from pomcp_jax.envs.physics import View, random_joints, until_apart
from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key

_STAND_HEIGHT = 1.4
_MOVE_SPEED = {"stand": 0.0, "walk": 1.0, "run": 10.0}


class Body(NamedTuple):
    """Differences between the two humanoids."""

    domain: str
    control_timestep: float
    trunk: str
    up: int
    """Index of the trunk's axis that points up."""
    limbs: tuple[str, ...]
    max_contacts: dict[int, int]
    """Contacts of each condim that MJX solves for."""


_LIMBS = ("left_hand", "left_foot", "right_hand", "right_foot")
# Without a limit the solver has rows for every candidate pair of CMU's model, and its cost grows
# with them; 40 contacts changed nothing (docs/environments.md).
SIMPLE = Body("humanoid", 0.025, "torso", 2, _LIMBS, {})
CMU = Body("humanoid_CMU", 0.02, "thorax", 1, ("lhand", "lfoot", "rhand", "rfoot"), {3: 40})


class Facts(NamedTuple):
    """Quantities that rewards depend on."""

    head: Float[Array, ""]
    """Height."""
    upright: Float[Array, ""]
    velocity: Float[Array, "3"]
    """Velocity of the centre of mass."""


def make(task: str, backend: str = "mjx", body: Body = SIMPLE) -> Task:
    """One of stand, walk, run."""
    speed = f"{body.trunk}_subtreelinvel"
    physics = suite.load(
        body.domain,
        backend,
        body.control_timestep,
        sensors=(speed,),
        max_contacts=body.max_contacts,
    )
    model = physics.model
    trunk, head = model.body(body.trunk).id, model.body("head").id
    limbs = np.array([model.body(name).id for name in body.limbs])
    move_speed = _MOVE_SPEED[task]

    def begin(key: Key) -> suite.Start:
        """Random joints and orientation without contacts (``initialize_episode``)."""
        draw = lambda key: random_joints(model, key)  # noqa: E731
        return suite.Start(until_apart(physics.engine, key, draw))

    def look(view: View, episode: None) -> suite.Seen:
        """Joints, head height, limbs and vertical in the trunk's frame, velocities.

        Source: ``get_observation``.
        """
        data, frame = view.data, view.data.xmat[trunk]
        # v @ frame is frame' v: into the trunk's coordinates.
        height, velocity = data.xpos[head, 2], view.sensors[speed]
        extremities = (data.xpos[limbs] - data.xpos[trunk][None]) @ frame
        parts = (view.qpos[7:], height[None], extremities.ravel(), frame[2], velocity, view.qvel)
        return suite.Seen(jnp.concatenate(parts), Facts(height, frame[2, body.up], velocity))

    def reward(seen: Facts, ctrl: Float[Array, " U"]) -> Float[Array, ""]:
        """Stand upright with little control, and move or stand still (``get_reward``)."""
        standing = tolerance(seen.head, (_STAND_HEIGHT, math.inf), _STAND_HEIGHT / 4)
        upright = tolerance(
            seen.upright, (0.9, math.inf), margin=1.9, value_at_margin=0, sigmoid="linear"
        )
        effort = tolerance(ctrl, margin=1, value_at_margin=0, sigmoid="quadratic")
        stand = standing * upright * (4 + jnp.mean(effort)) / 5
        if not move_speed:
            return stand * jnp.mean(tolerance(seen.velocity[:2], margin=2))
        move = tolerance(
            jnp.linalg.norm(seen.velocity[:2]),
            bounds=(move_speed, math.inf),
            margin=move_speed,
            value_at_margin=0,
            sigmoid="linear",
        )
        return stand * (5 * move + 1) / 6

    domain = suite.Domain(physics, begin, look)
    return suite.make_task(f"{body.domain}-{task}", domain, reward)
