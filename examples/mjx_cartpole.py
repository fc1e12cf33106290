"""Swing a pole up by MPC in MuJoCo itself: the planner's state is an ``mjx.Data``.

    python examples/mjx_cartpole.py [--steps 100] [--samples 128]

Nothing is learned: the model of the planner is the simulator (true-model MPC), and any MuJoCo model
that MJX can step may take the place of this one.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

from pomcp_jax import ModelFns, MppiConfig, mppi

XML = """
<mujoco>
  <option timestep="0.02" iterations="1" ls_iterations="4">
    <flag contact="disable" eulerdamp="disable"/>
  </option>
  <worldbody>
    <body>
      <joint name="cart" type="slide" axis="1 0 0" damping="0.05"/>
      <geom type="box" size="0.2 0.1 0.1" mass="1"/>
      <body>
        <joint name="pole" type="hinge" axis="0 1 0" damping="0.001"/>
        <geom type="capsule" fromto="0 0 0 0 0 0.6" size="0.04" mass="0.1"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="cart"/></actuator>
</mujoco>
"""
SUBSTEPS = 2
"""Physics steps of a decision: 0.04 s."""


def make_model(model: mjx.Model) -> ModelFns:
    """The planner's callables; the latent is the simulator's whole state."""

    def reward(data: mjx.Data) -> jax.Array:
        return jnp.cos(data.qpos[1]) - 0.1 * data.qpos[0] ** 2 - 0.01 * data.qvel[1] ** 2

    def step(params, data, force):
        data = data.replace(ctrl=force)
        data = jax.lax.fori_loop(0, SUBSTEPS, lambda _, data: mjx.step(model, data), data)
        return data, reward(data), jnp.ones(())

    return ModelFns(step, lambda params, key, data: 5.0 * reward(data))


def main():
    """Print the pole's height while it is swung up from below."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="decisions of 0.04 s")
    parser.add_argument("--samples", type=int, default=128, help="candidates of an iteration")
    args = parser.parse_args()
    compiled = mujoco.MjModel.from_xml_string(XML)
    model = make_model(mjx.put_model(compiled))
    # Forces between -12 and 12 N, searched at 6 knots of 25 steps.
    config = MppiConfig(
        horizon=25, num_samples=args.samples, num_elites=16, iterations=3, knots=6, low=-12.0,
        high=12.0, std_max=0.6, temperature=2.0, temperature_scale="std",
    )  # fmt: skip

    @jax.jit
    def decide(key, data, warm):
        out = mppi.plan(None, key, data, warm, model=model, config=config)
        return model.step(None, data, out.action)[0], out.next_state, out.action

    start = mujoco.MjData(compiled)
    start.qpos[1] = jnp.pi
    data, warm = mjx.put_data(compiled, start), mppi.init(config, 1)
    begin = time.perf_counter()
    for i, key in enumerate(jax.random.split(jax.random.key(0), args.steps)):
        data, warm, force = decide(key, data, warm)
        if i == 0:
            force.block_until_ready()
            print(f"compiled in {time.perf_counter() - begin:.0f} s")
        if i % 10 == 0 or i + 1 == args.steps:
            height = float(jnp.cos(data.qpos[1]))
            print(f"{0.04 * (i + 1):5.2f} s   height {height:6.2f}   force {force[0]:6.2f} N")


if __name__ == "__main__":
    main()
