"""Counters of a run and the running mean of its training returns."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax.types import TimeStep

RECENT = 8
"""Episodes in the running mean of training returns."""


class Stats(NamedTuple):
    """Counters of one seed (leading axis S in a run)."""

    decisions: Int[Array, ""]
    """Actions that moved an environment (resetting calls do not count)."""
    episodes: Int[Array, ""]
    invalid: Int[Array, ""]
    """Environment steps that broke and were replaced by a fresh episode."""
    returns: Float[Array, " R"]
    """Returns of the latest R = 8 finished episodes, the newest last; see :func:`held`."""


def init(num_seeds: int) -> Stats:
    """Counters before the first step, leading axis S."""
    zeros = lambda: jnp.zeros((num_seeds,), jnp.int32)  # noqa: E731  # distinct buffers
    return Stats(zeros(), zeros(), zeros(), jnp.zeros((num_seeds, RECENT), jnp.float32))


def held(stats: Stats) -> Bool[Array | np.ndarray, "*S R"]:
    """Which of ``returns`` are those of an episode: none is before R have finished."""
    return np.arange(RECENT) >= RECENT - stats.episodes[..., None]


def count(stats: Stats, timestep: TimeStep) -> Stats:
    """Counters of one seed after a step of its N environments."""
    done = timestep.is_last
    # Positions of this step's finished returns behind those already held; the
    # rest is parked past the end, and the newest R are kept.
    order = jnp.where(done, jnp.cumsum(done.astype(jnp.int32)) - 1 + RECENT, -1)
    wide = jnp.concatenate([stats.returns, jnp.zeros(done.shape, jnp.float32)])
    order = jnp.where(order < 0, wide.shape[0], order)
    wide = wide.at[order].set(timestep.episode_return, mode="drop")
    finished = jnp.sum(done, dtype=jnp.int32)
    returns = jax.lax.dynamic_slice_in_dim(wide, finished, RECENT)
    return Stats(
        decisions=stats.decisions + jnp.sum(~timestep.is_first, dtype=jnp.int32),
        episodes=stats.episodes + finished,
        invalid=stats.invalid + jnp.sum(timestep.invalid, dtype=jnp.int32),
        returns=returns,
    )
