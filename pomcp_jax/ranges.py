"""The range of every float of a configuration, and of how large integers may be: one table."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from pomcp_jax import config as config_lib
from pomcp_jax import values
from pomcp_jax.config import ConfigError


class Range(NamedTuple):
    """An interval; open ends are not part of it."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{'>' if self.low_open else '>='} {self.low:g}"
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"in {left}{self.low:g}, {self.high:g}{right}"

    def holds(self, value: Any) -> bool:
        """Whether a number, or every one of an array, lies inside."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return bool(np.all(above & below))


NOT_NEGATIVE = Range(0.0)
POSITIVE = Range(0.0, low_open=True)
SHARE = Range(0.0, 1.0)
RATE = Range(0.0, 1.0, low_open=True)
BELOW_ONE = Range(0.0, 1.0, high_open=True)
POWER = Range(-10.0, 10.0)
LOGARITHM = Range(-30.0, 10.0)
"""Of a standard deviation: squares of its exponential are normal numbers of float32."""
SYMLOG = Range(-80.0, 80.0)
"""``symexp`` of it is finite in float32."""

FLOATS: dict[str, Range] = {
    "agent.world_model.bin_low": SYMLOG,
    "agent.world_model.bin_high": SYMLOG,
    "agent.world_model.dropout": BELOW_ONE,
    "agent.world_model.log_std_min": LOGARITHM,
    "agent.world_model.log_std_max": LOGARITHM,
    "agent.mppi.temperature": NOT_NEGATIVE,
    "agent.mppi.std_min": NOT_NEGATIVE,
    "agent.mppi.std_max": NOT_NEGATIVE,
    "agent.critic.soft_target_clip": NOT_NEGATIVE,
    "agent.critic.tail_penalty": NOT_NEGATIVE,
    "agent.policy.q_coef": NOT_NEGATIVE,
    "agent.policy.kl_coef": NOT_NEGATIVE,
    "agent.policy.kl_target": NOT_NEGATIVE,
    "agent.policy.dual_rate": NOT_NEGATIVE,
    "agent.policy.kl_dim_power": POWER,
    "agent.policy.entropy_coef": NOT_NEGATIVE,
    "agent.policy.entropy_dim_power": POWER,
    "agent.policy.prior_mix": SHARE,
    "agent.policy.seed_std": POSITIVE,
    "agent.policy.kl_gate": NOT_NEGATIVE,
    "agent.policy.prior_std_min": NOT_NEGATIVE,
    "agent.policy.value_weight_temperature": POSITIVE,
    "agent.policy.scale_rate": RATE,
    "agent.replan.proposal_log_std_min": LOGARITHM,
    "agent.replan.proposal_log_std_max": LOGARITHM,
    "agent.optimizer.learning_rate": POSITIVE,
    "agent.optimizer.encoder_rate_scale": NOT_NEGATIVE,
    "agent.optimizer.policy_epsilon": POSITIVE,
    "agent.optimizer.grad_clip": POSITIVE,
    "agent.optimizer.target_rate": RATE,
    "agent.optimizer.discount": BELOW_ONE,
    "agent.optimizer.rho": RATE,
    "agent.optimizer.consistency_coef": NOT_NEGATIVE,
    "agent.optimizer.reward_coef": NOT_NEGATIVE,
    "agent.optimizer.value_coef": NOT_NEGATIVE,
    "agent.optimizer.termination_coef": NOT_NEGATIVE,
    "train.updates_per_decision": Range(0.0, 1000.0),
    "train.memory_limit_gb": POSITIVE,
}


def _as_float32(value: Any) -> Any:
    """``value`` as a device has it, with numbers that it takes for zero as zero."""
    with np.errstate(over="ignore", under="ignore"):
        value = np.asarray(value).astype(np.float32)
    return np.where(np.abs(value) < np.finfo(np.float32).tiny, np.float32(0.0), value)


def check(config: Any, path: str = "") -> None:
    """Check every number of a whole configuration, or of the group at ``path``.

    Tracers pass; of an array, every number counts. Sizes and counts of ``env`` and ``agent``
    are 32 bits wide on devices, those of ``train`` 64 on the host.

    Raises:
      ConfigError: one line naming the field, the value and its range.
    """
    for name, value in config_lib.flatten(config, f"{path}." if path else "").items():
        if isinstance(value, bool | str | jax.core.Tracer):
            continue
        if name not in FLOATS:
            bits = 63 if name.startswith("train.") else 31
            if abs(value) >= 2**bits:
                raise ConfigError(f"{name} = {values.shown(value)}: must be < 2**{bits}")
            continue
        number = _as_float32(value)
        if not np.isfinite(number).all():
            finite = "must be finite" + (" in float32" if np.isfinite(value).all() else "")
            raise ConfigError(f"{name} = {values.shown(value)}: {finite}")
        if not FLOATS[name].holds(number):
            raise ConfigError(f"{name} = {values.shown(value)}: must be {FLOATS[name]}")
