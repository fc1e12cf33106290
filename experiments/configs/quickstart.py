"""Swing a pole up in minutes on two CPU cores: a small PO-MPC agent, four environments."""

import ml_collections

from experiments.configs import common


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """``:task,preset,size``; defaults cartpole-swingup, po_mpc_calibrated, tiny."""
    changes = {
        # Decisions of four frames: an episode has 250, so that values reach back in half the time.
        "env.action_repeat": 4,
        # TD-MPC2's rule for 250 decisions.
        "agent.optimizer.discount": 0.98,
        "agent.optimizer.target_rate": 0.1,
        # A single model among many may mislead its planner; averages have not (docs/benchmarks.md).
        "agent.policy.average_updates": 200,
        "agent.optimizer.average_updates": 200,
        # On cartpole-swingup more updates of a small model beat a larger one (docs/notebook.md).
        "train.updates_per_decision": 1.5,
        "train.total_decisions": 18_000,
        "train.capacity": 18_000,
        "train.chunk_decisions": 500,
        "train.eval_decisions": 9_000,
        # A machine that is switched off costs a minute of training.
        "train.checkpoint_decisions": 2_000,
    }
    return common.make_small(argument, changes, preset="po_mpc_calibrated")
