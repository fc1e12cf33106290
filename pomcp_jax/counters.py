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
    """Returns of the latest R = 8 finished episodes, the newest last; see :func:`filled`."""


def init(num_seeds: int) -> Stats:
    """Counters before the first step, leading axis S."""
    zeros = lambda: jnp.zeros((num_seeds,), jnp.int32)  # noqa: E731  # distinct buffers
    return Stats(zeros(), zeros(), zeros(), jnp.zeros((num_seeds, RECENT), jnp.float32))


def filled(stats: Stats) -> Bool[Array | np.ndarray, "*S R"]:
    """Which entries of ``returns`` belong to an episode; all do after R have finished."""
    # Newest last: before R episodes have finished, the first entries are still the initial zeros.
    return np.arange(RECENT) >= RECENT - stats.episodes[..., None]


def count(stats: Stats, timestep: TimeStep) -> Stats:
    """Counters of one seed after a step of its N environments."""
    done = timestep.is_last
    # Returns of episodes that ended in this step are appended after the R present ones; all others
    # get a position past the end, where the write is dropped.
    order = jnp.where(done, jnp.cumsum(done.astype(jnp.int32)) - 1 + RECENT, -1)
    wide = jnp.concatenate([stats.returns, jnp.zeros(done.shape, jnp.float32)])
    order = jnp.where(order < 0, wide.shape[0], order)
    wide = wide.at[order].set(timestep.episode_return, mode="drop")
    finished = jnp.sum(done, dtype=jnp.int32)
    # Skipping as many as were appended keeps exactly the newest R.
    returns = jax.lax.dynamic_slice_in_dim(wide, finished, RECENT)
    return Stats(
        decisions=stats.decisions + jnp.sum(~timestep.is_first, dtype=jnp.int32),
        episodes=stats.episodes + finished,
        invalid=stats.invalid + jnp.sum(timestep.invalid, dtype=jnp.int32),
        returns=returns,
    )
