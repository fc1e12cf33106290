"""Contacts and constraint forces against MuJoCo's C code, geom by geom, row by row."""

import os

os.environ.setdefault("MUJOCO_GL", "disable")

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pomcp_jax.envs.mjx import collision, solver
from pomcp_jax.envs.mjx import engine as mjx_engine
from pomcp_jax.envs.physics import Motion, quiet_mjx, relaxed

PAIRS = {
    "sphere_sphere": ("sphere", "sphere"),
    "sphere_capsule": ("sphere", "capsule"),
    "capsule_capsule": ("capsule", "capsule"),
    "plane_sphere": ("plane", "sphere"),
    "plane_capsule": ("plane", "capsule"),
}


def two_geoms(kinds):
    """A model of two free geoms (a plane stays) that always touch: margins of ten metres."""
    size = {"plane": "5 5 1", "sphere": "0.2 0 0", "capsule": "0.1 0.3 0"}
    bodies = ""
    for kind in kinds:
        geom = f'<geom type="{kind}" size="{size[kind]}" margin="10"/>'
        bodies += geom if kind == "plane" else f"<body><freejoint/>{geom}</body>"
    return mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{bodies}</worldbody></mujoco>")


@pytest.mark.parametrize("name", PAIRS)
@hypothesis.given(seed=st.integers(0, 2**32 - 1), upright=st.booleans())
def test_contacts_are_those_of_c(name, seed, upright):
    model = two_geoms(PAIRS[name])
    data = mujoco.MjData(model)
    generator = np.random.default_rng(seed)
    data.qpos[:] = 0.5 * generator.normal(size=model.nq)
    if upright:  # a nearly vertical capsule: its axis still defines the tangents
        data.qpos[-4:] = [1, 0.1 * generator.normal(), 0, 0]
    mujoco.mj_forward(model, data)
    with jax.enable_x64(True):
        one, two = (
            collision.Geom(*(jnp.asarray(np.array(x)) for x in (pos, mat.reshape(3, 3), size)))
            for pos, mat, size in zip(data.geom_xpos, data.geom_xmat, model.geom_size, strict=True)
        )
        with relaxed():
            dist, pos, frame = getattr(collision, name)(one, two)
    assert data.ncon == len(dist)
    for i in range(data.ncon):
        theirs = data.contact[i]
        np.testing.assert_allclose(dist[i], theirs.dist, atol=1e-12)
        np.testing.assert_allclose(pos[i], theirs.pos, atol=1e-9)
        np.testing.assert_allclose(np.ravel(frame[i]), theirs.frame, atol=1e-7)


SCENE = """
<mujoco>
  <option timestep="0.005" cone="{cone}" tolerance="1e-14" iterations="200"/>
  <worldbody>
    <geom type="plane" size="5 5 1" condim="{condim}" friction="0.7 0.02 0.001"/>
    <body pos="0 0 0.12"><freejoint/>
      <geom type="capsule" size="0.1 0.2" euler="80 10 0" condim="{condim}"
        friction="0.7 0.02 0.001"/>
      <body pos="0.1 0 0.2"><joint name="a" type="hinge" axis="0 1 0" range="-20 20"
        limited="true" frictionloss="0.5"/>
        <geom type="sphere" size="0.05"/>
        <body pos="0.1 0 0"><joint name="b" type="slide" axis="1 0 0" frictionloss="0.3"/>
          <geom type="sphere" size="0.04"/></body>
      </body>
    </body>
  </worldbody>
  <equality><joint joint1="a" joint2="b" polycoef="0 1 0 0 0"/></equality>
</mujoco>
"""


# MJX has no frictionless contacts among elliptic ones.
@pytest.mark.parametrize(
    "cone,condim",
    [("pyramidal", 1), ("pyramidal", 3), ("pyramidal", 4), ("elliptic", 3), ("elliptic", 4)],
)
def test_constrained_acceleration_is_that_of_c(cone, condim):
    """Equality, friction loss, limit and contact rows at once, from rest to sliding."""
    mjx = quiet_mjx()
    model = mujoco.MjModel.from_xml_string(SCENE.format(cone=cone, condim=condim))
    with jax.enable_x64(True), relaxed():
        device, blank = mjx.put_model(model, impl="jax"), mjx.make_data(model, impl="jax")
        step = mjx_engine._Model(device, blank, None, {})

        @jax.jit
        def accelerate(qpos, qvel):
            motion = Motion(qpos, qvel, jnp.zeros(0), jnp.zeros_like(qvel))
            data = mjx_engine._accelerate(step, motion, jnp.zeros(0))
            return data.qacc, data._impl.efc_force

        for seed in range(6):
            data = mujoco.MjData(model)
            generator = np.random.default_rng(seed)
            data.qvel[:] = generator.normal(size=model.nv) * (0.0, 0.01, 3.0)[seed % 3]
            data.qpos[7] = 0.6 * generator.uniform(-1, 1)
            mujoco.mj_forward(model, data)
            assert data.ncon >= 1
            qacc, force = accelerate(jnp.asarray(data.qpos), jnp.asarray(data.qvel))
            scale = np.abs(data.qacc).max()
            np.testing.assert_allclose(qacc, data.qacc, atol=1e-7 * scale)
            total = data.efc_force.sum()
            np.testing.assert_allclose(
                np.sum(force), total, atol=1e-6 * np.abs(data.efc_force).max()
            )


def test_solver_stands_still_at_the_minimum():
    """The gradient of the objective vanishes at the solution, for every kind of row."""
    generator = np.random.default_rng(0)
    rows, size = 12, 5
    root = generator.normal(size=(size, size))
    with jax.enable_x64(True):
        problem = solver.Problem(
            inertia=jnp.asarray(root @ root.T + np.eye(size)),
            qacc_smooth=jnp.asarray(generator.normal(size=size)),
            jacobian=jnp.asarray(generator.normal(size=(rows, size))),
            aref=jnp.asarray(generator.normal(size=rows)),
            weight=jnp.asarray(generator.uniform(0.5, 50, size=rows)),
            equalities=1,
            frictions=2,
            loss=jnp.full(rows, 0.3),
            cones=(
                solver.Cones(
                    np.array([[6, 7, 8], [9, 10, 11]]), jnp.asarray([[0.5, 0.5, 0.5]] * 2)
                ),
            ),
        )
        # An elliptic contact's rows are scaled so that its cone is the friction cone.
        weight = problem.weight.at[jnp.array([7, 8])].set(problem.weight[6])
        problem = problem._replace(weight=weight.at[jnp.array([10, 11])].set(weight[9]))
        with relaxed():
            found = jax.jit(lambda start: solver.solve(problem, start))(jnp.zeros(size))
            gradient = jax.grad(lambda a: solver.cost(problem, a))(found)
        assert np.abs(gradient).max() < 1e-7
        away = jnp.asarray(generator.normal(size=(20, size)))
        with relaxed():
            costs = jax.vmap(lambda d: solver.cost(problem, found + 0.01 * d))(away)
        assert (costs > solver.cost(problem, found)).all()
