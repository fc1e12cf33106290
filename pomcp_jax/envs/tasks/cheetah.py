"""Half cheetah: run.

Source of every constant: ``dm_control/suite/cheetah.py``.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pomcp_jax.envs import dm_control
from pomcp_jax.envs.protocol import Task
from pomcp_jax.envs.rewards import tolerance
from pomcp_jax.types import Key

_RUN_SPEED = 10
_SETTLE_STEPS = 200


def make(task: str) -> Task:
    """``run``."""
    physics = dm_control.load("cheetah")
    model = physics.model
    torso = model.body("torso").id
    limited = np.asarray(model.jnt_limited, bool)
    first_velocity = dm_control.velocity_after_one_step(model)
    low, high = np.asarray(model.jnt_range, np.float32).T

    def begin(key: Key) -> tuple[Float[Array, "9"], Float[Array, "9"], None]:
        """Random limited joints, then 200 steps without control (``initialize_episode``).

        dm_control sets the joints after computing forces at the model's own
        pose, so the first of those steps accelerates as that pose does: a constant.
        """
        drawn = jax.random.uniform(key, (model.nq,), minval=low, maxval=high)
        qvel = jnp.asarray(first_velocity, drawn.dtype)
        rest = jnp.asarray(model.qpos0, drawn.dtype)
        qpos = jnp.where(limited, drawn, rest) + float(model.opt.timestep) * qvel
        ctrl = jnp.zeros((model.nu,), drawn.dtype)
        qpos, qvel, _ = dm_control.advance(
            physics, qpos, qvel, jnp.zeros_like(qvel), ctrl, _SETTLE_STEPS - 1
        )
        return qpos, qvel, None

    def measure(
        qpos: Float[Array, "9"], qvel: Float[Array, "9"], episode: None
    ) -> Float[Array, ""]:
        """Horizontal velocity of the centre of mass (sensor ``torso_subtreelinvel``)."""
        data = dm_control.kinematics(physics, qpos)
        return dm_control.subtree_velocity(physics, data, qvel, torso)[0]

    def observe(state: dm_control.State) -> Float[Array, "17"]:
        """Joints without the horizontal position, velocities (``get_observation``)."""
        return jnp.concatenate([state.qpos[1:], state.qvel])

    def reward(state: dm_control.State) -> Float[Array, ""]:
        """Speed, up to ten metres a second (``get_reward``)."""
        return tolerance(
            state.measured,
            bounds=(_RUN_SPEED, math.inf),
            margin=_RUN_SPEED,
            value_at_margin=0,
            sigmoid="linear",
        )

    domain = dm_control.Domain(
        physics=physics,
        begin=begin,
        measure=measure,
        observe=observe,
        observation_size=17,
        episode_steps=1000,
    )
    return dm_control.make_task(f"cheetah-{task}", domain, reward)
