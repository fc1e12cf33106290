"""Kinematics, tree passes and boxes on planes against MuJoCo's C code."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pomcp_jax.envs.dm_control import models
from pomcp_jax.envs.mjx import collision, tree
from pomcp_jax.envs.mjx.kinematics import kinematics
from pomcp_jax.envs.physics import quiet_mjx, relaxed

FRAMES = ("xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis", "geom_xpos", "geom_xmat")
MOTIONS = ("site_xpos", "site_xmat", "subtree_com", "cdof", "cvel", "cdof_dot", "qfrc_bias")

ALL_JOINTS = """
<mujoco><option gravity="1 2 -9"/><worldbody>
 <body pos="0 0 1" euler="10 20 30"><freejoint/><geom type="box" size=".1 .2 .3" pos=".1 0 0"/>
  <body pos=".3 0 0" euler="0 40 0"><joint type="ball" pos=".05 .02 0"/>
   <geom type="capsule" size=".05 .2" euler="30 0 0"/><site pos="0 .1 0" euler="0 0 50"/>
   <body pos="0 .3 0"><joint axis="1 1 0" pos="0 .1 0"/><joint type="slide" axis="0 1 1"/>
    <joint axis="0 0 1" ref="20"/><geom size=".1"/></body>
   <body pos="0 -.3 0" euler="70 0 0"><geom size=".08" pos="0 0 .1"/></body></body></body>
 <body pos="1 0 0"><joint axis="0 1 0" pos="0 0 .2"/><geom size=".1 .2" type="capsule"/></body>
</worldbody></mujoco>
"""
"""Every kind of joint, offsets of all kinds, a body without joints, two trees."""


def _edited(name: str):
    if name == "all joints":
        return mujoco.MjModel.from_xml_string(ALL_JOINTS)
    return models.compile_for_mjx(*models.read(name), no_contacts=True)


@pytest.mark.parametrize("name", ["all joints", "quadruped"])
def test_passes_are_mujocos(name):
    model, rng = _edited(name), np.random.default_rng(0)
    there = mujoco.MjData(model)
    there.qpos[:] = model.qpos0 + rng.normal(size=model.nq)
    there.qvel[:] = rng.normal(size=model.nv)
    mujoco.mj_forward(model, there)
    mjx = quiet_mjx()
    with jax.enable_x64(True), relaxed():
        device, blank = mjx.put_model(model, impl="jax"), mjx.make_data(model, impl="jax")

        @jax.jit
        def passes(qpos, qvel):
            data = tree.com_pos(device, kinematics(device, blank.replace(qpos=qpos, qvel=qvel)))
            return tree.rne(device, tree.com_vel(device, data))

        here = passes(jnp.asarray(there.qpos), jnp.asarray(there.qvel))
    for field in (*FRAMES, *MOTIONS):
        found, wanted = np.ravel(getattr(here, field)), np.ravel(getattr(there, field))
        np.testing.assert_allclose(found, wanted, atol=1e-11, err_msg=field)
    np.testing.assert_allclose(np.asarray(here._impl.cinert), there.cinert, atol=1e-11)


def test_boxes_meet_planes_as_in_c():
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><geom type="plane" size="1 1 1"/><body><freejoint/>'
        '<geom type="box" size=".1 .2 .3"/></body></worldbody></mujoco>'
    )
    there, rng = mujoco.MjData(model), np.random.default_rng(0)
    meet = jax.jit(collision.plane_box)
    touched = 0
    for _ in range(50):
        turn = rng.normal(size=4)
        there.qpos[:] = [*rng.normal(size=2), rng.uniform(0.0, 0.3), *turn / np.linalg.norm(turn)]
        mujoco.mj_forward(model, there)
        plane, box = (
            collision.Geom(
                *(
                    jnp.asarray(x, jnp.float32)
                    for x in (
                        there.geom_xpos[i],
                        there.geom_xmat[i].reshape(3, 3),
                        model.geom_size[i],
                    )
                )
            )
            for i in range(2)
        )
        dist, pos, frame = (np.asarray(x) for x in meet(plane, box))
        below = dist < 0
        assert below.sum() == there.ncon
        touched += there.ncon
        np.testing.assert_allclose(dist[below], there.contact.dist, atol=1e-5)
        np.testing.assert_allclose(pos[below], there.contact.pos, atol=1e-5)
        np.testing.assert_allclose(
            frame[below].reshape(-1, 9), there.contact.frame.reshape(-1, 9), atol=1e-6
        )
    assert touched > 50
