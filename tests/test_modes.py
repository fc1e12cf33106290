"""Training and evaluation in JAX's other modes: NaN debugging and double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pomcp_jax import envs, train
from pomcp_jax.running import functions as functions_lib
from pomcp_jax.running import metrics as metrics_lib

CHANGES = {"env__task": "probe/lqr", "train__total_decisions": 30, "train__capacity": 128}


def play(config, functions, until=None):
    state, metrics = functions.program.init(config), []
    program = functions.program
    for work in (*program.seeding, *program.pretraining, *program.training[:until]):
        state, more = program.chunk(state, config, work)
        metrics.append(jax.device_get(more))
    return state, metrics


def columns(config, functions, state, metrics):
    """Values that are written to the files."""
    stats, faults = jax.device_get((state.stats, state.agent.faults))
    values = metrics | metrics_lib.chunk_values(config, stats, faults, int(state.updates), 1.0, 1)
    episodes, diagnosis = jax.device_get(functions.evaluate_planner(state, config))
    policy = jax.device_get(functions.evaluate_policy(state, config))
    return values | metrics_lib.episode_values(episodes) | diagnosis | {"policy": policy.returns}


@pytest.mark.parametrize("preset", ["po_mpc", "bmpc"])
def test_a_hunt_for_nan_finds_none_and_changes_nothing(preset):
    """bmpc has no learned prior: half of its diagnostics are undefined, and empty."""
    config = tiny.run(preset, **CHANGES)
    functions = functions_lib.build(config)
    with jax.debug_nans(True):
        hunted, seen = play(config, functions)
        found = columns(config, functions, hunted, seen[-1])
    usual, metrics = play(config, functions)
    jax.tree.map(np.testing.assert_array_equal, seen, metrics)
    wanted = columns(config, functions, usual, metrics[-1])
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert np.isnan(seen[0]["loss/model"]).all() and np.isnan(seen[0]["plan/std"]).all()
    assert np.isnan(found["diag/snr_stored"]).all() == (preset == "bmpc")
    assert np.isfinite(found["diag/record_age"]).all()


def test_the_hunt_does_find_a_nan_of_the_users_own():
    config = tiny.run(**CHANGES)
    with jax.debug_nans(True):  # in this mode nothing is donated
        functions = functions_lib.build(config)
    state, _ = play(config, functions, until=0)
    broken = jax.tree.map(lambda x: x * jnp.nan, state.agent.params.policy)
    params = state.agent.params._replace(policy=broken)
    state = state._replace(agent=state.agent._replace(params=params))
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        functions.program.chunk(state, config, functions.program.training[0])


def test_training_and_evaluation_run_in_double_precision_mode():
    """The state is that of single precision: checkpoints of both modes are alike."""
    config = tiny.run(**CHANGES)
    shapes = jax.eval_shape(train.build(config, envs.make("probe/lqr")).init, config)
    with jax.enable_x64(True):
        functions = functions_lib.build(config)
        state, metrics = play(config, functions)
        found = columns(config, functions, state, metrics[-1])

    def check(path, x, y):
        assert (x.shape, x.dtype) == (y.shape, y.dtype), path

    jax.tree_util.tree_map_with_path(check, state, shapes)
    assert np.isfinite(metrics[-1]["loss/model"]).all() and np.isfinite(found["eval/return"]).all()
