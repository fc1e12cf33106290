"""Policies as distributions over actions: apply the network, bound the log-std, squash, draw.

Two actors exist, the policy and the learned prior. Each is a diagonal Gaussian ``dist`` with a
squash that maps its samples into [-1, 1], ``world_model.squash``:

    tanh                   a = tanh(m + s eps), dist = N(m, s) before the tanh   [TD-MPC2]
    clip                   a = clip(tanh(m) + s eps), dist = N(tanh m, s)        [BMPC]
    clip_straight_through  the same value, with the clip's gradient replaced by 1

``m`` is the network's raw mean, ``log s`` its bounded log-std and ``eps`` standard normal. No
other module bounds a log-std or squashes a mean.
"""

import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pomcp_jax import maths, world_model
from pomcp_jax.config import WorldModelConfig
from pomcp_jax.normalising import Moments
from pomcp_jax.types import Gaussian, Key, Params
from pomcp_jax.world_model import ModelParams, Networks

Bound = Float[Array, ""] | float

_QUANTILES = 64
"""Quantiles that approximate a standard normal in :func:`over_actions`."""


class AgentParams(NamedTuple):
    """Parameters of the world model and of both actors: all that acting needs."""

    model: ModelParams
    policy: Params
    prior: Params | None
    """The learned prior; None unless ``policy.prior`` is ``learned`` or ``mixture``."""
    moments: Moments | None = None
    """Statistics of observations, not learned by gradients; None unless
    ``world_model.normalise_observations``."""


class PolicySample(NamedTuple):
    """A policy's distribution and one reparameterised action from it."""

    dist: Gaussian
    """``[..., A]``: before the tanh for squash ``tanh``, in action space otherwise."""
    noise: Float[Array, "*batch A"]
    action: Float[Array, "*batch A"]
    """In [-1, 1]."""


def bounded_log_std(raw: Float[Array, "..."], low: Bound, high: Bound) -> Float[Array, "..."]:
    """``low + (high - low) (1 + tanh(raw)) / 2`` ([TD-MPC2] ``math.log_std``)."""
    # tanh instead of a clip: the gradient of a log-std at its bound never vanishes entirely.
    return low + 0.5 * (high - low) * (1.0 + jnp.tanh(raw))


# ------------------------------------------------------------------ from raw outputs


def gaussian(mean: Array, log_std: Array, kind: str) -> Gaussian:
    """The distribution of raw means and bounded log-stds ``[..., A]``."""
    # Squashing the mean, not the sample, keeps a Gaussian: BMPC's KL then has a closed form.
    std = jnp.exp(log_std)
    return Gaussian(mean if kind == "tanh" else jnp.tanh(mean), std)


def draw(dist: Gaussian, noise: Float[Array, "*batch A"], kind: str) -> PolicySample:
    """The action that standard normal ``noise`` picks from ``dist``, reparameterised."""
    raw = dist.mean + dist.std * noise
    if kind == "tanh":
        return PolicySample(dist, noise, jnp.tanh(raw))
    # A plain clip serves BMPC: its loss, a closed-form KL, does not differentiate the action.
    action = jnp.clip(raw, -1.0, 1.0)
    if kind == "clip_straight_through":
        # The gradient of a value must still move a saturated action, which a clip would block.
        action = raw + jax.lax.stop_gradient(action - raw)
    return PolicySample(dist, noise, action)


def squash(mean: Array, log_std: Array, noise: Array, kind: str) -> PolicySample:
    """:func:`draw` from :func:`gaussian`."""
    return draw(gaussian(mean, log_std, kind), noise, kind)


# ------------------------------------------------------------------------- actors


def distribution(
    nets: Networks,
    params: Params,
    latent: Float[Array, "*batch L"],
    config: WorldModelConfig,
    log_std_range: tuple[Bound, Bound] | None = None,
) -> Gaussian:
    """An actor's distribution at ``latent``; ``log_std_range`` overrides the configured one."""
    mean, raw = world_model.policy(nets, params, latent)
    low, high = log_std_range or (config.log_std_min, config.log_std_max)
    return gaussian(mean, bounded_log_std(raw, low, high), config.squash)


def act(
    nets: Networks,
    params: Params,
    key: Key,
    latent: Float[Array, "*batch L"],
    config: WorldModelConfig,
    choice: str,
) -> PolicySample:
    """:func:`sample`, or with ``choice`` ``mode`` the same distribution without noise."""
    drawn = sample(nets, params, key, latent, config)
    if choice == "sample":
        return drawn
    return PolicySample(drawn.dist, jnp.zeros_like(drawn.noise), mode(drawn.dist, config.squash))


def sample(
    nets: Networks,
    params: Params,
    key: Key,
    latent: Float[Array, "*batch L"],
    config: WorldModelConfig,
    log_std_range: tuple[Bound, Bound] | None = None,
) -> PolicySample:
    """An actor's :func:`distribution` at ``latent`` and one action from it; the key is consumed."""
    dist = distribution(nets, params, latent, config, log_std_range)
    noise = jax.random.normal(key, dist.mean.shape, dist.mean.dtype)
    return draw(dist, noise, config.squash)


# --------------------------------------------------------- properties of a distribution


def mode(dist: Gaussian, kind: str) -> Float[Array, "*batch A"]:
    """The action without noise, in [-1, 1]."""
    return jnp.tanh(dist.mean) if kind == "tanh" else jnp.clip(dist.mean, -1.0, 1.0)


def log_prob(sample: PolicySample) -> Float[Array, "*batch"]:
    """Log-density of the drawn action under ``dist``, from its noise; before any squashing."""
    return jnp.sum(
        # (a - m) / s is the noise itself, for a reparameterised action: nothing to divide.
        -0.5 * jnp.square(sample.noise) - jnp.log(sample.dist.std) - maths.HALF_LOG_2PI,
        axis=-1,
    )


def log_tanh_slope(sample: PolicySample) -> Float[Array, "*batch"]:
    """``sum log(1 - a^2 + 1e-6)``: subtract it from :func:`log_prob` for the density after tanh."""
    # tanh is exactly 1 in float32 beyond 9; the epsilon is TD-MPC2's.
    return jnp.sum(jnp.log(1.0 - jnp.square(sample.action) + 1e-6), axis=-1)


def over_actions(dist: Gaussian, kind: str) -> Gaussian:
    """A Gaussian over actions, comparable with a planner's stored plan.

    Policies that clip are compared as the loss does, by the Gaussian before the clip. A tanh
    policy is a Gaussian *before* the tanh; it is replaced by the Gaussian with the mean and std
    of ``tanh(m + s eps)``, from 64 equally likely values of eps.
    """
    if kind != "tanh":
        return dist
    grid = jnp.asarray(_quantiles(_QUANTILES), dist.mean.dtype)
    grid = grid.reshape(-1, *(1 for _ in dist.mean.shape))
    actions = jnp.tanh(dist.mean[None] + dist.std[None] * grid)
    centre = jnp.mean(actions, axis=0)
    # A saturated policy has no spread over actions; the epsilon keeps its divergences finite.
    spread = jnp.sqrt(jnp.mean(jnp.square(actions - centre[None]), axis=0) + 1e-12)
    return Gaussian(centre, spread)


def _quantiles(number: int) -> np.ndarray:
    """``[number]`` equally likely values of a standard normal, of variance exactly one."""
    inverse = statistics.NormalDist().inv_cdf
    values = np.array([inverse((i + 0.5) / number) for i in range(number)])
    # The midpoints of equal shares have a smaller variance than the normal.
    return values / np.sqrt(np.mean(values**2))
