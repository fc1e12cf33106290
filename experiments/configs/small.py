"""A comparison of presets on a CPU: one small model and one schedule for all.

100,000 environment frames, 50,000 decisions, 25,000 updates. Presets differ in the method only;
sizes and learning rates are those of the quick start.
"""

import ml_collections

from experiments.configs import common


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """``:task,preset,size``; defaults cartpole-swingup, po_mpc, tiny."""
    changes = {
        "train.num_seeds": 3,
        "train.updates_per_decision": 0.5,
        "train.total_decisions": 50_000,
        "train.capacity": 50_000,
        "train.chunk_decisions": 1_000,
        "train.eval_decisions": 10_000,
        # As often as evaluations. Of five dogs a checkpoint has 0.6 GB.
        "train.checkpoint_decisions": 10_000,
        "train.checkpoint_keep": 1,
    }
    return common.make_small(argument, changes)
