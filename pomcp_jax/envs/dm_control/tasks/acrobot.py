"""Acrobot: swing a two-link pendulum up by its elbow, dense and sparse.

Source of every constant: ``dm_control/suite/acrobot.py``.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pomcp_jax.envs.dm_control import suite
from pomcp_jax.envs.dm_control.rewards import tolerance
from pomcp_jax.envs.physics import View
from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key


def _begin(key: Key) -> suite.Start:
    """Two uniform angles, at rest (``Balance.initialize_episode``)."""
    return suite.Start(jax.random.uniform(key, (2,), minval=-jnp.pi, maxval=jnp.pi))


def make(task: str, backend: str = "mjx") -> Task:
    """``swingup`` or ``swingup_sparse``."""
    # The XML disables contacts; without them MJX compiles no constraint rows.
    physics = suite.load("acrobot", backend, no_contacts=True)
    model = physics.model
    arms = jnp.asarray([model.body("upper_arm").id, model.body("lower_arm").id])
    tip, target = model.site("tip").id, model.site("target").id
    radius = float(model.site_size[target, 0])
    margin = 0 if task == "swingup_sparse" else 1

    def look(view: View, episode: None) -> suite.Seen:
        """Horizontal and vertical components of both arms, velocities (``get_observation``)."""
        frames = view.data.xmat[arms]
        obs = jnp.concatenate([frames[:, 0, 2], frames[:, 2, 2], view.qvel])
        return suite.Seen(obs, view.data.site_xpos[target] - view.data.site_xpos[tip])

    def reward(to_target: Float[Array, "3"], ctrl: Float[Array, "1"]) -> Float[Array, ""]:
        """Nearness of the tip to the target (``Balance._get_reward``)."""
        return tolerance(jnp.linalg.norm(to_target), (0, radius), margin)

    domain = suite.Domain(physics, _begin, look)
    return suite.make_task(f"acrobot-{task}", domain, reward)
