"""HumanoidBench's tasks as in the literature: 5M model, no action repeat, one update a decision."""

import ml_collections

from experiments.configs import common
from pomcp_jax import envs
from pomcp_jax.config import MppiConfig


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """``:task,preset,size``; defaults humanoid/h1hand-walk, po_mpc, 5M."""
    default = "humanoid/h1hand-walk"
    task = common.split(argument).task or default
    changes = {
        "env.action_repeat": 1,
        "agent.mppi.iterations": MppiConfig().iterations + common.more_iterations(task),
        # [TD-MPC2]'s rule, clip((L/5 - 1)/(L/5), 0.95, 0.995), for episodes of L = 1000 decisions.
        "agent.optimizer.discount": 0.995,
        "train.seed_decisions": 5_000,
        "train.pretrain_updates": 5_000,
        "train.total_decisions": 2_000_000,
        "train.capacity": 1_000_000,
    }
    tasks = [name for name in envs.available() if name.startswith("humanoid/")]
    return common.make(argument, changes, task=default, tasks=tasks)
