"""Losses of the two actors: the learned prior and the policy (docs/method.md)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pomcp_jax import losses, maths, world_model
from pomcp_jax.config import AgentConfig
from pomcp_jax.model_loss import prior_of_rows, random_heads, reduce_heads, sample_policy
from pomcp_jax.replay import Batch
from pomcp_jax.types import Gaussian, Key, Params
from pomcp_jax.world_model import ModelParams, Networks

TERMS = ("prior", "prior_gradient", "policy", "policy_gradient")


class PriorAux(NamedTuple):
    """By-products of :func:`prior_loss`."""

    scale: Float[Array, ""]
    kl: Float[Array, ""]
    fitted: Float[Array, ""]
    """Share of the records that were fitted, 1 without ``prior.gate``."""


class PolicyAux(NamedTuple):
    """By-products of :func:`policy_loss`: new scales, and means for the record."""

    scale_q: Float[Array, ""]
    scale_kl: Float[Array, ""]
    log_multiplier: Float[Array, ""]
    q: Float[Array, ""]
    kl: Float[Array, ""]
    entropy: Float[Array, ""]
    std: Float[Array, ""]


def prior_loss(
    params: Params,
    value: Params,
    latents: Float[Array, "T B L"],
    batch: Batch,
    scale: Float[Array, ""],
    *,
    nets: Networks,
    config: AgentConfig,
) -> tuple[Float[Array, ""], PriorAux]:
    """Fit the learned prior to the stored planner records, over the H acted states.

    ``reverse`` KL(prior || record) has the precision-weighted geometric mean of
    the records as optimum, ``forward`` their moment match. With ``prior.gate`` a
    record counts only where its plan's value is at least what the critic gives
    to the prior's own mean action (the gated distillation of GEM-MPC, arXiv
    2609.21735).
    """
    steps = latents.shape[0] - 1
    latents = latents[:steps]
    prior = actor_dist(nets, params, latents, config)
    record = losses.floored(prior_of_rows(batch, steps), config.policy)
    pair = (prior, record) if config.prior.divergence == "reverse" else (record, prior)
    kl = jnp.sum(maths.gaussian_kl(*pair), axis=-1)
    mask = batch.transition
    fitted = mask
    if config.prior.gate:
        action = None
        if config.world_model.critic == "q":
            # A tanh policy has no learned prior, so this is the mean in action space.
            action = jax.lax.stop_gradient(jnp.clip(prior.mean, -1.0, 1.0))
        logits = world_model.value_logits(nets, value, latents, action)
        own = maths.two_hot_decode(logits, world_model.bins(config.world_model))
        fitted = mask & (batch.rows.prior_value[:steps] >= jnp.mean(own, axis=0))
    spread = maths.percentile_range(jax.lax.stop_gradient(kl[0]), fitted[0])
    scale = maths.update_scale(scale, spread, config.policy.scale_rate)
    total = maths.rho_mean(kl / scale, fitted, config.optimizer.rho)
    share = maths.masked_mean(fitted.astype(kl.dtype), mask)
    return total, PriorAux(scale, maths.masked_mean(kl, mask), share)


def policy_loss(
    params: Params,
    model_params: ModelParams,
    prior_params: Params | None,
    latents: Float[Array, "T B L"],
    batch: Batch,
    scale_q: Float[Array, ""],
    scale_kl: Float[Array, ""],
    log_multiplier: Float[Array, ""],
    key: Key,
    *,
    nets: Networks,
    config: AgentConfig,
) -> tuple[Float[Array, ""], PolicyAux]:
    """The family's policy loss at the detached roll-out.

    Running scales are updated from the batch at t = 0 and then used, both
    without gradient; the multiplier of ``kl_coef`` is used and then updated.
    """
    key_sample, key_heads = jax.random.split(key)
    policy, model = config.policy, config.world_model
    steps = latents.shape[0] - (0 if policy.last_state else 1)
    latents = latents[:steps]
    mask = _state_mask(batch, steps, stored=policy.uses_records)
    sample = sample_policy(nets, params, key_sample, latents, model)

    q, weight = None, 1.0
    if policy.q_source != "none":
        heads = random_heads(model_params.value, key_heads, policy.num_q_heads)
        q = _action_value(nets, model_params, heads, latents, sample.action, config)
        spread = maths.percentile_range(jax.lax.stop_gradient(q[0]), mask[0])
        scale_q = maths.update_scale(scale_q, spread, policy.scale_rate)
        if policy.value_weight:
            weight = losses.value_weights(q, mask, scale_q, policy)

    kl = None
    if policy.prior != "none":
        prior = policy_prior(prior_params, latents, batch, nets=nets, config=config)
        prior = losses.prepare_prior(prior, sample, policy)
        kl = losses.divergence(sample, prior, policy)
        spread = maths.percentile_range(jax.lax.stop_gradient(kl[0]), mask[0])
        scale_kl = maths.update_scale(scale_kl, spread, policy.scale_rate)

    out = losses.policy_loss(
        sample,
        q,
        kl,
        scale_q=scale_q,
        scale_kl=scale_kl,
        weight=weight,
        config=policy,
        multiplier=jnp.exp(log_multiplier),
    )
    mean_kl = maths.masked_mean(out.kl, mask)
    if policy.kl_tuning == "dual":
        size = sample.noise.shape[-1]
        stopped = jax.lax.stop_gradient(mean_kl)
        log_multiplier = losses.dual_step(log_multiplier, stopped, size, policy)
    total = maths.rho_mean(out.loss, mask, config.optimizer.rho)
    return total, PolicyAux(
        scale_q=scale_q,
        scale_kl=scale_kl,
        log_multiplier=log_multiplier,
        q=jnp.zeros_like(mean_kl) if q is None else maths.masked_mean(q, mask),
        kl=mean_kl,
        entropy=maths.masked_mean(maths.gaussian_entropy(sample.dist), mask),
        std=maths.masked_mean(jnp.mean(sample.dist.std, axis=-1), mask),
    )


def _state_mask(batch: Batch, steps: int, *, stored: bool) -> Bool[Array, "T B"]:
    """States that belong to the window's episode; with stored records, that hold one."""
    mask = batch.valid[:steps]
    return mask & ~batch.rows.last[:steps] if stored else mask


