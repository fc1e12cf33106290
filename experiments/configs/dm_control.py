"""dm_control tasks by TD-MPC2's protocol: 5M model, action repeat 2, one update a decision."""

import ml_collections

from experiments.configs import common
from pomcp_jax import envs
from pomcp_jax.config import MppiConfig

MANY_ACTIONS = ("dog", "humanoid", "humanoid_CMU")
"""Domains with 20 actions or more: 38, 21 and 56."""


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """``:task,preset,size``; defaults walker-walk, po_mpc, 5M."""
    domain = (common.split(argument).task or "walker-walk").partition("-")[0]
    # [TD-MPC2] ``tdmpc2.py``: two more iterations where A >= 20, for BMPC and BOOM too.
    more = 2 if domain in MANY_ACTIONS else 0
    changes = {
        "env.action_repeat": 2,
        "agent.mppi.iterations": MppiConfig().iterations + more,
        "train.total_decisions": 500_000,
        "train.capacity": 500_000,
    }
    tasks = [name for name in envs.available() if "/" not in name]
    return common.make(argument, changes, task="walker-walk", tasks=tasks)
