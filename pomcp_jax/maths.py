"""Small maths: two-hot regression, SimNorm, diagonal Gaussians, running scales, masked means.

Everything here is a pure function of arrays on any leading shape; symbols are
those of :mod:`pomcp_jax.types`. ``[TD-MPC2]`` is arXiv 2310.16828 and the
repository nicklashansen/tdmpc2; ``[DreamerV3]`` is arXiv 2301.04104.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pomcp_jax.types import Gaussian

HALF_LOG_2PI = 0.9189385332046727
"""log(2 pi) / 2."""


def symlog(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``sign(x) log(1 + |x|)`` ([DreamerV3] eq. 9)."""
    # log1p and expm1 keep full precision near 0, where most rewards are.
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Inverse of :func:`symlog`: ``sign(x) (exp(|x|) - 1)``."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


class Bins(NamedTuple):
    """Uniform bins in symlog space; ``low`` and ``high`` are the outermost centres.

    [TD-MPC2] uses 101 bins on [-10, 10], which reaches +-22,025.
    """

    num: int
    low: float
    high: float

    def centres(self, dtype: DTypeLike = jnp.float32) -> Float[Array, " K"]:
        """Bin centres ``[K]`` in symlog space."""
        return jnp.linspace(self.low, self.high, self.num, dtype=dtype)


def two_hot(x: Float[Array, "*batch"], bins: Bins) -> Float[Array, "*batch K"]:
    """Weights on the two bins that surround ``clip(symlog(x))``; they sum to 1."""
    # In units of bins, bin k is at exactly k; centres in symlog space are rounded. Clipping first
    # lets a target beyond the range train the outermost bin: unclipped, no bin would get any mass.
    step = (bins.high - bins.low) / (bins.num - 1)
    position = (jnp.clip(symlog(x), bins.low, bins.high) - bins.low) / step
    grid = jnp.arange(bins.num, dtype=x.dtype).reshape((1,) * x.ndim + (-1,))
    # A triangular kernel of width one bin *is* the two-hot encoding, and puts
    # no mass beyond the last bin.
    return jnp.maximum(1.0 - jnp.abs(position[..., None] - grid), 0.0)


def two_hot_decode(logits: Float[Array, "*batch K"], bins: Bins) -> Float[Array, "*batch"]:
    """``symexp(sum_k softmax(logits)_k centre_k)``: the mean is taken before symexp."""
    # After symexp, a probability of 0.001 at the outermost bin would weigh 22 units of value.
    probs = jax.nn.softmax(logits, axis=-1)
    return symexp(probs @ bins.centres(logits.dtype))


def two_hot_cross_entropy(
    logits: Float[Array, "*batch K"], target: Float[Array, "*batch"], bins: Bins
) -> Float[Array, "*batch"]:
    """Cross-entropy between the two-hot code of ``target`` and ``softmax(logits)``."""
    # The weights of the target sum to 1, so the normaliser needs no array of log-probabilities.
    log_norm = jax.scipy.special.logsumexp(logits, axis=-1)
    return log_norm - jnp.sum(two_hot(target, bins) * logits, axis=-1)


@jax.custom_jvp
def mish(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x tanh(softplus(x))`` (arXiv 1908.08681), with one exponential.

    ``tanh(log(1 + e^x)) = n / (n + 2)`` with ``n = e^x (e^x + 2)``. Beyond
    x = 20 the ratio is 1 in float64 too, so clamping there changes nothing and
    keeps the value and the gradient finite.
    """
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


@mish.defjvp
def _mish_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2.0)
    # d/dx n / (n + 2) = 4 e (e + 1) / (n + 2)^2; past the clamp that is below 1e-16.
    inverse = 1.0 / (n + 2.0)
    ratio = n * inverse
    slope = 4.0 * e * (e + 1.0) * inverse * inverse
    return x * ratio, dx * (ratio + x * slope)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*batch M"],
    scale: Float[Array, " M"],
    offset: Float[Array, " M"],
    two_pass: bool = False,
) -> Float[Array, "*batch M"]:
    """Normalise over the last axis, then scale and shift (arXiv 1607.06450, epsilon 1e-5).

    The derivative is written out: autodiff of mean and variance makes about
    twice the passes over memory. Reverse mode is its transpose. ``two_pass`` takes the variance
    of what is centred already: the pattern that XLA turns into one kernel on a GPU, slower on a
    CPU.
    """
    normed, _ = _normalise(x, two_pass)
    return normed * along_last(scale, x) + along_last(offset, x)


def along_last(
    vector: Float[Array, " M"], like: Float[Array, "*batch M"]
) -> Float[Array, "*ones M"]:
    """``vector`` with as many axes as ``like``, for broadcasting under strict rank promotion."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _normalise(
    x: Float[Array, "..."], two_pass: bool
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    if two_pass:
        centred = x - mean
        inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + 1e-5)
        return centred * inverse, inverse
    # One pass over memory. The difference cancels little: activations have means far below their
    # spread. Rounding can still make it slightly negative, and its root NaN.
    variance = jnp.mean(x * x, axis=-1, keepdims=True) - mean * mean
    inverse = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + 1e-5)
    return (x - mean) * inverse, inverse


