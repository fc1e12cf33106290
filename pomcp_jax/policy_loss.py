"""Losses of the two actors: the learned prior and the policy (docs/method.md)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pomcp_jax import actors, losses, maths, world_model
from pomcp_jax.actors import AgentParams
from pomcp_jax.config import AgentConfig, PolicyConfig
from pomcp_jax.model_loss import look_ahead, prior_of_rows, random_heads, recorded, reduce_heads
from pomcp_jax.replay import Batch
from pomcp_jax.types import Gaussian, Key, Params
from pomcp_jax.world_model import ModelParams, Networks

LEAST_SPREAD = 1e-3
"""Lower bound of Q's standard deviation over actions as a scale, in units of value."""
TERMS = ("prior", "prior_gradient", "policy", "policy_gradient")


class Scales(NamedTuple):
    """Running scales S, which start at 1, and the learned strength of the prior."""

    q: Float[Array, ""]
    kl: Float[Array, ""]
    prior: Float[Array, ""]
    log_multiplier: Float[Array, ""]
    """Logarithm of what multiplies ``policy.kl_coef``; stays 0 if ``kl_tuning`` is fixed."""


class PriorAux(NamedTuple):
    """By-products of :func:`prior_loss`."""

    scale: Float[Array, ""]
    kl: Float[Array, ""]
    fitted: Float[Array, ""]
    """Share of the records that were fitted, 1 without ``prior.gate``."""


class PolicyAux(NamedTuple):
    """By-products of :func:`policy_loss`: new scales, and means for the metrics."""

    scales: Scales
    q: Float[Array, ""]
    kl: Float[Array, ""]
    entropy: Float[Array, ""]
    std: Float[Array, ""]


def prior_loss(
    params: Params,
    value: Params,
    latents: Float[Array, "T B L"],
    batch: Batch,
    scales: Scales,
    *,
    nets: Networks,
    config: AgentConfig,
) -> tuple[Float[Array, ""], PriorAux]:
    """Fit the learned prior to the stored planner records, over the H acted states.

    ``reverse`` KL(prior || record) has the precision-weighted geometric mean of
    the records as optimum, ``forward`` their moment match. ``prior.weight`` prefers some of them
    (:func:`_record_weights`). With ``prior.gate`` a
    record counts only if its plan's value, or the critic's value of its mean
    action, is at least the critic's value of the prior's own mean action (the
    gated distillation of GEM-MPC, arXiv 2609.21735), less :func:`_tolerance`.
    """
    steps = latents.shape[0] - 1
    latents = latents[:steps]
    prior = actors.distribution(nets, params, latents, config.world_model)
    record = losses.floored(prior_of_rows(batch, steps), config.policy)
    pair = (prior, record) if config.prior.divergence == "reverse" else (record, prior)
    by_input = maths.gaussian_kl(*pair)
    mask = batch.transition & recorded(batch, config)[:steps]
    kl = jnp.sum(by_input, axis=-1)
    fitted = mask
    gain = jnp.zeros_like(kl)
    if config.prior.gate or config.prior.weight == "advantage":
        gain = _gain(value, latents, prior, record, batch, nets=nets, config=config)
    if config.prior.gate:
        fitted = mask & (gain >= -_tolerance(scales, config))
    weight = _record_weights(record, fitted, batch, gain, scales.q, config)
    cost = jnp.sum(weight * by_input, axis=-1)
    scale = _updated(scales.prior, cost, fitted, config.policy)
    total = maths.rho_mean(cost / scale, fitted, config.optimizer.rho)
    share = maths.masked_mean(fitted.astype(kl.dtype), mask)
    return total, PriorAux(scale, maths.masked_mean(kl, mask), share)


def _tolerance(scales: Scales, config: AgentConfig) -> Float[Array, ""] | float:
    """By how much less a record may be worth and still pass the gate, in units of value.

    ``gate_tolerance S_Q max(log m - 1, 0)`` where the strength's factor m is calibrated, else 0.
    Without a value term S_Q stays 1.
    """
    if config.policy.kl_tuning != "calibrated":
        return 0.0
    # Noise alone moves the factor to 1.5, and a gate that is a little open is open to half of all.
    trust_lost = jnp.maximum(scales.log_multiplier - 1.0, 0.0)
    return config.prior.gate_tolerance * trust_lost * scales.q


