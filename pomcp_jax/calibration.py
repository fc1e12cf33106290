"""Strength of the prior by how well the critic predicts what happens (docs/method.md).

Symbols: B actions, K = ``policy.bias_steps``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pomcp_jax import actors, maths, normalising, replay, world_model
from pomcp_jax.actors import AgentParams
from pomcp_jax.config import AgentConfig, PolicyConfig
from pomcp_jax.replay import Index, Replay
from pomcp_jax.types import Key
from pomcp_jax.world_model import Networks

ACTIONS = 64
"""Actions whose outcomes are looked at in an update."""
RECENT = 0.1
"""Share of replay, the newest, that they are drawn from: older plans were made by a worse agent."""
LEAST_UNIT = 1e-3
"""Lower bound of the unit of bias, in units of value."""
LARGEST = 10.0
"""Largest bias in that unit: at a start, values of all states are the same."""
MOST = 5.0
"""Largest logarithm of the factor: the policy is the prior long before."""


class Outcomes(NamedTuple):
    """Stored actions and what followed them, until K decisions later or the episode's end."""

    obs: Float[Array, "B O"]
    action: Float[Array, "B A"]
    final_obs: Float[Array, "B O"]
    total: Float[Array, "B"]
    """Discounted rewards."""
    weight: Float[Array, "B"]
    """Discount of the value of ``final_obs``; 0 after a termination."""
    acted: Bool[Array, "B"]
    """Whether the agent's action was taken, which is a plan's, in seeding also the policy's
    (``train.seed_actions``): a final observation has none, and random ones are not the agent's."""


def draw(ring: Replay, key: Key, config: AgentConfig) -> Outcomes:
    """Outcomes of actions that are drawn from the newest rows of ``ring``; the key is consumed.

    From its newest tenth, or as many rows as an outcome is long.
    """
    steps = min(config.policy.bias_steps, ring.capacity - 1)
    key_row, key_env = jax.random.split(key)
    share = (RECENT * ring.size.astype(jnp.float32)).astype(jnp.int32)
    span = jnp.clip(share, jnp.minimum(steps + 1, ring.size), ring.size)
    newest = ring.inserted - 1
    start = newest - jax.random.randint(key_row, (ACTIONS,), 0, jnp.maximum(span, 1), jnp.int32)
    env = jax.random.randint(key_env, (ACTIONS,), 0, ring.rows.reward.shape[1], jnp.int32)
    ahead = jnp.arange(steps + 1, dtype=start.dtype)[:, None]
    row = start[None] + ahead
    # Only numbers are read along the way, observations at both ends.
    place = jnp.mod(row, ring.capacity)
    reward, terminated, last = (
        x[place, env[None]] for x in (ring.rows.reward, ring.rows.terminated, ring.rows.last)
    )
    stop = last | (row >= newest) | (ahead == steps)
    count = jnp.argmax(stop, axis=0)
    before = ahead < count[None]
    gamma = jnp.power(config.optimizer.discount, ahead.astype(reward.dtype))
    ended = jnp.any(terminated & before, axis=0)
    ends = replay.read(ring, Index(jnp.stack([start, start + count]), jnp.stack([env, env])))
    return Outcomes(
        obs=ends.obs[0],
        action=ends.action[0],
        final_obs=ends.obs[1],
        total=jnp.sum(jnp.where(before, gamma * reward, 0.0), axis=0),
        weight=jnp.where(ended, 0.0, gamma[count, 0]),
        # Values of what the agent does are not to be compared with what random actions got.
        acted=(count > 0) & (ends.prior_value[0] != 0.0),
    )


def bias(
    params: AgentParams, outcomes: Outcomes, key: Key, *, nets: Networks, config: AgentConfig
) -> Float[Array, ""]:
    """Overestimation of recent plans' actions, in units of value; the key is consumed.

    ``sum (Q(s, a) - G) / sum (1 - w)`` with returns G that end in the critic's own value by the
    weight w: what is left of that value says nothing (:func:`pomcp_jax.diagnostics.value_bias`).
    The last value is of the action that targets evaluate. Comparing a critic with recent returns
    is the idea of ACC (arXiv 2111.12673), which changes its targets by it. 0 without any action.
    """
    model, bins = config.world_model, world_model.bins(config.world_model)
    obs = jnp.stack([outcomes.obs, outcomes.final_obs])
    if params.moments is not None:
        obs = normalising.apply(params.moments, obs)
    latent = world_model.encode(nets, params.model.encoder, obs)
    action = None
    if model.critic == "q":
        use_prior = config.critic.target_actor == "prior" and params.prior is not None
        actor = params.prior if use_prior else params.policy
        last = actors.act(nets, actor, key, latent[1], model, config.critic.target_action)
        action = jnp.stack([outcomes.action, last.action])
    value = jnp.mean(world_model.values(nets, params.model.value, latent, action, bins), axis=0)
    total = lambda x: jnp.sum(jnp.where(outcomes.acted, x, 0.0))  # noqa: E731
    error = total(value[0] - outcomes.total - outcomes.weight * value[1])
    return error / jnp.maximum(total(1.0 - outcomes.weight), 1e-6)


def relative(
    bias: Float[Array, ""], values: Float[Array, "H B"], mask: Bool[Array, "H B"]
) -> Float[Array, ""]:
    """``bias`` in standard deviations of ``values`` of states, at most :data:`LARGEST`."""
    mean = maths.masked_mean(values, mask)
    unit = jnp.sqrt(maths.masked_mean(jnp.square(values - mean), mask))
    return jnp.clip(bias / jnp.maximum(unit, LEAST_UNIT), -LARGEST, LARGEST)


def step(
    log_factor: Float[Array, ""], bias: Float[Array, ""], config: PolicyConfig
) -> Float[Array, ""]:
    """``log m <- log m + dual_rate clip(bias - bias_limit, -1, 1)``, from 0 to :data:`MOST`.

    ``bias`` is :func:`relative`.
    """
    change = config.dual_rate * jnp.clip(bias - config.bias_limit, -1.0, 1.0)
    # A NaN would stay in the factor for good.
    return jnp.clip(log_factor + jnp.where(jnp.isfinite(change), change, 0.0), 0.0, MOST)
