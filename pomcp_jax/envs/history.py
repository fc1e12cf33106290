"""Observations of several decisions in one: ``env.history``.

For tasks whose single observation hides something, such as velocities that no sensor measures.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pomcp_jax.envs.protocol import Env
from pomcp_jax.errors import ConfigError
from pomcp_jax.types import Key, PyTree, TimeStep


class HistoryState(NamedTuple):
    """Carry of a :func:`stacked` environment; every leaf has the leading axis ``B``."""

    env: PyTree
    """Of the environment itself."""
    obs: Float[Array, "B K"]
    """The latest observations, the oldest first."""

    @property
    def task(self) -> PyTree:
        """State of the task, which its scene draws."""
        return self.env.task


def pushed(
    obs: Float[Array, "B K"], newest: Float[Array, "B O"], is_first: Bool[Array, " B"]
) -> Float[Array, "B K"]:
    """``obs`` without its oldest observation and with the ``newest``.

    Where an episode begins, all of them are its first one.
    """
    size = newest.shape[1]
    repeated = jnp.tile(newest, (1, obs.shape[1] // size))
    following = jnp.concatenate([obs[:, size:], newest], axis=1)
    return jnp.where(is_first[:, None], repeated, following)


def stacked(env: Env, history: int) -> Env:
    """``env`` whose observations are the latest ``history`` of the episode, the oldest first.

    An environment that is stacked already, with the same ``history``, is returned as it is.

    Raises:
      ConfigError: it is stacked with another number.
    """
    if history == env.history:
        return env
    if env.history != 1:
        raise ConfigError(
            f"env.history = {history}: environment {env.name!r} was made with {env.history}"
        )

    def step_of(state: PyTree, timestep: TimeStep, before: Array) -> tuple[PyTree, TimeStep]:
        obs = pushed(before, timestep.obs, timestep.is_first)
        # A copy, because trainers donate the state: XLA refuses to donate one buffer twice.
        return HistoryState(state, jnp.copy(obs)), timestep._replace(obs=obs)

    def reset(keys: Key) -> tuple[PyTree, TimeStep]:
        state, timestep = env.reset(keys)
        shape = (timestep.obs.shape[0], history * env.observation_size)
        return step_of(state, timestep, jnp.zeros(shape, timestep.obs.dtype))

    def step(state: Any, action: Float[Array, "B A"]) -> tuple[PyTree, TimeStep]:
        return step_of(*env.step(state.env, action), state.obs)

    outside = env.outside
    if outside is not None:
        live = outside

        def snapshot(state: Any) -> Any:
            return state._replace(env=live.snapshot(state.env))

        outside = live._replace(apart=lambda: stacked(live.apart(), history), snapshot=snapshot)
    return env._replace(
        reset=reset,
        step=step,
        observation_size=history * env.observation_size,
        history=history,
        outside=outside,
    )
