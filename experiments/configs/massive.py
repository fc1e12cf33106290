"""Thousands of MJX environments a seed on a GPU: wall-clock time counts, samples do not.

1,024 environments; 4,096 with ``--config.env.num_envs=4096``. Chosen by arithmetic and from the
practice of others, not tuned: no learning curve of this file was measured.
"""

import ml_collections

from experiments.configs import common

ENVIRONMENTS = 1_024


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """``:task,preset,size``; defaults cheetah-run, po_mpc, 1M."""
    changes = {
        "env.action_repeat": 2,
        "env.num_envs": ENVIRONMENTS,
        # A quarter of the samples in a third of the iterations: a plan costs a thirteenth. With so
        # many environments plans are most of the work, and data is plentiful. A third of the
        # samples are proposals, because the search alone no longer finds what the policy knows.
        "agent.mppi.num_samples": 128,
        "agent.mppi.num_proposals": 40,
        "agent.mppi.num_elites": 16,
        "agent.mppi.iterations": 2,
        # Eight updates on 2,048 windows after each step of all environments, two thirds of the
        # arithmetic of that step's plans: few updates on large batches, as in parallel Q-learning
        # (arXiv 2307.12983). With 4,096 environments there are 32, so that a decision is learned
        # from equally often.
        "agent.optimizer.batch_size": 2_048,
        "train.updates_per_decision": 8 / ENVIRONMENTS,
        # At the default of 0.01 per update, targets would be 12 steps of all environments behind.
        "agent.optimizer.target_rate": 0.05,
        # Half the kernels of a plan.
        "agent.world_model.arranged_for": "gpu",
        # 16 steps of all environments at random; later data replaces these soon.
        "train.seed_decisions": 16 * ENVIRONMENTS,
        "train.pretrain_updates": 64,
        "train.total_decisions": 20_000_000,
        # 4,096 rows of each environment, eight episodes: 0.7 GB of a cheetah, 6 GB of a dog.
        # A number, not a share of the device's memory, so that every machine trains the same:
        # ``python -m experiments.capacity`` prints what would fit.
        "train.capacity": 4_096 * ENVIRONMENTS,
        "train.chunk_decisions": 64 * ENVIRONMENTS,
        # An episode has 500 steps, whatever the number of environments: half a million decisions of
        # training have as many.
        "train.eval_decisions": 4_000_000,
        # A checkpoint has all of replay.
        "train.checkpoint_decisions": 0,
        "train.checkpoint_keep": 1,
    }
    return common.make(argument, changes, task="cheetah-run", size="1M")
