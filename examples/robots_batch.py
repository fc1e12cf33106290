"""A batch of robots, each with bounds and a temperature of its own, planned by one program.

    python examples/robots_batch.py [--robots 16] [--steps 20]

``jax.vmap`` of :func:`pomcp_jax.mppi.plan` over numbers of the configuration: other values never
compile again. Every robot is a mass that has to stop at the origin with its own strongest force.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from pomcp_jax import ModelFns, MppiConfig, mppi

CONFIG = MppiConfig(horizon=15, num_samples=128, num_elites=16, iterations=4)
TRACES = []
"""One entry for each time that Python runs through :func:`plan`."""


def step(params, x, force):
    """A mass on a line: ``[position, speed]``."""
    x = x + 0.1 * jnp.stack([x[1], force[0]])
    return x, -jnp.sum(x**2), jnp.ones(())


MODEL = ModelFns(step, lambda params, key, x: -10.0 * jnp.sum(x**2))


@jax.jit
@jax.vmap
def plan(key, x, warm, numbers):
    """A decision of every robot, and its next state."""
    TRACES.append(0)
    config = dataclasses.replace(CONFIG, **numbers)
    out = mppi.plan(None, key, x, warm, model=MODEL, config=config)
    return step(None, x, out.action)[0], out.next_state, out.action


def main():
    """Print the time of a decision of all robots, and that there was one trace."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--robots", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help="decisions")
    args = parser.parse_args()
    rng, num = np.random.default_rng(0), args.robots
    strongest = rng.uniform(0.5, 2.0, size=(num, 1)).astype(np.float32)
    numbers = {
        "low": -strongest, "high": strongest,
        "temperature": rng.uniform(0.5, 2.0, size=num).astype(np.float32),
    }  # fmt: skip
    x = jnp.asarray(rng.uniform(-1.0, 1.0, size=(num, 2)).astype(np.float32))
    warm = jax.tree.map(lambda a: jnp.stack([a] * num), mppi.init(CONFIG, 1))
    times = []
    for step_key in jax.random.split(jax.random.key(0), args.steps):
        begin = time.perf_counter()
        keys = jax.random.split(step_key, num)
        x, warm, force = jax.block_until_ready(plan(keys, x, warm, numbers))
        times.append(time.perf_counter() - begin)
        assert np.all(np.abs(force) <= strongest)
        # Motors get tired: other bounds, the same program.
        numbers["low"], numbers["high"] = 0.99 * numbers["low"], 0.99 * numbers["high"]
    milliseconds = 1e3 * np.median(times[1:])
    print(f"{num} robots: {milliseconds:.1f} ms a decision of all, {len(TRACES)} trace(s)")
    print(f"distance from the origin: {np.abs(x[:, 0]).mean():.3f} on average")


if __name__ == "__main__":
    main()