def _action_value(
    nets: Networks,
    params: ModelParams,
    heads: Params,
    latents: Float[Array, "T B L"],
    action: Float[Array, "T B A"],
    config: AgentConfig,
) -> Float[Array, "T B"]:
    """``Q(z, a)``, or ``R(z, a) + gamma V(d(z, a))`` where ``policy.q_source`` is ``model``.

    The latter is the actor loss of the branch ``qbmpc`` of ShaneFlandermeyer/bmpc-jax. Where
    terminations are learned, nothing follows a state that is more likely terminal than not,
    as in the planner.
    """
    policy, bins = config.policy, world_model.bins(config.world_model)
    if policy.q_source == "critic":
        logits = world_model.value_logits(nets, heads, latents, action)
        return reduce_heads(maths.two_hot_decode(logits, bins), policy.q_reduce)
    reward = world_model.reward_logits(nets, params.reward, latents, action)
    following = world_model.dynamics(nets, params.dynamics, latents, action)
    logits = world_model.value_logits(nets, heads, following, None)
    value = reduce_heads(maths.two_hot_decode(logits, bins), policy.q_reduce)
    if params.termination is not None:
        logit = world_model.termination_logits(nets, params.termination, following)
        value = value * (logit <= 0.0).astype(value.dtype)
    return maths.two_hot_decode(reward, bins) + config.optimizer.discount * value


def actor_dist(nets: Networks, params: Params, latents: Array, config: AgentConfig) -> Gaussian:
    """An actor's distribution: before the tanh for squash ``tanh``, over actions otherwise."""
    model = config.world_model
    mean, log_std = world_model.policy(nets, params, latents, model.log_std_min, model.log_std_max)
    return losses.squash(mean, log_std, jnp.zeros_like(mean), model.squash).dist


def policy_prior(
    params: Params | None, latents: Array, batch: Batch, *, nets: Networks, config: AgentConfig
) -> Gaussian:
    """The prior at the states of the loss: learned, the batch's records, or their mixture."""
    records = prior_of_rows(batch, latents.shape[0])
    if not config.policy.learns_prior:
        return records
    learned = actor_dist(nets, params, latents, config)
    if config.policy.prior == "learned":
        return learned
    records = losses.floored(records, config.policy)
    return maths.geometric_mean(learned, records, config.policy.prior_mix)
