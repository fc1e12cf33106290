"""Swing a pole up in minutes on two CPU cores: a small PO-MPC agent, four environments.

Chosen by measurement (docs/decisions.md): the tiny world model learns this task nearly as well per
decision as larger ones and costs a third, a plan of two steps nearly as well as one of three; what
they save buys more updates. A value horizon of 50 decisions (one second) and faster target networks
suit so short a training. For dm_control's tasks bins reach from -5 to 5 in symlog space, that is to
values of 147: theirs cannot pass 100 at this discount.
"""

import ml_collections

from experiments.configs import common


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """``:task,preset``; defaults cartpole-swingup, po_mpc."""
    changes = {
        "env.action_repeat": 2,
        "env.num_envs": 4,
        "agent.mppi.horizon": 2,
        "agent.mppi.num_samples": 128,
        "agent.mppi.num_elites": 16,
        "agent.mppi.num_proposals": 16,
        "agent.mppi.iterations": 3,
        "agent.optimizer.batch_size": 128,
        "agent.optimizer.learning_rate": 1e-3,
        "agent.optimizer.encoder_rate_scale": 1.0,
        "agent.optimizer.target_rate": 0.03,
        "agent.optimizer.discount": 0.98,
        "train.seed_decisions": 1_000,
        "train.pretrain_updates": 500,
        "train.updates_per_decision": 1.5,
        "train.total_decisions": 25_000,
        "train.capacity": 25_000,
        "train.chunk_decisions": 500,
        "train.eval_decisions": 20_000,
        "train.checkpoint_decisions": 10_000,
    }
    changes |= common.narrow_bins(argument)
    tuned = {"po_mpc": {"agent.policy.kl_coef": 0.1}}
    return common.make(argument, changes, size="tiny", tuned=tuned)
