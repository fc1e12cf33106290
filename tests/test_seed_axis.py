"""Seeds spread over devices: how many, and that it is the same training."""

import os
import subprocess
import sys

import pytest
import tiny
from test_cli import ROOT
from test_train import program

from pomcp_jax import config as config_lib
from pomcp_jax import seed_axis
from pomcp_jax.config import ConfigError


def config(seeds, wanted):
    return tiny.run(train__num_seeds=seeds, train__num_devices=wanted)


@pytest.mark.parametrize(
    "seeds, wanted, available, used",
    [(5, 0, 8, 5), (8, 0, 8, 8), (12, 0, 8, 6), (7, 0, 4, 1), (1, 0, 8, 1), (8, 2, 8, 2),
     (8, 1, 8, 1), (8, 4, 4, 4), (9, 3, 3, 3), (8, 0, 1, 1)],
)  # fmt: skip
def test_how_many_devices_are_used(seeds, wanted, available, used):
    assert seed_axis.device_count(config(seeds, wanted), available) == used


@pytest.mark.parametrize(
    "wanted, available, why",
    [(3, 8, "must divide train.num_seeds = 8"), (4, 2, "must be <= 2"), (16, 16, "must divide")],
)
def test_what_cannot_be_is_one_line(wanted, available, why):
    with pytest.raises(ConfigError, match=rf"^train\.num_devices = {wanted}: [^\n]*{why}[^\n]*$"):
        seed_axis.device_count(config(8, wanted), available)


def test_a_run_refuses_devices_that_are_not_there():
    with pytest.raises(ConfigError, match="train.num_devices = 8: must be <= 1"):
        program(config(8, 8))
    with pytest.raises(ConfigError, match="train.num_devices = -1: must be >= 0"):
        program(config(8, -1))


def test_one_device_has_the_plain_program():
    def function(config, x):
        return x

    assert seed_axis.spread(function, None, (), ()) is function
    state = object()
    assert seed_axis.place(state, None, ()) is state
    prog = program(config_lib.replace(config(2, 0), {"train.total_decisions": 30}))
    assert prog.mesh is None


def test_a_run_is_handed_on_between_eight_two_and_one_devices(tmp_path):
    """In a new process, with a CPU that simulates several devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "tests/spread.py", str(tmp_path)], cwd=ROOT, capture_output=True,
        text=True, env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("all is well\n"), done.stderr[-3000:]
