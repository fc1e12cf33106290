"""Members of the family side by side on a CPU: one small model, one schedule, the same for all.

100,000 environment frames, 50,000 decisions, 25,000 updates. What differs between presets is the
method only; sizes and learning rates are those of the quick start (docs/decisions.md).
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
        "train.num_seeds": 3,
        "train.seed_decisions": 1_000,
        "train.pretrain_updates": 500,
        "train.updates_per_decision": 0.5,
        "train.total_decisions": 50_000,
        "train.capacity": 50_000,
        "train.chunk_decisions": 1_000,
        "train.eval_decisions": 10_000,
        "train.checkpoint_decisions": 0,
    }
    changes |= common.narrow_bins(argument)
    tuned = {"po_mpc": {"agent.policy.kl_coef": 0.1}}
    return common.make(argument, changes, size="tiny", tuned=tuned)
