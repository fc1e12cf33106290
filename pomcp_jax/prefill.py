"""Replay that starts with the transitions of a file (``train.buffer``, docs/how-to/data.md).

All seeds get the same rows. Rows without a planner record get the one that
``policy.data_record`` names, or none (docs/method.md, "Data").
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from pomcp_jax import datasets, normalising, seed_axis, train_state
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.datasets import Dataset, Rows
from pomcp_jax.envs.protocol import Env
from pomcp_jax.normalising import Moments
from pomcp_jax.replay import Replay, Row
from pomcp_jax.schedule import LIMIT
from pomcp_jax.train_state import TrainState
from pomcp_jax.types import Gaussian

FIELD = "train.buffer"


class Prefill(NamedTuple):
    """Rows of a file, for the environments of one seed."""

    rows: Rows
    """Leading axes ``[K, N]``."""
    notes: tuple[str, ...]
    """Lines for the user."""


def load(config: Config, env: Env) -> Prefill:
    """Read the file of ``train.buffer`` and compare it with the run.

    Raises:
      ConfigError: one line with what is wrong and what would be right.
    """
    path = config.train.buffer
    data = datasets.read(path, FIELD, config.train.memory_limit_gb * 1e9)
    rows = _fitting(data, config, env)
    _check_records(rows, config)
    laid = datasets.columns(rows, config.env.num_envs)
    _check_length(laid, rows, config)
    return Prefill(laid, _notes(data, rows, len(laid.last), config))


def _error(config: Config, text: str) -> ConfigError:
    return ConfigError(f"{FIELD} = {config.train.buffer!r:.300}: {text}")


def _fitting(data: Dataset, config: Config, env: Env) -> Rows:
    """Rows of the sizes of the environment.

    Raises:
      ConfigError: they are not of this task.
    """
    rows, repeat, history = data.rows, config.env.action_repeat, config.env.history
    if data.action_repeat not in (0, repeat):
        raise _error(
            config,
            f"has decisions of action_repeat = {data.action_repeat}; must be env.action_repeat ="
            f" {repeat}",
        )
    if data.history not in (1, history):
        raise _error(config, f"has history = {data.history}; must be 1, or env.history = {history}")
    if data.history != history:
        rows = datasets.with_history(rows, history)
    for name, size, wanted in (
        ("observations", rows.obs.shape[-1], env.observation_size),
        ("actions", rows.action.shape[-1], env.action_size),
    ):
        if size != wanted:
            stacked = f" with env.history = {history}" if history > 1 else ""
            raise _error(
                config, f"{name} of size {size}{stacked}; must be {wanted}, those of {env.name!r}"
            )
    return rows


def _check_records(rows: Rows, config: Config) -> None:
    """Refuse a gate or weights by the value of plans that were never made.

    Raises:
      ConfigError: names the settings that would work.
    """
    agent = config.agent
    compares = agent.prior.gate or agent.prior.weight == "advantage"
    if not compares or agent.prior.gate_value != "plan":
        return
    acted = ~rows.last
    wrong = (
        f"agent.prior.gate_value = 'plan': must be 'critic' with {FIELD} ="
        f" {config.train.buffer!r:.200}, whose"
    )
    if agent.policy.data_record == "action" and not rows.recorded[acted].all():
        raise ConfigError(f"{wrong} actions no plan valued (or agent.policy.data_record 'none')")
    planned = acted & rows.recorded
    # A file's ``prior_value`` is optional, and 0 without it.
    if planned.any() and not rows.prior_value[planned].any():
        raise ConfigError(f"{wrong} plans have no prior_value")


def _check_length(laid: Rows, rows: Rows, config: Config) -> None:
    """Refuse files that replay cannot store, or too short for one window.

    Raises:
      ConfigError: names the capacity that would do.
    """
    height, num_envs = laid.last.shape
    window, capacity = config.agent.mppi.horizon + 1, train_state.rows_per_env(config)
    if height < window:
        raise _error(
            config,
            f"holds {rows.transitions:,} transitions; must hold at least"
            f" {(window - 2) * num_envs + 1:,}, a window of agent.mppi.horizon ="
            f" {config.agent.mppi.horizon} for each of env.num_envs = {num_envs}",
        )
    if height > capacity:
        raise ConfigError(
            f"train.capacity = {config.train.capacity}: must be >= {height * num_envs}, the rows of"
            f" {FIELD} = {config.train.buffer!r:.200} ({rows.transitions:,} transitions and final"
            " observations)"
        )
    if height + config.train.total_decisions >= LIMIT:
        raise _error(
            config,
            f"with train.total_decisions = {config.train.total_decisions} more than 2**31 rows;"
            " must be fewer, where the device's counters end",
        )


def _notes(data: Dataset, rows: Rows, height: int, config: Config) -> tuple[str, ...]:
    known = int(np.sum(rows.recorded & ~rows.last))
    lines = [
        f"replay starts with {rows.transitions:,} transitions of {rows.episodes:,} episodes from"
        f" {config.train.buffer} ({known:,} with a planner record)"
    ]
    if data.task not in ("", config.env.task):
        lines.append(
            f"warning: {FIELD}: was recorded on {data.task!r}, this run trains on"
            f" {config.env.task!r}"
        )
    if data.ignored:
        lines.append(f"{FIELD}: not read: {', '.join(data.ignored)[:200]}")
    num_envs, capacity = config.env.num_envs, train_state.rows_per_env(config)
    left = (capacity - height) * num_envs
    if not config.train.offline and left < config.train.total_decisions:
        lines.append(
            f"{FIELD}: new rows overwrite its oldest from decision {left:,} on; a train.capacity of"
            f" {height * num_envs + config.train.total_decisions:,} keeps all"
        )
    return tuple(lines)


def filling(
    init: Callable[..., TrainState], load: Callable[[], Prefill], mesh: Mesh | None
) -> Callable[..., TrainState]:
    """``init`` of a program, with replay that starts with the rows that ``load`` returns."""

    def begin(config: Config, seeds: Any = None) -> TrainState:
        state = init(config, seeds)
        rows = load().rows
        moments = None
        if config.agent.world_model.normalise_observations:
            moments = normalising.of_data(rows.obs.reshape(-1, rows.obs.shape[-1]))
        spread, made = _records(rows, config)
        spread = seed_axis.pad(spread, len(spread), mesh)
        filled = _fill(state, rows, spread, made, moments)
        return seed_axis.place(filled, mesh, train_state.SPECS)

    return begin


def _records(rows: Rows, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviation ``[S]`` of records that are made up, and ``made`` of rows ``[K, N]``."""
    policy = config.agent.policy
    # A sweep may have a value per seed.
    spread = np.broadcast_to(np.asarray(policy.data_std, np.float32), (config.train.num_seeds,))
    absent = ~rows.recorded & (policy.data_record == "none")
    return spread, np.where(absent, -1, 0).astype(np.int32)


