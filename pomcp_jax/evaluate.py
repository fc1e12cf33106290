"""Vectorised evaluation: a fixed number of episodes, one per environment, all seeds at once."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax import acting
from pomcp_jax.acting import AgentParams, AgentSpec
from pomcp_jax.config import AgentConfig
from pomcp_jax.envs.protocol import Env
from pomcp_jax.mppi import PlanOutput
from pomcp_jax.seed_axis import over_seeds
from pomcp_jax.types import Key, PyTree


class Episodes(NamedTuple):
    """Results, one per seed and episode."""

    returns: Float[Array, "S E"]
    lengths: Int[Array, "S E"]
    """Decisions."""
    valid: Bool[Array, "S E"]
    """False if the environment broke (its return up to then is given)."""


Probe = Callable[[AgentConfig, AgentParams, Key, Float[Array, "E O"], PlanOutput], PyTree]
"""``(config, params, key, obs, plan) -> [E, ...]``: what to note of a decision of one seed."""


class Trace(NamedTuple):
    """Every decision of the episodes, leading axes ``[S, T, E]``; T is the episode length + 1.

    The state of index t is the one before decision t, so that an episode of n
    decisions has its final state at n, where ``alive`` is False.
    """

    alive: Bool[Array, "S T E"]
    """The decision belongs to the episode; False from its final state on."""
    reward: Float[Array, "S T E"]
    terminated: Bool[Array, "S T E"]
    """The decision led to a terminal state."""
    seen: PyTree
    """What the probe noted at the state."""


def rollout(
    params: AgentParams,
    keys: Key,
    *,
    env: Env,
    spec: AgentSpec,
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
      spec: static part of the agent.
      config: of the agent; floats may have the axis S (:mod:`pomcp_jax.seed_axis`).
      episodes: E, per seed.
      select: how the planner chooses its elite, ``sample`` or ``argmax``.
      planner: act with the planner; False acts with the bare policy.
      explore: scale of the exploration noise.
    """
    return _play(params, keys, env, spec, config, episodes, select, planner, explore, None)[0]


def traced(
    params: AgentParams,
    keys: Key,
    probe: Probe,
    *,
    env: Env,
    spec: AgentSpec,
    config: AgentConfig,
    episodes: int,
    select: str = "sample",
) -> tuple[Episodes, Trace]:
    """The planner's :func:`rollout`, and what ``probe`` notes in every decision.

    The episodes are those of :func:`rollout` with the same keys. One more plan
    is made than an episode has decisions, for the final state. A trace of 5 seeds
    and 10 episodes of 500 decisions takes 0.1 MB for each number noted.
    """
    return _play(params, keys, env, spec, config, episodes, select, True, 0.0, probe)


def _play(
    params: AgentParams,
    keys: Key,
    env: Env,
    spec: AgentSpec,
    config: AgentConfig,
    episodes: int,
    select: str,
    planner: bool,
    explore: Array | float,
    probe: Probe | None,
) -> tuple[Episodes, Trace | None]:
    config = dataclasses.replace(config, mppi=dataclasses.replace(config.mppi, select=select))
    num_seeds = keys.shape[0]
    env_keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, 0), episodes))(keys)
    env_state, timestep = env.reset(env_keys.reshape(-1))
    plan = jax.tree.map(
        lambda x: jnp.zeros((num_seeds, *x.shape), x.dtype),
        acting.init_plan(config, spec, episodes),
    )

    def decide(config, params, key, probe_key, obs, plan, is_first):
        if not planner:
            action = acting.act_policy(params, key, obs, spec=spec, config=config, explore=explore)
            return action, plan, None
        out = acting.act(
            params, key, obs, plan, is_first, spec=spec, config=config, explore=explore
        )
        seen = None if probe is None else probe(config, params, probe_key, obs, out)
        return out.action, out.next_state, seen

    def body(carry, step):
        env_state, timestep, plan, running, result = carry
        shaped = jax.tree.map(lambda x: x.reshape(num_seeds, episodes, *x.shape[1:]), timestep)

        def stream(number):
            return jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, number), step))(keys)

        told = (shaped.obs, plan, shaped.is_first)
        action, plan, seen = over_seeds(decide, config, params, stream(1), stream(2), *told)
        env_state, timestep = env.step(env_state, action.reshape(-1, action.shape[-1]))
        broke = running & timestep.invalid
        going = running & ~timestep.invalid
        returns = jnp.where(going, timestep.episode_return, result.returns)
        lengths = jnp.where(going, timestep.episode_length, result.lengths)
        result = Episodes(returns, lengths, result.valid & ~broke)
        trace = None
        if probe is not None:
            reward = jnp.where(going, timestep.reward, 0.0)
            trace = running, reward, going & timestep.terminated, seen
        return (env_state, timestep, plan, going & ~timestep.is_last, result), trace

    size = (num_seeds * episodes,)
    result = Episodes(
        jnp.zeros(size, jnp.float32),
        jnp.zeros(size, timestep.episode_length.dtype),
        ~timestep.invalid,
    )
    carry = (env_state, timestep, plan, ~timestep.invalid, result)
    steps = env.episode_length + (0 if probe is None else 1)
    carry, trace = jax.lax.scan(body, carry, jnp.arange(steps, dtype=jnp.int32))
    result = jax.tree.map(lambda x: x.reshape(num_seeds, episodes), carry[-1])
    if probe is None:
        return result, None
    *told, seen = trace
    told = [jnp.moveaxis(x.reshape(steps, num_seeds, episodes), 0, 1) for x in told]
    return result, Trace(*told, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), seen))
