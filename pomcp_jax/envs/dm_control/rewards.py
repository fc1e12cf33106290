"""``tolerance``: dm_control's reward-shaping function, in JAX.

Source of every formula: ``dm_control/utils/rewards.py`` (``tolerance`` and
``_sigmoids``). Bounds, margins and values at the margin are Python numbers, so
the scales are computed once, in double precision, at trace time.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_ZERO_ALLOWED = ("cosine", "linear", "quadratic")


def _sigmoid(sigmoid: str, value: float) -> Callable[[jax.Array], jax.Array]:
    """Named function of a distance in units of the margin: 1 at zero, ``value`` at one."""
    # The others only approach zero: no scale would reach it at the margin.
    if not (0 <= value < 1 if sigmoid in _ZERO_ALLOWED else 0 < value < 1):
        raise ValueError(f"value_at_margin={value} is out of range for the {sigmoid!r} sigmoid")
    match sigmoid:
        case "gaussian":
            scale = math.sqrt(-2 * math.log(value))
            return lambda x: jnp.exp(-0.5 * jnp.square(x * scale))
        case "hyperbolic":
            scale = math.acosh(1 / value)
            return lambda x: 1 / jnp.cosh(x * scale)
        case "long_tail":
            scale = math.sqrt(1 / value - 1)
            return lambda x: 1 / (jnp.square(x * scale) + 1)
        case "reciprocal":
            scale = 1 / value - 1
            return lambda x: 1 / (jnp.abs(x) * scale + 1)
        case "cosine":
            scale = math.acos(2 * value - 1) / math.pi
            return lambda x: _inside(x * scale, (1 + jnp.cos(math.pi * x * scale)) / 2)
        case "linear":
            scale = 1 - value
            return lambda x: _inside(x * scale, 1 - x * scale)
        case "quadratic":
            scale = math.sqrt(1 - value)
            return lambda x: _inside(x * scale, 1 - jnp.square(x * scale))
        case "tanh_squared":
            scale = math.atanh(math.sqrt(1 - value))
            return lambda x: 1 - jnp.square(jnp.tanh(x * scale))
    raise ValueError(f"unknown sigmoid {sigmoid!r}")


def _inside(scaled: jax.Array, value: jax.Array) -> jax.Array:
    """``value`` where the scaled distance is below one, else zero."""
    return jnp.where(jnp.abs(scaled) < 1, value, jnp.zeros_like(value))


def tolerance(
    x: Float[Array, "*shape"],
    bounds: tuple[float, float] = (0.0, 0.0),
    margin: float = 0.0,
    sigmoid: str = "gaussian",
    value_at_margin: float = 0.1,
) -> Float[Array, "*shape"]:
    """One within ``bounds``, decreasing to ``value_at_margin`` at a distance of ``margin``.

    With ``margin=0`` the value outside is zero. Bounds are inclusive and may be infinite.

    Raises:
      ValueError: for reversed bounds, a negative margin or a value outside its sigmoid's range.
    """
    lower, upper = bounds
    if lower > upper or margin < 0:
        raise ValueError(f"bad bounds {bounds} or margin {margin}")
    inside = (lower <= x) & (x <= upper)
    if margin == 0:
        return inside.astype(x.dtype)
    # Infinite bounds make this infinite only inside of them, where it is not used.
    distance = jnp.where(x < lower, lower - x, x - upper) / margin
    return jnp.where(inside, jnp.ones_like(x), _sigmoid(sigmoid, value_at_margin)(distance))
