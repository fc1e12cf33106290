"""Replay on the device: a ring of rows, one per environment step, as a pure data structure.

A row holds the observation *before* its action, so episodes cost one
observation a step. Row ``t + 1`` of the same environment is the successor of
row ``t`` unless ``last[t]``: then row ``t`` is an episode's final observation
(or led to a broken state), and its action, reward and record have no meaning.

Symbols: C rows per environment, N environments, B windows, T rows of a window.
For seeds, ``vmap`` with ``in_axes=SEEDS``: the cursor is shared, so inserting stays one
contiguous in-place write.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax.types import Gaussian, Key


class Row(NamedTuple):
    """One environment step; stored with leading axes ``[C, N]``, sampled with ``[T, B]``."""

    obs: Float[Array, "*batch O"]
    action: Float[Array, "*batch A"]
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    """The action led to a terminal state."""
    last: Bool[Array, "*batch"]
    """No transition starts here: the next row belongs to another episode."""
    prior: Gaussian
    """Planner record of this state."""
    prior_value: Float[Array, "*batch"]
    """The planner's value estimate when the record was made."""
    made: Int[Array, "*batch"]
    """Updates that had been done when the record was made; -1 for a state without a record."""


class Replay(NamedTuple):
    """The ring; all environments of a seed advance together."""

    rows: Row
    inserted: Int[Array, ""]
    """Rows inserted per environment since the start; the cursor is this modulo C."""

    @property
    def capacity(self) -> int:
        """C, rows per environment."""
        return self.rows.reward.shape[0]

    @property
    def size(self) -> Int[Array, ""]:
        """Rows filled per environment."""
        return jnp.minimum(self.inserted, self.capacity)


SEEDS = Replay(rows=0, inserted=None)  # type: ignore[arg-type]
"""Axes of a ring of many seeds, for ``vmap``."""


class Index(NamedTuple):
    """Positions of sampled rows: absolute row numbers and environments, both ``[T, B]``."""

    row: Int[Array, "T B"]
    env: Int[Array, "T B"]


class Batch(NamedTuple):
    """Sampled windows, time first."""

    rows: Row
    """Every field with leading axes ``[T, B]``."""
    index: Index  # type: ignore[assignment]  # hides a method of tuple that nothing calls
    valid: Bool[Array, "T B"]
    """Whether state t is still in the episode of the window's start."""

    @property
    def transition(self) -> Bool[Array, "H B"]:
        """Whether step t -> t + 1 is a real transition; one entry less than ``valid``."""
        return (self.valid & ~self.rows.last)[:-1]

    @property
    def recorded(self) -> Bool[Array, "T B"]:
        """Whether a state has a planner record; final observations count as others do."""
        return self.rows.made >= 0

    def head(self, length: int) -> "Batch":
        """The first ``length`` rows of every window."""
        return jax.tree.map(lambda x: x[:length], self)


def init(
    capacity: int, num_envs: int, obs_size: int, action_size: int, dtype: jnp.dtype = jnp.float32
) -> Replay:
    """An empty ring of ``capacity`` rows per environment."""
    shape = (capacity, num_envs)
    prior = Gaussian(
        jnp.zeros((*shape, action_size), dtype), jnp.ones((*shape, action_size), dtype)
    )
    rows = Row(
        obs=jnp.zeros((*shape, obs_size), dtype),
        action=jnp.zeros((*shape, action_size), dtype),
        reward=jnp.zeros(shape, dtype),
        terminated=jnp.zeros(shape, bool),
        # A row that was never written counts as an end, so no transition can start there.
        last=jnp.ones(shape, bool),
        prior=prior,
        prior_value=jnp.zeros(shape, dtype),
        made=jnp.zeros(shape, jnp.int32),
    )
    return Replay(rows, jnp.zeros((), jnp.int32))


def row_bytes(obs_size: int, action_size: int) -> int:
    """Bytes of one row, in float32."""
    # Action, mean and std; reward, value and update; two booleans.
    return 4 * (obs_size + 3 * action_size + 3) + 2


