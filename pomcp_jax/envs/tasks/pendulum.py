"""Pendulum swing-up with limited torque.

Source of every constant: ``dm_control/suite/pendulum.py``.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pomcp_jax.envs import dm_control
from pomcp_jax.envs.protocol import Task
from pomcp_jax.envs.rewards import tolerance
from pomcp_jax.types import Key

_COSINE_BOUND = math.cos(math.radians(8))


def _begin(key: Key) -> tuple[Float[Array, "1"], Float[Array, "1"], None]:
    """Any angle, at rest (``SwingUp.initialize_episode``)."""
    return jax.random.uniform(key, (1,), minval=-jnp.pi, maxval=jnp.pi), jnp.zeros((1,)), None


def _observe(state: dm_control.State) -> Float[Array, "3"]:
    """Cosine and sine of the pole (xmat zz and xz), velocity (``get_observation``)."""
    return jnp.concatenate([jnp.cos(state.qpos), jnp.sin(state.qpos), state.qvel])


def _reward(state: dm_control.State) -> Float[Array, ""]:
    """One within eight degrees of upright (``SwingUp.get_reward``)."""
    return tolerance(jnp.cos(state.qpos[0]), (_COSINE_BOUND, 1))


def make(task: str) -> Task:
    """``swingup``."""
    domain = dm_control.Domain(
        physics=dm_control.load("pendulum"),
        begin=_begin,
        measure=lambda qpos, qvel, episode: None,
        observe=_observe,
        observation_size=3,
        episode_steps=1000,
    )
    return dm_control.make_task(f"pendulum-{task}", domain, _reward)
