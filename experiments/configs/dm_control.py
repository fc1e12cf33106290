"""dm_control tasks by TD-MPC2's protocol: 5M model, action repeat 2, one update a decision."""

import ml_collections

from experiments.configs import common
from pomcp_jax import envs


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """``:task,preset,size``; defaults walker-walk, po_mpc, 5M."""
    changes = {
        "env.action_repeat": 2,
        "train.total_decisions": 500_000,
        "train.capacity": 500_000,
    }
    tasks = [name for name in envs.available() if "/" not in name]
    return common.make(argument, changes, task="walker-walk", tasks=tasks)
