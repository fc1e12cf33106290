"""Acting with the learned model: the planner's callables, decisions, re-planning, bare policy.

All functions are pure, for one seed and N environments; ``vmap`` them over seeds.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pomcp_jax import losses, maths, mppi, networks, world_model
from pomcp_jax.config import AgentConfig
from pomcp_jax.mppi import ModelFns, PlanOutput, PlanState
from pomcp_jax.replay import Batch
from pomcp_jax.types import Gaussian, Key, Params
from pomcp_jax.world_model import ModelParams, Networks


class AgentParams(NamedTuple):
    """All that acting needs."""

    model: ModelParams
    policy: Params
    prior: Params | None
    """The learned prior; None unless ``policy.prior`` is ``learned``."""


class Agent(NamedTuple):
    """Static companions of a state: networks and sizes, no parameters."""

    nets: Networks
    obs_size: int
    action_size: int


def build(config: AgentConfig, obs_size: int, action_size: int) -> Agent:
    """The static part for an environment of these sizes."""
    return Agent(world_model.build(config.world_model, action_size), obs_size, action_size)


def model_fns(
    agent: Agent,
    config: AgentConfig,
    log_std_range: tuple[Array | float, Array | float] | None = None,
) -> ModelFns:
    """The world model as the planner's callables; their params are :class:`AgentParams`.

    The value heads found in ``params.model.value`` are averaged: choose them
    beforehand (:func:`plan_params`), once for all samples. ``log_std_range``
    overrides the policy's when it proposes.
    """
    nets, model = agent.nets, config.world_model
    low, high = log_std_range or (model.log_std_min, model.log_std_max)
    bins = world_model.bins(model)
    discount = config.optimizer.discount

    def act(params: AgentParams, key: Key, latent: Array, low, high) -> Array:
        mean, log_std = world_model.policy(nets, params.policy, latent, low, high)
        noise = jax.random.normal(key, mean.shape)
        return losses.squash(mean, log_std, noise, model.squash).action

    def step(params: AgentParams, latent: Array, action: Array):
        reward = world_model.reward_logits(nets, params.model.reward, latent, action)
        latent = world_model.dynamics(nets, params.model.dynamics, latent, action)
        gamma = jnp.asarray(discount, reward.dtype)
        if params.model.termination is not None:
            # [TD-MPC2] plans on past a state unless it is more likely than not terminal.
            logit = world_model.termination_logits(nets, params.model.termination, latent)
            gamma = gamma * (logit <= 0.0).astype(gamma.dtype)
        return latent, maths.two_hot_decode(reward, bins), gamma

    def value(params: AgentParams, key: Key, latent: Array) -> Array:
        action = None
        if model.critic == "q":
            action = act(params, key, latent, model.log_std_min, model.log_std_max)
        logits = world_model.value_logits(nets, params.model.value, latent, action)
        return jnp.mean(maths.two_hot_decode(logits, bins))

    return ModelFns(step, value, lambda params, key, latent: act(params, key, latent, low, high))


def plan_params(params: AgentParams, key: Key, config: AgentConfig) -> AgentParams:
    """``params`` with two random value heads for a plan's tail ([TD-MPC2] ``Q(..., "avg")``)."""
    heads = config.world_model.num_heads
    if heads <= 2:
        return params
    index = jax.random.choice(key, heads, (2,), replace=False)
    value = networks.select_heads(params.model.value, index)
    return params._replace(model=params.model._replace(value=value))


def init_plan(config: AgentConfig, agent: Agent, num_envs: int) -> PlanState:
    """Warm starts ``[N, H, A]`` of fresh episodes."""
    state = mppi.init(config.mppi, agent.action_size)
    return jax.tree.map(lambda x: jnp.zeros((num_envs, *x.shape), x.dtype), state)


def act(
    params: AgentParams,
    key: Key,
    obs: Float[Array, "N O"],
    plan_state: PlanState,
    is_first: Bool[Array, " N"],
    *,
    agent: Agent,
    config: AgentConfig,
    explore: Array | float = 1.0,
) -> PlanOutput:
    """Plan one decision for each of N environments.

    The warm start is dropped where ``is_first``. ``explore`` 0 switches the
    exploration noise off. Every output field has the leading axis N.
    """
    key_heads, key_plan = jax.random.split(key)
    params = plan_params(params, key_heads, config)
    latent = world_model.encode(agent.nets, params.model.encoder, obs)
    mean = jnp.where(is_first[:, None, None], 0.0, plan_state.mean)
    model = model_fns(agent, config)

    def plan(key: Key, root: Array, state: PlanState) -> PlanOutput:
        return mppi.plan(params, key, root, state, model=model, config=config.mppi, explore=explore)

    keys = jax.random.split(key_plan, obs.shape[0])
    return jax.vmap(plan)(keys, latent, PlanState(mean))


def act_policy(
    params: AgentParams,
    key: Key,
    obs: Float[Array, "N O"],
    *,
    agent: Agent,
    config: AgentConfig,
    explore: Array | float = 1.0,
) -> Float[Array, "N A"]:
    """Actions of the bare policy, without planning; ``explore`` scales its noise."""
    model = config.world_model
    latent = world_model.encode(agent.nets, params.model.encoder, obs)
    mean, log_std = world_model.policy(
        agent.nets, params.policy, latent, model.log_std_min, model.log_std_max
    )
    noise = explore * jax.random.normal(key, mean.shape)
    return jnp.clip(losses.squash(mean, log_std, noise, model.squash).action, -1.0, 1.0)


def replan(
    params: AgentParams, key: Key, batch: Batch, *, agent: Agent, config: AgentConfig
) -> tuple[Gaussian, Float[Array, "H b"]]:
    """Plan afresh at the first ``b = replan.batch_size`` windows of ``batch``, steps 0 to H-1.

    BMPC's lazy reanalysis (docs/method.md): from raw observations, no warm
    start, no exploration noise, proposals with their own log-std range; one
    vmapped plan for all ``H b`` states.
    """
    rows = batch.rows
    size, horizon = config.replan.batch_size, rows.obs.shape[0] - 1
    obs = rows.obs[:horizon, :size].reshape(horizon * size, -1)
    key_heads, key_plan = jax.random.split(key)
    params = plan_params(params, key_heads, config)
    latent = world_model.encode(agent.nets, params.model.encoder, obs)
    limits = (config.replan.proposal_log_std_min, config.replan.proposal_log_std_max)
    model = model_fns(agent, config, limits)
    state = mppi.init(config.mppi, agent.action_size)

    def plan(key: Key, root: Array) -> PlanOutput:
        return mppi.plan(params, key, root, state, model=model, config=config.mppi, explore=0.0)

    out = jax.vmap(plan)(jax.random.split(key_plan, horizon * size), latent)
    shape = (horizon, size)
    prior = jax.tree.map(lambda x: x.reshape(*shape, -1), out.prior)
    return prior, out.value.reshape(shape)
