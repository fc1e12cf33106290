"""Seeds spread over devices: how many, and that it is the same training."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh
from test_cli import ROOT
from test_train import program

from pomcp_jax import config as config_lib
from pomcp_jax import seed_axis
from pomcp_jax.config import ConfigError


def config(seeds, wanted):
    return tiny.run(train__num_seeds=seeds, train__num_devices=wanted)


@pytest.mark.parametrize(
    "seeds, wanted, available, used",
    [(5, 0, 8, 5), (8, 0, 8, 8), (12, 0, 8, 6), (7, 0, 4, 4), (1, 0, 8, 1), (8, 2, 8, 2),
     (8, 1, 8, 1), (8, 4, 4, 4), (9, 3, 3, 3), (8, 0, 1, 1), (11, 0, 8, 6), (10, 0, 8, 5),
     (11, 8, 8, 8), (3, 2, 2, 2), (3, 0, 2, 2)],
)  # fmt: skip
def test_how_many_devices_are_used(seeds, wanted, available, used):
    assert seed_axis.device_count(config(seeds, wanted), available) == used


@given(st.integers(1, 5_000), st.integers(1, 600))
def test_the_fewest_devices_that_are_as_fast_as_all(seeds, available):
    used = seed_axis.fewest(seeds, available)
    largest = lambda devices: (seeds + seed_axis.padding(seeds, devices)) // devices  # noqa: E731
    assert 1 <= used <= min(seeds, available)
    assert largest(used) == min(largest(k) for k in range(1, min(seeds, available) + 1))
    assert used == 1 or largest(used - 1) > largest(used)
    assert seed_axis.padding(seeds, used) < largest(used)  # no device has padding alone


@given(st.integers(1, 12), st.integers(1, 8), st.integers(1, 3))
def test_padding_repeats_the_last_seed_and_is_cut_again(seeds, devices, envs):
    mesh = AbstractMesh((devices,), (seed_axis.AXIS,))
    flat = np.arange(seeds * envs, dtype=np.float32)
    tree = {"each": np.arange(seeds, dtype=np.int32), "flat": flat, "counter": np.int32(7)}
    padded = seed_axis.pad(tree, seeds, mesh)
    extra = seed_axis.padding(seeds, devices)
    assert (seeds + extra) % devices == 0 <= extra < devices
    np.testing.assert_array_equal(padded["each"], [*range(seeds), *[seeds - 1] * extra])
    np.testing.assert_array_equal(padded["flat"][seeds * envs :], np.tile(flat[-envs:], extra))
    assert padded["counter"] == 7
    back = seed_axis.cut(padded, seeds, mesh)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert extra or (padded is tree and back is padded)


def test_padding_changes_no_type():
    """A float of a sweep stays weakly typed, and keys stay keys."""
    mesh = AbstractMesh((2,), (seed_axis.AXIS,))
    weak = jnp.stack([jnp.asarray(x) for x in (0.1, 0.2, 0.3)])
    padded = seed_axis.pad(weak, 3, mesh)
    assert weak.weak_type and padded.weak_type and padded.dtype == weak.dtype
    keys = seed_axis.pad(jax.random.split(jax.random.key(0), 3), 3, mesh)
    assert keys.shape == (4,) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)


@pytest.mark.parametrize(
    "wanted, available, why",
    [(9, 16, "must be <= 8, the number of seeds"), (4, 2, "must be <= 2, the devices"),
     (16, 16, "must be <= 8, the number of seeds")],
)  # fmt: skip
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
    assert seed_axis.enter(state, 2, None, ()) is state
    assert seed_axis.cut(state, 2, None) is state and seed_axis.pad(state, 2, None) is state
    assert seed_axis.without_padding(state, 2, None) is state
    assert seed_axis.describe(2, None) == ""
    prog = program(config_lib.replace(config(2, 0), {"train.total_decisions": 30}))
    assert prog.mesh is None


def test_a_run_is_handed_on_between_eight_three_and_one_devices(tmp_path):
    """In a new process, with a CPU that simulates several devices."""
    more = {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    done = subprocess.run(
        [sys.executable, "tests/spread.py", str(tmp_path)], cwd=ROOT, capture_output=True,
        text=True, env=os.environ | more,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("all is well\n"), done.stderr[-3000:]
