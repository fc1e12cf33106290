"""A MuJoCo model of your own: a pendulum as inline XML, trained through the command line.

    python examples/own_xml.py                              # random actions, for comparison
    python -m experiments.run --config=experiments/configs/quickstart.py:examples.own_xml:make_task

The run's files name the task by where it is, so evaluate, render, plot and report find it from the
same folder. On a CPU, bodies with many contacts are faster with --config.env.backend=host.
"""

import jax
import jax.numpy as jnp

from pomcp_jax import envs

XML = """
<mujoco model="pendulum">
  <option timestep="0.01"/>
  <worldbody>
    <light pos="0 -1 3"/>
    <camera name="side" pos="0 -3 0" xyaxes="1 0 0 0 0 1"/>
    <body>
      <joint name="hinge" axis="0 1 0" damping="0.05"/>
      <geom type="capsule" fromto="0 0 0 0 0 0.5" size="0.03" mass="1"/>
      <site name="tip" pos="0 0 0.5"/>
    </body>
  </worldbody>
  <actuator><motor joint="hinge" ctrlrange="-1 1"/></actuator>
  <sensor><framepos name="tip" objtype="site" objname="tip"/></sensor>
</mujoco>
"""


def make_task(backend: str = "mjx") -> envs.Task:
    """Swing up and balance; the motor is too weak to lift the pendulum at once."""
    return envs.mujoco_task(
        XML,
        reset=lambda key: jax.random.uniform(key, (1,), minval=-jnp.pi, maxval=jnp.pi),
        observe=lambda body: jnp.concatenate([2 * body.sensors["tip"][::2], body.qvel / 5]),
        reward=lambda body: body.sensors["tip"][2] + 0.5,  # 1 upright, 0 hanging
        control_timestep=0.02,
        backend=backend,
    )


def main() -> None:
    """Play whole episodes with random actions."""
    env = envs.make_env(make_task(), action_repeat=4)
    state, _ = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 8))
    shape = (env.episode_length, 8, env.action_size)
    actions = jax.random.uniform(jax.random.key(1), shape, minval=-1.0, maxval=1.0)
    _, steps = jax.jit(lambda s, a: jax.lax.scan(env.step, s, a))(state, actions)
    print(f"mean return of random actions: {steps.episode_return[-1].mean():.0f} of 1000")


if __name__ == "__main__":
    main()
