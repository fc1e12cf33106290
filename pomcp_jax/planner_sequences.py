"""Action sequences of the planner: bounds, knots, noise correlated in time, cost of changes.

All of it is off by default, and then a plan's program contains none of it: numbers that are off
are no leaves of the configuration (:data:`pomcp_jax.fields.OPTIONAL`).

Symbols: N sequences, H steps, K knots (H without knots), A action size.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pomcp_jax import fields
from pomcp_jax.config import MppiConfig

NUMBERS = (
    "temperature", "std_min", "std_max", "std_init", "low", "high", "noise_correlation",
    "action_rate_cost",
)  # fmt: skip
"""Traced fields of the planner."""


def numbers(config: MppiConfig) -> dict[str, Any]:
    """The traced fields that are on, by name."""
    optional = fields.specs(MppiConfig)
    return {
        name: as_float(getattr(config, name))
        for name in NUMBERS
        if not fields.is_off(optional[name], getattr(config, name))
    }


def as_float(number: Any) -> Any:
    """``number``, if it is a Python integer as a float: those beyond int32 are none for JAX."""
    return float(number) if type(number) is int else number


def has_bounds(config: MppiConfig) -> bool:
    """Whether the box of actions is another than [-1, 1]."""
    return fields.is_on(config, "low") or fields.is_on(config, "high")


def in_action_units(config: MppiConfig, dtype: DTypeLike) -> MppiConfig:
    """``config`` with its numbers as arrays, standard deviations and costs in units of actions."""
    given: dict[str, Any] = {
        name: jnp.asarray(x).astype(dtype) for name, x in numbers(config).items()
    }
    config = dataclasses.replace(config, **given)
    if has_bounds(config):
        # The range of an input is its natural unit: the same numbers then suit radians and newtons.
        half = 0.5 * (config.high - config.low)
        unit: dict[str, Any] = {"std_min": half, "std_max": half, "std_init": half}
        unit["action_rate_cost"] = 1.0 / jnp.square(jnp.asarray(half))
        given |= {name: given[name] * unit[name] for name in unit.keys() & given.keys()}
    return dataclasses.replace(config, **given)


def middle(config: MppiConfig) -> Any:
    """The action in the middle of the box, a number or ``[A]``."""
    return 0.5 * (config.low + config.high) if has_bounds(config) else 0.0


def like(number: Any, x: Array) -> Any:
    """``number`` or ``[A]`` in a shape that combines with ``x [..., A]``."""
    # Explicit, because rank promotion may be an error.
    return jnp.broadcast_to(number, x.shape) if jnp.ndim(number) else number


def clip(actions: Float[Array, "*S A"], config: MppiConfig) -> Float[Array, "*S A"]:
    """Actions within the bounds."""
    return jnp.clip(actions, like(config.low, actions), like(config.high, actions))


# ---------------------------------------------------------------------------- knots


def knot_steps(config: MppiConfig) -> np.ndarray:
    """Steps ``[K]`` that are searched: whole ones, the first and the last among them."""
    last = config.horizon - 1
    if not config.knots:
        return np.arange(last + 1)
    # Half up, because NumPy rounds halves to even numbers, of which two knots could share one.
    return np.floor(np.linspace(0, last, config.knots) + 0.5).astype(int)


def interpolation(config: MppiConfig) -> Float[np.ndarray, "H K"]:
    """Matrix from the knots' actions to those of all steps.

    Linear, or cubic Hermite splines whose slope at a knot is the mean of the slopes on both sides.
    Its rows at the knots' own steps are those of the identity.
    """
    steps, times = knot_steps(config), np.arange(config.horizon)
    units = np.eye(len(steps))
    if config.interpolation == "linear" or len(steps) == 1:
        return np.stack([np.interp(times, steps, unit) for unit in units], axis=1)
    gaps = np.diff(steps)
    rises = np.diff(units, axis=0) / gaps[:, None]
    slopes = np.concatenate([rises[:1], 0.5 * (rises[1:] + rises[:-1]), rises[-1:]])
    begin = np.clip(np.searchsorted(steps, times, side="right") - 1, 0, len(gaps) - 1)
    gap = gaps[begin][:, None]
    u = (times - steps[begin])[:, None] / gap
    return (
        (1 + 2 * u) * (1 - u) ** 2 * units[begin]
        + u * (1 - u) ** 2 * gap * slopes[begin]
        + u**2 * (3 - 2 * u) * units[begin + 1]
        - u**2 * (1 - u) * gap * slopes[begin + 1]
    )


def at_knots(actions: Float[Array, "*N H A"], config: MppiConfig) -> Float[Array, "*N K A"]:
    """The actions at the knots' steps."""
    return actions[..., knot_steps(config), :] if config.knots else actions


def between_knots(knots: Float[Array, "*N K A"], config: MppiConfig) -> Float[Array, "*N H A"]:
    """Actions of all steps."""
    if not config.knots:
        return knots
    matrix = jnp.asarray(interpolation(config), knots.dtype)
    # At full precision: actions at the knots must be the knots, on devices with short floats too.
    exact = jax.lax.Precision.HIGHEST
    actions = jnp.einsum("hk,...ka->...ha", matrix, knots, precision=exact)
    return clip(actions, config)


# ---------------------------------------------------------------------------- noise


def correlated(noise: Float[Array, "N K A"], config: MppiConfig) -> Float[Array, "N K A"]:
    """Standard normal noise as a stationary Ornstein-Uhlenbeck process over the knots' steps.

    ``x_k = c_k x_{k-1} + sqrt(1 - c_k^2) e_k`` with ``c_k = rho^(t_k - t_{k-1})``: the variance is
    1 at every step, and the correlation of steps s and t is ``rho^|t - s|``.
    """
    if not fields.is_on(config, "noise_correlation"):
        return noise
    rho = jnp.broadcast_to(config.noise_correlation, noise.shape[-1:])
    steps = knot_steps(config)
    apart = steps[:, None] - steps[None]
    # The recursion as one triangular matrix: a loop over steps would cost a kernel for each.
    powers = rho[None, None] ** jnp.asarray(np.maximum(apart, 0), noise.dtype)[..., None]
    decay = jnp.where((apart >= 0)[..., None], powers, 0.0)
    past = rho[None] ** jnp.asarray(2 * np.diff(steps), noise.dtype)[:, None]
    scale = jnp.concatenate([jnp.ones_like(rho)[None], jnp.sqrt(1.0 - past)])
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("kja,nja->nka", decay * scale[None], noise, precision=exact)


# --------------------------------------------------------------------------- changes


def change_costs(
    actions: Float[Array, "N H A"], previous: Float[Array, " A"] | None, config: MppiConfig
) -> Float[Array, "N H"]:
    """Cost of every step's change of action.

    Args:
      actions: sequences, in units of actions as ``config`` is.
      previous: the executed action before; None leaves the first change free.
      config: from :func:`in_action_units`.
    """
    first = actions[:, :1] if previous is None else like(previous, actions[:, :1])
    changes = actions - jnp.concatenate([first, actions[:, :-1]], axis=1)
    return jnp.sum(like(config.action_rate_cost, changes) * jnp.square(changes), axis=-1)