@functools.partial(jax.jit, donate_argnums=0)
def _fill(
    state: TrainState, rows: Rows, spread: Array, made: Array, moments: Moments | None
) -> TrainState:
    """``state`` with its empty replay filled with ``rows`` [K, N] for all seeds."""
    seeds = state.keys.shape[0]
    own = lambda x: jnp.broadcast_to(jnp.asarray(x)[None], (seeds, *x.shape))  # noqa: E731
    has = own(jnp.all(jnp.asarray(rows.prior_std) > 0.0, axis=-1))[..., None]
    wide = jnp.broadcast_to(spread[:, None, None, None], (seeds, *rows.action.shape))
    prior = Gaussian(
        jnp.where(has, own(rows.prior_mean), own(rows.action)),
        jnp.where(has, own(rows.prior_std), wide),
    )
    new = Row(
        obs=own(rows.obs),
        action=own(rows.action),
        reward=own(rows.reward),
        terminated=own(rows.terminated),
        last=own(rows.last),
        prior=prior,
        prior_value=own(rows.prior_value),
        made=own(made),
    )
    agents = state.agent
    if moments is not None:
        alike = jax.tree.map(own, moments)
        agents = agents._replace(params=agents.params._replace(moments=alike))
    put = lambda ring, x: jax.lax.dynamic_update_slice_in_dim(ring, x, 0, axis=1)  # noqa: E731
    ring = state.replay
    height = jnp.asarray(rows.last.shape[0], ring.inserted.dtype)
    return state._replace(
        agent=agents, replay=Replay(jax.tree.map(put, ring.rows, new), jnp.broadcast_to(height, ()))
    )
