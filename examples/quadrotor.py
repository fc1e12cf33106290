"""A planar quadrotor flies around an obstacle by MPC in its true model, smoothly or not.

    python examples/quadrotor.py [--steps 120] [--seeds 5] [--samples 256] [--picture FILE]

State ``[x, z, angle, dx, dz, spin]`` in metres and radians; inputs are the thrusts of both rotors,
in newtons, each with its own bounds. Constraints, two ways: touching the obstacle or the ground
ends the flight (discount 0, and a penalty), tilting by more than 60 degrees costs. The table shows
the settings of :class:`pomcp_jax.MppiConfig` that make actions smooth: return, mean change of the
action between decisions in percent of the range of thrust (each with the standard deviation over
flights), and crashes.
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
    "cost of changes": {"action_rate_cost": 1.0},
    "knots": {"knots": 6, "interpolation": "cubic"},
    "knots and cost": {"knots": 6, "interpolation": "cubic", "action_rate_cost": 1.0},
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


def changes_of(thrust):
    """Mean change of the action between decisions of each flight, in percent of its range."""
    moved = np.abs(np.diff(thrust, axis=1)) / np.asarray(HIGH - LOW)
    return 100 * np.mean(moved, axis=(1, 2))


def draw(flights, path):
    """A panel of both thrusts over time for every setting, of the first seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(flights), sharex=True, figsize=(7, 1.3 * len(flights)))
    for panel, (name, (thrust, _, _)) in zip(panels, flights.items(), strict=True):
        times = DT * np.arange(thrust.shape[1])
        panel.step(times, thrust[0], where="post", linewidth=1.0)
        panel.set_ylim(LOW[0] - 0.3, HIGH[0] + 0.3)
        text = f"{name}: {changes_of(thrust).mean():.1f} % of the range per decision"
        panel.set_title(text, fontsize=9, loc="left")
    panels[len(panels) // 2].set_ylabel("thrust of both rotors, N")
    panels[-1].set_xlabel("time, s")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120, help="decisions of a flight")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=256, help="candidates of an iteration")
    parser.add_argument("--picture", help="file for a picture of the thrusts (needs matplotlib)")
    args = parser.parse_args()
    keys, flights = jax.random.split(jax.random.key(0), args.seeds), {}
    print("| setting | return | change of action, % of range | crashes |")
    print("|---|---|---|---|")
    for name, changes in SETTINGS.items():
        config = dataclasses.replace(BASE, num_samples=args.samples, **changes)
        flights[name] = thrust, reward, crashed = jax.device_get(fly(keys, config, args.steps))
        total, moved = reward.sum(axis=1), changes_of(thrust)
        columns = [name, *(f"{x.mean():.1f} ± {x.std():.1f}" for x in (total, moved))]
        print(f"| {' | '.join(columns)} | {crashed.sum()} |")
    if args.picture:
        draw(flights, args.picture)


if __name__ == "__main__":
    main()
