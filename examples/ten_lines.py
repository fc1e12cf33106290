"""Model-predictive control of your own model in ten lines: a cart drives to the origin.

python examples/ten_lines.py
"""

import jax
import jax.numpy as jnp

from pomcp_jax import ModelFns, MppiConfig, mppi


def step(params, x, action):
    """Next state ``[position, speed]``, reward and discount; actions are in [-1, 1]."""
    x = x + 0.1 * jnp.stack([x[1], action[0]])
    return x, -jnp.sum(x**2), jnp.ones(())


model = ModelFns(step=step, value=lambda params, key, x: -10.0 * jnp.sum(x**2))
config = MppiConfig(horizon=15, num_samples=256, num_elites=32)
plan = jax.jit(lambda key, x, warm: mppi.plan(None, key, x, warm, model=model, config=config))
x, warm = jnp.array([1.0, 0.0]), mppi.init(config, action_size=1)
for key in jax.random.split(jax.random.key(0), 40):
    out = plan(key, x, warm)
    x, warm = step(None, x, out.action)[0], out.next_state
print(f"after 4 s: position {x[0]:.3f}, speed {x[1]:.3f}")
