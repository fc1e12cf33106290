"""Loss of world model, reward and critic, and its targets (docs/method.md)."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pomcp_jax import actors, losses, maths, networks, packing, world_model
from pomcp_jax.actors import AgentParams
from pomcp_jax.config import AgentConfig
from pomcp_jax.replay import Batch
from pomcp_jax.types import Gaussian, Key, Params
from pomcp_jax.world_model import ModelParams, Networks

TERMS = ("consistency", "reward", "value", "termination", "model_gradient")


class Targets(NamedTuple):
    """Regression targets of a batch, without gradient: of all W transitions until :meth:`head`."""

    next_latent: Float[Array, "W B L"]
    value: Float[Array, "W B"]

    def head(self, length: int) -> "Targets":
        """Those of the first ``length`` transitions of every window."""
        return jax.tree.map(lambda x: x[:length], self)


class ModelLoss(NamedTuple):
    """Loss terms before coefficients, and the detached roll-out."""

    consistency: Float[Array, ""]
    reward: Float[Array, ""]
    value: Float[Array, ""]
    termination: Float[Array, ""]
    latents: Float[Array, "T B L"]
    """z_0 encoded, z_1 ... z_H rolled out."""


def random_heads(params: Params, key: Key, num: int) -> Params:
    """``num`` distinct heads of stacked ``params``."""
    params = packing.unpack(params)
    heads = jax.tree.leaves(params)[0].shape[0]
    if num == heads:
        return params
    # Parameters are selected, not values: heads that are not drawn are never computed.
    return networks.select_heads(params, jax.random.choice(key, heads, (num,), replace=False))


def reduce_heads(values: Float[Array, "E *batch"], kind: str) -> Float[Array, "*batch"]:
    """Minimum or mean over heads."""
    return jnp.min(values, axis=0) if kind == "min" else jnp.mean(values, axis=0)


def look_ahead(
    nets: Networks,
    params: ModelParams,
    latent: Float[Array, "*batch L"],
    action: Float[Array, "*batch A"],
    value: Callable[[Array], Array],
    config: AgentConfig,
    terminated: Float[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """``r(z, a) + gamma (1 - d) V(d(z, a))``: one step of the model, then ``value`` of its latent.

    ``terminated`` is the data's d. Without it the termination head says, as in the planner,
    that nothing follows a state that is more likely terminal than not; d is 0 without a head.
    """
    following, reward = world_model.step(
        nets, params, latent, action, world_model.bins(config.world_model)
    )
    if terminated is None:
        going = world_model.continues(nets, params, following)
        terminated = jnp.zeros_like(reward) if going is None else 1.0 - going
    return losses.td_target(reward, terminated, value(following), config.optimizer.discount)


def targets(
    params: AgentParams,
    target_value: Params,
    batch: Batch,
    key: Key,
    *,
    nets: Networks,
    config: AgentConfig,
    kl_weight: Float[Array, ""] | float = 0.0,
) -> Targets:
    """Latents of the true observations and TD targets.

    A Q critic bootstraps from the target heads at the encoded next observation,
    with the action of ``critic.target_actor``, and mixes in the window's longer
    returns by ``critic.td_lambda``. A V critic's target at the encoded state is
    one step of the model, ``r(z, a) + gamma V(d(z, a))`` [BMPC]. Actors are the
    present ones; dropout is off. ``kl_weight`` is what one nat costs in units of
    value under ``critic.soft_target``.
    """
    key_action, key_heads = jax.random.split(key)
    rows, critic, model = batch.rows, config.critic, config.world_model
    bins = world_model.bins(model)
    # The trained encoder, as in TD-MPC2: only value heads have a target copy.
    latents = world_model.encode(nets, params.model.encoder, rows.obs)
    heads = random_heads(target_value, key_heads, critic.num_target_heads)
    use_prior = critic.target_actor == "prior" and params.prior is not None
    actor = params.prior if use_prior else params.policy

    def bootstrap(latent: Array, action: Array | None = None) -> Array:
        values = world_model.values(nets, heads, latent, action, bins)
        return reduce_heads(values, critic.target_reduce)

    ended = rows.terminated[:-1].astype(latents.dtype)
    if model.critic == "v":
        here = latents[:-1]
        # Not the stored action and reward: those are the planner's, and V values the actor.
        action = actors.act(nets, actor, key_action, here, model, critic.target_action).action
        value = look_ahead(nets, params.model, here, action, bootstrap, config, ended)
        return Targets(latents[1:], value)

    sample = actors.act(nets, actor, key_action, latents[1:], model, critic.target_action)
    following = bootstrap(latents[1:], sample.action)
    if critic.target_actor in ("stored", "best"):
        planned = bootstrap(latents[1:], jnp.clip(rows.prior.mean[1:], -1.0, 1.0))
        following = _of_plans(following, planned, batch, config)
    if critic.soft_target and params.prior is not None:
        # KL-regularised backup (arXiv 2510.04280 eq. 3). The closed form has less variance than the
        # log-ratio at a sampled action.
        reference = actors.distribution(nets, params.prior, latents[1:], model)
        reference = losses.floored(reference, config.policy)
        kl = jnp.sum(maths.gaussian_kl(sample.dist, reference), axis=-1)
        # A single state far from the prior must not swamp the reward.
        kl = jnp.clip(kl, 0.0, critic.soft_target_clip)
        following = following - kl_weight * kl
    # Unweighted although behaviour differs from the actor: it plans close to it (docs/method.md).
    weights = {"discount": config.optimizer.discount, "td_lambda": critic.td_lambda}
    rewards, mask = rows.reward[:-1], batch.transition
    value = losses.lambda_returns(rewards, ended, following, mask, **weights)
    return Targets(latents[1:], value)


def _of_plans(
    own: Float[Array, "W B"], planned: Float[Array, "W B"], batch: Batch, config: AgentConfig
) -> Float[Array, "W B"]:
    """Next values under ``critic.target_actor`` ``stored`` or ``best``.

    ``own`` are those of the actor's actions, ``planned`` those of the stored plans.
    """
    if config.critic.target_actor == "best":
        planned = jnp.maximum(planned, own)
    # An episode's final observation has no plan.
    return jnp.where(batch.rows.last[1:] | ~recorded(batch, config)[1:], own, planned)


def clipped_share(
    values: Float[Array, "H B"], mask: Bool[Array, "H B"], bins: maths.Bins
) -> Float[Array, ""]:
    """Share of targets beyond the bins' range, which train the outermost bin."""
    places = maths.symlog(values)
    beyond = (places < bins.low) | (places > bins.high)
    return maths.masked_mean(beyond.astype(values.dtype), mask)


