"""The learner of one seed, as pure functions. ``vmap`` it over seeds.

``update`` does one optimisation step on one batch: targets, world model and
critic, learned prior, policy, target network. All methods of the family pass
through this one code path; they differ in configuration values.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax import maths, model_loss, optimise, policy_loss, replay, world_model
from pomcp_jax.acting import AgentParams, AgentSpec
from pomcp_jax.config import AgentConfig
from pomcp_jax.replay import Batch
from pomcp_jax.types import Gaussian, Key, Params
from pomcp_jax.world_model import ModelParams


class OptStates(NamedTuple):
    """Optimiser states of world model, policy and prior."""

    model: optax.OptState
    policy: optax.OptState
    prior: optax.OptState | None


class Scales(NamedTuple):
    """Running scales S, which start at 1, and the learned strength of the prior."""

    q: Float[Array, ""]
    kl: Float[Array, ""]
    prior: Float[Array, ""]
    log_multiplier: Float[Array, ""]
    """Logarithm of what multiplies ``policy.kl_coef``; stays 0 unless ``kl_tuning`` is dual."""


class Faults(NamedTuple):
    """Updates that were not applied because something was not finite."""

    total: Int[Array, ""]
    consecutive: Int[Array, ""]
    term: Int[Array, ""]
    """Index into :data:`FAULT_TERMS` of the last one's first offending term."""


FAULT_TERMS = (*model_loss.TERMS, *policy_loss.TERMS)


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
    adam = optax.scale_by_adam()
    opt = OptStates(
        adam.init(model), adam.init(policy), None if prior is None else adam.init(prior)
    )
    # Distinct buffers: the state is donated, and XLA refuses a buffer donated twice.
    one = [jnp.ones((), jnp.float32) for _ in range(3)]
    zero = [jnp.zeros((), jnp.int32) for _ in Faults._fields]
    return AgentState(
        AgentParams(model, policy, prior),
        jax.tree.map(jnp.copy, model.value),
        opt,
        Scales(*one, jnp.zeros((), jnp.float32)),
        Faults(*zero),
    )


def apply_replan(
    batch: Batch, prior: Gaussian, value: Float[Array, "H b"], made: Int[Array, "H b"]
) -> tuple[Batch, replay.Index]:
    """``batch`` with re-planned records in place, and the index of the rows they belong to."""
    horizon, size = value.shape
    rows = batch.rows
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
) -> tuple[AgentState, dict[str, Float[Array, ""]]]:
    """One optimisation step of everything on one batch.

    Args:
      state: of one seed.
      batch: windows of H + 1 rows.
      key: consumed.
      spec: static part of the agent.
      config: of the agent.
      train_actors: False leaves policy, prior and scales alone (BMPC's pre-training).

    Returns:
      The new state and scalar metrics. A part whose loss or gradient is not
      finite keeps its parameters, and the fault is counted.
    """
    nets, opt, bins = spec.nets, config.optimizer, world_model.bins(config.world_model)
    key_target, key_dropout, key_policy = jax.random.split(key, 3)
    params = state.params
    target = model_loss.targets(
        params.model,
        state.target_value,
        params.policy,
        params.prior,
        batch,
        key_target,
        nets=nets,
        config=config,
        kl_weight=_kl_price(state.scales, spec.action_size, config),
    )
    target = jax.lax.stop_gradient(target)
    value_and_grad = jax.value_and_grad(model_loss.loss, has_aux=True)
    (total, terms), grads = value_and_grad(
        params.model, batch, target, key_dropout, nets=nets, config=config
    )
    finite = [
        jnp.isfinite(x) for x in (terms.consistency, terms.reward, terms.value, terms.termination)
    ]
    rates = ModelParams(
        opt.encoder_rate_scale, 1.0, 1.0, 1.0, None if params.model.termination is None else 1.0
    )
    step = optimise.adam_step(
        params.model,
        grads,
        state.opt.model,
        learning_rate=opt.learning_rate,
        clip=opt.grad_clip,
        rate_scale=rates,
        allow=jnp.all(jnp.stack(finite)),
    )
    finite.append(step.finite)
    metrics = {
        "loss/model": total,
        "loss/consistency": terms.consistency,
        "loss/reward": terms.reward,
        "loss/value": terms.value,
        "value/target": maths.masked_mean(target.value, batch.transition),
        "value/clipped": model_loss.clipped_share(target.value, batch.transition, bins),
        "reward/clipped": model_loss.clipped_share(batch.rows.reward[:-1], batch.transition, bins),
        "grad/model": step.grad_norm,
    }
    if params.model.termination is not None:
        metrics["loss/termination"] = terms.termination
    state = state._replace(
        params=params._replace(model=step.params), opt=state.opt._replace(model=step.opt)
    )
    state, finite_actors, more = _update_actors(
        state, batch, terms.latents, key_policy, train_actors, spec=spec, config=config
    )
    metrics.update(more)
    rate = opt.target_rate
    target_value = jax.tree.map(
        lambda old, new: old + rate * (new - old), state.target_value, state.params.model.value
    )
    faults = _count_faults(state.faults, jnp.stack([*finite, *finite_actors]))
    return state._replace(target_value=target_value, faults=faults), metrics


