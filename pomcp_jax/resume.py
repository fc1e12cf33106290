"""Going on with a run: what is left of its work; fresh environments or agents; other seeds."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from pomcp_jax import train
from pomcp_jax.acting import Agent
from pomcp_jax.config import Config
from pomcp_jax.envs.protocol import Env
from pomcp_jax.train import Program, TrainState, Work

_FRESH, _RENEWED = train.EVALUATION + 1, train.EVALUATION + 2
"""Streams of randomness of environments and of agents that were reset on purpose."""


class _Part(NamedTuple):
    """A chunk of work and how much of it is done."""

    phase: str
    work: Work
    unit: str
    """The field of ``work`` that can be cut."""
    done: int

    def cut(self, size: int) -> tuple[str, Work]:
        return self.phase, self.work._replace(**{self.unit: size})


def _parts(program: Program, iterations: int, updates: int) -> Iterator[_Part]:
    """Every chunk of a run after so much work, in order.

    Counters say it, not chunk numbers: the chunks may have been cut differently before.
    """
    phases = {
        "seeding": program.seeding,
        "pretraining": program.pretraining,
        "training": program.training,
    }
    for phase, works in phases.items():
        for work in works:
            # Groups of training may do no updates, chunks of pre-training no steps.
            if phase == "pretraining":
                done = min(updates, int(work.updates))
                updates -= done
                yield _Part(phase, work, "updates", done)
                continue
            done = min(iterations // int(work.iterations), int(work.groups))
            iterations -= done * int(work.iterations)
            updates -= done * int(work.updates)
            yield _Part(phase, work, "groups", done)


def remaining(program: Program, iterations: int, updates: int) -> list[tuple[str, Work]]:
    """Phases and chunks that follow after so much work, in order.

    A chunk that was done in part is shortened, so that later ones end where they always do.

    Args:
      program: of the run.
      iterations: environment steps done, of each environment.
      updates: done, of each seed.
    """
    parts = [
        (part, int(getattr(part.work, part.unit))) for part in _parts(program, iterations, updates)
    ]
    return [part.cut(whole - part.done) for part, whole in parts if part.done < whole]


def leading_to(program: Program, iterations: int, updates: int) -> list[tuple[str, Work]]:
    """Phases and chunks from nothing to so much work: what :func:`remaining` leaves out."""
    return [part.cut(part.done) for part in _parts(program, iterations, updates) if part.done]


def keep_seeds(state: TrainState, num_seeds: int) -> TrainState:
    """The first ``num_seeds`` seeds of a run."""

    def first(x: Array) -> Array:
        return x[: x.shape[0] // before * num_seeds]  # environments are S N

    before = state.keys.shape[0]
    return _of_seeds(first, state)


def join(state: TrainState, other: TrainState) -> TrainState:
    """The seeds of two runs that have done the same work, those of ``state`` first.

    Raises:
      ValueError: their counters differ.
    """
    counters = [
        tuple(int(x) for x in (one.iteration, one.updates, one.replay.inserted))
        for one in (state, other)
    ]
    if counters[0] != counters[1]:
        raise ValueError(f"runs of different lengths cannot be joined: {counters}")
    return _of_seeds(lambda a, b: jnp.concatenate([a, b]), state, other)


def _of_seeds(function: Callable, *states: TrainState) -> TrainState:
    """``function`` of every leaf that has the seeds' axis; the others are the first state's."""
    rest = dict(iteration=None, updates=None)
    lead = [one._replace(replay=one.replay.rows, **rest) for one in states]
    found, first = jax.tree.map(function, *lead), states[0]
    return found._replace(
        replay=first.replay._replace(rows=found.replay),
        iteration=first.iteration,
        updates=first.updates,
    )


def reset_environments(state: TrainState, config: Config, env: Env) -> TrainState:
    """``state`` with fresh episodes in all environments; its own ``env`` is not looked at.

    The newest rows of replay lose their transitions: their successors are lost.
    """

    def fresh(key):
        folded = jax.random.fold_in(jax.random.fold_in(key, _FRESH), state.iteration)
        return jax.random.split(folded, config.env.num_envs)

    env_state, timestep = env.reset(jax.vmap(fresh)(state.keys).reshape(-1))
    rows = state.replay.rows
    newest = jnp.mod(state.replay.inserted - 1, rows.reward.shape[1])
    last = rows.last.at[:, newest].set(True)
    return state._replace(
        env=env_state,
        timestep=timestep,
        plan=jax.tree.map(jnp.zeros_like, state.plan),
        replay=state.replay._replace(rows=rows._replace(last=last)),
    )


def reset_agents(
    state: TrainState, config: Config, static: Agent, which: Bool[Array, " S"]
) -> TrainState:
    """``state`` with fresh agents and plans of the seeds ``which``; replay and the rest stay.

    New parameters are drawn from the seed's key and the iteration, so that it does not matter
    whether the run was interrupted. Refused updates stay in the total; their row begins anew.
    """
    keys = train.fold_keys(state, _RENEWED, state.iteration)
    old, new = state.agent, train.init_agents(keys, config, static)
    new = new._replace(faults=new.faults._replace(total=old.faults.total))

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(which.reshape(-1, *(1 for _ in old.shape[1:])), new, old)

    blank = jax.tree.map(jnp.zeros_like, state.plan)
    return state._replace(
        agent=jax.tree.map(choose, new, old), plan=jax.tree.map(choose, blank, state.plan)
    )
