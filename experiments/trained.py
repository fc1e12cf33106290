"""Checks of the commands that use a trained agent: evaluate, render, export."""

import argparse
import re
import sys
import warnings
from pathlib import Path

from experiments import own_tasks
from pomcp_jax import checkpoint, controller, envs
from pomcp_jax import config as config_lib
from pomcp_jax.checkpoint import DamagedError, Restored
from pomcp_jax.envs.protocol import Env
from pomcp_jax.running import functions


def check_counts(args: argparse.Namespace) -> None:
    """Check the numbers of episodes and of their seed.

    Raises:
      ValueError: one line.
    """
    if args.episodes < 1:
        raise ValueError(f"--episodes = {args.episodes}: must be >= 1")
    if not 0 <= args.seed < 2**31:  # dm_control's seeds have 32 bits, and those of a run follow it
        raise ValueError(f"--seed = {args.seed}: must be >= 0 and < 2**31")


def _mend(run: Path) -> str:
    """What to do about a damaged checkpoint."""
    folder, _ = controller.find(run)
    listed = ", ".join(map(str, checkpoint.steps(folder)))
    return f"--checkpoint=N reads another one (there are {listed}), else copy or train it again"


def load(args: argparse.Namespace) -> tuple[Restored, str]:
    """The agents that the arguments name, and how their planner selects.

    Raises:
      ValueError: one line.
    """
    which = int(args.checkpoint) if re.fullmatch("[0-9]+", args.checkpoint) else args.checkpoint
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            agents = controller.load(args.run, which)
        except DamagedError as error:
            raise ValueError(f"{error}; {_mend(args.run)}") from None
    for warning in caught:  # of damaged checkpoints that were passed over
        if warning.category is UserWarning:
            print(f"warning: {warning.message}", file=sys.stderr)
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
    try:
        env = own_tasks.given(args.task, config, agents.spec)
    except ImportError as error:  # a package of tasks that is not installed
        raise ValueError(str(error)) from None
    if env is not None:
        return env
    backend = config.env.backend if args.backend is None else args.backend
    envs.check_backend(config.env.task, backend)
    changes = {"env.backend": backend}
    if config.env.assets and not Path(config.env.assets).expanduser().is_dir():
        changes["env.assets"] = ""  # trained on another machine; the usual places here
    env = functions.environment(config_lib.replace(config, changes))
    own_tasks.check_sizes(env, agents.spec, f"env.task = {config.env.task!r}")
    return env


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
