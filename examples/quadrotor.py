"""A planar quadrotor flies around an obstacle by MPC in its true model, smoothly or not.

    python examples/quadrotor.py [--steps 120] [--seeds 5] [--samples 256]

State ``[x, z, angle, dx, dz, spin]`` in metres and radians; inputs are the thrusts of both rotors,
in newtons, each with its own bounds. Constraints, two ways: touching the obstacle or the ground
ends the flight (discount 0, and a penalty), tilting by more than 60 degrees costs. The table shows
the settings of :class:`pomcp_jax.MppiConfig` that make actions smooth: return, mean change of the
action between decisions in percent of the range of thrust, and crashes.
"""

import argparse
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from pomcp_jax import ModelFns, MppiConfig, mppi

MASS, ARM, INERTIA, GRAVITY, DT = 0.6, 0.2, 0.012, 9.81, 0.04
LOW, HIGH = jnp.array([0.5, 0.5]), jnp.array([6.0, 6.0])
START, GOAL = jnp.array([-2.0, 1.0, 0.0, 0.0, 0.0, 0.0]), jnp.array([2.0, 1.5])
OBSTACLE, RADIUS = jnp.array([0.0, 1.2]), 0.6


def step(params, state, thrust):
    """Next state, reward and discount of one time step."""
    left, right = thrust
    angle = state[2]
    push = (left + right) / MASS
    force = jnp.stack([-push * jnp.sin(angle), push * jnp.cos(angle) - GRAVITY])
    force = force - 0.1 * state[3:5]
    speed = state[3:] + DT * jnp.append(force, (right - left) * ARM / INERTIA)
    state = jnp.concatenate([state[:3] + DT * speed, speed])
    reward = 1.0 - jnp.tanh(0.5 * jnp.linalg.norm(state[:2] - GOAL)) - 0.02 * speed[2] ** 2
    reward = reward - 5.0 * jnp.maximum(jnp.abs(state[2]) - jnp.pi / 3, 0.0)
    crashed = (jnp.linalg.norm(state[:2] - OBSTACLE) < RADIUS) | (state[1] < 0.0)
    return state, jnp.where(crashed, -10.0, reward), jnp.where(crashed, 0.0, 1.0)


def value(params, key, state):
    """Worth of a plan's last state: it would stay there, near the goal or far."""
    return 10.0 * (1.0 - jnp.tanh(0.5 * jnp.linalg.norm(state[:2] + 0.5 * state[3:5] - GOAL)))


MODEL = ModelFns(step, value)
BASE = MppiConfig(
    horizon=25, num_samples=256, num_elites=32, iterations=3, low=LOW, high=HIGH, std_max=0.5,
    std_min=0.05, temperature=2.0, temperature_scale="std",
)  # fmt: skip
SETTINGS = {
    "independent noise": {},
    "correlated noise": {"noise_correlation": 0.9},
    "knots": {"knots": 6},
    "cubic knots": {"knots": 6, "interpolation": "cubic"},
    "cost of changes": {"action_rate_cost": 1.0},
    "correlated noise and cost": {"noise_correlation": 0.9, "action_rate_cost": 1.0},
    "cubic knots and cost": {"knots": 6, "interpolation": "cubic", "action_rate_cost": 1.0},
}


@functools.partial(jax.jit, static_argnames="steps")
def fly(keys, config, steps):
    """Flights of several seeds: thrusts ``[S, T, 2]``, rewards ``[S, T]``, crashed ``[S]``."""

    def decide(carry, key):
        state, warm, alive = carry
        out = mppi.plan(None, key, state, warm, model=MODEL, config=config)
        state, reward, discount = step(None, state, out.action)
        carry = state, out.next_state, alive * discount
        return carry, (out.action, alive * reward)

    def flight(key):
        start = START, mppi.init(config, 2), jnp.ones(())
        (_, _, alive), trace = jax.lax.scan(decide, start, jax.random.split(key, steps))
        return *trace, alive == 0.0

    return jax.vmap(flight)(keys)


def table(steps, seeds, samples):
    """A row for every setting: name, mean return, mean change of the action, crashes."""
    rows = []
    for name, changes in SETTINGS.items():
        config = dataclasses.replace(BASE, num_samples=samples, **changes)
        thrust, reward, crashed = fly(jax.random.split(jax.random.key(0), seeds), config, steps)
        moved = np.abs(np.diff(thrust, axis=1)) / (HIGH - LOW)
        rows.append((name, np.sum(reward, axis=1), np.mean(moved, axis=(1, 2)), np.sum(crashed)))
    return rows


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120, help="decisions of a flight")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=256, help="candidates of an iteration")
    args = parser.parse_args()
    print("| setting | return | change of action, % of range | crashes |")
    print("|---|---|---|---|")
    for name, total, moved, crashed in table(args.steps, args.seeds, args.samples):
        change = f"{100 * moved.mean():.2f} ± {100 * moved.std():.2f}"
        print(f"| {name} | {total.mean():.1f} ± {total.std():.1f} | {change} | {crashed} |")


if __name__ == "__main__":
    main()
