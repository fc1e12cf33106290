"""Cart-pole: balance and swing-up, dense and sparse.

Source of every constant: ``dm_control/suite/cartpole.py``.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pomcp_jax.envs import dm_control
from pomcp_jax.envs.protocol import Task
from pomcp_jax.envs.rewards import tolerance
from pomcp_jax.types import Key


def _begin_balance(key: Key) -> tuple[Float[Array, "2"], Float[Array, "2"], None]:
    """Near upright (``Balance.initialize_episode``)."""
    key_cart, key_pole, key_velocity = jax.random.split(key, 3)
    cart = jax.random.uniform(key_cart, (), minval=-0.1, maxval=0.1)
    pole = jax.random.uniform(key_pole, (), minval=-0.034, maxval=0.034)
    return jnp.stack([cart, pole]), 0.01 * jax.random.normal(key_velocity, (2,)), None


def _begin_swingup(key: Key) -> tuple[Float[Array, "2"], Float[Array, "2"], None]:
    """Hanging down (``Balance.initialize_episode``)."""
    key_position, key_velocity = jax.random.split(key)
    hanging = jnp.asarray([0.0, jnp.pi])
    qpos = hanging + 0.01 * jax.random.normal(key_position, (2,))
    return qpos, 0.01 * jax.random.normal(key_velocity, (2,)), None


def _observe(state: dm_control.State) -> Float[Array, "5"]:
    """Cart position, cosine and sine of the pole, velocities (``get_observation``).

    The pole turns about the y axis, so the entries zz and xz of its frame are
    the cosine and the sine of its joint.
    """
    cart, pole = state.qpos
    return jnp.stack([cart, jnp.cos(pole), jnp.sin(pole), *state.qvel])


def _dense(state: dm_control.State) -> Float[Array, ""]:
    """``Balance._get_reward`` with ``sparse=False``."""
    upright = (jnp.cos(state.qpos[1]) + 1) / 2
    centred = (1 + tolerance(state.qpos[0], margin=2)) / 2
    small_control = tolerance(state.ctrl[0], margin=1, value_at_margin=0, sigmoid="quadratic")
    small_velocity = (1 + tolerance(state.qvel[1], margin=5)) / 2
    return upright * ((4 + small_control) / 5) * small_velocity * centred


def _sparse(state: dm_control.State) -> Float[Array, ""]:
    """``Balance._get_reward`` with ``sparse=True``."""
    centred = tolerance(state.qpos[0], (-0.25, 0.25))
    return centred * tolerance(jnp.cos(state.qpos[1]), (0.995, 1))


def make(task: str) -> Task:
    """One of balance, balance_sparse, swingup, swingup_sparse."""
    kind, _, sparse = task.partition("_")
    domain = dm_control.Domain(
        physics=dm_control.load("cartpole"),
        begin={"balance": _begin_balance, "swingup": _begin_swingup}[kind],
        measure=lambda qpos, qvel, episode: None,
        observe=_observe,
        observation_size=5,
        episode_steps=1000,
    )
    return dm_control.make_task(f"cartpole-{task}", domain, _sparse if sparse else _dense)
