"""Swing a pole up in minutes on two CPU cores: a small PO-MPC agent, four environments."""

import ml_collections

from experiments.configs import common


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """``:task,preset,size``; defaults cartpole-swingup, po_mpc, tiny."""
    changes = {
        # On cartpole-swingup more updates of a small model beat a larger one (docs/notebook.md).
        "train.updates_per_decision": 1.5,
        "train.total_decisions": 25_000,
        "train.capacity": 25_000,
        "train.chunk_decisions": 500,
        "train.eval_decisions": 20_000,
        "train.checkpoint_decisions": 10_000,
    }
    return common.make_small(argument, changes)
