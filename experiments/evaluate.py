"""Play whole episodes with a trained agent: ``python -m experiments.evaluate RUN``.

RUN is the workdir of a run, which may still be training. One line a seed: mean return with its 95 %
interval over episodes (Student's t), interquartile mean, episode length, broken episodes. Exit
codes: 0 done, 2 bad input.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import clock  # isort: skip

import argparse
import csv
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import arguments, streams, xla
from experiments.benchmarks.dm_control import controls, flat, original
from pomcp_jax import config as config_lib
from pomcp_jax import controller, envs, evaluate, files
from pomcp_jax.checkpoint import Restored
from pomcp_jax.config import ConfigError
from pomcp_jax.controller import Controller
from pomcp_jax.envs.importing import load_mujoco
from pomcp_jax.evaluate import Episodes
from pomcp_jax.reporting import statistics
from pomcp_jax.running.functions import environment
from pomcp_jax.running.progress import duration

DM_CONTROL = "dm_control"
"""Backend: dm_control's own Python environments, unmodified."""
EPISODE_SEED = 1000
"""Of episodes and plans; far from those of training."""


class Request(NamedTuple):
    """What to play."""

    episodes: int
    """Of every seed."""
    actor: str
    select: str
    backend: str
    seed: int
    """Of the episodes' random numbers."""


def play(agents: Restored, request: Request) -> Episodes:
    """Episodes of all seeds on one of our backends, as one program."""
    config = agents.config
    env = environment(config_lib.replace(config, {"env.backend": request.backend}))
    params = agents.state.params
    if request.actor == "prior":
        params = params._replace(policy=params.prior)
    keys = jax.random.split(jax.random.key(request.seed), agents.num_seeds)
    run = jax.jit(
        lambda params: evaluate.rollout(
            params,
            keys,
            env=env,
            spec=agents.spec,
            config=config.agent,
            episodes=request.episodes,
            select=request.select,
            planner=request.actor == "planner",
        )
    )
    return jax.tree.map(np.asarray, run(params))


def play_originals(agents: Restored, request: Request, say: Callable[[str], None]) -> Episodes:
    """Episodes in dm_control itself, through the deployed agent, every episode in its own."""
    returns, lengths = [], []
    for index in range(agents.num_seeds):
        params = jax.tree.map(lambda x, i=index: x[i], agents.state.params)
        agent = Controller(
            params,
            agents.config,
            agents.spec,
            key=request.seed + index,
            actor=request.actor,
            select=request.select,
        )
        first = request.seed + 1_000 * index
        there = [original(agents.config.env.task, first + i) for i in range(request.episodes)]
        total, length = _episodes(agent, there)
        returns.append(total)
        lengths.append(length)
        say(f"seed {agents.config.train.seed + index}: {total.mean():.1f}")
    return Episodes(np.stack(returns), np.stack(lengths), np.isfinite(np.stack(returns)))


