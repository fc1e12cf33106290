"""Per-example losses on any leading shape; the caller masks, weights and averages.

:func:`policy_loss` is the one loss of the PO-MPC family (arXiv 2510.04280):

    - q_coef Q / S_Q + kl_coef w A^k D(pi, p) / S_K - entropy_coef H

Every published member is a choice of these numbers (docs/method.md).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax import actors, maths
from pomcp_jax.actors import PolicySample
from pomcp_jax.config import PolicyConfig
from pomcp_jax.types import Gaussian


def entropy_bonus(sample: PolicySample, config: PolicyConfig) -> Float[Array, "*batch"]:
    """Entropy estimate ``-A^k log N(eps) [+ sum log(1 - a^2)]`` from the drawn action.

    With ``entropy_dim_power = 1`` this is the reference's bonus (tdmpc2
    ``world_model.pi``, issues #44 and #76): its gradient on each log-std is A.
    """
    size = sample.noise.shape[-1]
    # TD-MPC2 multiplies the log-density by A. Its tanh correction cancels in the published code,
    # hence the default ``entropy``; the first release, TD-M(PC)^2 and BOOM keep it.
    bonus = -jnp.power(float(size), config.entropy_dim_power) * actors.log_prob(sample)
    if config.entropy == "squashed":
        bonus = bonus + actors.log_tanh_slope(sample)
    return bonus


def divergence(
    sample: PolicySample, prior: Gaussian, config: PolicyConfig
) -> Float[Array, "*batch"]:
    """``A^kl_dim_power`` times the distance of the policy to the prior, summed over dimensions.

    ``reverse`` KL(pi || p) and ``forward`` KL(p || pi) in closed form;
    ``cross_entropy`` -log p(a) at the drawn action; ``nll`` -log pi(mean of p).
    """
    kind = config.divergence
    if kind == "reverse":
        out = jnp.sum(maths.gaussian_kl(sample.dist, prior), axis=-1)
    elif kind == "forward":
        out = jnp.sum(maths.gaussian_kl(prior, sample.dist), axis=-1)
    elif kind == "cross_entropy":
        # At the squashed action, even if ``dist`` is before the tanh: as TD-M(PC)^2 and BOOM do.
        out = -maths.gaussian_log_prob(sample.action, prior)
    else:
        out = -maths.gaussian_log_prob(prior.mean, sample.dist)
    return jnp.power(float(sample.noise.shape[-1]), config.kl_dim_power) * out


def prepare_prior(prior: Gaussian, sample: PolicySample, config: PolicyConfig) -> Gaussian:
    """The stopped prior, with the std that the configuration asks for, floored."""
    # BOOM detaches the policy's std: otherwise its width alone could lower the cross-entropy.
    std = sample.dist.std if config.prior_std_from == "policy" else prior.std
    return jax.lax.stop_gradient(floored(prior._replace(std=std), config))


def floored(prior: Gaussian, config: PolicyConfig) -> Gaussian:
    """``prior`` with its std at least ``prior_std_min``."""
    # A mean that is off by 0.5 costs 50 nats at a std of 0.05 and 125,000 at 0.001: one such state
    # would dominate the running scale and mute all others.
    return prior._replace(std=jnp.maximum(prior.std, config.prior_std_min))


def precision_weights(record: Gaussian, mask: Bool[Array, "*batch"]) -> Float[Array, "*batch A"]:
    """``1 / std^2`` of each dimension, with a mean of 1 over the records in ``mask``.

    Weights of generalised least squares for observations of unequal variance: with them the forward
    fit has the precision-weighted mean of the records, and their weighted spread about it.
    """
    precision = 1.0 / jnp.square(record.std)
    return _with_mean_one(precision, mask)


def recency_weights(
    made: Int[Array, "*batch"], mask: Bool[Array, "*batch"], half_life: Float[Array, ""] | float
) -> Float[Array, "*batch"]:
    """``2^(-age / half_life)`` with a mean of 1 over the records in ``mask``, 0 for the others.

    The age of a record is how many updates it is older than the newest in ``mask``, as a share of
    the updates before that one. Records made before any update all weigh the same.
    """
    newest = jnp.max(jnp.where(mask, made, 0))
    age = (newest - made).astype(jnp.float32) / jnp.maximum(newest, 1).astype(jnp.float32)
    return _with_mean_one(jnp.exp2(-age / half_life)[..., None], mask)[..., 0]


MOST_ADVANTAGE = 3.0
"""Bound of an advantage in :func:`advantage_weights`, a weight of 20: the bound of CRR
(arXiv 2006.15134) in DeepMind's acme (``ratio_upper_bound``)."""