def _gain(
    value: Params,
    latents: Float[Array, "T B L"],
    prior: Gaussian,
    record: Gaussian,
    batch: Batch,
    *,
    nets: Networks,
    config: AgentConfig,
) -> Float[Array, "T B"]:
    """How much more a record is worth than the prior's own mean action, in units of value.

    Compared with plans' values, what no plan valued (random seeding, whose value is 0) is worth
    nothing: ``-inf``.
    """
    bins = world_model.bins(config.world_model)
    action = None
    if config.world_model.critic == "q":
        action = jax.lax.stop_gradient(actors.mode(prior, config.world_model.squash))
    # All heads: a random pair would add noise to a yes-or-no decision.
    own = jnp.mean(world_model.values(nets, value, latents, action, bins), axis=0)
    if config.prior.gate_value == "plan":
        planned_value = batch.rows.prior_value[: latents.shape[0]]
        # A 0 would be the best of all where rewards are costs.
        return jnp.where(planned_value == 0.0, -jnp.inf, planned_value - own)
    planned = jnp.clip(record.mean, -1.0, 1.0)
    return jnp.mean(world_model.values(nets, value, latents, planned, bins), axis=0) - own


def _record_weights(
    record: Gaussian,
    fitted: Bool[Array, "T B"],
    batch: Batch,
    gain: Float[Array, "T B"],
    scale_q: Float[Array, ""],
    config: AgentConfig,
) -> Float[Array, "T B #A"] | float:
    """Weights of the records in the prior's fit, by ``prior.weight``."""
    if config.prior.weight == "precision":
        return losses.precision_weights(record, fitted)
    if config.prior.weight == "recent":
        made = batch.rows.made[: fitted.shape[0]]
        return losses.recency_weights(made, fitted, config.prior.half_life)[..., None]
    if config.prior.weight == "advantage":
        unit = config.prior.advantage_temperature * scale_q
        return losses.advantage_weights(gain / unit, fitted)[..., None]
    return 1.0


def policy_loss(
    params: Params,
    frozen: AgentParams,
    latents: Float[Array, "T B L"],
    batch: Batch,
    scales: Scales,
    key: Key,
    *,
    nets: Networks,
    config: AgentConfig,
) -> tuple[Float[Array, ""], PolicyAux]:
    """The family's policy loss at the detached roll-out.

    Running scales are updated from the batch at t = 0 and then used, both without gradient;
    the multiplier of ``kl_coef`` is used and then updated. ``params`` are the policy's;
    ``frozen`` holds the world model and the learned prior.
    """
    # Split whether or not heads are drawn: methods that differ in the value term share their noise.
    key_sample, key_heads = jax.random.split(key)
    policy = config.policy
    steps = latents.shape[0] - (0 if policy.last_state else 1)
    latents = latents[:steps]
    mask = _state_mask(batch, steps, stored=policy.uses_records)
    sample = actors.sample(nets, params, key_sample, latents, config.world_model)

    near = _where_recorded(batch, mask, policy)
    prior = None
    if policy.prior != "none":
        prior = policy_prior(frozen.prior, latents, batch, nets=nets, config=config)
        prior = losses.prepare_prior(prior, sample, policy)
    q: Array | None = None
    weight: Array | float = 1.0
    if policy.q_source != "none":
        # Trained heads, not their target copies, as in TD-MPC2.
        heads = random_heads(frozen.model.value, key_heads, policy.num_q_heads)
        value = functools.partial(_action_value, nets, frozen.model, heads, config)
        q = value(latents, sample.action)
        scale = _updated(scales.q, q, mask, policy)
        if policy.q_scale == "prior" and prior is not None:
            spread = _spread_over_actions(value, latents, prior, near, key)
            scale = maths.update_scale(scales.q, spread, policy.scale_rate, LEAST_SPREAD)
        scales = scales._replace(q=scale)
        if policy.value_weight:
            weight = losses.value_weights(q, mask, scales.q, policy)

    kl = None if prior is None else losses.divergence(sample, prior, policy)
    weight = _near_only(weight, near, batch, policy)
    if kl is not None:
        scales = scales._replace(kl=_updated(scales.kl, kl, near, policy))
    used: dict[str, Any] = {"scale_q": scales.q, "scale_kl": scales.kl, "weight": weight}
    multiplier = jnp.exp(scales.log_multiplier)
    out = losses.policy_loss(sample, q, kl, multiplier=multiplier, config=policy, **used)
    mean_kl = maths.masked_mean(out.kl, near)
    return maths.rho_mean(out.loss, mask, config.optimizer.rho), PolicyAux(
        scales=_tuned(scales, mean_kl, near, sample.noise.shape[-1], policy),
        q=jnp.zeros_like(mean_kl) if q is None else maths.masked_mean(q, mask),
        kl=mean_kl,
        entropy=maths.masked_mean(maths.gaussian_entropy(sample.dist), mask),
        std=maths.masked_mean(jnp.mean(sample.dist.std, axis=-1), mask),
    )


