"""Acting with the learned model: the planner's callables, decisions, re-planning, bare policy.

All functions are pure and serve one seed with N environments; ``vmap`` them over seeds.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax import (
    actors,
    data_axis,
    losses,
    maths,
    mppi,
    networks,
    normalising,
    packing,
    world_model,
)
from pomcp_jax.actors import AgentParams, Bound
from pomcp_jax.config import AgentConfig, ConfigError
from pomcp_jax.mppi import Imagined, ModelFns, PlanOutput, PlanState
from pomcp_jax.planner_checks import Number
from pomcp_jax.planner_model import Proposer, SplitStep
from pomcp_jax.replay import Batch
from pomcp_jax.types import Gaussian, Key
from pomcp_jax.world_model import Networks


class AgentSpec(NamedTuple):
    """Static companions of a state: networks and sizes, no parameters."""

    nets: Networks
    obs_size: int
    action_size: int


def build(config: AgentConfig, obs_size: int, action_size: int) -> AgentSpec:
    """The static part for an environment of these sizes."""
    return AgentSpec(world_model.build(config.world_model, action_size), obs_size, action_size)


def model_fns(
    spec: AgentSpec,
    config: AgentConfig,
    log_std_range: tuple[Bound, Bound] | None = None,
) -> ModelFns:
    """The world model as the planner's callables; their params are :class:`AgentParams`.

    The value heads in ``params.model.value`` are averaged, less
    ``critic.tail_penalty`` of their standard deviations: choose them beforehand
    (:func:`plan_params`), once for all samples. ``log_std_range`` overrides the
    actors' when they propose.
    """
    nets, model = spec.nets, config.world_model
    bins = world_model.bins(model)

    def policy_proposes(params: AgentParams, key: Key, latent: Array) -> Array:
        return actors.sample(nets, params.policy, key, latent, model, log_std_range).action

    def prior_proposes(params: AgentParams, key: Key, latent: Array) -> Array:
        return actors.sample(nets, params.prior, key, latent, model, log_std_range).action

    def discount(params: AgentParams, following: Array, reward: Array) -> Array:
        gamma = jnp.asarray(config.optimizer.discount, reward.dtype)
        going = world_model.continues(nets, params.model, following)
        # Terminations reach the planner as discounts: it has no notion of episodes.
        return gamma if going is None else gamma * going

    def step(params: AgentParams, latent: Array, action: Array):
        following, reward = world_model.step(nets, params.model, latent, action, bins)
        return following, reward, discount(params, following, reward)

    def prepare(params: AgentParams, latent: Array):
        return world_model.latent_products(nets, params.model, latent)

    def advance(params: AgentParams, products: world_model.Products, action: Array):
        following = world_model.dynamics_from_products(nets, params.model, products, action)
        return following, (products.reward, action, following)

    def outcome(params: AgentParams, seen: tuple[Array, Array, Array]):
        product, action, following = seen
        reward = world_model.reward_from_products(nets, params.model, product, action, bins)
        return reward, discount(params, following, reward)

    def value(params: AgentParams, key: Key, latent: Array) -> Array:
        action = None
        if model.critic == "q":
            # The policy's action, whoever proposes: TD-MPC2's tail.
            choice = config.critic.tail_action
            action = actors.act(nets, params.policy, key, latent, model, choice).action
        values = world_model.values(nets, params.model.value, latent, action, bins)
        return jnp.mean(values) - config.critic.tail_penalty * jnp.std(values)

    proposers: dict[str, Proposer | tuple[Proposer, ...]] = {
        "policy": policy_proposes,
        "prior": prior_proposes,
        "both": (policy_proposes, prior_proposes),
    }
    whole = model.arranged_for == "cpu"
    steps = step if whole else SplitStep(prepare, advance, outcome)
    return ModelFns(steps, value, proposers[config.policy.proposer])


def plan_params(params: AgentParams, key: Key, config: AgentConfig) -> AgentParams:
    """``params`` with the random value heads of a plan's tail ([TD-MPC2] ``Q(..., "avg")``)."""
    heads, tail = config.world_model.num_heads, config.critic.num_tail_heads
    # Before the loops of a plan, which would take the parts out of the vectors in every turn.
    params = packing.unpack(params)
    value = params.model.value
    # All heads in their order: the draw would only permute a mean.
    if heads > tail:
        # Chosen outside of ``vmap``: inside, every sample would gather parameters of its own.
        index = jax.random.choice(key, heads, (tail,), replace=False)
        value = networks.select_heads(value, index)
    if config.world_model.arranged_for == "gpu":
        value = networks.join_heads(value)
    return params._replace(model=params.model._replace(value=value))


def normalised(params: AgentParams, batch: Batch) -> Batch:
    """``batch`` with the observations that the encoder sees."""
    if params.moments is None:
        return batch
    obs = normalising.apply(params.moments, batch.rows.obs)
    return batch._replace(rows=batch.rows._replace(obs=obs))


