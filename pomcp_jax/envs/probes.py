"""Tiny tasks with known optimal values, for testing agents.

Each isolates one thing that an agent has to get right. All values are for an
optimal policy and discount ``g``; "first" is the first state of an episode.

===========  =====================================================================
constant     reward 1, one step: the value of first is 1
observation  reward = observation (+1 or -1), one step: the value is the observation
delayed      reward 0, then 1, two steps: the value of first is g, of second 1
action       reward 1 - (a - 0.3)^2, one step: the best action is 0.3, the value 1
match        reward 1 - (a - o / 2)^2, one step, o = +1 or -1: best o / 2, value 1
truncated    reward 1 forever, truncated after 5 steps: the value is 1 / (1 - g) everywhere
lqr          a point mass with quadratic costs: see :func:`lqr_solution`
nan          reward 1 for |a| <= 0.5, else a broken state: value 1 / (1 - g)
===========  =====================================================================

An agent that takes truncation for termination learns at most 5 from ``truncated``; one that
bootstraps through a termination learns 1 / (1 - g) from ``constant``.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key, PyTree

BEST_ACTION = 0.3
"""The optimum of ``probe/action``."""
NAN_FROM = 0.5
"""``probe/nan`` breaks for actions beyond this: rewards above it, observations below -it."""

_LQR_STEP = 0.2
LQR_A = ((1.0, _LQR_STEP), (0.0, 1.0))
LQR_B = ((0.0,), (_LQR_STEP,))
LQR_Q = ((1.0, 0.0), (0.0, 0.1))
LQR_R = 0.5
LQR_START = 0.5
"""Largest initial distance; from there the optimal actions stay inside ``[-1, 1]``, so the
closed form without limits on actions applies."""


class State(NamedTuple):
    """Shared by all probes but ``lqr``."""

    sign: Float[Array, ""]
    """Drawn once per episode: +1 or -1."""
    action: Float[Array, ""]
    steps: Int[Array, ""]


# Explicit dtypes throughout: probes must not change with jax_enable_x64.
def _reset(key: Key) -> State:
    sign = jnp.where(jax.random.bernoulli(key), jnp.float32(1), jnp.float32(-1))
    return State(sign=sign, action=jnp.float32(0), steps=jnp.int32(0))


def _step(state: State, action: Float[Array, "1"]) -> State:
    return State(state.sign, action[0].astype(jnp.float32), state.steps + 1)


def _blank(state: State) -> Float[Array, "1"]:
    return jnp.zeros((1,), jnp.float32)


def _sign(state: State) -> Float[Array, "1"]:
    return state.sign[None]


def _count(state: State) -> Float[Array, "1"]:
    return state.steps.astype(jnp.float32)[None]


def _broken_count(state: State) -> Float[Array, "1"]:
    return jnp.where(state.action < -NAN_FROM, jnp.float32(jnp.inf), _count(state))


def _one(state: State) -> Float[Array, ""]:
    return jnp.float32(1)


def _delayed(state: State) -> Float[Array, ""]:
    return (state.steps == 2).astype(jnp.float32)


def _action(state: State) -> Float[Array, ""]:
    return 1 - jnp.square(state.action - BEST_ACTION)


def _match(state: State) -> Float[Array, ""]:
    return 1 - jnp.square(state.action - 0.5 * state.sign)


def _broken_one(state: State) -> Float[Array, ""]:
    return jnp.where(state.action > NAN_FROM, jnp.float32(jnp.nan), _one(state))


def _after(steps: int, state: State) -> jax.Array:
    return state.steps >= steps


def _never(state: PyTree) -> jax.Array:
    return jnp.zeros((), bool)


def _probe(
    observe: Callable, reward: Callable, terminated: Callable, episode_steps: int
) -> Callable[[str], Task]:
    """A builder of a probe with one observation and one action."""
    return lambda name: Task(
        f"probe/{name}", _reset, _step, observe, reward, terminated, 1, 1, episode_steps
    )


class PointMass(NamedTuple):
    """State of ``lqr``."""

    x: Float[Array, "2"]
    """Position and velocity."""
    action: Float[Array, ""]


def _lqr(name: str) -> Task:
    """Reward ``-(x' Q x + R a^2)`` with x the state that is reached; ``x <- A x + B a``."""
    a, b, q = (np.asarray(m, np.float32) for m in (LQR_A, LQR_B, LQR_Q))

    def reset(key: Key) -> PointMass:
        position = jax.random.uniform(key, (), jnp.float32, minval=-LQR_START, maxval=LQR_START)
        return PointMass(jnp.stack([position, jnp.float32(0)]), jnp.float32(0))

    def step(state: PointMass, action: Float[Array, "1"]) -> PointMass:
        action = action.astype(jnp.float32)
        return PointMass(jnp.matmul(a, state.x) + jnp.matmul(b, action), action[0])

    def reward(state: PointMass) -> Float[Array, ""]:
        return -(state.x @ (q @ state.x) + LQR_R * jnp.square(state.action))

    return Task(f"probe/{name}", reset, step, lambda s: s.x, reward, _never, 2, 1, 50)


def lqr_solution(discount: float) -> tuple[np.ndarray, np.ndarray]:
    """The optimum of ``probe/lqr``: ``(K, P)`` with action ``-K x`` and value ``-x' P x``.

    Costs are of the state that is reached, so with ``W = Q + discount * P`` the fixed
    point is ``K = (R + B'WB)^-1 B'WA`` and ``P = A'W(A - BK)``.
    """
    a, b, q = (np.asarray(m, np.float64) for m in (LQR_A, LQR_B, LQR_Q))
    p = np.zeros((2, 2))
    # Fixed-point iteration of the Riccati equation, far beyond convergence to float64.
    for _ in range(2000):
        w = q + discount * p
        k = (b.T @ w @ a) / (LQR_R + b.T @ w @ b)
        p = a.T @ w @ (a - b @ k)
    return k, p


def make(name: str) -> Task:
    """Probe of that name (without ``probe/``)."""
    # Probes that terminate do so well before their time limit: nothing else ends their episodes.
    once, twice = partial(_after, 1), partial(_after, 2)
    builders = {
        "constant": _probe(_blank, _one, once, 10),
        "observation": _probe(_sign, lambda state: state.sign, once, 10),
        "delayed": _probe(_count, _delayed, twice, 10),
        "action": _probe(_blank, _action, once, 10),
        "match": _probe(_sign, _match, once, 10),
        "truncated": _probe(_blank, _one, _never, 5),
        "lqr": _lqr,
        "nan": _probe(_broken_count, _broken_one, _never, 10),
    }
    return builders[name](name)
