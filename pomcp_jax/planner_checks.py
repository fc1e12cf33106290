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
    if config.knots > config.horizon:
        raise ConfigError(
            f"{path}.knots = {config.knots}: must be in [0, {path}.horizon = {config.horizon}],"
            f" for instance {max(config.horizon // 4, 1)}"
        )
    if elites > samples:
        raise ConfigError(
            f"{path}.num_elites = {elites}: must be in [1, {path}.num_samples = {samples}],"
            f" for instance {max(samples // 8, 1)}"
        )


def check_shift(shape: tuple[int, ...], steps: Any) -> None:
    """Check what ``mppi.shift`` is given: one plan ``[H, A]`` and the number of executed actions.

    Raises:
      ConfigError: one line.
    """
    if len(shape) != 2:
        raise ConfigError(
            f"out.next_state.mean has the shape {list(shape)}: must be [H, A], of one plan;"
            " jax.vmap(mppi.shift) shifts those of many states"
        )
    if isinstance(steps, jax.core.Tracer):
        return
    whole = np.ndim(steps) == 0 and np.issubdtype(np.asarray(steps).dtype, np.integer)
    if not whole or not 1 <= steps <= shape[0]:
        raise ConfigError(f"steps = {steps!r}: must be an integer from 1 to H = {shape[0]}")


def _known(
    name: str, value: Any, least: Any = 0.0, least_name: str = "", size: int | None = None
) -> Any:
    """``value`` as an array if it is known before the program runs, checked; None if it is traced.

    Args:
      name: of the value in messages.
      value: a number, or one for each of ``size`` inputs if there is a size.
      least: lower bound, None for any; ``least_name`` is its field, with an equals sign.
      size: A, if the value may be ``[A]``.
    """
    shapes = ((),) if size is None else ((), (size,))
    a_number = "a number" if size is None else f"a number, or [A] = [{size}]"
    if isinstance(value, jax.core.Tracer):
        if value.shape not in shapes:
            raise ConfigError(f"{name} has shape {list(value.shape)}: must be {a_number}")
        return None
    bound = "" if least is None else f" >= {least_name}{_shown(least)}"
    if np.shape(value) not in shapes or not planner_model.is_real(value):
        numbers = a_number.replace("a number", f"a finite number{bound}", 1)
        raise ConfigError(f"{name} is {planner_model.describe(value)}: must be {numbers}")
    number = np.asarray(value, float)
    if not (np.isfinite(number).all() and (least is None or np.all(number >= least))):
        raise ConfigError(f"{name} = {_shown(value)}: must be a finite number{bound}")
    return number


def _shown(value: Any) -> str:
    """A number, or several, as a user writes them."""
    numbers = [f"{x:g}" for x in np.ravel(value)]
    return numbers[0] if np.ndim(value) == 0 else f"[{', '.join(numbers)}]"


def check_numbers(config: MppiConfig, path: str = "mppi", size: int | None = None) -> None:
    """Check numbers whose values are known; those traced by ``jit`` or ``vmap`` pass.

    Args:
      config: the planner's.
      path: name of ``config`` in messages.
      size: A; without it, standard deviations and bounds must be numbers.

    Raises:
      ConfigError: as :func:`check_sizes`.
    """
    _known(f"{path}.temperature", config.temperature)
    low = _known(f"{path}.std_min", config.std_min, size=size)
    name = "" if low is None else f"{path}.std_min = "
    # A traced lower bound cannot be compared; 0 bounds it from below.
    _known(f"{path}.std_max", config.std_max, 0.0 if low is None else low, name, size)
    _known(f"{path}.std_init", config.std_init, size=size)
    _known(f"{path}.action_rate_cost", config.action_rate_cost, size=size)
    rho = _known(f"{path}.noise_correlation", config.noise_correlation, size=size)
    if rho is not None and np.any(rho >= 1.0):
        raise ConfigError(f"{path}.noise_correlation = {_shown(rho)}: must be in [0, 1)")
    check_bounds(config, path, size)


def check_bounds(config: MppiConfig, path: str = "mppi", size: int | None = None) -> None:
    """Check ``low`` and ``high`` alone, which is all that an initial state depends on.

    Raises:
      ConfigError: as :func:`check_numbers`.
    """
    low = _known(f"{path}.low", config.low, None, size=size)
    high = _known(f"{path}.high", config.high, None, size=size)
    if low is not None and high is not None and not np.all(low < high):
        raise ConfigError(f"{path}.high = {_shown(high)}: must be > {path}.low = {_shown(low)}")


def check_state(
    state: Any, config: MppiConfig
) -> tuple[Float[Array, "H A"], Float[Array, " A"] | None]:
    """The warm start as an array ``[H, A]``, and the last action if there is one.

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
    action = getattr(state, "action", None)
    if action is None:
        return mean, None
    size = mean.shape[1]
    if not planner_model.is_real(action) or np.shape(action) != (size,):
        shown = planner_model.describe(action)
        raise ConfigError(f"state.action is {shown}: must be None, or floats [A] = [{size}]")
    return mean, jnp.asarray(action)


def check_count(name: str, value: Any) -> None:
    """Check a number of things.

    Raises:
      ConfigError: it is no integer, or less than 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ConfigError(f"{name} = {value!r:.80}: must be an integer >= 1")


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