def _spread_over_actions(
    value: Callable[[Array, Array], Array],
    latents: Float[Array, "T B L"],
    prior: Gaussian,
    mask: Bool[Array, "T B"],
    key: Key,
) -> Float[Array, ""]:
    """Root mean square over the first states of Q's standard deviation under the prior.

    NaN if no first state is in ``mask``. Half the squared difference of two draws is an unbiased
    estimate of a state's variance.
    """
    # Folded in: the noise of sample and heads is the same with every scale.
    noise = jax.random.normal(jax.random.fold_in(key, 2), (2, *prior.mean[0].shape))
    drawn = [jnp.clip(prior.mean[0] + prior.std[0] * one, -1.0, 1.0) for one in noise]
    first, second = (value(latents[:1], action[None])[0] for action in drawn)
    variance = maths.masked_mean(0.5 * jnp.square(first - second), mask[0])
    variance = jnp.where(jnp.any(mask[0]), variance, jnp.nan)
    return jax.lax.stop_gradient(jnp.sqrt(variance))


def _tuned(
    scales: Scales,
    kl: Float[Array, ""],
    near: Bool[Array, "T B"],
    size: int,
    config: PolicyConfig,
) -> Scales:
    """``scales`` after a step of the multiplier, with ``kl_tuning`` ``dual``.

    ``kl`` is the mean over ``near``; without any such state nothing changes.
    """
    if config.kl_tuning != "dual":
        return scales
    if _lacks_records(config):
        kl = jnp.where(jnp.any(near), kl, jnp.nan)
    log = losses.dual_step(scales.log_multiplier, jax.lax.stop_gradient(kl), size, config)
    return scales._replace(log_multiplier=log)


def _updated(
    scale: Float[Array, ""],
    values: Float[Array, "T B"],
    mask: Bool[Array, "T B"],
    config: PolicyConfig,
) -> Float[Array, ""]:
    """``scale`` after the first states of this batch, without gradient."""
    # First states only, as in TD-MPC2: later latents are predictions. Percentiles have gradients;
    # without the stop the policy could lower KL / S by spreading the KL.
    spread = maths.percentile_range(jax.lax.stop_gradient(values[0]), mask[0])
    return maths.update_scale(scale, spread, config.scale_rate)


def _lacks_records(config: PolicyConfig) -> bool:
    """Whether the prior is a record that states may lack."""
    return config.data_record == "none" and config.prior in ("stored", "replanned")


def _where_recorded(
    batch: Batch, mask: Bool[Array, "T B"], config: PolicyConfig
) -> Bool[Array, "T B"]:
    """States of ``mask`` whose divergence counts; ``mask`` itself if no record is missing."""
    return mask & batch.recorded[: mask.shape[0]] if _lacks_records(config) else mask


def _near_only(
    weight: Array | float, near: Bool[Array, "T B"], batch: Batch, config: PolicyConfig
) -> Array | float:
    """Weights of the divergence, 0 where its record is missing."""
    # Value and entropy terms stay: only closeness to a missing record means nothing.
    return weight * near.astype(batch.rows.reward.dtype) if _lacks_records(config) else weight


def _state_mask(batch: Batch, steps: int, *, stored: bool) -> Bool[Array, "T B"]:
    """States of the window's own episode; if ``stored``, only those with a planner record."""
    mask = batch.valid[:steps]
    # A network covers final observations too; their rows hold no record.
    return mask & ~batch.rows.last[:steps] if stored else mask


def _action_value(
    nets: Networks,
    params: ModelParams,
    heads: Params,
    config: AgentConfig,
    latents: Float[Array, "T B L"],
    action: Float[Array, "T B A"],
) -> Float[Array, "T B"]:
    """``Q(z, a)``, or ``R(z, a) + gamma V(d(z, a))`` where ``policy.q_source`` is ``model``.

    The latter is the actor loss of the branch ``qbmpc`` of ShaneFlandermeyer/bmpc-jax.
    """
    bins = world_model.bins(config.world_model)

    def value(latents: Array, action: Array | None = None) -> Array:
        values = world_model.values(nets, heads, latents, action, bins)
        return reduce_heads(values, config.policy.q_reduce)

    if config.policy.q_source == "critic":
        return value(latents, action)
    return look_ahead(nets, params, latents, action, value, config)


def policy_prior(
    params: Params | None, latents: Array, batch: Batch, *, nets: Networks, config: AgentConfig
) -> Gaussian:
    """The prior at the states of the loss: learned, the batch's records, or their mixture."""
    records = prior_of_rows(batch, latents.shape[0])
    if not config.policy.learns_prior:
        return records
    learned = actors.distribution(nets, params, latents, config.world_model)
    if config.policy.prior == "learned":
        return learned
    # Floored before mixing: a record of tiny std would have all the precision.
    records = losses.floored(records, config.policy)
    mixed = maths.geometric_mean(learned, records, config.policy.prior_mix)
    if config.policy.data_record != "none":
        return mixed
    has_record = batch.recorded[: latents.shape[0], :, None]
    return jax.tree.map(lambda x, y: jnp.where(has_record, x, y), mixed, learned)