@layer_norm.defjvp
def _layer_norm_jvp(two_pass, primals, tangents):
    x, scale, offset = primals
    dx, dscale, doffset = tangents
    normed, inverse = _normalise(x, two_pass)
    dx = dx * inverse
    # Shifting or scaling all inputs does not change the output: project both directions out.
    centre = jnp.mean(dx, axis=-1, keepdims=True)
    slope = jnp.mean(dx * normed, axis=-1, keepdims=True)
    dnormed = dx - centre - normed * slope
    scale, offset, dscale, doffset = (along_last(v, x) for v in (scale, offset, dscale, doffset))
    return normed * scale + offset, dnormed * scale + normed * dscale + doffset


def simnorm(
    x: Float[Array, "*batch L"], group: int, contiguous: bool = False
) -> Float[Array, "*batch L"]:
    """Softmax within groups of ``group`` latent entries ([TD-MPC2] section 3.1, tau = 1).

    Group ``g`` holds the entries ``g, g + L/group, ...``: a fixed permutation of
    the reference's ``contiguous`` groups, chosen because the sum over a middle axis
    vectorises. On a GPU contiguous groups are one kernel instead of three.
    """
    if contiguous:
        grouped = x.reshape(*x.shape[:-1], x.shape[-1] // group, group)
        return jax.nn.softmax(grouped, axis=-1).reshape(x.shape)
    grouped = x.reshape(*x.shape[:-1], group, x.shape[-1] // group)
    return jax.nn.softmax(grouped, axis=-2).reshape(x.shape)


def gaussian_log_prob(x: Float[Array, "*batch A"], dist: Gaussian) -> Float[Array, "*batch"]:
    """Log-density summed over the last axis."""
    z = (x - dist.mean) / dist.std
    return jnp.sum(-0.5 * z * z - jnp.log(dist.std) - HALF_LOG_2PI, axis=-1)


def gaussian_entropy(dist: Gaussian) -> Float[Array, "*batch"]:
    """Differential entropy in nats, summed over the last axis."""
    return jnp.sum(0.5 + HALF_LOG_2PI + jnp.log(dist.std), axis=-1)


def gaussian_kl(p: Gaussian, q: Gaussian) -> Float[Array, "*batch A"]:
    """``KL(p || q)`` in nats, per dimension."""
    variance, gap = jnp.square(q.std), p.mean - q.mean
    ratio = (jnp.square(p.std) + jnp.square(gap)) / (2.0 * variance)
    return jnp.log(q.std) - jnp.log(p.std) + ratio - 0.5


def geometric_mean(p: Gaussian, q: Gaussian, weight: Float[Array, ""] | float) -> Gaussian:
    """The normalised ``p^weight q^(1 - weight)``: precisions add, means weigh by them.

    It is the minimiser over pi of ``weight KL(pi || p) + (1 - weight) KL(pi || q)``.
    """
    left, right = weight / jnp.square(p.std), (1.0 - weight) / jnp.square(q.std)
    precision = left + right
    return Gaussian((left * p.mean + right * q.mean) / precision, jax.lax.rsqrt(precision))


def percentile_range(
    values: Float[Array, "*batch"], mask: Bool[Array, "*batch"] | None = None
) -> Float[Array, ""]:
    """P95 - P5 of all (unmasked) values, with linear interpolation; NaNs are left out."""
    # NaN marks what the mask excludes: indexing with it would make the shape depend on data.
    if mask is not None:
        values = jnp.where(mask, values, jnp.nan)
    low, high = jnp.nanpercentile(values, jnp.array([5.0, 95.0], values.dtype))
    return high - low


def update_scale(
    scale: Float[Array, ""],
    spread: Float[Array, ""],
    rate: Float[Array, ""] | float,
    least: float = 1.0,
) -> Float[Array, ""]:
    """Running scale ``S <- S + rate (max(least, spread) - S)`` ([TD-MPC2] ``RunningScale``).

    The floor is applied before the average, as in the reference; a non-finite
    spread does not change the scale.
    """
    # A NaN in the average would never leave it. The JAX ports of TD-MPC2 floor the average instead.
    spread = jnp.where(jnp.isfinite(spread), spread, scale)
    return scale + rate * (jnp.maximum(spread, least) - scale)


def rho_mean(
    loss: Float[Array, "T B"], mask: Bool[Array, "T B"], rho: Float[Array, ""] | float
) -> Float[Array, ""]:
    """Masked mean with weights ``rho^t``, times the mean weight.

    With a full mask it is the reference's ``(1/T) sum_t rho^t mean_b loss``;
    masked entries are left out of numerator and denominator, and do not
    poison the value even when they are NaN.
    """
    steps = jnp.arange(loss.shape[0], dtype=loss.dtype)
    weight = jnp.power(jnp.asarray(rho, loss.dtype), steps)
    weights = jnp.broadcast_to(weight[:, None], loss.shape) * mask.astype(loss.dtype)
    # The select comes before the product, because 0 * NaN is NaN. A batch without any valid state
    # has the loss 0, not 0 / 0.
    total = jnp.sum(weights * jnp.where(mask, loss, 0.0))
    return total / jnp.maximum(jnp.sum(weights), 1e-6) * jnp.mean(weight)


def masked_mean(x: Float[Array, "*batch"], mask: Bool[Array, "*batch"]) -> Float[Array, ""]:
    """Mean over the entries selected by ``mask``; 0 if there are none."""
    total = jnp.sum(jnp.where(mask, x, 0.0))
    return total / jnp.maximum(jnp.sum(mask.astype(x.dtype)), 1.0)
