"""Suggestions for misspelt names: close ones only."""

import pytest

from pomcp_jax import config as config_lib
from pomcp_jax import envs, nearest, presets
from pomcp_jax.config import Config

FIELDS = tuple(config_lib.flatten(Config()))


@pytest.mark.parametrize(
    "written,meant,names",
    [
        ("agent.mpi.horizon", "agent.mppi.horizon", FIELDS),
        ("agent.mppi.horizn", "agent.mppi.horizon", FIELDS),
        ("kl_coef", "agent.policy.kl_coef", FIELDS),
        ("policy.kl-coef", "agent.policy.kl_coef", FIELDS),
        ("seed", "train.seed", FIELDS),
        ("Walker-Walk", "walker-walk", envs.available()),
        ("cheetah_run", "cheetah-run", envs.available()),
        ("lqr", "probe/lqr", envs.available()),
        ("dog", "dog-run", envs.available()),
        ("brax/halfcheetah2", "brax/halfcheetah", envs.available()),
        ("TDMPC2", "tdmpc2", presets.PRESETS),
        ("po_mcp", "po_mpc", presets.PRESETS),
    ],
)
def test_near_names_are_offered(written, meant, names):
    assert nearest.find(written, names) == meant
    assert nearest.hint(written, names, "--{}") == f"; did you mean --{meant}?"


@pytest.mark.parametrize(
    "written,names",
    [
        ("agent.policy.nonsense", FIELDS),
        ("agent.optimizer.gamma", FIELDS),
        ("lr", FIELDS),
        ("", FIELDS),
        ("x", envs.available()),
        ("atari/pong", envs.available()),
        ("", envs.available()),
        (3, envs.available()),
        ("sac", presets.PRESETS),
        ("dreamer", presets.PRESETS),
        ("anything", ()),
        ("horizon" * 100_000, FIELDS),
    ],
)
def test_nothing_is_offered_where_nothing_is_near(written, names):
    assert nearest.find(written, names) == "" and nearest.hint(written, names) == ""
