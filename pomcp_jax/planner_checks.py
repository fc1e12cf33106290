"""What the planner is given besides a model: sizes, numbers, warm start, exploration.

Sizes are known whenever a plan is traced. Numbers are checked only where they are
known: those that ``jit`` or ``vmap`` trace pass.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from pomcp_jax import planner_model
from pomcp_jax.config import ConfigError, MppiConfig

Number = Real[Array, ""] | np.number | float | int


def _is_size(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_sizes(config: MppiConfig, path: str = "mppi", proposes: bool = True) -> None:
    """Check what is static, under ``jit`` too.

    Args:
      config: the planner's.
      path: name of ``config`` in messages.
      proposes: whether the model has a proposal policy; without one ``num_proposals``
        has no effect and is not looked at.

    Raises:
      ConfigError: one line naming the field, the value and what would work.
    """
    samples = config.num_samples
    for name in ("horizon", "iterations", "num_samples", "num_elites", "num_proposals"):
        if not _is_size(getattr(config, name)):
            raise ConfigError(f"{path}.{name} = {getattr(config, name)!r}: must be an integer")
    checks = (
        ("horizon", config.horizon >= 1, ">= 1"),
        ("iterations", config.iterations >= 1, ">= 1"),
        ("num_samples", samples >= 1, ">= 1"),
        (
            "num_proposals",
            not proposes or 0 <= config.num_proposals < samples,
            f"in [0, {path}.num_samples = {samples}), for instance {samples // 20}",
        ),
        (
            "num_elites",
            1 <= config.num_elites <= samples,
            f"in [1, {path}.num_samples = {samples}], for instance {max(samples // 8, 1)}",
        ),
        ("select", config.select in ("sample", "argmax"), "'sample' or 'argmax'"),
        (
            "record",
            config.record in ("sampled_elite", "mean", "best_elite"),
            "'sampled_elite', 'mean' or 'best_elite'",
        ),
    )
    for name, good, hint in checks:
        if not good:
            raise ConfigError(f"{path}.{name} = {getattr(config, name)!r}: must be {hint}")


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
    """Check the numbers that are known; those traced by ``jit`` or ``vmap`` pass.

    Raises:
      ConfigError: as :func:`check_sizes`.
    """
    _known(f"{path}.temperature", config.temperature)
    low = _known(f"{path}.std_min", config.std_min)
    name = "" if low is None else f"{path}.std_min = "
    _known(f"{path}.std_max", config.std_max, low or 0.0, name)


def check_state(state: Any, config: MppiConfig) -> Float[Array, "H A"]:
    """The warm start as an array ``[H, A]``.

    Raises:
      ConfigError: if it is none, or has another shape.
    """
    if not hasattr(state, "mean") or not planner_model.is_array(state.mean):
        raise ConfigError(
            f"state must be a PlanState, as mppi.init makes it; it is a {type(state).__name__}"
        )
    mean = jnp.asarray(state.mean)
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
    for one in np.ravel(explore) if not isinstance(explore, jax.core.Tracer) else ():
        _known("explore", one)
