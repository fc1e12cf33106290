"""Edits of a run's state when it resumes: work left, fresh environments or agents, other seeds."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from pomcp_jax import seed_axis, train, train_state
from pomcp_jax.acting import AgentSpec
from pomcp_jax.config import Config
from pomcp_jax.envs.protocol import Env
from pomcp_jax.schedule import Chunks, Work
from pomcp_jax.train import Program, TrainState


@dataclasses.dataclass(frozen=True)
class Works:
    """Phases and chunks in order, computed as they are read."""

    phases: tuple[tuple[str, Chunks], ...]

    def __len__(self) -> int:
        return sum(len(chunks) for _, chunks in self.phases)

    def __iter__(self) -> Iterator[tuple[str, Work]]:
        return ((phase, work) for phase, chunks in self.phases for work in chunks)


def _done(program: Program, iterations: int, updates: int) -> list[tuple[str, Chunks, int]]:
    """Every phase and how many of its units are done.

    From counters, not chunk numbers: chunks may have been cut differently before.
    """
    # Iterations count seeding, then training; the first updates are those of pre-training.
    seeding, pretraining, training = program.seeding, program.pretraining, program.training
    return [
        ("seeding", seeding, min(iterations, seeding.stop)),
        ("pretraining", pretraining, min(updates, pretraining.stop)),
        ("training", training, min(max(0, iterations - seeding.stop), training.stop)),
    ]


def remaining(program: Program, iterations: int, updates: int) -> Works:
    """Phases and chunks that follow after so much work, in order.

    A chunk that was done in part is shortened, so that later ones end where they always do.

    Args:
      program: of the run.
      iterations: environment steps done, of each environment.
      updates: done, of each seed.
    """
    phases = _done(program, iterations, updates)
    return Works(tuple((name, dataclasses.replace(x, start=done)) for name, x, done in phases))


def leading_to(program: Program, iterations: int, updates: int) -> Works:
    """Phases and chunks from nothing to so much work: what :func:`remaining` leaves out."""
    phases = _done(program, iterations, updates)
    return Works(tuple((name, dataclasses.replace(x, stop=done)) for name, x, done in phases))


def keep_seeds(state: TrainState, num_seeds: int) -> TrainState:
    """The first ``num_seeds`` seeds of a run."""
    return seed_axis.first(state, len(state.keys), num_seeds)


def join(state: TrainState, other: TrainState) -> TrainState:
    """The seeds of two runs that have done the same work, those of ``state`` first.

    Raises:
      ValueError: their counters differ.
    """
    # Counters are shared by all seeds: seeds at different points cannot be one batch.
    ours, theirs = (
        [int(x) for x in (run.iteration, run.updates, run.replay.inserted)]
        for run in (state, other)
    )
    if ours != theirs:
        raise ValueError(f"runs of different lengths cannot be joined: {ours}, {theirs}")
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]) if a.ndim else a, state, other)


def reset_environments(state: TrainState, config: Config, env: Env) -> TrainState:
    """``state`` with fresh episodes in all environments; its own ``env`` may be None.

    The newest rows of replay lose their transitions: their successors are lost.
    """

    def fresh(key):
        # A separate stream: environments must not repeat their first episodes.
        folded = jax.random.fold_in(jax.random.fold_in(key, train_state.FRESH), state.iteration)
        return jax.random.split(folded, config.env.num_envs)

    env_state, timestep = env.reset(jax.vmap(fresh)(state.keys).reshape(-1))
    rows = state.replay.rows
    # The next row to be inserted starts an episode: what led from this one to it is unknown.
    newest = jnp.mod(state.replay.inserted - 1, rows.reward.shape[1])
    last = rows.last.at[:, newest].set(True)
    broken = train_state.broken_resets(timestep, state.keys.shape[0])
    return state._replace(
        stats=state.stats._replace(invalid=state.stats.invalid + broken),
        env=env_state,
        timestep=timestep,
        plan=jax.tree.map(jnp.zeros_like, state.plan),
        replay=state.replay._replace(rows=rows._replace(last=last)),
    )


def reset_agents(
    state: TrainState, config: Config, spec: AgentSpec, which: Bool[Array, " S"]
) -> TrainState:
    """``state`` with fresh agents and plans of the seeds ``which``; all else stays.

    New parameters are drawn from the seed's key and the iteration, so an interruption does not
    change them. The total of refused updates stays; the count of consecutive ones is reset.
    """
    keys = train.fold_keys(state, train_state.RENEWED, state.iteration)
    old, new = state.agent, train.init_agents(keys, config, spec)
    # The total is a count of the run; only the streak belonged to the old agent.
    new = new._replace(faults=new.faults._replace(total=old.faults.total))
    # Replay stays, so what it says of observations does too.
    new = new._replace(params=new.params._replace(moments=old.params.moments))

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(which.reshape(-1, *(1 for _ in old.shape[1:])), new, old)

    # A warm start of the diverged agent may be anything.
    blank = jax.tree.map(jnp.zeros_like, state.plan)
    return state._replace(
        agent=jax.tree.map(choose, new, old), plan=jax.tree.map(choose, blank, state.plan)
    )
