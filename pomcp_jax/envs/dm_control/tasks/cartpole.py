"""Cart-pole: balance and swing-up, dense and sparse.

Source of every constant: ``dm_control/suite/cartpole.py``.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pomcp_jax.envs.dm_control import suite
from pomcp_jax.envs.dm_control.rewards import tolerance
from pomcp_jax.envs.physics import View
from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key


def _begin_balance(key: Key) -> suite.Start:
    """Near upright (``Balance.initialize_episode``)."""
    key_cart, key_pole, key_velocity = jax.random.split(key, 3)
    cart = jax.random.uniform(key_cart, (), minval=-0.1, maxval=0.1)
    pole = jax.random.uniform(key_pole, (), minval=-0.034, maxval=0.034)
    velocity = 0.01 * jax.random.normal(key_velocity, (2,))
    return suite.Start(jnp.stack([cart, pole]), velocity)


def _begin_swingup(key: Key) -> suite.Start:
    """Hanging down (``Balance.initialize_episode``)."""
    key_position, key_velocity = jax.random.split(key)
    hanging = jnp.asarray([0.0, jnp.pi])
    qpos = hanging + 0.01 * jax.random.normal(key_position, (2,))
    return suite.Start(qpos, 0.01 * jax.random.normal(key_velocity, (2,)))


def _look(view: View, episode: None) -> suite.Seen:
    """Cart position, cosine and sine of the pole, velocities (``get_observation``).

    The pole rotates about the y axis, so the entries zz and xz of its frame, which dm_control
    observes, are the cosine and the sine of its joint.
    """
    cart, pole = view.qpos
    obs = jnp.stack([cart, jnp.cos(pole), jnp.sin(pole), *view.qvel])
    return suite.Seen(obs, (cart, jnp.cos(pole), view.qvel[1]))


def _dense(facts: tuple, ctrl: Float[Array, "1"]) -> Float[Array, ""]:
    """``Balance._get_reward`` with ``sparse=False``."""
    cart, cosine, speed = facts
    upright = (cosine + 1) / 2
    centred = (1 + tolerance(cart, margin=2)) / 2
    small_control = tolerance(ctrl[0], margin=1, value_at_margin=0, sigmoid="quadratic")
    small_velocity = (1 + tolerance(speed, margin=5)) / 2
    return upright * ((4 + small_control) / 5) * small_velocity * centred


def _sparse(facts: tuple, ctrl: Float[Array, "1"]) -> Float[Array, ""]:
    """``Balance._get_reward`` with ``sparse=True``."""
    cart, cosine, _ = facts
    return tolerance(cart, (-0.25, 0.25)) * tolerance(cosine, (0.995, 1))


def make(task: str, backend: str = "mjx") -> Task:
    """One of balance, balance_sparse, swingup, swingup_sparse."""
    kind, _, sparse = task.partition("_")
    begin = {"balance": _begin_balance, "swingup": _begin_swingup}[kind]
    domain = suite.Domain(suite.load("cartpole", backend), begin, _look)
    return suite.make_task(f"cartpole-{task}", domain, _sparse if sparse else _dense)
