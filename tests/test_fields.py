"""Declarations of fields: range, choices and documentation of each, and rejected values."""

import math

import jax
import jax.numpy as jnp
import pytest

from pomcp_jax import attribute_docs, fields, presets, seed_axis, validation
from pomcp_jax import config as config_lib
from pomcp_jax.config import AgentConfig, Config, ConfigError, PolicyConfig

FLAT = config_lib.flatten(Config())
SPECS = fields.all_specs(Config)
FLOATS = sorted(name for name, value in FLAT.items() if isinstance(value, float))
CHOICES = sorted(name for name, spec in SPECS.items() if spec.choices)


def refusal(name, value):
    config = config_lib.replace(Config(), {name: value})
    with pytest.raises(ConfigError) as error:
        validation.validate_config(config)
    return str(error.value)


FREE = ("env.task", "env.assets", "train.buffer", "train.start_from")
"""Fields that take any text."""


def test_every_field_says_what_it_may_be_and_what_it_means():
    assert list(SPECS) == list(FLAT)
    for name, spec in SPECS.items():
        assert type(spec.default) is spec.kind and spec.default == FLAT[name]
        assert spec.kind is bool or spec.range or spec.choices or name in FREE
        assert spec.doc[-1] == "." and not spec.doc.startswith(" "), name
    config_lib.check(Config())
    for preset in presets.PRESETS:
        config_lib.check(presets.get(preset), "agent")


def test_help_of_a_class_has_every_field():
    for group in fields.groups(Config).values():
        for name, spec in fields.specs(group).items():
            assert f"  {name}: {spec.allowed}, default {spec.default!r}\n" in group.__doc__
            assert spec.doc.splitlines()[0] in group.__doc__
    assert "kl_coef: float >= 0, default 1.0\n" in PolicyConfig.__doc__
    assert "q_reduce: min | mean, default 'mean'\n" in PolicyConfig.__doc__


def test_docstrings_are_those_below_the_fields():
    source = (
        'class A:\n    """Of the class."""\n    x: int = 0\n    """One\n    two."""\n    y: str\n'
        "    z = 3\n    w: Count = 1\n    f()\n"
    )
    docs = attribute_docs.read(source)["A"]
    assert docs.doc == "Of the class."
    assert docs.fields == {"x": "One\ntwo.", "y": "", "w": ""}
    assert docs.types == {"x": "int", "y": "str", "w": "Count"}
    assert attribute_docs.of_class(int).fields == {}  # no source


@pytest.mark.parametrize("name", CHOICES)
def test_other_choices_are_refused_with_the_nearest(name):
    choices = ", ".join(SPECS[name].choices)
    wrong = SPECS[name].choices[-1] + "x"
    text = refusal(name, wrong)
    if name != "env.backend":  # depends on the task: envs.check_backend
        assert text == f"{name} = {wrong!r}: must be one of {choices}; did you mean {wrong[:-1]!r}?"
    assert text.startswith(f"{name} = {wrong!r}: ")


@pytest.mark.parametrize("name", FLOATS)
def test_numbers_outside_are_refused_by_name(name):
    found = SPECS[name].range
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
    config_lib.check(config_lib.replace(AgentConfig(), {"policy.kl_coef": -0.0}), "agent")


def test_numbers_of_a_sweep_and_tracers():
    rows = [config_lib.replace(Config(), {"agent.policy.kl_coef": x}) for x in (1.0, -1.0)]
    with pytest.raises(ConfigError, match=r"kl_coef = an array float32\[2\]: must be >= 0"):
        config_lib.check(seed_axis.stack(rows))
    config_lib.check(
        seed_axis.stack([rows[0], config_lib.replace(rows[0], {"agent.policy.kl_coef": 2})])
    )

    def traced(coef):
        config_lib.check(config_lib.replace(AgentConfig(), {"policy.kl_coef": coef}), "agent")
        return coef

    assert jax.jit(traced)(jnp.float32(-1.0)) == -1.0
