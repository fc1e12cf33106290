"""A pole on a cart, beside a box on the ground; its episode ends when it falls."""

import jax
import jax.numpy as jnp

from pomcp_jax.envs import mujoco_rules
from pomcp_jax.envs.physics import Start

XML = """<mujoco><option timestep=".005"/><worldbody>
<geom name="floor" type="plane" size="9 9 1"/>
<body pos="0 0 .1"><joint name="cart" type="slide" axis="1 0 0" damping=".5"/>
 <geom type="box" size=".1 .1 .05" mass="1"/>
 <body><joint name="pole" axis="0 1 0"/><geom type="capsule" fromto="0 0 .1 0 0 .6" size=".03"/>
  <site name="tip" pos="0 0 .6"/></body></body>
<body pos=".3 0 .1"><freejoint/><geom type="box" size=".05 .05 .05"/></body></worldbody>
<actuator><motor joint="cart" gear="20" ctrlrange="-.5 1"/>
 <motor joint="pole" gear=".1"/></actuator>
<sensor><framepos name="tip" objtype="site" objname="tip"/>
 <contact name="box" geom1="floor" data="found" num="1"/></sensor></mujoco>"""
SENSORS = ("box", "tip")


def reset(key):
    angle = jax.random.uniform(key, (), minval=-0.05, maxval=0.05)
    qpos = jnp.zeros(9).at[1].set(angle).at[2].set(0.3).at[4].set(0.1).at[5].set(1.0)
    return Start(qpos, episode={"steps": jnp.zeros((), jnp.int32)})


RULES = mujoco_rules.Rules(
    reset=reset,
    observe=lambda body: jnp.concatenate([body.qpos, body.qvel, body.sensors["tip"]]),
    reward=lambda body: body.sensors["tip"][2] - 0.01 * jnp.sum(jnp.square(body.action)),
    terminated=lambda body: jnp.abs(body.qpos[1]) > 0.3,
    follow=lambda body: {"steps": body.episode["steps"] + 1},
)


def task(episode_steps=25):
    return mujoco_rules.make(
        "falling",
        XML,
        RULES,
        sensors=SENSORS,
        control_timestep=0.02,
        episode_steps=episode_steps,
    )
