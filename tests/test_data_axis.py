"""One seed on several devices: what is refused, and that it is the seed on one."""

import os
import subprocess
import sys

import jax
import pytest
import tiny
from test_cli import ROOT

from pomcp_jax import config as config_lib
from pomcp_jax import data_axis, envs, seed_axis, train, validation
from pomcp_jax.config import ConfigError

HOST = {"env.task": "cartpole-swingup", "env.backend": "host"}
REPLAN = {"agent.replan.interval": 10, "agent.replan.batch_size": 3}


@pytest.mark.parametrize(
    "devices, changes, why",
    [
        (4, {"env.num_envs": 6}, "env.num_envs = 6: must be a multiple of .* = 4"),
        (4, {"agent.optimizer.batch_size": 10},
         "agent.optimizer.batch_size = 10: must be a multiple of .* = 4"),
        (2, REPLAN | {"agent.mppi.horizon": 3},
         "agent.replan.batch_size = 3: .* agent.mppi.horizon = 3 it is a multiple of .* = 2"),
        (2, HOST, "devices_per_seed = 2: must be 1 when env.backend is 'host'"),
        (0, {}, "train.devices_per_seed = 0: must be >= 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_spread_is_refused(devices, changes, why):
    config = tiny.run(env__num_envs=4, train__devices_per_seed=devices)
    with pytest.raises(ConfigError, match=why) as error:
        validation.validate_run(config_lib.replace(config, changes))
    assert "\n" not in str(error.value)
    if devices:
        validation.validate_run(config)


def test_environments_outside_of_the_program_are_refused():
    config = tiny.run(env__task="gym/Pendulum-v1", env__num_envs=4, train__devices_per_seed=2)
    with pytest.raises(ConfigError, match=r"^train\.devices_per_seed = 2: [^\n]*must be 1$"):
        train.check_environment(config, envs.make("gym/Pendulum-v1"))


@pytest.mark.parametrize(
    "per_seed, wanted, available, why",
    [
        (2, 0, 1, "train.devices_per_seed = 2: must be <= 1, the devices there are"),
        (2, 8, 4, "train.num_devices = 8: must be <= 4"),
        (2, 3, 4, "train.num_devices = 3: must be a multiple of train.devices_per_seed = 2"),
    ],
)
def test_devices_that_are_not_there_are_refused(per_seed, wanted, available, why, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: available)
    config = tiny.run(train__devices_per_seed=per_seed, train__num_devices=wanted)
    with pytest.raises(ConfigError, match=f"^{why}"):
        seed_axis.mesh(config)


@pytest.mark.parametrize(
    "seeds, per_seed, wanted, shape",
    [(1, 4, 0, (1, 4)), (2, 2, 0, (2, 2)), (4, 2, 0, (4, 2)), (2, 2, 2, (1, 2)), (6, 4, 8, (2, 4))],
)
def test_groups_of_devices(seeds, per_seed, wanted, shape, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(jax, "devices", lambda: list(range(8)))
    monkeypatch.setattr(seed_axis, "Mesh", lambda devices, names: (devices.shape, names))
    config = tiny.run(
        train__num_seeds=seeds, train__devices_per_seed=per_seed, train__num_devices=wanted
    )
    assert seed_axis.mesh(config) == (shape, ("seeds", "data"))


def test_without_such_a_mesh_nothing_is_spread():
    def function(x):
        return x

    assert data_axis.rows(function) is function
    x = jax.numpy.ones(3)
    assert data_axis.split(x, 0) is x and data_axis.whole(x) is x


def test_one_seed_on_two_and_four_devices_is_the_seed_on_one(tmp_path):
    """In a new process, with a CPU that simulates several devices."""
    more = {"JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    done = subprocess.run(
        [sys.executable, "tests/spread_data.py", str(tmp_path)], cwd=ROOT, capture_output=True,
        text=True, env=os.environ | more,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("all is well\n"), done.stderr[-3000:]
