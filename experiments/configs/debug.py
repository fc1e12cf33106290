"""Tiny agent on a tiny problem: everything once, in a minute. Not for learning."""

import ml_collections

from experiments.configs import common


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """``:task,preset,size``; defaults probe/lqr, po_mpc and a size below all presets."""
    changes = {
        "env.action_repeat": 1,
        "env.num_envs": 2,
        "agent.world_model.latent_size": 16,
        "agent.world_model.encoder_width": 16,
        "agent.world_model.mlp_width": 16,
        "agent.mppi.num_samples": 16,
        "agent.mppi.num_proposals": 4,
        "agent.mppi.num_elites": 4,
        "agent.mppi.iterations": 2,
        "agent.optimizer.batch_size": 16,
        "agent.replan.batch_size": 4,  # must not exceed the batch
        "train.updates_per_decision": 0.5,
        "train.seed_decisions": 100,
        "train.pretrain_updates": 20,
        # Several chunks, two evaluations and two checkpoints: resuming has something to resume.
        "train.total_decisions": 600,
        "train.capacity": 1_000,
        "train.chunk_decisions": 100,
        "train.eval_decisions": 300,
        "train.eval_episodes": 3,
        "train.checkpoint_decisions": 300,
    }
    return common.make(argument, changes, task="probe/lqr", size="tiny")
