"""Fish: swim to a target, or keep upright.

Source of every constant: ``dm_control/suite/fish.py`` (and its XML, read from the model).
"""

import copy
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pomcp_jax.envs.dm_control import suite
from pomcp_jax.envs.dm_control.rewards import tolerance
from pomcp_jax.envs.physics import View
from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key

_CONTROL_TIMESTEP = 0.04
_JOINTS = (
    "tail1",
    "tail_twist",
    "tail2",
    "finright_roll",
    "finright_pitch",
    "finleft_roll",
    "finleft_pitch",
)


class Facts(NamedTuple):
    """Quantities that rewards depend on."""

    upright: Float[Array, ""]
    """zz of the torso's frame."""
    to_target: Float[Array, "3"]
    """Vector from the mouth to the target, in the frame of the mouth."""


def make(task: str, backend: str = "mjx") -> Task:
    """``swim`` or ``upright``."""
    # The XML disables contacts; without them MJX compiles no constraint rows for them.
    physics = suite.load("fish", backend, _CONTROL_TIMESTEP, no_contacts=True)
    model = physics.model
    at = np.array([model.joint(name).qposadr[0] for name in _JOINTS])
    torso, mouth = model.body("torso").id, model.geom("mouth").id
    target = model.geom("target").id
    radii = float(model.geom_size[[mouth, target], 0].sum())

    def begin(key: Key) -> suite.Start:
        """Uniform orientation, bent joints, a target (``initialize_episode``)."""
        key_turn, key_joints, key_target = jax.random.split(key, 3)
        # A normalised Gaussian is uniform on the sphere of quaternions.
        quaternion = jax.random.normal(key_turn, (4,))
        bend = jax.random.uniform(key_joints, (len(at),), minval=-0.2, maxval=0.2)
        qpos = jnp.asarray(model.qpos0, bend.dtype)
        qpos = qpos.at[3:7].set(quaternion / jnp.linalg.norm(quaternion)).at[at].set(bend)
        low, high = jnp.asarray([-0.4, -0.4, 0.1]), jnp.asarray([0.4, 0.4, 0.3])
        place = jax.random.uniform(key_target, (3,), minval=low, maxval=high)
        return suite.Start(qpos, episode=place)

    def look(view: View, place: Float[Array, "3"]) -> suite.Seen:
        """Joints, uprightness, the target when swimming, velocities (``get_observation``)."""
        upright = view.data.xmat[torso, 2, 2]
        to_target = (place - view.data.geom_xpos[mouth]) @ view.data.geom_xmat[mouth]
        parts = [view.qpos[at], upright[None], view.qvel]
        if task == "swim":
            parts.insert(2, to_target)
        return suite.Seen(jnp.concatenate(parts), Facts(upright, to_target))

    def reward(seen: Facts, ctrl: Float[Array, "5"]) -> Float[Array, ""]:
        """Near the target and upright (``Swim.get_reward``, ``Upright.get_reward``)."""
        if task == "upright":
            return tolerance(seen.upright, bounds=(1, 1), margin=1)
        near = tolerance(jnp.linalg.norm(seen.to_target), (0, radii), margin=2 * radii)
        return (7 * near + 0.5 * (seen.upright + 1)) / 8

    drawn = copy.copy(model)
    if task == "upright":
        drawn.geom_rgba[target, 3] = 0.0

    def place(at: Float[Array, "3"]) -> dict[str, Array]:
        return {"geom_pos": suite.moved(drawn.geom_pos, (target, slice(0, 3)), at)}

    domain = suite.Domain(physics, begin, look, marks=suite.Marks(drawn, place))
    return suite.make_task(f"fish-{task}", domain, reward)
