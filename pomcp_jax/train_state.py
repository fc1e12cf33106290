"""The state of a run as one pytree, its initial value and its distribution over devices.

Keys are ``fold_in(seed key, counter)``: results do not depend on how a run is cut into chunks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pomcp_jax import acting, agent, counters, data_axis, replay, seed_axis
from pomcp_jax.acting import AgentSpec
from pomcp_jax.agent import AgentState
from pomcp_jax.config import Config
from pomcp_jax.counters import Stats
from pomcp_jax.envs.protocol import Env
from pomcp_jax.mppi import PlanState
from pomcp_jax.replay import Replay
from pomcp_jax.types import Key, PyTree, TimeStep

# The order is part of every result: another one would change all random numbers.
AGENT, ENVIRONMENT, ACTING, UPDATING, EVALUATION, FRESH, RENEWED, CALIBRATING = range(8)
"""Streams of randomness of a seed; environments and agents reset on purpose are ``FRESH`` and
``RENEWED``."""


class TrainState(NamedTuple):
    """A whole run, as one pytree."""

    agent: AgentState
    replay: Replay
    env: PyTree
    timestep: TimeStep
    plan: PlanState
    keys: Key
    """``[S]``, never changed: all randomness is folded in from counters."""
    stats: Stats
    iteration: Int[Array, ""]
    """Environment steps of each of the S N environments."""
    updates: Int[Array, ""]


# Axes stand where a state has arrays, hence ``Any``.
_EACH: Any = 0
_SHARED: Any = None
SEEDS = TrainState(
    agent=_EACH,
    replay=replay.SEEDS,
    env=_EACH,
    timestep=_EACH,
    plan=_EACH,
    keys=_EACH,
    stats=_EACH,
    iteration=_SHARED,
    updates=_SHARED,
)
"""Axes of the seeds, for ``vmap``: all but three counters have one."""
SPECS = jax.tree.map(
    lambda axis: seed_axis.WHOLE if axis is None else seed_axis.SPLIT,
    SEEDS,
    is_leaf=lambda axis: axis is None,
)._replace(env=seed_axis.ROWS, timestep=seed_axis.ROWS, plan=seed_axis.SECOND)
"""Distribution over devices: by seeds, and by environments on several devices per seed; counters
are replicated."""


def rows_per_env(config: Config) -> int:
    """Replay rows of one environment."""
    return config.train.capacity // config.env.num_envs


def replay_bytes(config: Config, env: Env, parts: int = 1) -> int:
    """Bytes of replay of all seeds, and of the padding if they are divided into ``parts``."""
    seeds = config.train.num_seeds + seed_axis.padding(config.train.num_seeds, parts)
    rows = rows_per_env(config) * config.env.num_envs * seeds
    return rows * replay.row_bytes(env.observation_size, env.action_size)


def largest_capacity(config: Config, env: Env, size: float, seeds: int) -> int:
    """Largest ``train.capacity`` whose replay of ``seeds`` seeds takes at most ``size`` bytes."""
    row = replay.row_bytes(env.observation_size, env.action_size) * config.env.num_envs
    return int(size // (row * seeds)) * config.env.num_envs


def init(
    config: Config, env: Env, spec: AgentSpec, seeds: Int[Array, " S"] | None = None
) -> TrainState:
    """Fresh state of ``train.num_seeds`` seeds; seed k has the key ``train.seed + k``.

    ``seeds`` names other numbers. Rows of the same number draw the same random
    numbers, in whichever batch: the cells of a sweep share theirs.
    """
    num_seeds, num_envs = config.train.num_seeds, config.env.num_envs
    if seeds is None:
        seeds = own_seeds(config)
    # A key per seed, not one split S ways: seed k then is the same in a batch of any size.
    keys = jax.vmap(jax.random.key)(seeds)
    agents = init_agents(jax.vmap(lambda key: jax.random.fold_in(key, AGENT))(keys), config, spec)
    env_keys = jax.vmap(
        lambda key: jax.random.split(jax.random.fold_in(key, ENVIRONMENT), num_envs)
    )(keys)
    # All environments of all seeds are one flat batch, seed-major.
    env_state, timestep = data_axis.rows(env.reset)(env_keys.reshape(-1))
    ring = replay.init(rows_per_env(config), num_envs, env.observation_size, env.action_size)
    # Only rows have the axis of seeds; the count of inserted ones is shared.
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (num_seeds, *x.shape)), ring.rows)
    plan = acting.init_plan(config.agent, spec, num_envs)
    stats = counters.init(num_seeds)
    stats = stats._replace(invalid=broken_resets(timestep, num_seeds))
    return TrainState(
        agent=agents,
        replay=Replay(rows, ring.inserted),
        env=env_state,
        timestep=timestep,
        plan=jax.tree.map(lambda x: jnp.zeros((num_seeds, *x.shape), x.dtype), plan),
        keys=keys,
        stats=stats,
        iteration=jnp.zeros((), jnp.int32),
        updates=jnp.zeros((), jnp.int32),
    )


def broken_resets(timestep: TimeStep, num_seeds: int) -> Int[Array, " S"]:
    """Number of each seed's environments whose first observation is not finite."""
    return jnp.sum(timestep.invalid.reshape(num_seeds, -1), axis=1, dtype=jnp.int32)


def own_seeds(config: Config) -> Int[Array, " S"]:
    """Numbers of a run's seeds: ``train.seed`` and its successors."""
    return config.train.seed + jnp.arange(config.train.num_seeds, dtype=jnp.int32)


def init_agents(keys: Key, config: Config, spec: AgentSpec) -> AgentState:
    """Fresh agents, one for each of the ``[S]`` keys."""

    def fresh(config, key):
        return agent.init(key, config, spec)

    return jax.vmap(fresh, in_axes=(seed_axis.axes(config.agent), 0))(config.agent, keys)


def fold_keys(state: TrainState, stream: int, counter: Int[Array, ""]) -> Key:
    """``[S]`` keys of one stream (:data:`ACTING` ...) at a counter."""

    # Stream first: counters of different streams have the same values.
    def fold(key):
        return jax.random.fold_in(jax.random.fold_in(key, stream), counter)

    return jax.vmap(fold)(state.keys)
