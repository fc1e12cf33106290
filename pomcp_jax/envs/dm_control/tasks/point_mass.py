"""Point mass: move to the centre, easy.

Source of every constant: ``dm_control/suite/point_mass.py``. The hard task is missing: it
redraws the model's tendons in every episode, and models are constants of the program here.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pomcp_jax.envs.dm_control import suite
from pomcp_jax.envs.dm_control.rewards import tolerance
from pomcp_jax.envs.physics import View, random_joints
from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key


def make(task: str, backend: str = "mjx") -> Task:
    """``easy``."""
    physics = suite.load("point_mass", backend)
    model = physics.model
    target, mass = model.geom("target").id, model.geom("pointmass").id
    size = float(model.geom_size[target, 0])

    def begin(key: Key) -> suite.Start:
        """Uniform position (``PointMass.initialize_episode``)."""
        return suite.Start(random_joints(model, key))

    def look(view: View, episode: None) -> suite.Seen:
        """Position and velocity (``get_observation``)."""
        to_target = view.data.geom_xpos[target] - view.data.geom_xpos[mass]
        return suite.Seen(jnp.concatenate([view.qpos, view.qvel]), to_target)

    def reward(to_target: Float[Array, "3"], ctrl: Float[Array, "2"]) -> Float[Array, ""]:
        """Near the target with little control (``get_reward``)."""
        near = tolerance(jnp.linalg.norm(to_target), (0, size), margin=size)
        effort = tolerance(ctrl, margin=1, value_at_margin=0, sigmoid="quadratic")
        return near * (jnp.mean(effort) + 4) / 5

    domain = suite.Domain(physics, begin, look)
    return suite.make_task(f"point_mass-{task}", domain, reward)
