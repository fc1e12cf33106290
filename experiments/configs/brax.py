"""Raw brax environments: terminations are learned, no action repeat, many environments."""

import ml_collections

from experiments.configs import common
from pomcp_jax import envs


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """``:task,preset,size``; defaults brax/halfcheetah, po_mpc, 5M."""
    changes = {
        "env.action_repeat": 1,
        "env.num_envs": 8,
        # [TD-MPC2]'s rule, clip((L/5 - 1)/(L/5), 0.95, 0.995), for episodes of L = 1000 decisions.
        "agent.optimizer.discount": 0.995,
        # Bodies that fall end their episode; a model that does not know plans past the end.
        "agent.world_model.termination": True,
        "train.updates_per_decision": 0.5,
        "train.seed_decisions": 5_000,
        "train.pretrain_updates": 2_500,
        "train.total_decisions": 1_000_000,
        "train.capacity": 1_000_000,
    }
    tasks = [name for name in envs.available() if name.startswith("brax/")]
    return common.make(argument, changes, task="brax/halfcheetah", tasks=tasks)
