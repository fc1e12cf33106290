"""The learner of one seed, as pure functions. ``vmap`` it over seeds.

``update`` does one optimisation step on one batch: targets, world model and
critic, learned prior, policy, target network. All methods of the family pass
through this one code path; they differ in configuration values.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax import (
    acting,
    calibration,
    maths,
    model_loss,
    normalising,
    optimise,
    policy_loss,
    replay,
    world_model,
)
from pomcp_jax.acting import AgentSpec
from pomcp_jax.actors import AgentParams
from pomcp_jax.calibration import Outcomes
from pomcp_jax.config import AgentConfig
from pomcp_jax.optimise import Improved
from pomcp_jax.policy_loss import Scales
from pomcp_jax.replay import Batch
from pomcp_jax.types import Gaussian, Key, Params
from pomcp_jax.world_model import ModelParams

Counter = TypeVar("Counter", int, Array)


class OptStates(NamedTuple):
    """Optimiser states of world model, policy and prior."""

    model: optax.OptState
    policy: optax.OptState
    prior: optax.OptState | None
    learning_policy: Params | None
    """The policy that learns, where the one in the parameters is its average."""
    learning_prior: Params | None
    """The same of a learned prior."""
    learning_model: ModelParams | None
    """The world model that learns, where the one in the parameters is its average."""


class Faults(NamedTuple):
    """Updates that were not applied because something was not finite."""

    total: Int[Array, ""]
    consecutive: Int[Array, ""]
    term: Int[Array, ""]
    """Index into :data:`FAULT_TERMS`: the first offending term of the latest refused update."""


FAULT_TERMS = (*model_loss.TERMS, *policy_loss.TERMS)
ACTOR_METRICS = ("policy/", "prior/", "loss/policy", "loss/prior", "grad/policy")
"""Beginnings of the names of metrics that only updates of policy and prior have."""


class AgentState(NamedTuple):
    """Everything that learning changes, for one seed."""

    params: AgentParams
    target_value: Params
    opt: OptStates
    scales: Scales
    faults: Faults


def init(key: Key, config: AgentConfig, spec: AgentSpec) -> AgentState:
    """A fresh agent of one seed."""
    key_model, key_policy, key_prior = jax.random.split(key, 3)
    model_config = config.world_model
    model = world_model.init(key_model, model_config, spec.obs_size, spec.action_size)
    policy = world_model.init_policy(key_policy, model_config, spec.action_size)
    prior = None
    if config.policy.learns_prior:
        prior = world_model.init_policy(key_prior, model_config, spec.action_size)
    moments = normalising.init(spec.obs_size) if model_config.normalise_observations else None
    # The state does not depend on epsilon, which every part passes to its own steps.
    adam = optax.scale_by_adam()
    averages = config.policy.average_updates > 0
    opt = OptStates(
        adam.init(model),
        adam.init(policy),
        None if prior is None else adam.init(prior),
        jax.tree.map(jnp.copy, policy) if averages else None,
        jax.tree.map(jnp.copy, prior) if averages and prior is not None else None,
        jax.tree.map(jnp.copy, model) if config.optimizer.average_updates else None,
    )
    # Distinct buffers: the state is donated, and XLA refuses a buffer donated twice.
    q, kl, prior_scale = (jnp.ones((), jnp.float32) for _ in range(3))
    zeros = [jnp.zeros((), jnp.int32) for _ in Faults._fields]
    return AgentState(
        AgentParams(model, policy, prior, moments),
        jax.tree.map(jnp.copy, model.value),
        opt,
        Scales(q, kl, prior_scale, log_multiplier=jnp.zeros((), jnp.float32)),
        Faults(*zeros),
    )


def with_learners(state: AgentState) -> AgentState:
    """``state`` with the actors and the world model that learn, and act, in its parameters.

    Those in the parameters, which are evaluated and exported, may be their averages. A state
    without optimisers, that of a loaded agent, has only these.
    """
    if state.opt is None:
        return state
    params = state.params
    if state.opt.learning_policy is not None:
        params = params._replace(policy=state.opt.learning_policy)
    if state.opt.learning_prior is not None:
        params = params._replace(prior=state.opt.learning_prior)
    if state.opt.learning_model is not None:
        params = params._replace(model=state.opt.learning_model)
    return state._replace(params=params)


def actors_due(updates: Int[Array, ""], config: AgentConfig) -> Bool[Array, ""] | bool:
    """Whether policy and prior learn too after ``updates`` updates: the first of each interval."""
    interval = config.policy.interval
    return True if interval == 1 else jnp.mod(updates, interval) == 0


def count_due(begin: Counter, end: Counter, config: AgentConfig) -> Counter:
    """How many of the updates ``begin`` to ``end - 1`` train policy and prior."""
    interval = config.policy.interval
    if interval == 1:
        return end - begin
    return (end + interval - 1) // interval - (begin + interval - 1) // interval


def apply_replan(
    batch: Batch, prior: Gaussian, value: Float[Array, "H b"], made: Int[Array, "H b"]
) -> tuple[Batch, replay.Index]:
    """``batch`` with re-planned records in place, and the index of their rows in replay."""
    horizon, size = value.shape
    rows = batch.rows
    # The batch learns from the new plans at once, not only when it is next sampled (BMPC).
    put = lambda old, new: old.at[:horizon, :size].set(new)  # noqa: E731
    rows = rows._replace(
        prior=jax.tree.map(put, rows.prior, prior),
        prior_value=put(rows.prior_value, value),
        made=put(rows.made, made),
    )
    index = jax.tree.map(lambda x: x[:horizon, :size], batch.index)
    return batch._replace(rows=rows), index


def update(
    state: AgentState,
    batch: Batch,
    key: Key,
    *,
    spec: AgentSpec,
    config: AgentConfig,
    train_actors: Bool[Array, ""] | bool = True,
    due: Bool[Array, ""] | bool = True,
    outcomes: Outcomes | None = None,
) -> tuple[AgentState, dict[str, Float[Array, ""]]]:
    """One optimisation step of everything on one batch.

    Args:
      state: of one seed.
      batch: windows of W + 1 rows (``config.window``).
      key: consumed.
      spec: static part of the agent.
      config: of the agent.
      train_actors: False leaves policy, prior and scales alone (BMPC's pre-training).
      due: False leaves policy, prior and their scales alone, in updates between those of
        ``policy.interval``.
      outcomes: of recent actions, for ``policy.kl_tuning`` ``calibrated``.

    Returns:
      The new state and scalar metrics. A part whose loss or gradient is not
      finite keeps its parameters, and the fault is counted.

    Raises:
      ValueError: while tracing, if windows have another length, or outcomes are missing.
    """
    _check_inputs(batch, outcomes, config)
    key_target, key_dropout, key_policy = jax.random.split(key, 3)
    before, state = state.params, with_learners(state)
    batch, target = _with_targets(state, batch, key_target, spec, config)
    # TD-MPC2's order: the policy climbs the updated critic, at latents from before that update.
    # The prior comes before the policy, whose loss treats it as a constant.
    state, model, metrics = _improve_model(state, batch, target, key_dropout, spec, config)
    latents = model.aux.latents
    actors = functools.partial(
        _improve_actors, batch=batch, latents=latents, key=key_policy, spec=spec, config=config
    )
    state, finite_actors, more = _when_due(actors, state, train_actors, due, config)
    # After a refused update too: the step is then towards parameters that have not changed.
    rate = config.optimizer.target_rate
    target_value = jax.tree.map(
        lambda old, new: old + rate * (new - old), state.target_value, state.params.model.value
    )
    finite = jnp.stack([*model.finite, *finite_actors])  # as FAULT_TERMS
    # Only a wait for the next turn leaves their health open; pre-training has nothing to judge.
    complete = True if config.policy.interval == 1 else due | ~jnp.asarray(train_actors)
    faults = _count_faults(state.faults, finite, complete)
    if outcomes is not None:
        bias = calibration.bias(
            state.params, outcomes, jax.random.fold_in(key_target, 1), nets=spec.nets, config=config
        )
        bias = calibration.relative(bias, target.value, batch.transition)
        state, more = _calibrated(state, bias, train_actors, config), more | {"value/bias": bias}
    state = _with_averages(state, before, train_actors & due, config)
    return state._replace(target_value=target_value, faults=faults), metrics | more


def _with_targets(
    state: AgentState, batch: Batch, key: Key, spec: AgentSpec, config: AgentConfig
) -> tuple[Batch, model_loss.Targets]:
    """Windows of H + 1 normalised rows, and their targets from all W + 1."""
    batch = acting.normalised(state.params, batch)
    # From the scales of the latest policy loss: the soft target prices KL as that loss did.
    kl_weight = _kl_price(state.scales, spec.action_size, config)
    target = model_loss.targets(
        state.params,
        state.target_value,
        batch,
        key,
        nets=spec.nets,
        config=config,
        kl_weight=kl_weight,
    )
    target = jax.lax.stop_gradient(target)
    if config.window > config.mppi.horizon:
        # Later rows are there for their rewards, which are in the targets now.
        batch, target = batch.head(config.mppi.horizon + 1), target.head(config.mppi.horizon)
    return batch, target


def _with_averages(
    state: AgentState,
    before: AgentParams,
    actors_learned: Bool[Array, ""] | bool,
    config: AgentConfig,
) -> AgentState:
    """``state`` after an update, with averages in the parameters instead of what learns.

    Only the averages among the parameters ``before`` the update are read.
    """
    params, opt = state.params, state.opt
    updates = config.policy.average_updates

    def follow(old: Params, new: Params, count: Int[Array, ""]) -> Params:
        moved = _approach(old, new, count, updates)
        return jax.tree.map(lambda x, kept: jnp.where(actors_learned, x, kept), moved, old)

    if opt.learning_policy is not None:
        opt = opt._replace(learning_policy=params.policy)
        moved = follow(before.policy, params.policy, opt.policy.count)
        params = params._replace(policy=moved)
    if opt.learning_prior is not None and opt.prior is not None:
        moved = follow(before.prior, params.prior, opt.prior.count)
        opt = opt._replace(learning_prior=params.prior)
        params = params._replace(prior=moved)
    if opt.learning_model is not None:
        opt = opt._replace(learning_model=params.model)
        updates = config.optimizer.average_updates
        moved = _approach(before.model, params.model, opt.model.count, updates)
        params = params._replace(model=moved)
    return state._replace(params=params, opt=opt)


def _approach(average: Params, new: Params, count: Int[Array, ""], updates: int) -> Params:
    """An average that forgets (Polyak and Juditsky 1992), as target networks do.

    Its rate is ``1 / updates``, and ``9 / (9 + count)`` while that is larger, so that the initial
    parameters do not linger (``tf.train.ExponentialMovingAverage``, ``num_updates``).
    """
    rate = jnp.maximum(1.0 / updates, 9.0 / (9.0 + count.astype(jnp.float32)))
    return jax.tree.map(lambda old, new: old + rate * (new - old), average, new)


def _calibrated(
    state: AgentState, bias: Float[Array, ""], enabled: Bool[Array, ""] | bool, config: AgentConfig
) -> AgentState:
    log = calibration.step(state.scales.log_multiplier, bias, config.policy)
    log = jnp.where(enabled, log, state.scales.log_multiplier)
    return state._replace(scales=state.scales._replace(log_multiplier=log))


def _check_inputs(batch: Batch, outcomes: Outcomes | None, config: AgentConfig) -> None:
    rows, tuning = batch.valid.shape[0], config.policy.kl_tuning
    if rows != config.window + 1:
        raise ValueError(f"batch: has windows of {rows} rows; must have {config.window + 1}")
    if (outcomes is None) == (tuning == "calibrated"):
        right = "be given" if outcomes is None else "be None"
        raise ValueError(f"outcomes: must {right} when policy.kl_tuning is {tuning!r}")


Part = tuple[AgentState, Improved, dict[str, Float[Array, ""]]]
"""The new state, the step that led to it, and its metrics."""


def _improve_model(
    state: AgentState,
    batch: Batch,
    target: model_loss.Targets,
    key: Key,
    spec: AgentSpec,
    config: AgentConfig,
) -> Part:
    params, bins = state.params, world_model.bins(config.world_model)

    def loss(model: ModelParams):
        return model_loss.loss(model, batch, target, key, nets=spec.nets, config=config)

    head = params.model.termination
    rate = config.optimizer.encoder_rate_scale
    # TD-MPC2 slows only the encoder; None has to be where the parameters have it.
    rates = ModelParams(rate, 1.0, 1.0, 1.0, None if head is None else 1.0)
    step = optimise.improve(
        loss,
        params.model,
        state.opt.model,
        config.optimizer,
        terms=lambda aux: (aux.consistency, aux.reward, aux.value, aux.termination),
        rate_scale=rates,
    )
    terms, mask = step.aux, batch.transition
    metrics = {
        "loss/model": step.loss,
        "loss/consistency": terms.consistency,
        "loss/reward": terms.reward,
        "loss/value": terms.value,
        "value/target": maths.masked_mean(target.value, mask),
        # A share well above 0 means that the bins are too narrow for this task.
        "value/clipped": model_loss.clipped_share(target.value, mask, bins),
        "reward/clipped": model_loss.clipped_share(batch.rows.reward[:-1], mask, bins),
        "grad/model": step.grad_norm,
    }
    if head is not None:
        metrics["loss/termination"] = terms.termination
    params, opt = params._replace(model=step.params), state.opt._replace(model=step.opt)
    return state._replace(params=params, opt=opt), step, metrics


Actors = tuple[AgentState, list[Bool[Array, ""]], dict[str, Float[Array, ""]]]
"""The new state, whether each of :data:`pomcp_jax.policy_loss.TERMS` was finite, and metrics."""


def _when_due(
    improve: Callable[..., Actors],
    state: AgentState,
    enabled: Bool[Array, ""] | bool,
    due: Bool[Array, ""] | bool,
    config: AgentConfig,
) -> Actors:
    """``improve(state, enabled)``; with ``policy.interval`` > 1 it is computed only if due.

    Metrics are 0 if it is not.
    """
    if config.policy.interval == 1:
        return improve(state, enabled=enabled)

    # Only what it changes: whatever passes through a condition is copied.
    def learned(state: AgentState) -> tuple:
        params, opt = state.params, state.opt
        return params.policy, params.prior, opt.policy, opt.prior, state.scales

    def run() -> tuple:
        after, finite, metrics = improve(state, enabled=True)
        return learned(after), finite, metrics

    def skip() -> tuple:
        _, finite, metrics = jax.eval_shape(run)
        good = [jnp.ones((), bool) for _ in finite]
        return learned(state), good, jax.tree.map(jnp.zeros_like, metrics)

    # Neither condition has the axis of seeds, so that this stays a branch under ``vmap``.
    parts, finite, metrics = jax.lax.cond(enabled & due, run, skip)
    policy, prior, policy_opt, prior_opt, scales = parts
    state = state._replace(
        params=state.params._replace(policy=policy, prior=prior),
        opt=state.opt._replace(policy=policy_opt, prior=prior_opt),
        scales=scales,
    )
    return state, finite, metrics


def _improve_actors(
    state: AgentState,
    *,
    batch: Batch,
    latents: Float[Array, "T B L"],
    key: Key,
    spec: AgentSpec,
    config: AgentConfig,
    enabled: Bool[Array, ""] | bool,
) -> Actors:
    options: dict[str, Any] = {"spec": spec, "config": config, "enabled": enabled}
    # The positions of terms must be those of FAULT_TERMS with and without a learned prior.
    finite = [jnp.ones((), bool)] * 2
    metrics: dict[str, Float[Array, ""]] = {}
    if state.params.prior is not None:
        state, prior, metrics = _improve_prior(state, batch, latents, **options)
        finite = prior.finite
    state, policy, more = _improve_policy(state, batch, latents, key, **options)
    return state, [*finite, *policy.finite], metrics | more


def _improve_actor(
    loss: Callable[[Params], tuple[Float[Array, ""], Any]],
    params: Params,
    opt: optax.OptState,
    config: AgentConfig,
    enabled: Bool[Array, ""] | bool,
) -> Improved:
    """A step of the policy or the learned prior, which share their settings."""
    return optimise.improve(
        loss,
        params,
        opt,
        config.optimizer,
        enabled=enabled,
        interval=config.policy.interval,
        epsilon=config.optimizer.policy_epsilon,
    )


def _improve_prior(
    state: AgentState,
    batch: Batch,
    latents: Float[Array, "T B L"],
    *,
    spec: AgentSpec,
    config: AgentConfig,
    enabled: Bool[Array, ""] | bool,
) -> Part:
    params, scales = state.params, state.scales

    def loss(prior: Params):
        value = params.model.value
        return policy_loss.prior_loss(
            prior, value, latents, batch, scales, nets=spec.nets, config=config
        )

    step = _improve_actor(loss, params.prior, state.opt.prior, config, enabled)
    metrics = {
        "loss/prior": step.loss,
        "prior/kl": step.aux.kl,
        "prior/scale": step.aux.scale,
        "prior/fitted": step.aux.fitted,
    }
    state = state._replace(
        params=params._replace(prior=step.params),
        opt=state.opt._replace(prior=step.opt),
        scales=scales._replace(prior=jnp.where(enabled, step.aux.scale, scales.prior)),
    )
    return state, step, metrics


def _improve_policy(
    state: AgentState,
    batch: Batch,
    latents: Float[Array, "T B L"],
    key: Key,
    *,
    spec: AgentSpec,
    config: AgentConfig,
    enabled: Bool[Array, ""] | bool,
) -> Part:
    params, scales = state.params, state.scales

    def loss(policy: Params):
        return policy_loss.policy_loss(
            policy, params, latents, batch, scales, key, nets=spec.nets, config=config
        )

    step = _improve_actor(loss, params.policy, state.opt.policy, config, enabled)
    aux = step.aux
    metrics = {
        "loss/policy": step.loss,
        "policy/q": aux.q,
        "policy/kl": aux.kl,
        "policy/entropy": aux.entropy,
        "policy/std": aux.std,
        "policy/scale_q": aux.scales.q,
        "policy/scale_kl": aux.scales.kl,
        "policy/kl_multiplier": jnp.exp(scales.log_multiplier),
        "grad/policy": step.grad_norm,
    }
    state = state._replace(
        params=params._replace(policy=step.params),
        opt=state.opt._replace(policy=step.opt),
        # Without this, scales would follow a policy that pre-training does not train.
        scales=jax.tree.map(lambda new, old: jnp.where(enabled, new, old), aux.scales, scales),
    )
    return state, step, metrics


def _kl_price(scales: Scales, action_size: int, config: AgentConfig) -> Float[Array, ""]:
    """Price of a nat of KL in units of value, as in the policy loss.

    ``lambda m A^k S_Q / (q_coef S_K)``; 0 while ``kl_gate`` is closed there.
    """
    policy = config.policy
    divisor = {"own": scales.kl, "q": scales.q, "none": jnp.ones_like(scales.q)}[policy.kl_scale]
    size = jnp.power(float(action_size), policy.kl_dim_power)
    multiplier = jnp.exp(scales.log_multiplier)
    price = policy.kl_coef * multiplier * size * scales.q / (policy.q_coef * divisor)
    return jnp.where(scales.q > policy.kl_gate, price, 0.0)


def _count_faults(
    faults: Faults, finite: Bool[Array, " terms"], complete: Bool[Array, ""] | bool
) -> Faults:
    """``faults`` after an update; without the actors it is not ``complete``."""
    bad = ~jnp.all(finite)
    # The first False; without any it is 0, which ``bad`` discards.
    first = jnp.argmin(finite).astype(jnp.int32)
    count = bad.astype(jnp.int32)
    # A policy that is refused whenever it is due must not seem healthy in between.
    kept = bad if complete is True else bad | ~complete
    return Faults(
        total=faults.total + count,
        consecutive=jnp.where(kept, faults.consecutive + count, 0),
        term=jnp.where(bad, first, faults.term),
    )
