"""Half cheetah: run, and TD-MPC2's variations of it.

Source of every constant: ``dm_control/suite/cheetah.py``; of the variations,
[TD-MPC2] ``tdmpc2/envs/tasks/cheetah.py``.
"""

import math
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

_RUN_SPEED = 10
_SETTLE_STEPS = 200
_JUMP_HEIGHT = 1.2
_STAND_SPEED = 0.5
_SPEED = "torso_subtreelinvel"


class Facts(NamedTuple):
    """Quantities that rewards depend on."""

    speed: Float[Array, ""]
    """Horizontal velocity of the centre of mass."""
    torso: Float[Array, ""]
    """Height, like the next two, of the front and the back foot."""
    front: Float[Array, ""]
    back: Float[Array, ""]


def _faster(speed: Float[Array, ""], goal: float) -> Float[Array, ""]:
    """One at ``goal``, decreasing linearly to zero at rest."""
    return tolerance(speed, (goal, math.inf), goal, value_at_margin=0, sigmoid="linear")


def _high(height: Float[Array, ""]) -> Float[Array, ""]:
    return tolerance(height, (_JUMP_HEIGHT, math.inf), _JUMP_HEIGHT / 2)


def _stand(seen: Facts, foot: Float[Array, ""]) -> Float[Array, ""]:
    """Stand with this foot raised (``CustomCheetah._stand_one_foot_reward``)."""
    bounds = (-_STAND_SPEED, _STAND_SPEED)
    slow = tolerance(seen.speed, bounds, _STAND_SPEED, value_at_margin=0, sigmoid="linear")
    return (5 * _high((seen.torso + foot) / 2) + slow) / 6


def _run_on_one(seen: Facts, foot: Float[Array, ""]) -> Float[Array, ""]:
    """Run with this foot raised (``CustomCheetah._run_one_foot_reward``)."""
    up = (3 * _high(foot) + 2 * _high(seen.torso)) / 5
    return up * (5 * _faster(seen.speed, 0.6 * _RUN_SPEED) + 1) / 6


# TD-MPC2 names the foot that carries the body, so the other one is the raised foot.
_REWARDS = {
    "run": lambda seen: _faster(seen.speed, _RUN_SPEED),
    "run_backwards": lambda seen: _faster(-seen.speed, 0.8 * _RUN_SPEED),
    "stand_front": lambda seen: _stand(seen, seen.back),
    "stand_back": lambda seen: _stand(seen, seen.front),
    "jump": lambda seen: (_stand(seen, seen.back) + _stand(seen, seen.front)) / 2,
    "run_front": lambda seen: _run_on_one(seen, seen.back),
    "run_back": lambda seen: _run_on_one(seen, seen.front),
}


def make(task: str, backend: str = "mjx") -> Task:
    """``run``, or one of TD-MPC2's tasks (keys of ``_REWARDS``)."""
    physics = suite.load("cheetah", backend, sensors=(_SPEED,))
    model, engine = physics.model, physics.engine
    limited = np.asarray(model.jnt_limited, bool)
    first_velocity = suite.velocity_after_one_step(model)
    low, high = np.asarray(model.jnt_range, np.float32).T
    bodies = [model.body(name).id for name in ("torso", "ffoot", "bfoot")]

    def begin(key: Key) -> suite.Start:
        """Random limited joints, then 200 steps without control (``initialize_episode``).

        dm_control sets the joints after computing forces at the model's default pose, so the first
        of those steps has that pose's acceleration: a constant.
        """
        drawn = jax.random.uniform(key, (model.nq,), minval=low, maxval=high)
        qvel = jnp.asarray(first_velocity, drawn.dtype)
        default = jnp.asarray(model.qpos0, drawn.dtype)
        qpos = jnp.where(limited, drawn, default) + float(model.opt.timestep) * qvel
        motion, _ = engine.start(qpos, qvel, jnp.zeros((0,), drawn.dtype))
        ctrl = jnp.zeros((model.nu,), drawn.dtype)
        # One step fewer: the line above is the first one.
        motion, _ = engine.advance(motion, ctrl, _SETTLE_STEPS - 1)
        return suite.Start(motion.qpos, motion.qvel)

    def look(view: View, episode: None) -> suite.Seen:
        """Positions except the horizontal one, velocities (``get_observation``)."""
        obs = jnp.concatenate([view.qpos[1:], view.qvel])
        heights = (view.data.xpos[body, 2] for body in bodies)
        return suite.Seen(obs, Facts(view.sensors[_SPEED][0], *heights))

    domain = suite.Domain(physics, begin, look)
    return suite.make_task(f"cheetah-{task}", domain, lambda seen, ctrl: _REWARDS[task](seen))
