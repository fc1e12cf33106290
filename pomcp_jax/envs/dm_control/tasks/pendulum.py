"""Pendulum with limited torque: swing-up, and TD-MPC2's spin.

Source of every constant: ``dm_control/suite/pendulum.py``; of ``spin``,
[TD-MPC2] ``tdmpc2/envs/tasks/pendulum.py``.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pomcp_jax.envs.dm_control import suite
from pomcp_jax.envs.dm_control.rewards import tolerance
from pomcp_jax.envs.physics import View
from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key

_COSINE_BOUND = math.cos(math.radians(8))
_SPIN_SPEED = 9.0


def _begin(key: Key) -> suite.Start:
    """Uniform angle, at rest (``SwingUp.initialize_episode``)."""
    return suite.Start(jax.random.uniform(key, (1,), minval=-jnp.pi, maxval=jnp.pi))


def _look(view: View, episode: None) -> suite.Seen:
    """Cosine and sine of the pole (xmat zz and xz), velocity (``get_observation``)."""
    # From the joint, not from the body's frame, so that XLA drops the unused kinematics.
    cosine = jnp.cos(view.qpos)
    obs = jnp.concatenate([cosine, jnp.sin(view.qpos), view.qvel])
    return suite.Seen(obs, (cosine[0], view.qvel[0]))


def _swingup(facts: tuple, ctrl: Float[Array, "1"]) -> Float[Array, ""]:
    """One within eight degrees of upright (``SwingUp.get_reward``)."""
    return tolerance(facts[0], (_COSINE_BOUND, 1))


def _spin(facts: tuple, ctrl: Float[Array, "1"]) -> Float[Array, ""]:
    """Speed in either direction (``Spin.get_reward``)."""
    return tolerance(
        jnp.abs(facts[1]),
        bounds=(_SPIN_SPEED, math.inf),
        margin=_SPIN_SPEED / 2,
        value_at_margin=0.5,
        sigmoid="linear",
    )


def make(task: str, backend: str = "mjx") -> Task:
    """``swingup`` or ``spin``."""
    domain = suite.Domain(suite.load("pendulum", backend), _begin, _look)
    return suite.make_task(f"pendulum-{task}", domain, {"swingup": _swingup, "spin": _spin}[task])
