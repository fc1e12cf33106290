"""Arguments and checks of the commands that use a trained agent: evaluate, render, export."""

import argparse
from pathlib import Path

from experiments import own_tasks
from pomcp_jax import config as config_lib
from pomcp_jax import controller, envs
from pomcp_jax.checkpoint import Restored
from pomcp_jax.envs.protocol import Env
from pomcp_jax.running import functions

EPISODE_SEED = 1000
"""Default seed of episodes and plans; far from the seeds of training."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run, and what selects its checkpoint, actor, backend and episodes."""
    add = parser.add_argument
    add("run", type=Path, help="workdir of a run, or a cell of a sweep")
    add("--checkpoint", default="best", help="best (default), newest, or a number of decisions")
    add("--actor", default="planner", choices=controller.ACTORS)
    add("--select", choices=("sample", "argmax"), help="default: as in training")
    add("--seed", type=int, default=EPISODE_SEED, help="seed of the episodes")
    add("--task", help=own_tasks.HELP)


def check_counts(args: argparse.Namespace) -> None:
    """Check the numbers of episodes and of their seed.

    Raises:
      ValueError: one line.
    """
    if args.episodes < 1:
        raise ValueError(f"--episodes = {args.episodes}: must be >= 1")
    if args.seed < 0:
        raise ValueError(f"--seed = {args.seed}: must be >= 0")


def load(args: argparse.Namespace) -> tuple[Restored, str]:
    """The agents that the arguments name, and how their planner selects.

    Raises:
      ValueError: one line.
    """
    which = int(args.checkpoint) if args.checkpoint.isdigit() else args.checkpoint
    agents = controller.load(args.run, which)
    select = args.select or agents.config.train.eval_select
    # Called for its checks alone: `prior` without a learned prior, for example, is an error.
    controller.make_fns(agents.config.agent, agents.spec, actor=args.actor, select=select)
    return agents, select


def environment(args: argparse.Namespace, agents: Restored) -> Env:
    """The environments of ``--task`` and ``--backend``, those of training by default.

    Raises:
      ValueError: one line.
    """
    config = agents.config
    env = own_tasks.given(args.task, config, agents.spec)
    if env is not None:
        return env
    backend = args.backend or config.env.backend
    envs.check_backend(config.env.task, backend)
    changes = {"env.backend": backend}
    if config.env.assets and not Path(config.env.assets).expanduser().is_dir():
        changes["env.assets"] = ""  # trained on another machine; the usual places here
    return functions.environment(config_lib.replace(config, changes))


def seed_index(train_seed: int | None, agents: Restored) -> int:
    """Row of the agent of ``--train-seed``; the first one by default.

    Raises:
      ValueError: one line.
    """
    first, count = agents.config.train.seed, agents.num_seeds
    index = 0 if train_seed is None else train_seed - first
    if not 0 <= index < count:
        last = first + count - 1
        raise ValueError(f"--train-seed = {train_seed}: this run has the seeds {first} to {last}")
    return index


def heading(agents: Restored) -> str:
    """Task and age of the agents."""
    config = agents.config
    frames = agents.decisions * config.env.action_repeat
    return f"{config.env.task} after {agents.decisions:,} decisions ({frames:,} frames) per seed"
