"""Reacher: a two-link arm and a random target, easy and hard.

Source of every constant: ``dm_control/suite/reacher.py`` (and its XML, read from the model).
"""

import copy

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pomcp_jax.envs.dm_control import suite
from pomcp_jax.envs.dm_control.rewards import tolerance
from pomcp_jax.envs.physics import View, random_joints
from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key

_TARGET_SIZE = {"easy": 0.05, "hard": 0.015}


def make(task: str, backend: str = "mjx") -> Task:
    """``easy`` or ``hard``."""
    physics = suite.load("reacher", backend)
    finger, target = (physics.model.geom(name).id for name in ("finger", "target"))
    radii = _TARGET_SIZE[task] + float(physics.model.geom_size[finger, 0])

    def begin(key: Key) -> suite.Start:
        """Random joints and target (``initialize_episode``)."""
        # dm_control moves the target's geom in the model. Contacts are disabled, so a position in
        # the episode's state does the same and keeps the model constant.
        key_joints, key_angle, key_radius = jax.random.split(key, 3)
        angle = jax.random.uniform(key_angle, (), minval=0, maxval=2 * jnp.pi)
        radius = jax.random.uniform(key_radius, (), minval=0.05, maxval=0.20)
        place = radius * jnp.stack([jnp.sin(angle), jnp.cos(angle)])
        return suite.Start(random_joints(physics.model, key_joints), episode=place)

    def look(view: View, place: Float[Array, "2"]) -> suite.Seen:
        """Joints, vector to the target, velocities (``get_observation``)."""
        to_target = place - view.data.geom_xpos[finger, :2]
        return suite.Seen(jnp.concatenate([view.qpos, to_target, view.qvel]), to_target)

    def reward(to_target: Float[Array, "2"], ctrl: Float[Array, "2"]) -> Float[Array, ""]:
        """One while the finger touches the target (``get_reward``)."""
        return tolerance(jnp.linalg.norm(to_target), (0, radii))

    drawn = copy.copy(physics.model)
    drawn.geom_size[target, 0] = _TARGET_SIZE[task]

    def place(at: Float[Array, "2"]) -> dict[str, Array]:
        return {"geom_pos": suite.moved(drawn.geom_pos, (target, slice(0, 2)), at)}

    domain = suite.Domain(physics, begin, look, marks=suite.Marks(drawn, place))
    return suite.make_task(f"reacher-{task}", domain, reward)