def init_plan(config: AgentConfig, spec: AgentSpec, num_envs: int) -> PlanState:
    """Warm starts ``[N, H, A]`` of fresh episodes."""
    state = mppi.init(config.mppi, spec.action_size, jnp.float32)
    return jax.tree.map(lambda x: jnp.zeros((num_envs, *x.shape), x.dtype), state)


def _check_obs(obs: Float[Array, "N O"], spec: AgentSpec) -> None:
    if obs.ndim != 2:
        raise ConfigError(
            f"obs has shape {list(obs.shape)}: must be [N, {spec.obs_size}] for N environments"
        )
    if obs.shape[1] != spec.obs_size:
        raise ConfigError(
            f"observation has {obs.shape[1]} entries; this agent was built for {spec.obs_size}"
        )


def _check_rows(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ConfigError(
            f"{name} has shape {list(shape)}: must be {list(expected)}, obs has {expected[0]} rows"
        )


def act(
    params: AgentParams,
    key: Key,
    obs: Float[Array, "N O"],
    plan_state: PlanState,
    is_first: Bool[Array, " N"],
    *,
    spec: AgentSpec,
    config: AgentConfig,
    explore: Number = 1.0,
) -> PlanOutput:
    """Plan one decision for each of N environments.

    The warm start is dropped where ``is_first``. ``explore`` 0 switches the
    exploration noise off. Every output field has the leading axis N.

    Raises:
      ConfigError: for observations of another size than the agent's, and for a warm
        start or ``is_first`` of another number of environments.
    """
    plan = functools.partial(mppi.plan, explore=explore)
    return _plans(plan, params, key, (obs, plan_state, is_first), spec, config)


def imagine(
    params: AgentParams,
    key: Key,
    obs: Float[Array, "N O"],
    plan_state: PlanState,
    is_first: Bool[Array, " N"],
    *,
    spec: AgentSpec,
    config: AgentConfig,
) -> tuple[PlanOutput, Imagined]:
    """:func:`act` without exploration, and the model's predictions for the elites of each plan.

    Raises:
      ConfigError: as :func:`act`.
    """
    imagine = functools.partial(mppi.imagine, explore=0.0)
    return _plans(imagine, params, key, (obs, plan_state, is_first), spec, config)


def _plans(
    planner: Callable[..., Any],
    params: AgentParams,
    key: Key,
    now: tuple[Float[Array, "N O"], PlanState, Bool[Array, " N"]],
    spec: AgentSpec,
    config: AgentConfig,
) -> Any:
    """Results of ``planner``, :func:`mppi.plan` or one of its signature, for N observations.

    ``now`` are the observations, the plans' states, and whether an episode begins.
    """
    obs, states, is_first = now
    _check_obs(obs, spec)
    obs = normalising.apply(params.moments, obs)
    num, horizon = obs.shape[0], config.mppi.horizon
    _check_rows("plan_state.mean", states.mean.shape, (num, horizon, spec.action_size))
    _check_rows("is_first", is_first.shape, (num,))
    key_heads, key_plan = jax.random.split(key)
    params = plan_params(params, key_heads, config)
    latent = world_model.encode(spec.nets, params.model.encoder, obs)

    def begun(x: Array) -> Array:
        return jnp.where(jnp.expand_dims(is_first, tuple(range(1, x.ndim))), 0.0, x)

    # The warm start of a new episode would continue the plan of the last one.
    states = jax.tree.map(begun, states)

    def plans(shared: tuple[AgentParams, AgentConfig], *rows: Any) -> Any:
        params, config = shared
        model = model_fns(spec, config)

        def plan(key: Key, root: Array, state: PlanState) -> Any:
            return planner(params, key, root, state, model=model, config=config.mppi)

        return jax.vmap(plan)(*rows)

    # A key per environment, so that their plans do not share noise.
    keys = jax.random.split(key_plan, obs.shape[0])
    return data_axis.rows(plans, shared=1)((params, config), keys, latent, states)


def act_policy(
    params: AgentParams,
    key: Key,
    obs: Float[Array, "N O"],
    *,
    spec: AgentSpec,
    config: AgentConfig,
    explore: Number = 1.0,
) -> Float[Array, "N A"]:
    """Actions of the bare policy, without planning; ``explore`` scales its noise.

    Raises:
      ConfigError: for observations of another size than the agent's.
    """
    _check_obs(obs, spec)
    obs = normalising.apply(params.moments, obs)
    model = config.world_model
    latent = world_model.encode(spec.nets, params.model.encoder, obs)
    dist = actors.distribution(spec.nets, params.policy, latent, model)
    scale = jnp.asarray(explore).astype(dist.mean.dtype)
    noise = scale * jax.random.normal(key, dist.mean.shape, dist.mean.dtype)
    # ``raw + (clip(raw) - raw)``, the straight-through clip, can exceed 1 by rounding.
    return jnp.clip(actors.draw(dist, noise, model.squash).action, -1.0, 1.0)


def act_on_record(
    params: AgentParams, key: Key, obs: Float[Array, "N O"], *, spec: AgentSpec, config: AgentConfig
) -> tuple[Float[Array, "N A"], Gaussian, Float[Array, " N"]]:
    """Actions of the bare policy with what replay stores of a plan: a Gaussian and a value.

    The Gaussian is the policy's own over actions, its standard deviation within the planner's
    bounds; the value is the critic's, the mean over all heads.
    """
    model, planner = config.world_model, config.mppi
    obs = normalising.apply(params.moments, obs)
    latent = world_model.encode(spec.nets, params.model.encoder, obs)
    drawn = actors.sample(spec.nets, params.policy, key, latent, model)
    # ``raw + (clip(raw) - raw)``, the straight-through clip, can exceed 1 by rounding.
    action = jnp.clip(drawn.action, -1.0, 1.0)
    dist = actors.over_actions(drawn.dist, model.squash)
    record = Gaussian(dist.mean, jnp.clip(dist.std, planner.std_min, planner.std_max))
    valued = action if model.critic == "q" else None
    bins = world_model.bins(model)
    values = world_model.values(spec.nets, params.model.value, latent, valued, bins)
    return action, record, jnp.mean(values, axis=0)


def replan(
    params: AgentParams, key: Key, batch: Batch, *, spec: AgentSpec, config: AgentConfig
) -> tuple[Gaussian, Float[Array, "H b"]]:
    """Plan again at steps 0 to H-1 of the first ``b = replan.batch_size`` windows of ``batch``.

    BMPC's lazy reanalysis (docs/method.md): from raw observations, no warm
    start, no exploration noise, proposals with their own log-std range; one
    vmapped plan for all ``H b`` states.
    """
    rows = normalised(params, batch).rows
    size, horizon = config.replan.batch_size, config.mppi.horizon
    # From observations, not stored latents: the encoder has changed since.
    obs = rows.obs[:horizon, :size].reshape(horizon * size, -1)
    key_heads, key_plan = jax.random.split(key)
    params = plan_params(params, key_heads, config)
    latent = world_model.encode(spec.nets, params.model.encoder, obs)
    # BMPC raises the least std of proposals here, compared with acting.
    limits = config.replan.proposal_log_std_min, config.replan.proposal_log_std_max
    planner = dataclasses.replace(
        config.mppi,
        num_samples=config.replan.num_samples or config.mppi.num_samples,
        iterations=config.replan.iterations or config.mppi.iterations,
    )
    # A warm start from acting would belong to another state, and the action before is not known.
    state = mppi.init(planner, spec.action_size, jnp.float32)._replace(action=None)

    def plans(shared: tuple, *rows: Array) -> PlanOutput:
        params, config, planner, state, limits = shared
        model = model_fns(spec, config, limits)

        def plan(key: Key, root: Array) -> PlanOutput:
            return mppi.plan(params, key, root, state, model=model, config=planner, explore=0.0)

        return jax.vmap(plan)(*rows)

    keys = jax.random.split(key_plan, horizon * size)
    out = data_axis.rows(plans, shared=1)((params, config, planner, state, limits), keys, latent)
    shape = (horizon, size)
    prior = jax.tree.map(lambda x: x.reshape(*shape, -1), out.prior)
    return prior, out.value.reshape(shape)


def replan_order(
    params: AgentParams,
    batch: Batch,
    updates: Int[Array, ""] | int,
    *,
    spec: AgentSpec,
    config: AgentConfig,
) -> Int[Array, " B"]:
    """Order of the batch's windows, those to re-plan first, by ``replan.select``.

    ``oldest`` sorts by the mean age of their records, ``kl`` by the mean KL(policy || record);
    windows without a transition come last.
    """
    # The states that would be planned for: those after them are only there for their rewards.
    steps = config.mppi.horizon
    rows, mask = normalised(params, batch).rows, batch.transition[:steps]
    if config.replan.select == "oldest":
        urgency = (updates - rows.made[:steps]).astype(rows.reward.dtype)
    else:
        latent = world_model.encode(spec.nets, params.model.encoder, rows.obs[:steps])
        dist = actors.distribution(spec.nets, params.policy, latent, config.world_model)
        record = jax.tree.map(lambda x: x[:steps], rows.prior)
        # As the loss sees it, else records of tiny std would always come first.
        record = losses.floored(record, config.policy)
        urgency = jnp.sum(maths.gaussian_kl(dist, record), axis=-1)
    count = jnp.sum(mask, axis=0, dtype=urgency.dtype)
    mean = jnp.sum(jnp.where(mask, urgency, 0.0), axis=0) / jnp.maximum(count, 1.0)
    # Nothing in such a window can be trained on.
    return jnp.argsort(jnp.where(count > 0, mean, -jnp.inf), descending=True)
