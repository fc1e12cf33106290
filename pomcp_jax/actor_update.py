"""Losses of the two actors: the learned prior and the policy (docs/method.md)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pomcp_jax import losses, maths, world_model
from pomcp_jax.config import AgentConfig
from pomcp_jax.model_update import prior_of_rows, random_heads, reduce_heads, sample_policy
from pomcp_jax.replay import Batch
from pomcp_jax.types import Gaussian, Key, Params
from pomcp_jax.world_model import Networks

TERMS = ("prior", "prior_gradient", "policy", "policy_gradient")


class PriorAux(NamedTuple):
    """By-products of :func:`prior_loss`."""

    scale: Float[Array, ""]
    kl: Float[Array, ""]


class PolicyAux(NamedTuple):
    """By-products of :func:`policy_loss`: new scales, and means for the record."""

    scale_q: Float[Array, ""]
    scale_kl: Float[Array, ""]
    q: Float[Array, ""]
    kl: Float[Array, ""]
    entropy: Float[Array, ""]
    std: Float[Array, ""]


def prior_loss(
    params: Params,
    latents: Float[Array, "T B L"],
    batch: Batch,
    scale: Float[Array, ""],
    *,
    nets: Networks,
    config: AgentConfig,
) -> tuple[Float[Array, ""], PriorAux]:
    """Fit the learned prior to the stored planner records, over the H acted states.

    ``reverse`` KL(prior || record) has the precision-weighted geometric mean of
    the records as optimum, ``forward`` their moment match.
    """
    steps = latents.shape[0] - 1
    model = config.world_model
    mean, log_std = world_model.policy(
        nets, params, latents[:steps], model.log_std_min, model.log_std_max
    )
    prior = losses.squash(mean, log_std, jnp.zeros_like(mean), model.squash).dist
    record = prior_of_rows(batch, steps)
    pair = (prior, record) if config.prior.divergence == "reverse" else (record, prior)
    kl = jnp.sum(maths.gaussian_kl(*pair), axis=-1)
    mask = batch.transition
    spread = maths.percentile_range(jax.lax.stop_gradient(kl[0]), mask[0])
    scale = maths.update_scale(scale, spread, config.policy.scale_rate)
    total = maths.rho_mean(kl / scale, mask, config.optimizer.rho)
    return total, PriorAux(scale, maths.masked_mean(kl, mask))


def policy_loss(
    params: Params,
    value: Params,
    prior_params: Params | None,
    latents: Float[Array, "T B L"],
    batch: Batch,
    scale_q: Float[Array, ""],
    scale_kl: Float[Array, ""],
    key: Key,
    *,
    nets: Networks,
    config: AgentConfig,
) -> tuple[Float[Array, ""], PolicyAux]:
    """The family's policy loss at the detached roll-out.

    Running scales are updated from the batch at t = 0 and then used, both
    without gradient.
    """
    key_sample, key_heads = jax.random.split(key)
    policy, model = config.policy, config.world_model
    steps = latents.shape[0] - (0 if policy.last_state else 1)
    latents = latents[:steps]
    mask = _state_mask(batch, steps, stored=policy.prior in ("stored", "replanned"))
    sample = sample_policy(nets, params, key_sample, latents, model)

    q, weight = None, 1.0
    if model.critic == "q":
        heads = random_heads(value, key_heads, policy.num_q_heads)
        logits = world_model.value_logits(nets, heads, latents, sample.action)
        values = maths.two_hot_decode(logits, world_model.bins(model))
        q = reduce_heads(values, policy.q_reduce)
        spread = maths.percentile_range(jax.lax.stop_gradient(q[0]), mask[0])
        scale_q = maths.update_scale(scale_q, spread, policy.scale_rate)
        if policy.value_weight:
            weight = losses.value_weights(q, mask, scale_q, policy)

    kl = None
    if policy.prior != "none":
        prior = _prior(prior_params, latents, batch, nets=nets, config=config)
        prior = losses.prepare_prior(prior, sample, policy)
        kl = losses.divergence(sample, prior, policy)
        spread = maths.percentile_range(jax.lax.stop_gradient(kl[0]), mask[0])
        scale_kl = maths.update_scale(scale_kl, spread, policy.scale_rate)

    out = losses.policy_loss(
        sample, q, kl, scale_q=scale_q, scale_kl=scale_kl, weight=weight, config=policy
    )
    total = maths.rho_mean(out.loss, mask, config.optimizer.rho)
    return total, PolicyAux(
        scale_q=scale_q,
        scale_kl=scale_kl,
        q=jnp.zeros(()) if q is None else maths.masked_mean(q, mask),
        kl=maths.masked_mean(out.kl, mask),
        entropy=maths.masked_mean(maths.gaussian_entropy(sample.dist), mask),
        std=maths.masked_mean(jnp.mean(sample.dist.std, axis=-1), mask),
    )


def _state_mask(batch: Batch, steps: int, *, stored: bool) -> Bool[Array, "T B"]:
    """States that belong to the window's episode; with stored records, that hold one."""
    mask = batch.valid[:steps]
    return mask & ~batch.rows.last[:steps] if stored else mask


def _prior(
    params: Params | None, latents: Array, batch: Batch, *, nets: Networks, config: AgentConfig
) -> Gaussian:
    """The prior at the states of the loss: learned, or the batch's records."""
    if config.policy.prior != "learned":
        return prior_of_rows(batch, latents.shape[0])
    model = config.world_model
    mean, log_std = world_model.policy(nets, params, latents, model.log_std_min, model.log_std_max)
    return losses.squash(mean, log_std, jnp.zeros_like(mean), model.squash).dist
