"""Reacher: a two-link arm and a random target, easy and hard.

Source of every constant: ``dm_control/suite/reacher.py`` (and its XML, read from the model).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pomcp_jax.envs import dm_control
from pomcp_jax.envs.protocol import Task
from pomcp_jax.envs.rewards import tolerance
from pomcp_jax.types import Key

_TARGET_SIZE = {"easy": 0.05, "hard": 0.015}


class Target(NamedTuple):
    """What dm_control writes into the model at each reset; it collides with nothing."""

    position: Float[Array, "2"]


def make(task: str) -> Task:
    """``easy`` or ``hard``."""
    physics = dm_control.load("reacher")
    finger = physics.model.geom("finger").id
    radii = _TARGET_SIZE[task] + float(physics.model.geom_size[finger, 0])

    def begin(key: Key) -> tuple[Float[Array, "2"], Float[Array, "2"], Target]:
        """Random joints and target (``Reacher.initialize_episode``)."""
        key_joints, key_angle, key_radius = jax.random.split(key, 3)
        qpos = dm_control.random_joints(physics, key_joints)
        angle = jax.random.uniform(key_angle, (), minval=0, maxval=2 * jnp.pi)
        radius = jax.random.uniform(key_radius, (), minval=0.05, maxval=0.20)
        position = radius * jnp.stack([jnp.sin(angle), jnp.cos(angle)])
        return qpos, jnp.zeros_like(qpos), Target(position)

    def measure(
        qpos: Float[Array, "2"], qvel: Float[Array, "2"], target: Target
    ) -> Float[Array, "2"]:
        """From finger to target (``Physics.finger_to_target``)."""
        data = dm_control.kinematics(physics, qpos)
        return target.position - data.geom_xpos[finger, :2]

    def observe(state: dm_control.State) -> Float[Array, "6"]:
        """Joints, vector to the target, velocities (``get_observation``)."""
        return jnp.concatenate([state.qpos, state.measured, state.qvel])

    def reward(state: dm_control.State) -> Float[Array, ""]:
        """One while the finger touches the target (``get_reward``)."""
        return tolerance(jnp.linalg.norm(state.measured), (0, radii))

    domain = dm_control.Domain(
        physics=physics,
        begin=begin,
        measure=measure,
        observe=observe,
        observation_size=6,
        episode_steps=1000,
    )
    return dm_control.make_task(f"reacher-{task}", domain, reward)
