"""A MuJoCo simulation as the planner's latent state: MPC with the true model."""

import os

os.environ.setdefault("MUJOCO_GL", "disable")

import time

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pomcp_jax import ModelFns, MppiConfig, mppi
from pomcp_jax.envs.physics import quiet_mjx, relaxed

XML = """<mujoco><option timestep="0.02"><flag contact="disable"/></option><worldbody><body>
<joint name="hinge" axis="0 1 0" damping="0.05"/>
<geom type="capsule" fromto="0 0 0 0 0 -.5" size=".03" mass="1"/></body></worldbody>
<actuator><motor joint="hinge" gear="4" ctrlrange="-1 1"/></actuator></mujoco>"""
REPEAT = 2


def test_a_plan_in_a_simulation_brings_a_pendulum_to_rest():
    mjx = quiet_mjx()
    with relaxed():
        device = mjx.put_model(mujoco.MjModel.from_xml_string(XML), impl="jax")
        start = mjx.make_data(device, impl="jax").replace(qpos=jnp.array([0.6]))

    def step(params, data, action):
        def once(data, _):
            with relaxed():
                return mjx.step(device, data.replace(ctrl=action)), None

        data = jax.lax.scan(once, data, length=REPEAT)[0]
        cost = jnp.sum(data.qpos**2) + 0.05 * jnp.sum(data.qvel**2)
        return data, -cost, jnp.ones(())

    def value(params, key, data):
        return -5.0 * jnp.sum(data.qpos**2) - 0.5 * jnp.sum(data.qvel**2)

    model = ModelFns(step=step, value=value)
    config = MppiConfig(horizon=4, num_samples=48, num_elites=8, iterations=3, num_proposals=0)

    def decide(carry, key):
        data, state = carry
        out = mppi.plan(None, key, data, state, model=model, config=config, explore=0.0)
        data, reward, _ = step(None, data, out.action)
        return (data, out.next_state), (data.qpos[0], reward)

    def run(data):
        keys = jax.random.split(jax.random.key(0), 25)
        return jax.lax.scan(decide, (data, mppi.init(config, 1)), keys)[1]

    begin = time.process_time()
    compiled = jax.jit(run).lower(start).compile()
    assert time.process_time() - begin < 60
    angles, rewards = jax.tree.map(np.asarray, compiled(start))
    assert np.abs(angles[-5:]).max() < 0.1 < np.abs(angles[0])
    assert np.isfinite(rewards).all()
