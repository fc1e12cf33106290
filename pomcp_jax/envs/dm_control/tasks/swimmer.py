"""Swimmer with 6 or 15 links.

Source of every constant: ``dm_control/suite/swimmer.py``.
"""

from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pomcp_jax.envs.dm_control import models, suite
from pomcp_jax.envs.dm_control.rewards import tolerance
from pomcp_jax.envs.physics import View, random_joints
from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key

_CONTROL_TIMESTEP = 0.03
_LINKS = {"swimmer6": 6, "swimmer15": 15}


def _chain(links: int) -> models.Edit:
    """``_make_model``: attach ``links - 1`` segments behind the head, each with a motor."""

    def edit(root: ElementTree.Element) -> None:
        parent = models.find(root, "body", "head")
        # swimmer.xml has the head only, and dm_control adds segments in the same way.
        actuator = ElementTree.SubElement(root, "actuator")
        sensor = ElementTree.SubElement(root, "sensor")
        limit = 360.0 / links
        for i in range(links - 1):
            body = ElementTree.SubElement(parent, "body", name=f"segment_{i}", pos="0 .1 0")
            for kind in ("visual", "inertial"):
                ElementTree.SubElement(body, "geom", {"class": kind, "name": f"{kind}_{i}"})
            ElementTree.SubElement(body, "site", name=f"site_{i}")
            joint = {"name": f"joint_{i}", "range": f"{-limit} {limit}"}
            ElementTree.SubElement(body, "joint", joint)
            ElementTree.SubElement(actuator, "motor", name=f"motor_{i}", joint=f"joint_{i}")
            for kind in ("velocimeter", "gyro"):
                ElementTree.SubElement(sensor, kind, name=f"{kind}_{i}", site=f"site_{i}")
            parent = body

    return edit


def make(task: str, backend: str = "mjx") -> Task:
    """``swimmer6`` or ``swimmer15``."""
    links = _LINKS[task]
    names = [("head_vel", "head_gyro")]
    names += [(f"velocimeter_{i}", f"gyro_{i}") for i in range(links - 1)]
    physics = suite.load(
        "swimmer",
        backend,
        _CONTROL_TIMESTEP,
        sensors=tuple(np.ravel(names).tolist()),
        edit=_chain(links),
        no_contacts=True,
    )
    model = physics.model
    head, nose = model.body("head").id, model.geom("nose").id
    target = model.geom("target").id
    size, height = float(model.geom_size[target, 0]), float(model.geom_pos[target, 2])

    def begin(key: Key) -> suite.Start:
        """Random joints; a target near by in a fifth of all episodes."""
        key_joints, key_close, key_target = jax.random.split(key, 3)
        reach = jnp.where(jax.random.uniform(key_close) < 0.2, 0.3, 2.0)
        place = reach * jax.random.uniform(key_target, (2,), minval=-1.0)
        return suite.Start(random_joints(model, key_joints), episode=place)

    def look(view: View, place: Float[Array, "2"]) -> suite.Seen:
        """Joints, the target in the head's frame, velocities of all links."""
        # Episodes draw x and y of the target; its height is the model's.
        there = jnp.concatenate([place, jnp.full((1,), height, place.dtype)])
        to_target = ((there - view.data.geom_xpos[nose]) @ view.data.xmat[head])[:2]
        # Of each link's six velocities the planar ones: x, y and the rotation about z.
        speeds = [jnp.stack([*view.sensors[v][:2], view.sensors[g][2]]) for v, g in names]
        obs = jnp.concatenate([view.qpos[3:], to_target, *speeds])
        return suite.Seen(obs, to_target)

    def reward(to_target: Float[Array, "2"], ctrl: Float[Array, " U"]) -> Float[Array, ""]:
        """Nearness of the nose to the target (``get_reward``)."""
        distance = jnp.linalg.norm(to_target)
        return tolerance(distance, (0, size), margin=5 * size, sigmoid="long_tail")

    light = model.light("target_light").id

    def mark(place: Float[Array, "2"]) -> dict[str, Array]:
        return {
            "geom_pos": suite.moved(model.geom_pos, (target, slice(0, 2)), place),
            "light_pos": suite.moved(model.light_pos, (light, slice(0, 2)), place),
        }

    domain = suite.Domain(physics, begin, look, marks=suite.Marks(model, mark))
    return suite.make_task(f"swimmer-{task}", domain, reward)
