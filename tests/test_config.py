"""Configurations: every mistake is a one-line error that names the field and a remedy."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.configs import brax, debug, dm_control, quickstart, small
from pomcp_jax import config as config_lib
from pomcp_jax import envs, fields, presets, seed_axis, validation
from pomcp_jax.config import AgentConfig, Config, ConfigError, MppiConfig

FLAT = config_lib.flatten(Config())


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("size", ["tiny", "small", "1M", "5M", "19M", "48M"])
def test_every_preset_and_size_is_valid(preset, size):
    validation.validate_agent(presets.with_size(presets.get(preset), size))


def test_floats_are_leaves_and_the_rest_is_structure():
    """Traced numbers never recompile; sizes always do."""
    leaves = jax.tree.leaves(AgentConfig())
    specs = fields.all_specs(AgentConfig)
    assert sorted(leaves) == sorted(
        spec.default
        for name, spec in specs.items()
        if spec.kind is float and name != "world_model.dropout" and not spec.optional
    )


def test_optional_floats_are_leaves_while_they_are_on():
    """A number that is off is absent; an array or a tracer is on, whatever it holds."""
    off, on = MppiConfig(), MppiConfig(noise_correlation=0.5)
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(on)}
    assert names == {".temperature", ".std_min", ".std_max", ".noise_correlation"}
    assert len(jax.tree.leaves(off)) == 3
    assert len(jax.tree.leaves(MppiConfig(low=np.float32(-1.0), high=1.0))) == 3
    assert len(jax.tree.leaves(MppiConfig(low=np.full(2, -1.0)))) == 4
    for config in (off, on):
        leaves, structure = jax.tree.flatten(config)
        assert jax.tree.unflatten(structure, leaves) == config
        # What JAX writes into leaves itself: axes of vmap, and nothing.
        for other in (0, None):
            same = jax.tree.unflatten(structure, [other] * len(leaves))
            found = jax.tree.structure(same, is_leaf=lambda x: x is None)
            assert found == structure
    stacked = seed_axis.stack([off, on])
    np.testing.assert_array_equal(stacked.noise_correlation, np.float32([0.0, 0.5]))
    assert seed_axis.unstack(stacked, 2) == [off, on]


@pytest.mark.parametrize("name", sorted(FLAT))
def test_round_trip_of_any_field(name):
    value = FLAT[name]
    other = {
        bool: lambda v: not v,
        int: lambda v: v + 1,
        float: lambda v: v + 0.5,
        str: lambda v: v + "x",
    }
    changed = config_lib.replace(Config(), {name: other[type(value)](value)})
    assert config_lib.from_dict(Config, config_lib.to_dict(changed)) == changed
    differing = {k for k, v in config_lib.flatten(changed).items() if v != FLAT[k]}
    assert differing == {name}


def message(call, *args):
    with pytest.raises(ConfigError) as error:
        call(*args)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "changes,expected",
    [
        ({"agent.mppi.horizn": 3}, "did you mean agent.mppi.horizon?"),
        ({"agent.mpi.horizon": 3}, "did you mean agent.mppi.horizon?"),
        ({"agent.mppi.horizon": "3"}, "agent.mppi.horizon = '3': must be int, not str"),
        ({"agent.mppi.horizon": 2.5}, "agent.mppi.horizon = 2.5: must be int"),
        ({"agent.mppi.horizon": True}, "agent.mppi.horizon = True: must be int"),
        ({"agent.mppi": 3}, "agent.mppi = 3: must be a group of fields"),
        ({"agent.policy.value_weight": 1}, "agent.policy.value_weight = 1: must be bool"),
    ],
)
def test_names_and_types(changes, expected):
    assert expected in message(config_lib.replace, Config(), changes)


def test_whole_numbers_pass_for_either_kind():
    config = config_lib.replace(Config(), {"agent.mppi.horizon": 4.0, "agent.policy.kl_coef": 2})
    assert (config.agent.mppi.horizon, config.agent.policy.kl_coef) == (4, 2.0)
    assert type(config.agent.mppi.horizon) is int and type(config.agent.policy.kl_coef) is float


BAD = {
    "env.task": "cartpole-swingupp",
    "env.action_repeat": 0,
    "env.num_envs": 0,
    "agent.world_model.latent_size": 510,
    "agent.world_model.critic": "w",
    "agent.world_model.squash": "sigmoid",
    "agent.world_model.num_bins": 1,
    "agent.world_model.num_heads": 0,
    "agent.world_model.compute_dtype": "float17",
    "agent.mppi.horizon": 0,
    "agent.mppi.iterations": 0,
    "agent.mppi.num_elites": 513,
    "agent.mppi.num_proposals": 512,
    "agent.mppi.std_max": 0.01,
    "agent.mppi.low": -0.5,
    "agent.mppi.high": 2.0,
    "agent.mppi.knots": 4,
    "agent.mppi.noise_correlation": 1.0,
    "agent.mppi.temperature": float("nan"),
    "agent.critic.num_target_heads": 6,
    "agent.critic.target_reduce": "max",
    "agent.policy.prior": "planner",
    "agent.policy.divergence": "js",
    "agent.policy.num_q_heads": 0,
    "agent.optimizer.batch_size": 0,
    "agent.optimizer.discount": 1.5,
    "agent.optimizer.target_rate": 0.0,
    "agent.optimizer.grad_clip": 0.0,
    "agent.replan.batch_size": 257,
    "train.num_seeds": 0,
    "train.seed": -1,
    "train.seed_decisions": 3,
    "train.total_decisions": 2500,
    "train.capacity": 700,
    "train.updates_per_decision": -1.0,
    "train.eval_episodes": 0,
    "train.chunk_decisions": 0,
    "agent.policy.seed_record": "none",
    "train.memory_limit_gb": 0.0,
}


@pytest.mark.parametrize("name", BAD)
def test_values_that_cannot_work_are_named(name):
    config = config_lib.replace(Config(), {name: BAD[name]})
    text = message(validation.validate_config, config)
    assert text.startswith(f"{name} = ") and ("must be" in text or "did you mean" in text)


def test_the_default_configuration_is_valid():
    """Guards the test above."""
    validation.validate_config(Config())


def test_memory_limit_says_what_would_fit():
    config = config_lib.replace(Config(), {"train.memory_limit_gb": 1.0})
    text = message(validation.validate_memory, config, 4_000_000_000)
    assert "must be <= 125000" in text
    validation.validate_memory(config, 999_999_999)


@pytest.mark.parametrize("file", [brax, debug, dm_control, quickstart, small])
@pytest.mark.parametrize("preset", ["", *presets.PRESETS])
def test_configuration_files_are_valid(file, preset):
    config = file.get_config(f",{preset}" if preset else None)
    validation.validate_config(config_lib.from_dict(Config, config.to_dict()))


def test_configuration_argument():
    config = dm_control.get_config("cheetah-run,tdmpc2")
    assert config.env.task == "cheetah-run" and config.agent.policy.prior == "none"
    assert "did you mean cheetah-run?" in message(dm_control.get_config, "cheetah-rum")
    assert "did you mean tdmpc2?" in message(dm_control.get_config, "cheetah-run,tdmpc3")
    assert "must be 'task', " in message(dm_control.get_config, "a,b,c,d")


def test_size_of_a_configuration_file():
    config = config_lib.from_dict(Config, debug.get_config(",bmpc,19M").to_dict())
    assert presets.origin(config)[:2] == ("bmpc", "19M") and config.env.num_envs == 2
    assert debug.get_config(",bmpc").agent.world_model.mlp_width == 16
    assert "did you mean small?" in message(debug.get_config, ",,smal")


@pytest.mark.parametrize("task", ["humanoid_CMU-run", "humanoid-walk", "dog-run", "quadruped-run"])
def test_two_more_iterations_for_twenty_actions(task):
    """TD-MPC2's rule, from the model itself."""
    low, _ = envs.action_bounds(task)
    iterations = dm_control.get_config(f"{task},tdmpc2").agent.mppi.iterations
    assert iterations == (8 if len(low) >= 20 else 6)


def test_unknown_size():
    assert "5M" in message(presets.with_size, AgentConfig(), "6M")


def test_a_size_replaces_another_completely():
    for size in presets.SIZES:
        large = presets.with_size(AgentConfig(), "48M")
        assert presets.with_size(large, size) == presets.with_size(AgentConfig(), size)


def test_origin_of_a_configuration():
    for preset in presets.PRESETS:
        for size in ("tiny", "1M", "5M", "48M"):
            config = Config(agent=presets.with_size(presets.get(preset), size))
            assert presets.origin(config) == (preset, size, {})
    changes = {"agent.policy.kl_coef": 9.0, "agent.world_model.latent_size": 64, "train.seed": 3}
    config = config_lib.replace(Config(agent=presets.bmpc()), changes)
    assert presets.origin(config) == ("bmpc", "5M", changes)


def test_task_names_are_known_without_building():
    for name in envs.available():
        envs.check_name(name)
    for name in ("brax/walker-walk", "cheetah_run"):
        with pytest.raises(ValueError, match="did you mean"):
            envs.check_name(name)
    for name in ("", "nonsense"):
        with pytest.raises(ValueError, match=r"envs.available\(\) has all names"):
            envs.check_name(name)


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.seed = 3
