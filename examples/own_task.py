"""A task of your own in pure JAX, trained through the command line.

    python examples/own_task.py                             # random actions, for comparison
    python -m experiments.run --config=experiments/configs/quickstart.py:examples.own_task:make_task

A craft falls onto the ground and has to arrive slowly, with little fuel. It shows what tasks often
need: a state with several fields, a reward that sees the action, and an early end.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pomcp_jax import Task, make_env

SECONDS = 0.1
"""Duration of a control step."""


class State(NamedTuple):
    """The craft above the ground."""

    height: jax.Array
    speed: jax.Array
    """Positive upwards."""


def reset(key: jax.Array) -> State:
    """Somewhere high up, falling."""
    height, speed = jax.random.split(key)
    return State(
        jax.random.uniform(height, minval=3.0, maxval=5.0),
        jax.random.uniform(speed, minval=-1.0, maxval=0.0),
    )


def step(state: State, action: jax.Array) -> State:
    """One control step; the action in [-1, 1] is the engine's thrust, none to twice the weight."""
    speed = state.speed + SECONDS * 2.0 * action[0]
    return State(state.height + SECONDS * speed, speed)


def observe(state: State) -> jax.Array:
    """Both numbers, of about the size of one."""
    return jnp.stack([state.height / 5.0, state.speed / 3.0])


def reward(state: State, action: jax.Array, next_state: State) -> jax.Array:
    """A little for every step of descent, less fuel, and the bonus of a soft landing."""
    descent = jnp.clip(state.height - next_state.height, 0.0, 0.3)
    fuel = 0.02 * (1.0 + action[0])
    landing = jnp.where(next_state.height <= 0.0, 10.0 - 5.0 * jnp.abs(next_state.speed), 0.0)
    return descent - fuel + landing


def terminated(state: State) -> jax.Array:
    """On the ground."""
    return state.height <= 0.0


def make_task() -> Task:
    """The task as data; its name appears in error messages."""
    return Task("lander", reset, step, observe, reward, terminated, 2, 1, episode_steps=200)


def main() -> None:
    """Play with random actions."""
    env = make_env(make_task())
    state, _ = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 64))
    shape = (env.episode_length, 64, env.action_size)
    actions = jax.random.uniform(jax.random.key(1), shape, minval=-1.0, maxval=1.0)
    _, steps = jax.jit(lambda s, a: jax.lax.scan(env.step, s, a))(state, actions)
    ended = steps.terminated | steps.truncated
    average = jnp.sum(jnp.where(ended, steps.episode_return, 0.0)) / jnp.sum(ended)
    print(f"mean return of random actions: {average:.1f} in {int(ended.sum())} episodes")


if __name__ == "__main__":
    main()
