"""dm_control tasks by TD-MPC2's protocol: 5M model, action repeat 2, one update a decision."""

import ml_collections

from experiments.configs import common
from pomcp_jax import envs
from pomcp_jax.config import MppiConfig


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """``:task,preset,size``; defaults walker-walk, po_mpc, 5M."""
    task = common.split(argument).task or "walker-walk"
    changes = {
        "env.action_repeat": 2,
        "agent.mppi.iterations": MppiConfig().iterations + common.more_iterations(task),
        "train.total_decisions": 500_000,
        "train.capacity": 500_000,
    }
    tasks = [name for name in envs.available() if "/" not in name]
    return common.make(argument, changes, task="walker-walk", tasks=tasks)
