"""Ranges of numbers: every float has one, and what is outside is refused by name."""

import math

import jax
import jax.numpy as jnp
import pytest

from pomcp_jax import config as config_lib
from pomcp_jax import presets, ranges, seed_axis, validation
from pomcp_jax.config import AgentConfig, Config, ConfigError

FLAT = config_lib.flatten(Config())
FLOATS = sorted(name for name, value in FLAT.items() if isinstance(value, float))


def refusal(name, value):
    config = config_lib.replace(Config(), {name: value})
    with pytest.raises(ConfigError) as error:
        validation.validate_config(config)
    return str(error.value)


def test_every_float_has_a_range_that_holds_its_default():
    assert sorted(ranges.FLOATS) == FLOATS
    ranges.check(Config())
    for preset in presets.PRESETS:
        ranges.check(presets.get(preset), "agent")


@pytest.mark.parametrize("name", FLOATS)
def test_numbers_outside_are_refused_by_name(name):
    found = ranges.FLOATS[name]
    below = 0.0 if found.low_open else found.low - 1.0
    assert refusal(name, below) == f"{name} = {below!r}: must be {found}"
    if not math.isinf(found.high):
        above = found.high if found.high_open else found.high + 1.0
        assert refusal(name, above) == f"{name} = {above!r}: must be {found}"
    for value in (math.nan, math.inf, -math.inf):
        assert refusal(name, value) == f"{name} = {value!r}: must be finite"
    assert refusal(name, 1e39) == f"{name} = 1e+39: must be finite in float32"


@pytest.mark.parametrize(
    "name,value,text",
    [
        ("agent.policy.kl_coef", -1.0, "agent.policy.kl_coef = -1.0: must be >= 0"),
        ("agent.optimizer.learning_rate", 0.0, "learning_rate = 0.0: must be > 0"),
        ("agent.optimizer.learning_rate", 1e-60, "learning_rate = 1e-60: must be > 0"),
        ("agent.optimizer.discount", 1.0, "discount = 1.0: must be in [0, 1)"),
        ("agent.optimizer.discount", 1 - 1e-9, "must be in [0, 1)"),
        ("agent.optimizer.rho", 0.0, "rho = 0.0: must be in (0, 1]"),
        ("agent.policy.scale_rate", 0.0, "scale_rate = 0.0: must be in (0, 1]"),
        ("agent.policy.value_weight_temperature", 1e-45, "must be > 0"),
        ("agent.optimizer.grad_clip", 1e39, "grad_clip = 1e+39: must be finite in float32"),
        ("agent.mppi.num_samples", 10**12, "num_samples = 1000000000000: must be < 2**31"),
        ("env.num_envs", 2**31, "env.num_envs = 2147483648: must be < 2**31"),
    ],
)
def test_the_range_is_that_of_a_device(name, value, text):
    assert text in refusal(name, value)


def test_zero_may_have_a_sign():
    ranges.check(config_lib.replace(AgentConfig(), {"policy.kl_coef": -0.0}), "agent")


def test_numbers_of_a_sweep_and_tracers():
    rows = [config_lib.replace(Config(), {"agent.policy.kl_coef": x}) for x in (1.0, -1.0)]
    with pytest.raises(ConfigError, match=r"kl_coef = an array float32\[2\]: must be >= 0"):
        ranges.check(seed_axis.stack(rows))
    ranges.check(
        seed_axis.stack([rows[0], config_lib.replace(rows[0], {"agent.policy.kl_coef": 2})])
    )

    def traced(coef):
        ranges.check(config_lib.replace(AgentConfig(), {"policy.kl_coef": coef}), "agent")
        return coef

    assert jax.jit(traced)(jnp.float32(-1.0)) == -1.0
