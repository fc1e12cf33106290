"""Values of a configuration: numbers of any library, arrays of a sweep, tracers."""

import enum
import fractions

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pomcp_jax import config as config_lib
from pomcp_jax import presets, seed_axis, train, validation
from pomcp_jax.config import AgentConfig, Config, ConfigError, MppiConfig, TrainConfig


class Size(enum.IntEnum):
    SMALL = 4


class Choice(enum.StrEnum):
    MEAN = "mean"


NUMBERS = [
    ("mppi.temperature", np.float64(0.25), 0.25),
    ("mppi.temperature", np.float32(0.25), 0.25),
    ("mppi.temperature", np.float16(0.25), 0.25),
    ("mppi.temperature", np.longdouble(0.25), 0.25),
    ("mppi.temperature", ml_dtypes.bfloat16(0.25), 0.25),
    ("mppi.temperature", np.int8(2), 2.0),
    ("mppi.temperature", np.array(0.25), 0.25),
    ("mppi.temperature", np.linspace(0, 1, 5)[1], 0.25),
    ("mppi.temperature", jnp.float32(0.25), 0.25),
    ("mppi.temperature", fractions.Fraction(1, 4), 0.25),
    ("mppi.temperature", -0.0, 0.0),
    ("mppi.temperature", 10**20, 1e20),
    ("mppi.horizon", np.int64(4), 4),
    ("mppi.horizon", np.uint8(4), 4),
    ("mppi.horizon", np.float32(4.0), 4),
    ("mppi.horizon", np.array(4), 4),
    ("mppi.horizon", jnp.int32(4), 4),
    ("mppi.horizon", fractions.Fraction(4, 1), 4),
    ("mppi.horizon", 4e0, 4),
    ("mppi.horizon", -0.0, 0),
    ("mppi.horizon", Size.SMALL, 4),
    ("mppi.record", np.str_("mean"), "mean"),
    ("mppi.record", Choice.MEAN, "mean"),
    ("world_model.termination", np.bool_(True), True),
    ("world_model.termination", np.array(True), True),
    ("world_model.dropout", np.float32(0.5), 0.5),
]


@pytest.mark.parametrize("name,value,wanted", NUMBERS, ids=[str(i) for i in range(len(NUMBERS))])
def test_numbers_of_any_library_are_taken_for_what_they_are(name, value, wanted):
    changed = config_lib.replace(AgentConfig(), {name: value})
    found = config_lib.flatten(changed)[name]
    assert found == wanted and type(found) is type(wanted)
    assert config_lib.replace(AgentConfig(), {name: wanted}) == changed


def test_a_constructor_takes_numbers_of_numpy_too():
    config = Config(train=TrainConfig(updates_per_decision=np.float32(0.5), seed=np.int64(3)))
    assert type(config.train.updates_per_decision) is float and type(config.train.seed) is int
    assert train.ratio(config) == train.ratio(Config(train=TrainConfig(updates_per_decision=0.5)))
    assert hash(config.train) == hash(TrainConfig(updates_per_decision=0.5, seed=3))
    planner = MppiConfig(temperature=np.float64(0.25), num_samples=np.int32(8))
    assert type(planner.temperature) is float and type(planner.num_samples) is int
    with pytest.raises(ConfigError, match=r"^MppiConfig.horizon = 2.5: must be int, not float$"):
        MppiConfig(horizon=2.5)


WRONG = [
    ("mppi.temperature", True, "mppi.temperature = True: must be float, not bool"),
    ("mppi.temperature", np.bool_(True), "= np.True_: must be float, not bool"),
    ("mppi.temperature", "0.5", "mppi.temperature = '0.5': must be float, not str"),
    ("mppi.temperature", 1j, "mppi.temperature = 1j: must be float, not complex"),
    ("mppi.temperature", [0.1, 0.2], "= [0.1, 0.2]: must be float, not list"),
    ("mppi.temperature", 10**400, "must be finite"),
    ("mppi.temperature", np.array([True]), "an array bool[1]: must be a number or an array"),
    ("mppi.temperature", jax.random.key(0), "must be float, not an array"),
    ("mppi.horizon", np.bool_(True), "= np.True_: must be int, not bool"),
    ("mppi.horizon", np.float64(2.5), "= np.float64(2.5): must be int, not float"),
    ("mppi.horizon", float("nan"), "mppi.horizon = nan: must be int, not float"),
    ("mppi.horizon", float("inf"), "mppi.horizon = inf: must be int, not float"),
    ("mppi.horizon", np.arange(3), "mppi.horizon = an array int64[3]: must be int, not an array"),
    ("world_model.termination", 1, "world_model.termination = 1: must be bool, not int"),
    ("world_model.termination", np.int8(1), "= np.int8(1): must be bool, not int"),
    ("world_model.dropout", np.zeros(2), "= an array float64[2]: must be float, not an array"),
    ("mppi.record", b"mean", "mppi.record = b'mean': must be str, not bytes"),
    ("mppi", 5, "mppi = 5: must be a group of fields"),
    ("mppi", AgentConfig().policy, "must be a group of fields"),
]


