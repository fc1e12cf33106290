"""Thousands of environments: the configuration at a toy size, and the replay that fits."""

import re

import jax
import numpy as np
import pytest

from experiments import capacity
from experiments.configs import massive
from pomcp_jax import config as config_lib
from pomcp_jax import envs, replay, schedule, train, validation
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.running import process
from pomcp_jax.schedule import Ratio

TOY = {
    "env.num_envs": 8,
    "agent.world_model.latent_size": 16,
    "agent.world_model.encoder_width": 16,
    "agent.world_model.mlp_width": 16,
    "agent.mppi.num_samples": 8,
    "agent.mppi.num_proposals": 2,
    "agent.mppi.num_elites": 2,
    "agent.optimizer.batch_size": 16,
    "agent.replan.batch_size": 4,
    "train.seed_decisions": 64,
    "train.pretrain_updates": 2,
    "train.total_decisions": 64 + 8 * 48,
    "train.capacity": 1_024,
    "train.chunk_decisions": 8 * 48,
}


def load(argument=None, **changes):
    config = config_lib.from_dict(Config, massive.get_config(argument).to_dict())
    return config_lib.replace(config, changes)


@pytest.fixture
def lqr():
    return envs.make("probe/lqr", 1)


def test_it_trains_on_a_cpu_at_a_toy_size():
    config = load("probe/lqr", **TOY)
    program = train.build(config, envs.make(config.env.task, config.env.action_repeat))
    state = program.init(config)
    for work in (*program.seeding, *program.pretraining, *program.training):
        state, metrics = program.chunk(state, config, work)
    assert program.chunk._cache_size() == 1
    # An update in 16 steps of eight environments: the same share of decisions as with 1,024.
    assert int(state.iteration) == 8 + 48 and int(state.updates) == 2 + 3
    for name, value in metrics.items():
        assert np.isfinite(value).all(), name
    assert not np.any(state.agent.faults.total)
    assert np.all(np.isfinite(jax.device_get(state.timestep.obs)))


@pytest.mark.parametrize("num_envs, updates", [(1_024, 8), (2_048, 16), (4_096, 32)])
def test_updates_follow_the_number_of_environments(num_envs, updates):
    config = load(**{"env.num_envs": num_envs})
    assert schedule.ratio(config) == Ratio(1, updates)
    validation.validate_run(config)


@pytest.mark.parametrize("argument", ["cheetah-run", "dog-run,bmpc,5M", "humanoid-walk,tdmpc2"])
def test_tasks_presets_and_sizes_are_chosen_as_in_the_other_files(argument):
    config = load(argument)
    assert config.env.task == argument.split(",")[0]
    validation.validate_config(config)
    # The largest rows there are, of a dog, stay below the limit.
    validation.validate_memory(config, config.train.capacity * replay.row_bytes(223, 38))


def test_the_replay_that_fits_is_accepted_and_no_more_would_fit(lqr):
    config = load("probe/lqr", **{"env.num_envs": 8, "train.num_seeds": 3, "env.action_repeat": 1})
    memory = 100_000_000_000
    first, second = capacity.lines(config, lqr, memory)
    assert first.startswith("probe/lqr: 4,194,304 rows a seed take 0.")
    flags = dict(re.findall(r"--config\.(\S+)=(\d+)", second))
    changed = config_lib.replace(config, {name: int(value) for name, value in flags.items()})
    taken = train.replay_bytes(changed, lqr)
    validation.validate_memory(changed, taken)
    row = 3 * 8 * replay.row_bytes(lqr.observation_size, lqr.action_size)
    assert capacity.SHARE * memory - row < taken <= capacity.SHARE * memory
    # The configuration's own limit is named only where it is in the way.
    assert set(flags) == {"train.capacity", "train.memory_limit_gb"}
    with pytest.raises(ConfigError, match="memory_limit_gb"):
        validation.validate_memory(
            config_lib.replace(changed, {"train.memory_limit_gb": 16}), taken
        )
    assert "memory_limit_gb" not in capacity.lines(config, lqr, memory // 10)[1]


def test_the_command_prints_what_fits(capsys, monkeypatch):
    monkeypatch.setattr(process, "device_memory", lambda: 2_000_000_000)
    assert capacity.main(["capacity", "--config=experiments/configs/debug.py"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 and "half of its 2 GB has room for" in out[1]
    assert capacity.main(["capacity", "--config=experiments/configs/nothing.py"]) == 2
    assert "nothing.py" in capsys.readouterr().err
    assert capacity.main(["capacity", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m experiments.capacity --config=FILE")


def test_memory_of_the_device_is_known():
    size = process.device_memory()
    assert 1e8 < size < 1e14