def _episodes(agent: Controller, there: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """One episode of each environment, all decided on together; returns and lengths."""
    agent.reset()
    steps = [one.reset() for one in there]
    total, length = np.zeros(len(there)), np.zeros(len(there), int)
    while not all(step.last() for step in steps):
        seen = np.stack([flat(step.observation) for step in steps])
        total[~np.isfinite(seen).all(axis=1)] = np.nan  # broken: played on with zeros
        actions = agent.act(np.nan_to_num(seen))
        for i, (one, action) in enumerate(zip(there, actions, strict=True)):
            length[i] += not steps[i].last()
            for _ in range(agent.action_repeat):
                if not steps[i].last():
                    steps[i] = one.step(controls(one, action.astype(np.float64)))
                    total[i] += steps[i].reward
    return total, length


def table(episodes: Episodes, first_seed: int) -> str:
    """One aligned line a seed, and one for all where there are several.

    Broken episodes are counted, and in no mean. The last line's interval is over seeds.
    """
    rows = [("seed", "mean", "95 % interval", "IQM", "std", "length", "episodes", "broken")]
    means = []
    for i, (returns, lengths, valid) in enumerate(zip(*episodes, strict=True)):
        good = returns[valid]
        means.append(np.mean(good) if good.size else np.nan)
        rows.append(
            (str(first_seed + i), *_numbers(good, *statistics.mean_and_half(good)))
            + (_length(lengths[valid]),)
            + (str(len(returns)), str(int(np.sum(~valid))))
        )
    if len(means) > 1:
        good = episodes.returns[episodes.valid]
        numbers = _numbers(good, *statistics.mean_and_half(means))
        length = _length(episodes.lengths[episodes.valid])
        counts = str(episodes.valid.size), str(int(np.sum(~episodes.valid)))
        rows.append(("all", *numbers, length, *counts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _length(lengths: np.ndarray) -> str:
    return f"{np.mean(lengths):.1f}" if lengths.size else "-"


def _numbers(returns: np.ndarray, mean: float, half: float) -> tuple[str, str, str, str]:
    if not returns.size:
        return "-", "-", "-", "-"
    return (
        f"{mean:.1f}",
        f"{mean - half:.1f} to {mean + half:.1f}" if np.isfinite(half) else "-",
        f"{float(statistics.iqm(returns)):.1f}",
        f"{np.std(returns, ddof=1) if returns.size > 1 else 0.0:.1f}",
    )


def episodes_csv(episodes: Episodes, first_seed: int) -> str:
    """One line an episode."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("seed", "episode", "return", "length", "valid"))
    for i, row in enumerate(zip(*episodes, strict=True)):
        for j, (value, length, valid) in enumerate(zip(*row, strict=True)):
            writer.writerow((first_seed + i, j, f"{value:.6g}", int(length), int(valid)))
    return out.getvalue()


def parser() -> argparse.ArgumentParser:
    """Flags of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.evaluate", description=__doc__.split("\n\n")[0]
    )
    made.add_argument("run", type=Path, help="workdir of a run")
    made.add_argument("--episodes", type=int, default=50, help="of every seed (default 50)")
    made.add_argument("--checkpoint", default="best", help="best (default), newest or decisions")
    made.add_argument("--actor", default="planner", choices=controller.ACTORS)
    made.add_argument("--select", choices=("sample", "argmax"), help="default: as in training")
    made.add_argument(
        "--backend", help="mjx, host, ..., or dm_control itself (default: as in training)"
    )
    made.add_argument("--seed", type=int, default=EPISODE_SEED, help="of the episodes")
    made.add_argument("--csv", type=Path, help="write one line an episode")
    return made


def prepare(args: argparse.Namespace) -> tuple[Restored, Request]:
    """Everything that can be wrong is found here; nothing is compiled or written.

    Raises:
      ValueError: one line for the user.
    """
    if args.episodes < 1:
        raise ValueError(f"--episodes = {args.episodes}: must be >= 1")
    if args.seed < 0:
        raise ValueError(f"--seed = {args.seed}: must be >= 0")
    which = int(args.checkpoint) if args.checkpoint.isdigit() else args.checkpoint
    if args.csv is not None:
        _check_csv(args.csv)
    agents = controller.load(args.run, which)
    config = agents.config
    backend = args.backend or config.env.backend
    if backend == DM_CONTROL:
        check_original(config.env.task)
    else:
        envs.check_name(config.env.task)
        envs.check_backend(config.env.task, backend)
    select = args.select or config.train.eval_select
    controller.make_fns(config.agent, agents.spec, actor=args.actor, select=select)
    return agents, Request(args.episodes, args.actor, select, backend, args.seed)


def _check_csv(path: Path) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"--csv = {str(path)!r}: {path.parent} is no folder")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"--csv = {str(path)!r}: cannot be written")


def check_original(task: str) -> None:
    """Raise a one-line ``ValueError`` unless dm_control itself has that task."""
    load_mujoco()
    from dm_control import suite

    if tuple(task.split("-")) not in suite.ALL_TASKS:
        raise ValueError(f"--backend = 'dm_control': {task} is no task of dm_control")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(argv))


def _main(argv: list[str] | None) -> int:
    xla.save_memory()
    args, _ = arguments.parse(parser(), argv)
    try:
        agents, request = prepare(args)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    config = agents.config
    frames = agents.decisions * config.env.action_repeat
    print(
        f"{config.env.task} after {agents.decisions:,} decisions ({frames:,} frames) per seed:"
        f" {request.actor}, select {request.select}, backend {request.backend},"
        f" {request.episodes} episodes a seed",
        flush=True,
    )

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        if request.backend == DM_CONTROL:
            episodes = play_originals(agents, request, say)
        else:
            say("compiling and playing")
            episodes = play(agents, request)
    except ConfigError as error:  # an engine that is not there
        say(f"error: {error}")
        return 2
    print(table(episodes, config.train.seed))
    if args.csv is not None:
        files.write_text(args.csv, episodes_csv(episodes, config.train.seed))
        print(f"written: {args.csv}")
    print(f"{duration(time.monotonic() - clock.STARTED)} in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