def insert(replay: Replay, row: Row) -> Replay:
    """Append one row ``[N, ...]`` per environment, over the oldest when full."""
    # One cursor for all seeds: with one per seed, ``vmap`` would make a scatter of this.
    cursor = jnp.mod(replay.inserted, replay.capacity)
    rows = jax.tree.map(
        lambda ring, x: jax.lax.dynamic_update_index_in_dim(ring, x.astype(ring.dtype), cursor, 0),
        replay.rows,
        row,
    )
    return Replay(rows, replay.inserted + 1)


def sample(
    replay: Replay, key: Key, batch_size: int, length: int, least: int | None = None
) -> Batch:
    """Draw windows of ``length`` consecutive rows, uniformly over start rows and environments.

    A window may extend beyond an episode's end, and beyond the newest row if its first ``least``
    rows (by default all) do not; later states are not ``valid``. Needs at least ``least`` rows per
    environment.
    """
    least = length if least is None else least
    key_row, key_env = jax.random.split(key)
    num_envs = replay.rows.reward.shape[1]
    oldest = replay.inserted - replay.size
    # Configurations guarantee a window before the first update; the bound is for other callers,
    # because a range that is empty cannot raise on the device.
    starts = jnp.maximum(replay.size - least + 1, 1)
    # Absolute numbers, which never repeat: :func:`write_back` recognises rows overwritten since.
    start = oldest + jax.random.randint(key_row, (batch_size,), 0, starts, jnp.int32)
    env = jax.random.randint(key_env, (batch_size,), 0, num_envs, jnp.int32)
    row = start[None] + jnp.arange(length, dtype=start.dtype)[:, None]
    index = Index(row, jnp.broadcast_to(env[None], row.shape))
    rows = read(replay, index)
    if least < length:
        # The newest row ends a window as an episode's last one does.
        cut = (row >= replay.inserted - 1).at[: least - 1].set(False)
        rows = rows._replace(last=rows.last | cut)
    # Ends *before* each row: a final observation is still a state of its episode.
    ended = jnp.cumsum(rows.last.astype(jnp.int32), axis=0) - rows.last.astype(jnp.int32)
    return Batch(rows, index, ended == 0)


def read(replay: Replay, index: Index) -> Row:
    """The rows at ``index``; for overwritten rows, their replacements."""
    place = jnp.mod(index.row, replay.capacity)
    return jax.tree.map(lambda ring: ring[place, index.env], replay.rows)


def write_back(
    replay: Replay,
    index: Index,
    prior: Gaussian,
    prior_value: Float[Array, "*batch"],
    made: Int[Array, "*batch"],
) -> Replay:
    """Replace the planner records at ``index``, dropping rows overwritten since sampling.

    Of several records for one place the last is kept. ``made`` counts the updates of the model
    that planned them.
    """
    kept = (index.row >= replay.inserted - replay.size) & (index.row < replay.inserted)
    # Past the end, where ``mode="drop"`` discards the write: shapes stay static.
    place = jnp.where(kept, jnp.mod(index.row, replay.capacity), replay.capacity)
    # Windows may overlap. Which of two writes to a place wins is undefined, and would be decided
    # for each column by itself: the last one wins.
    row, env = place.reshape(-1), index.env.reshape(-1)
    equal = (row[:, None] == row[None, :]) & (env[:, None] == env[None, :])
    again = jnp.any(jnp.triu(equal, 1), axis=1).reshape(place.shape)
    place = jnp.where(again, replay.capacity, place)

    def put(ring, values):
        return ring.at[place, index.env].set(values.astype(ring.dtype), mode="drop")

    rows = replay.rows._replace(
        prior=jax.tree.map(put, replay.rows.prior, prior),
        prior_value=put(replay.rows.prior_value, prior_value),
        made=put(replay.rows.made, made),
    )
    return replay._replace(rows=rows)