def _kl_price(scales: Scales, action_size: int, config: AgentConfig) -> Float[Array, ""]:
    """Value units that the policy loss pays per nat of KL: ``lambda m A^k S_Q / S_K``."""
    policy = config.policy
    divisor = {"own": scales.kl, "q": scales.q, "none": jnp.ones_like(scales.q)}[policy.kl_scale]
    size = jnp.power(float(action_size), policy.kl_dim_power)
    multiplier = jnp.exp(scales.log_multiplier)
    return policy.kl_coef * multiplier * size * scales.q / divisor


def _update_actors(
    state: AgentState,
    batch: Batch,
    latents: Array,
    key: Key,
    enabled: Bool[Array, ""] | bool,
    *,
    spec: AgentSpec,
    config: AgentConfig,
) -> tuple[AgentState, list[Bool[Array, ""]], dict[str, Array]]:
    """Learned prior, then policy; returns the finite flags of ``policy_loss.TERMS``."""
    nets, opt = spec.nets, config.optimizer
    params, scales, metrics = state.params, state.scales, {}
    yes = jnp.ones((), bool)
    finite = [yes, yes]
    prior_opt = state.opt.prior
    if params.prior is not None:
        (loss, aux), grads = jax.value_and_grad(policy_loss.prior_loss, has_aux=True)(
            params.prior,
            params.model.value,
            latents,
            batch,
            scales.prior,
            nets=nets,
            config=config,
        )
        step = optimise.adam_step(
            params.prior,
            grads,
            state.opt.prior,
            learning_rate=opt.learning_rate,
            clip=opt.grad_clip,
            epsilon=opt.policy_epsilon,
            allow=jnp.isfinite(loss) & enabled,
        )
        finite = [jnp.isfinite(loss), step.finite]
        params, prior_opt = params._replace(prior=step.params), step.opt
        scales = scales._replace(prior=jnp.where(enabled, aux.scale, scales.prior))
        metrics |= {
            "loss/prior": loss,
            "prior/kl": aux.kl,
            "prior/scale": aux.scale,
            "prior/fitted": aux.fitted,
        }
    (loss, aux), grads = jax.value_and_grad(policy_loss.policy_loss, has_aux=True)(
        params.policy,
        params.model,
        params.prior,
        latents,
        batch,
        scales.q,
        scales.kl,
        scales.log_multiplier,
        key,
        nets=nets,
        config=config,
    )
    step = optimise.adam_step(
        params.policy,
        grads,
        state.opt.policy,
        learning_rate=opt.learning_rate,
        clip=opt.grad_clip,
        epsilon=opt.policy_epsilon,
        allow=jnp.isfinite(loss) & enabled,
    )
    finite += [jnp.isfinite(loss), step.finite]
    metrics |= {
        "loss/policy": loss,
        "policy/q": aux.q,
        "policy/kl": aux.kl,
        "policy/entropy": aux.entropy,
        "policy/std": aux.std,
        "policy/scale_q": aux.scale_q,
        "policy/scale_kl": aux.scale_kl,
        "policy/kl_multiplier": jnp.exp(scales.log_multiplier),
        "grad/policy": step.grad_norm,
    }
    state = state._replace(
        params=params._replace(policy=step.params),
        opt=OptStates(state.opt.model, step.opt, prior_opt),
        scales=scales._replace(
            q=jnp.where(enabled, aux.scale_q, scales.q),
            kl=jnp.where(enabled, aux.scale_kl, scales.kl),
            log_multiplier=jnp.where(enabled, aux.log_multiplier, scales.log_multiplier),
        ),
    )
    return state, finite, metrics


def _count_faults(faults: Faults, finite: Bool[Array, " terms"]) -> Faults:
    bad = ~jnp.all(finite)
    first = jnp.argmin(finite).astype(jnp.int32)
    count = bad.astype(jnp.int32)
    return Faults(
        total=faults.total + count,
        consecutive=jnp.where(bad, faults.consecutive + 1, 0),
        term=jnp.where(bad, first, faults.term),
    )
