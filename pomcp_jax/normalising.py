"""Running mean and variance of observations: ``world_model.normalise_observations``.

An encoder's first layer norm divides by the largest entries: of a height of 1e4 m and a speed of
1 m/s, only the height is left. Here every entry is brought to mean 0 and variance 1 first.

Sums are of differences to the first observation (``shift``), which are exact in float32 where the
values themselves have no digits left: a mean of 1e4 could not move by less than 1e-3. Parallel
updates are those of Chan, Golub and LeVeque (1979).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

EPSILON = 1e-8
"""Added to variances, in squared units of the observation."""
MOST_STEPS = 1_000_000
"""Steps of a batch of observations after which older ones are forgotten."""
SMALL_SHARE = 1e-3
"""Share of new observations below which their variance is added as a difference."""
MOST = 10.0
"""Largest normalised entry: what changes for the first time has hardly any variance yet."""


class Moments(NamedTuple):
    """Statistics of the observations that one seed has stored in replay."""

    count: Int[Array, ""]  # type: ignore[assignment]  # hides a method of tuple that nothing calls
    shift: Float[Array, " O"]
    """The first observation."""
    mean: Float[Array, " O"]
    """Of the difference to ``shift``."""
    variance: Float[Array, " O"]
    """Of all observations counted, biased."""


def init(obs_size: int) -> Moments:
    """Statistics of no observation, which change nothing: mean 0, variance 1."""
    zeros = jnp.zeros((obs_size,), jnp.float32)
    return Moments(jnp.zeros((), jnp.int32), zeros, jnp.copy(zeros), jnp.ones_like(zeros))


def count(moments: Moments, obs: Float[Array, "N O"]) -> Moments:
    """``moments`` with N further observations."""
    number = obs.shape[0]
    shift = jnp.where(moments.count == 0, obs[0], moments.shift)
    apart = obs - shift[None]
    mean = jnp.mean(apart, axis=0)
    variance = jnp.mean(jnp.square(apart - mean[None]), axis=0)
    # Smaller shares than a millionth are lost in float32's sums: from there on new observations
    # weigh like the last ones before. int32 ends after 2e9.
    total = jnp.minimum(moments.count, min(MOST_STEPS * number, 2**31 - 1) - number) + number
    share = jnp.asarray(number, jnp.float32) / total.astype(jnp.float32)
    gap = mean - moments.mean
    # Sums of squares alone, no difference: an infinite variance then stays infinite, not NaN, and
    # the first ones may be tiny.
    spread = moments.variance + share * jnp.square(gap)
    sums = (1.0 - share) * spread + share * variance
    # A factor of nearly 1 is rounded in the same direction at every step, a difference at random.
    change = (1.0 - share) * jnp.square(gap) + variance - moments.variance
    is_small = (share < SMALL_SHARE) & jnp.isfinite(moments.variance)
    return Moments(
        count=total,
        shift=shift,
        mean=moments.mean + share * gap,
        variance=jnp.where(is_small, moments.variance + share * change, sums),
    )


def of_data(obs: Float[np.ndarray, "R O"]) -> Moments:
    """Statistics of all rows of ``obs``, computed in float64; as numpy arrays."""
    apart = obs.astype(np.float64) - obs[0].astype(np.float64)
    mean, variance = apart.mean(axis=0), apart.var(axis=0)
    single = (x.astype(np.float32) for x in (obs[0], mean, variance))
    return Moments(np.int32(len(obs)), *single)  # type: ignore[arg-type]


def apply(moments: Moments | None, obs: Float[Array, "*batch O"]) -> Float[Array, "*batch O"]:
    """``obs`` with mean 0 and variance 1, within ``MOST``; unchanged without ``moments``."""
    if moments is None:
        return obs

    def wide(x: Array) -> Array:
        return x.reshape((1,) * (obs.ndim - 1) + x.shape)

    scale = jax.lax.rsqrt(moments.variance + EPSILON)
    # The shift first: the difference of nearly equal numbers is exact, that of a sum is not.
    apart = (obs - wide(moments.shift)) - wide(moments.mean)
    return jnp.clip(apart * wide(scale), -MOST, MOST)


def undo(moments: Moments | None, obs: Float[np.ndarray, "*batch O"]) -> np.ndarray:
    """Observations whose :func:`apply` is ``obs``, on the host."""
    if moments is None:
        return obs
    _, shift, mean, variance = map(np.asarray, moments)
    return (shift + mean + obs * np.sqrt(variance + EPSILON)).astype(np.float32)
