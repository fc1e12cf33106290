"""Tiny configurations shared by the tests of agents, training and checkpoints."""

import contextlib

import pytest

from pomcp_jax import arrays, presets
from pomcp_jax import config as config_lib
from pomcp_jax.config import Config
from pomcp_jax.running import trainer

AGENT = {
    "world_model.latent_size": 16,
    "world_model.encoder_width": 16,
    "world_model.mlp_width": 16,
    "world_model.num_bins": 21,
    "mppi.num_samples": 16,
    "mppi.num_proposals": 4,
    "mppi.num_elites": 4,
    "mppi.iterations": 2,
    "optimizer.batch_size": 8,
    "replan.batch_size": 2,
}
TRAIN = {
    "env.task": "probe/truncated",
    "env.action_repeat": 1,
    "env.num_envs": 2,
    "train.seed_decisions": 20,
    "train.pretrain_updates": 4,
    "train.total_decisions": 60,
    "train.capacity": 64,
    "train.chunk_decisions": 10,
    "train.updates_per_decision": 0.5,
    "train.eval_episodes": 2,
}


def agent(preset: str = "po_mpc", **changes):
    """A preset with tiny networks; ``group__field=value`` changes it."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    heads = {} if preset == "bmpc" else {"world_model.num_heads": 3, "policy.num_q_heads": 2}
    return config_lib.replace(presets.get(preset), AGENT | heads | changes)


def run(preset: str = "po_mpc", agent_changes=None, **changes) -> Config:
    """A whole tiny run on a probe."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return config_lib.replace(Config(agent=agent(preset, **(agent_changes or {}))), TRAIN | changes)


def saved(workdir, decisions):
    """All arrays of a run's checkpoint, by item and name: type, shape and bytes."""
    place = workdir / "checkpoints" / str(decisions)
    found = {
        item: arrays.read(place / item, arrays.stored(place / item)) for item in ("agent", "run")
    }
    return {
        (item, name): (x.dtype, x.shape, x.tobytes())
        for item, leaves in found.items()
        for name, x in leaves.items()
    }


@contextlib.contextmanager
def shared_programs():
    """Let trainers of equal configurations, on environments of ours, share compiled functions."""
    built, build = {}, trainer.build

    def shared(config, env, programs=None):
        if env is not None:
            return build(config, env, programs)
        key = repr(config)
        built[key] = built.get(key) or build(config, env, programs)
        return built[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "build", shared)
        yield
