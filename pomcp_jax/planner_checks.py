"""Checks of the planner's inputs besides the model: sizes, numbers, warm start, exploration.

Sizes are known whenever a plan is traced. Numbers are checked only if they are
known; those traced by ``jit`` or ``vmap`` pass.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from pomcp_jax import fields, planner_model
from pomcp_jax.config import ConfigError, MppiConfig

Number = Real[Array, ""] | np.number | float | int


def check_sizes(config: MppiConfig, path: str = "mppi", proposes: bool = True) -> None:
    """Check the static fields, under ``jit`` too.

    Args:
      config: the planner's.
      path: name of ``config`` in messages.
      proposes: whether the model has a proposal policy; without one ``num_proposals``
        has no effect and is not checked.

    Raises:
      ConfigError: one line naming the field, the value and what would work.
    """
    # A configuration for a model that proposes must also serve models that do not.
    unread = () if proposes else ("num_proposals",)
    for name, spec in fields.specs(MppiConfig).items():
        hint = fields.refusal(spec, getattr(config, name)) if spec.static else ""
        if hint and name not in unread:
            raise ConfigError(f"{path}.{name} = {getattr(config, name)!r}: {hint}")
    samples, proposals, elites = config.num_samples, config.num_proposals, config.num_elites
    if proposes and proposals >= samples:
        raise ConfigError(
            f"{path}.num_proposals = {proposals}: must be in [0, {path}.num_samples = {samples}),"
            f" for instance {samples // 20}"
        )
    if elites > samples:
        raise ConfigError(
            f"{path}.num_elites = {elites}: must be in [1, {path}.num_samples = {samples}],"
            f" for instance {max(samples // 8, 1)}"
        )


def _known(name: str, value: Any, least: float = 0.0, least_name: str = "") -> float | None:
    """``value`` if it is known before the program runs, checked; None if it is traced."""
    if isinstance(value, jax.core.Tracer):
        if value.shape != ():
            raise ConfigError(f"{name} has shape {list(value.shape)}: must be a number")
        return None
    hint = f"a finite number >= {least_name}{least:g}"
    if np.shape(value) != () or not planner_model.is_real(value):
        raise ConfigError(f"{name} is {planner_model.describe(value)}: must be {hint}")
    if not least <= float(value) < np.inf:
        raise ConfigError(f"{name} = {value}: must be {hint}")
    return float(value)


def check_numbers(config: MppiConfig, path: str = "mppi") -> None:
    """Check numbers whose values are known; those traced by ``jit`` or ``vmap`` pass.

    Raises:
      ConfigError: as :func:`check_sizes`.
    """
    _known(f"{path}.temperature", config.temperature)
    low = _known(f"{path}.std_min", config.std_min)
    name = "" if low is None else f"{path}.std_min = "
    # A traced lower bound cannot be compared; 0 bounds it from below.
    _known(f"{path}.std_max", config.std_max, low or 0.0, name)


def check_state(state: Any, config: MppiConfig) -> Float[Array, "H A"]:
    """The warm start as an array ``[H, A]``.

    Raises:
      ConfigError: if it is not a warm start, or has another shape.
    """
    if not hasattr(state, "mean") or not planner_model.is_array(state.mean):
        raise ConfigError(
            f"state must be a PlanState, as mppi.init makes it; it is a {type(state).__name__}"
        )
    mean = jnp.asarray(state.mean)
    # A wrong horizon would be accepted by the search and silently plan fewer steps.
    if mean.ndim != 2 or mean.shape[0] != config.horizon or not mean.shape[1]:
        wanted = f"[{config.horizon}, {mean.shape[-1] if mean.ndim else 'A'}]"
        raise ConfigError(
            f"state.mean has shape {list(mean.shape)}: must be [H, A] = {wanted}, because"
            f" mppi.horizon is {config.horizon}; jax.vmap plans many states at once"
        )
    if not jnp.issubdtype(mean.dtype, jnp.floating):
        raise ConfigError(f"state.mean is {planner_model.describe(mean)}: must be floats")
    return mean


def check_explore(explore: Any, size: int) -> None:
    """Check the shape of the exploration's scale, and its value where it is known.

    Raises:
      ConfigError: as :func:`check_sizes`.
    """
    if not planner_model.is_real(explore) or np.shape(explore) not in ((), (size,)):
        raise ConfigError(
            f"explore is {planner_model.describe(explore)}: must be a number, or [A] = [{size}]"
        )
    for scale in np.ravel(explore) if not isinstance(explore, jax.core.Tracer) else ():
        _known("explore", scale)
