"""Going on with a run: what is left of its work, fresh environments, fresh agents."""

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


def remaining(program: Program, iterations: int, updates: int) -> list[tuple[str, Work]]:
    """Phases and chunks that follow after so much work, in order.

    Counters say it, not chunk numbers: the chunks may have been cut differently before.
    A chunk that was done in part is shortened, so that later ones end where they always do.

    Args:
      program: of the run.
      iterations: environment steps done, of each environment.
      updates: done, of each seed.
    """
    left: list[tuple[str, Work]] = []
    phases = {
        "seeding": program.seeding,
        "pretraining": program.pretraining,
        "training": program.training,
    }
    for phase, works in phases.items():
        for work in works:
            # Groups of training may do no updates, chunks of pre-training no steps.
            group_iterations, group_updates = int(work.iterations), int(work.updates)
            if phase == "pretraining":
                done = min(updates, group_updates)
                updates -= done
                if done < group_updates:
                    left.append((phase, work._replace(updates=group_updates - done)))
                continue
            done = min(iterations // group_iterations, int(work.groups))
            iterations -= done * group_iterations
            updates -= done * group_updates
            if done < work.groups:
                left.append((phase, work._replace(groups=int(work.groups) - done)))
    return left


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