def roll_out(
    nets: Networks, params: ModelParams, obs: Float[Array, "B O"], actions: Float[Array, "H B A"]
) -> Float[Array, "T B L"]:
    """Encode ``obs`` and unroll the dynamics: latents z_0 ... z_H."""
    first = world_model.encode(nets, params.encoder, obs)

    def step(vector, latent, action):
        dynamics = params.dynamics
        if vector is not None:
            dynamics = dataclasses.replace(dynamics, vector=vector)
        return world_model.dynamics(nets, dynamics, latent, action)

    def advance(latent, inputs):
        vector, action = inputs
        one = step if vector is None else jax.vmap(step)
        latent = one(vector, latent, action)
        return latent, latent

    inputs = packing.of_rows(params.dynamics, actions.shape[:2]), actions
    # A loop would copy what the backward pass needs of every step; an unrolled one does not.
    _, later = jax.lax.scan(advance, first, inputs, unroll=min(actions.shape[0], 4))
    return jnp.concatenate([first[None], later])


def loss(
    params: ModelParams,
    batch: Batch,
    target: Targets,
    dropout_key: Key,
    *,
    nets: Networks,
    config: AgentConfig,
) -> tuple[Float[Array, ""], ModelLoss]:
    """World-model loss of [TD-MPC2] (eq. 3 and ``TDMPC2._update``), masked at episode ends."""
    rows, opt, bins = batch.rows, config.optimizer, world_model.bins(config.world_model)
    mask, actions = batch.transition, rows.action[:-1]
    latents = roll_out(nets, params, rows.obs[0], actions)
    here = latents[:-1]
    # The mean over L keeps ``consistency_coef`` comparable between sizes of the latent.
    gap = jnp.mean(jnp.square(latents[1:] - target.next_latent), axis=-1)
    reward = world_model.reward_logits(nets, params.reward, here, actions)
    q_action = actions if config.world_model.critic == "q" else None
    # At rolled-out latents, the ones that planning meets; targets come from encoded ones.
    value = world_model.value_logits(nets, params.value, here, q_action, dropout_key)
    # One target for all heads: they differ by their initial values and dropout only.
    value_targets = jnp.broadcast_to(target.value[None], value.shape[:-1])
    value_loss = jnp.mean(maths.two_hot_cross_entropy(value, value_targets, bins), axis=0)
    termination = jnp.zeros((), gap.dtype)
    if params.termination is not None:
        logits = world_model.termination_logits(nets, params.termination, latents[1:])
        ended = rows.terminated[:-1].astype(logits.dtype)
        termination = maths.masked_mean(losses.binary_cross_entropy(logits, ended), mask)
    terms = ModelLoss(
        consistency=maths.rho_mean(gap, mask, opt.rho),
        reward=maths.rho_mean(
            maths.two_hot_cross_entropy(reward, rows.reward[:-1], bins), mask, opt.rho
        ),
        value=maths.rho_mean(value_loss, mask, opt.rho),
        termination=termination,
        # The actors train on these latents, without gradients to the model (TD-MPC2).
        latents=jax.lax.stop_gradient(latents),
    )
    total = (
        opt.consistency_coef * terms.consistency
        + opt.reward_coef * terms.reward
        + opt.value_coef * terms.value
        + opt.termination_coef * terms.termination
    )
    return total, terms


def recorded(batch: Batch, config: AgentConfig) -> Bool[Array, "T B"]:
    """States whose record may be read: all, unless ``policy.data_record`` is ``none``."""
    # A constant in every other case: programs of runs without data are as they were.
    if config.policy.data_record == "none":
        return batch.recorded
    return jnp.ones_like(batch.valid)


def prior_of_rows(batch: Batch, steps: int) -> Gaussian:
    """The stored planner records of the first ``steps`` states."""
    return jax.tree.map(lambda x: x[:steps], batch.rows.prior)
