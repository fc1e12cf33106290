"""Vectorised evaluation: a fixed number of episodes, one per environment, all seeds at once."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax import acting, sweeps
from pomcp_jax.acting import Agent, AgentParams
from pomcp_jax.config import AgentConfig
from pomcp_jax.envs.protocol import Env
from pomcp_jax.types import Key


class Episodes(NamedTuple):
    """Results, one per seed and episode."""

    returns: Float[Array, "S E"]
    lengths: Int[Array, "S E"]
    """Decisions."""
    valid: Bool[Array, "S E"]
    """False if the environment broke (its return up to then is given)."""


def rollout(
    params: AgentParams,
    keys: Key,
    *,
    env: Env,
    agent: Agent,
    config: AgentConfig,
    episodes: int,
    select: str = "sample",
    planner: bool = True,
    explore: Array | float = 0.0,
) -> Episodes:
    """Play ``episodes`` whole episodes with every seed's agent.

    Each environment plays exactly one episode, so short (failed) episodes weigh
    no more than long ones.

    Args:
      params: leading axis S.
      keys: ``[S]``, consumed.
      env: batched environment.
      agent: static part.
      config: of the agent; floats may have the axis S (:mod:`pomcp_jax.sweeps`).
      episodes: E, per seed.
      select: how the planner chooses its elite, ``sample`` or ``argmax``.
      planner: act with the planner; False acts with the bare policy.
      explore: scale of the exploration noise.
    """
    config = dataclasses.replace(config, mppi=dataclasses.replace(config.mppi, select=select))
    num_seeds = keys.shape[0]
    env_keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, 0), episodes))(keys)
    env_state, timestep = env.reset(env_keys.reshape(-1))
    plan = jax.tree.map(
        lambda x: jnp.zeros((num_seeds, *x.shape), x.dtype),
        acting.init_plan(config, agent, episodes),
    )

    def decide(config, params, key, obs, plan, is_first):
        if not planner:
            action = acting.act_policy(
                params, key, obs, agent=agent, config=config, explore=explore
            )
            return action, plan
        out = acting.act(
            params, key, obs, plan, is_first, agent=agent, config=config, explore=explore
        )
        return out.action, out.next_state

    each = jax.vmap(decide, in_axes=(sweeps.axes(config), 0, 0, 0, 0, 0))

    def body(carry, step):
        env_state, timestep, plan, running, result = carry
        shaped = jax.tree.map(lambda x: x.reshape(num_seeds, episodes, *x.shape[1:]), timestep)
        step_keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, 1), step))(keys)
        action, plan = each(config, params, step_keys, shaped.obs, plan, shaped.is_first)
        env_state, timestep = env.step(env_state, action.reshape(-1, action.shape[-1]))
        broke = running & timestep.invalid
        going = running & ~timestep.invalid
        returns = jnp.where(going, timestep.episode_return, result.returns)
        lengths = jnp.where(going, timestep.episode_length, result.lengths)
        result = Episodes(returns, lengths, result.valid & ~broke)
        return (env_state, timestep, plan, going & ~timestep.is_last, result), None

    size = (num_seeds * episodes,)
    result = Episodes(
        jnp.zeros(size), jnp.zeros(size, timestep.episode_length.dtype), jnp.ones(size, bool)
    )
    carry = (env_state, timestep, plan, jnp.ones(size, bool), result)
    carry, _ = jax.lax.scan(body, carry, jnp.arange(env.episode_length))
    return jax.tree.map(lambda x: x.reshape(num_seeds, episodes), carry[-1])
