"""Play whole episodes with a trained agent: ``python -m experiments.evaluate RUN``.

RUN is the workdir of a run, which may still be training. Prints one line per seed: mean return with
its 95 % interval over episodes (Student's t), interquartile mean, episode length, broken episodes.
Exit codes: 0 done, 2 bad input.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import usage  # isort: skip  # noqa: F401
from experiments import clock  # isort: skip

import argparse
import csv
import io
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import arguments, parsers, streams, trained, xla
from experiments.benchmarks.dm_control import controls, flat, original
from pomcp_jax import config as config_lib
from pomcp_jax import evaluate, files
from pomcp_jax.checkpoint import Restored
from pomcp_jax.config import ConfigError
from pomcp_jax.controller import Controller
from pomcp_jax.envs.importing import load_suite
from pomcp_jax.envs.protocol import Env
from pomcp_jax.evaluate import Episodes
from pomcp_jax.reporting import statistics
from pomcp_jax.running.functions import environment
from pomcp_jax.running.progress import duration, waiting

DM_CONTROL = "dm_control"
"""Backend of dm_control's own Python environments, unmodified."""


class Request(NamedTuple):
    """Episodes to play, with their actor and backend."""

    episodes: int
    """Number per seed."""
    actor: str
    select: str
    backend: str
    seed: int
    """Seed of resets and plans."""
    env: Env | None = None
    """Environments of a task that is in no registry."""


def play(agents: Restored, request: Request) -> Episodes:
    """Episodes of all seeds on one of our backends, as one compiled program."""
    config = agents.config
    named = config_lib.replace(config, {"env.backend": request.backend})
    env = environment(named) if request.env is None else request.env
    params = agents.state.params
    if request.actor == "prior":
        # The prior has the policy's network: in its place it acts by the same code.
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


def play_dm_control(agents: Restored, request: Request, say: Callable[[str], None]) -> Episodes:
    """Episodes in dm_control itself by the deployed :class:`Controller`, one environment each."""
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
        # 1,000 apart: seeds of the run share no episode unless more than 1,000 are asked for.
        first = request.seed + 1_000 * index
        environments = [
            original(agents.config.env.task, first + i) for i in range(request.episodes)
        ]
        total, length = _episodes(agent, environments)
        returns.append(total)
        lengths.append(length)
        say(f"seed {agents.config.train.seed + index}: {total.mean():.1f}")
    return Episodes(np.stack(returns), np.stack(lengths), np.isfinite(np.stack(returns)))


def _episodes(agent: Controller, environments: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths of one episode per environment; all act in one batch."""
    agent.reset()
    steps = [env.reset() for env in environments]
    total, length = np.zeros(len(steps)), np.zeros(len(steps), int)
    while not all(step.last() for step in steps):
        # What float32 cannot hold is infinite to the agent.
        with np.errstate(over="ignore"):
            observations = np.stack([flat(step.observation) for step in steps]).astype(np.float32)
        # A NaN marks the episode as broken; it plays on with zeros, so that the batch keeps its
        # shape and the other episodes their numbers.
        finite = np.isfinite(observations)
        total[~finite.all(axis=1)] = np.nan
        actions = agent.act(np.where(finite, observations, np.float32(0)))
        for i, (env, action) in enumerate(zip(environments, actions, strict=True)):
            length[i] += not steps[i].last()
            for _ in range(agent.action_repeat):
                if not steps[i].last():
                    steps[i] = env.step(controls(env, action.astype(np.float64)))
                    total[i] += steps[i].reward
    return total, length


def table(episodes: Episodes, first_seed: int) -> str:
    """Aligned text with one line per seed and, for several seeds, one for all.

    Broken episodes are counted and excluded from every mean. The last line's interval is over
    seeds, not episodes.
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
        # Over seeds: episodes of one agent are not independent samples of the method.
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
    """Text of a csv file with one row per episode."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("seed", "episode", "return", "length", "valid"))
    for i, row in enumerate(zip(*episodes, strict=True)):
        for j, (value, length, valid) in enumerate(zip(*row, strict=True)):
            writer.writerow((first_seed + i, j, f"{value:.6g}", int(length), int(valid)))
    return out.getvalue()


def prepare(args: argparse.Namespace, say: Callable[[str], None]) -> tuple[Restored, Request]:
    """Check the arguments and load the agents; compiles and writes nothing.

    Raises:
      ValueError: one line for the user.
    """
    trained.check_counts(args)
    if args.csv is not None:
        files.check_writable(args.csv, "--csv")
    say(f"reading {args.run}")  # orbax and the physics take seconds to import
    agents, select = trained.load(args)
    config = agents.config
    backend = config.env.backend if args.backend is None else args.backend
    env = None
    if backend == DM_CONTROL:
        check_dm_control(config.env.task)
    else:
        env = trained.environment(args, agents)
    return agents, Request(args.episodes, args.actor, select, backend, args.seed, env)


def check_dm_control(task: str) -> None:
    """Raise a one-line ``ValueError`` unless dm_control itself has that task."""
    if tuple(task.split("-")) not in load_suite().ALL_TASKS:
        raise ValueError(f"--backend = 'dm_control': {task} is no task of dm_control")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(argv))


def _main(argv: list[str] | None) -> int:
    xla.save_memory()
    args, _ = arguments.parse(parsers.evaluate(__doc__), argv)

    def say(text: str) -> None:
        # stderr: stdout has the table only, for pipes.
        print(text, file=sys.stderr, flush=True)

    try:
        agents, request = prepare(args, say)
    except ValueError as error:
        say(f"error: {' '.join(str(error).split())}")
        return 2
    config = agents.config
    print(
        f"{trained.heading(agents)}:"
        f" {request.actor}, select {request.select}, backend {request.backend},"
        f" {request.episodes} episodes a seed",
        flush=True,
    )

    try:
        if request.backend == DM_CONTROL:
            episodes = play_dm_control(agents, request, say)
        else:
            with waiting("compiling and playing"):
                episodes = play(agents, request)
            outside = request.env.outside if request.env is not None else None
            for line in outside.notes() if outside is not None else ():
                say(f"warning: {line}")
    except ConfigError as error:  # an engine that is not installed
        say(f"error: {error}")
        return 2
    print(table(episodes, config.train.seed))
    if args.csv is not None:
        files.write_text(args.csv, episodes_csv(episodes, config.train.seed))
        print(f"written: {args.csv}")
    print(f"total time {duration(time.monotonic() - clock.STARTED)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