@pytest.mark.parametrize("name,value,text", WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_what_is_no_such_value_is_refused_by_name(name, value, text):
    with pytest.raises(ConfigError) as error:
        config_lib.replace(AgentConfig(), {name: value})
    message = str(error.value)
    assert text in message and message.startswith(f"{name} = ") and "\n" not in message
    assert len(message) < 200


def test_traced_floats_may_be_tracers():
    def one(t):
        changed = config_lib.replace(
            AgentConfig(), {"mppi.temperature": t, "policy.kl_coef": 2 * t}
        )
        again = config_lib.replace(changed, {"mppi.std_min": 0.1})
        return again.mppi.temperature + config_lib.flatten(again)["policy.kl_coef"]

    wanted = 3.0 * jnp.array([0.1, 1.0])
    assert jnp.allclose(jax.vmap(one)(jnp.array([0.1, 1.0])), wanted)
    assert jnp.allclose(jax.jit(jax.vmap(one))(jnp.array([0.1, 1.0])), wanted)
    assert jax.grad(one)(1.0) == 3.0
    whole = jax.vmap(lambda t: config_lib.replace(MppiConfig(), {"temperature": t}).temperature)
    assert whole(jnp.arange(2)).dtype == jnp.float32


def test_a_tracer_in_a_static_field_is_refused_by_name():
    def horizon(t):
        return config_lib.replace(AgentConfig(), {"mppi.horizon": t}).mppi.horizon

    with pytest.raises(
        ConfigError, match=r"^mppi.horizon = a traced int32\[\]: must be a plain int"
    ):
        jax.jit(horizon)(3)
    with pytest.raises(ConfigError, match="MppiConfig.horizon = a traced .*compiled program"):
        jax.vmap(lambda t: MppiConfig(horizon=t).temperature)(jnp.arange(3))
    with pytest.raises(ConfigError, match="world_model.dropout = a traced"):
        jax.jit(lambda t: config_lib.replace(AgentConfig(), {"world_model.dropout": t}))(0.1)


def test_stacked_sweeps_are_replaced_and_read_back():
    rows = [config_lib.replace(AgentConfig(), {"policy.kl_coef": x}) for x in (0.1, 1.0, 9.0)]
    stacked = config_lib.replace(seed_axis.stack(rows), {"mppi.horizon": 5, "mppi.std_min": 0.1})
    assert jnp.array_equal(stacked.policy.kl_coef, jnp.array([0.1, 1.0, 9.0]))
    again = config_lib.from_dict(AgentConfig, config_lib.to_dict(stacked))
    assert again.policy.kl_coef is stacked.policy.kl_coef and again.mppi == stacked.mppi
    named = config_lib.replace(AgentConfig(), {"policy.kl_coef": np.array([0.1, 1.0, 9.0])})
    assert named.policy.kl_coef.dtype == jnp.float32
    plain = seed_axis.unstack(named, 3)
    assert [one.policy.kl_coef for one in plain] == [0.1, 1.0, 9.0]
    for one in plain:
        validation.validate_agent(one)


def test_numbers_of_an_array_must_be_finite_too():
    config = config_lib.replace(AgentConfig(), {"policy.kl_coef": jnp.array([1.0, jnp.nan])})
    with pytest.raises(
        ConfigError, match=r"^policy.kl_coef = an array float32\[2\]: must be finite"
    ):
        config_lib.check_finite(config)
    config_lib.check_finite(config_lib.replace(config, {"policy.kl_coef": jnp.ones(2)}))

    def traced(t):
        config_lib.check_finite(config_lib.replace(AgentConfig(), {"policy.kl_coef": t}))
        return t

    assert jax.jit(traced)(1.0) == 1.0


def test_a_group_keeps_what_is_not_named():
    config = config_lib.replace(AgentConfig(), {"mppi.num_samples": 128})
    config = config_lib.replace(config, {"mppi": {"horizon": 5}})
    assert (config.mppi.num_samples, config.mppi.horizon) == (128, 5)
    whole = config_lib.replace(Config(), {"agent": presets.bmpc(), "agent.mppi.horizon": 5})
    assert whole.agent == config_lib.replace(presets.bmpc(), {"mppi.horizon": 5})
    assert config_lib.replace(config, {"mppi": {}}) == config


@pytest.mark.parametrize("items", [None, [], 3, "mppi"])
def test_what_is_no_mapping_is_no_configuration(items):
    with pytest.raises(ConfigError, match="configuration = .*: must be a group of fields"):
        config_lib.from_dict(Config, items)
