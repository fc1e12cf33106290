"""Finger: spin a free body, or turn it to a target angle, easy and hard.

Source of every constant: ``dm_control/suite/finger.py``.
"""

import copy
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pomcp_jax.envs.dm_control import suite
from pomcp_jax.envs.physics import View, random_joints, until_apart
from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key

_CONTROL_TIMESTEP = 0.02
_TARGET_SIZE = {"turn_easy": 0.07, "turn_hard": 0.03}
_SPIN_VELOCITY = 15.0
_SPIN_DAMPING = 0.03
_TOUCH = ("touchtop", "touchbottom")


class Facts(NamedTuple):
    """Quantities that rewards depend on."""

    hinge_velocity: Float[Array, ""]
    distance: Float[Array, ""]
    """Distance from the tip to the target's surface; negative inside."""


def _spin_easily(model: Any) -> None:
    """``Spin.initialize_episode`` lowers the damping of the hinge."""
    model.dof_damping[model.joint("hinge").dofadr[0]] = _SPIN_DAMPING


def make(task: str, backend: str = "mjx") -> Task:
    """One of spin, turn_easy, turn_hard."""
    is_turn = task in _TARGET_SIZE
    physics = suite.load(
        "finger",
        backend,
        _CONTROL_TIMESTEP,
        sensors=_TOUCH,
        adjust=None if is_turn else _spin_easily,
    )
    model = physics.model
    tip, spinner = model.site("tip").id, model.body("spinner").id
    hinge = model.joint("hinge").dofadr[0]
    # The hinge is at the origin of its body, which has a fixed position in the world.
    centre = model.body_pos[spinner][[0, 2]]
    reach = float(model.geom_size[model.geom("cap1").id].sum())

    def begin(key: Key) -> suite.Start:
        """Random joints without contacts, and a target (``initialize_episode``)."""
        key_joints, key_target = jax.random.split(key)
        angle = jax.random.uniform(key_target, (), minval=-jnp.pi, maxval=jnp.pi)
        # Relative to the hinge (``Physics.target_position``).
        target = reach * jnp.stack([jnp.sin(angle), jnp.cos(angle)])
        draw = lambda key: random_joints(model, key)  # noqa: E731
        return suite.Start(until_apart(physics.engine, key_joints, draw), episode=target)

    def look(view: View, target: Float[Array, "2"]) -> suite.Seen:
        """Joints, tip, velocities, touch; to turn, also the target (``get_observation``)."""
        place = view.data.site_xpos[tip, 0::2] - jnp.asarray(centre, view.qpos.dtype)
        touch = jnp.log1p(jnp.concatenate([view.sensors[name] for name in _TOUCH]))
        distance = jnp.linalg.norm(target - place) - _TARGET_SIZE.get(task, 0.0)
        parts = [view.qpos[:2], place, view.qvel, touch]
        if is_turn:
            parts += [target, distance[None]]
        return suite.Seen(jnp.concatenate(parts), Facts(view.qvel[hinge], distance))

    def reward(seen: Facts, ctrl: Float[Array, "2"]) -> Float[Array, ""]:
        """Fast enough (``Spin.get_reward``), or at the target (``Turn.get_reward``)."""
        good = seen.distance <= 0 if is_turn else seen.hinge_velocity <= -_SPIN_VELOCITY
        return good.astype(seen.distance.dtype)

    domain = suite.Domain(physics, begin, look, marks=_marks(task, model, centre))
    return suite.make_task(f"finger-{task}", domain, reward)


def _marks(task: str, model: Any, centre: np.ndarray) -> suite.Marks:
    """The target, which ``Turn`` moves and ``Spin`` hides; ``centre`` is x and z of the hinge."""
    drawn = copy.copy(model)
    target = model.site("target").id
    if task not in _TARGET_SIZE:
        drawn.site_rgba[[target, model.site("tip").id], 3] = 0.0
        return suite.Marks(drawn, lambda episode: {})
    drawn.site_size[target, 0] = _TARGET_SIZE[task]

    def place(offset: Float[Array, "2"]) -> dict[str, Array]:
        at = jnp.asarray(centre, offset.dtype) + offset
        return {"site_pos": suite.moved(drawn.site_pos, (target, slice(0, 3, 2)), at)}

    return suite.Marks(drawn, place)