def advantage_weights(
    advantage: Float[Array, "*batch"], mask: Bool[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """``exp(advantage)`` with a mean of 1 over the records in ``mask``, 0 for the others.

    The exponential filter of CRR (arXiv 2006.15134) and of advantage-weighted regression (arXiv
    1910.00177): the fit is that to the replayed plans' distribution times ``exp(advantage)``.
    """
    bounded = jnp.minimum(advantage, MOST_ADVANTAGE)
    # Relative to the largest: a batch of bad records alone must not become zeros.
    largest = jnp.max(jnp.where(mask, bounded, -jnp.inf), initial=-jnp.inf)
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    return _with_mean_one(jnp.exp(bounded - largest)[..., None], mask)[..., 0]


def _with_mean_one(
    weight: Float[Array, "*batch A"], mask: Bool[Array, "*batch"]
) -> Float[Array, "*batch A"]:
    """Weights with a mean of 1 over the entries in ``mask`` in each dimension, 0 elsewhere."""
    chosen = mask[..., None]
    axes = tuple(range(mask.ndim))
    total = jnp.sum(jnp.where(chosen, weight, 0.0), axis=axes, keepdims=True)
    share = weight / jnp.where(total > 0.0, total, 1.0)
    return jnp.where(chosen, share * jnp.sum(chosen.astype(total.dtype)), 0.0)


def value_weights(
    q: Float[Array, "T B"],
    mask: Bool[Array, "T B"],
    scale: Float[Array, ""],
    config: PolicyConfig,
) -> Float[Array, "T B"]:
    """Softmax over b of ``Q / S_Q / temperature``, times the number of valid states (BOOM).

    Weights average one over the valid states of a time step and carry no
    gradient; masked states weigh 0 and do not influence the others.
    """
    logits = jnp.where(mask, q / scale / config.value_weight_temperature, -jnp.inf)
    # A time step without any valid state would be softmax of -inf alone: NaN.
    logits = jnp.where(jnp.any(mask, axis=-1, keepdims=True), logits, 0.0)
    # BOOM sums over the batch. Times the count, the mean is that sum, at any batch size.
    count = jnp.sum(mask.astype(q.dtype), axis=-1, keepdims=True)
    return jax.lax.stop_gradient(jax.nn.softmax(logits, axis=-1) * count)


class PolicyLoss(NamedTuple):
    """Per-example loss ``[T, B]`` and its parts before coefficients."""

    loss: Float[Array, "*batch"]
    kl: Float[Array, "*batch"]
    entropy: Float[Array, "*batch"]


def policy_loss(
    sample: PolicySample,
    q: Float[Array, "*batch"] | None,
    kl: Float[Array, "*batch"] | None,
    *,
    scale_q: Float[Array, ""],
    scale_kl: Float[Array, ""],
    weight: Float[Array, "*batch"] | float,
    config: PolicyConfig,
    multiplier: Float[Array, ""] | float = 1.0,
) -> PolicyLoss:
    """The family's loss.

    Args:
      sample: the policy at the states of the loss; gradients flow through it.
      q: value of ``sample.action``, differentiable in it; None without a value term.
      kl: :func:`divergence` to the prior; None without a prior.
      scale_q: running scale of Q, a number without gradient.
      scale_kl: running scale of the divergence, a number without gradient.
      weight: weights of the divergence, 1 or :func:`value_weights`.
      config: coefficients (traced) and options (static).
      multiplier: of ``kl_coef``, see :func:`dual_step`.
    """
    entropy = entropy_bonus(sample, config)
    loss = -config.entropy_coef * entropy
    if q is not None:
        loss = loss - config.q_coef * q / scale_q
    zero = jnp.zeros_like(loss)
    if kl is None:
        return PolicyLoss(loss, zero, entropy)
    divisors: dict[str, Array | float] = {"own": scale_kl, "q": scale_q, "none": 1.0}
    # A product, because the threshold is traced. Scales never fall below 1, so a gate of 0 is open.
    # Without a value term there is nothing to wait for.
    open_gate = (scale_q > config.kl_gate).astype(loss.dtype) if q is not None else 1.0
    loss = loss + config.kl_coef * multiplier * open_gate * weight * kl / divisors[config.kl_scale]
    return PolicyLoss(loss, kl, entropy)


def dual_step(
    log_multiplier: Float[Array, ""], kl: Float[Array, ""], action_size: int, config: PolicyConfig
) -> Float[Array, ""]:
    """Gradient step on the multiplier of ``kl_coef`` as in SAC's temperature (arXiv 1812.05905).

    ``log m <- log m + dual_rate (kl - kl_target)`` with the batch's mean divergence per
    dimension, within ``e^-10`` and ``e^10``: a constraint that nothing can meet, or that
    always holds, must not run off.
    """
    per_dim = kl / jnp.power(float(action_size), config.kl_dim_power + 1.0)
    step = config.dual_rate * (per_dim - config.kl_target)
    # Scales change even if the update is refused, so a NaN would stay in the multiplier for good.
    return jnp.clip(log_multiplier + jnp.where(jnp.isfinite(step), step, 0.0), -10.0, 10.0)


def td_target(
    reward: Float[Array, "*batch"],
    terminated: Float[Array, "*batch"],
    next_value: Float[Array, "*batch"],
    discount: Float[Array, ""] | float,
) -> Float[Array, "*batch"]:
    """``r + gamma (1 - d) V(s')``; a truncation is no termination."""
    # The time limit is not part of the task: states after it still have a value.
    return reward + discount * (1.0 - terminated) * next_value


def lambda_returns(
    reward: Float[Array, "W *batch"],
    terminated: Float[Array, "W *batch"],
    next_value: Float[Array, "W *batch"],
    transition: Bool[Array, "W *batch"],
    *,
    discount: Float[Array, ""] | float,
    td_lambda: Float[Array, ""] | float,
) -> Float[Array, "W *batch"]:
    """Returns ``G_t = r_t + gamma (1 - d_t) [(1 - l) V_{t+1} + l G_{t+1}]`` within a window.

    With l = ``td_lambda`` 0 these are one-step targets. The last step, and steps whose next
    state starts no ``transition``, bootstrap from ``next_value`` (V_{t+1}) alone. Source:
    Sutton and Barto, Reinforcement Learning (2018), eq. 12.18.
    """
    longer = td_target(reward[-1], terminated[-1], next_value[-1], discount)
    returns = [longer]
    for t in reversed(range(reward.shape[0] - 1)):
        # A selection, not a product: what follows an episode's end may be anything.
        longer = jnp.where(transition[t + 1], longer, next_value[t])
        mixed = next_value[t] + td_lambda * (longer - next_value[t])
        longer = td_target(reward[t], terminated[t], mixed, discount)
        returns.append(longer)
    return jnp.stack(returns[::-1])


def binary_cross_entropy(
    logits: Float[Array, "*batch"], target: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Binary cross-entropy with logits, the termination head's loss."""
    # Only a negative number is exponentiated: no overflow for confident logits.
    return jnp.maximum(logits, 0.0) - logits * target + jnp.log1p(jnp.exp(-jnp.abs(logits)))
