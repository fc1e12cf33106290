"""Write a run's transitions to a file: ``python -m experiments.dataset RUN --out=FILE.npz``.

RUN is the workdir of a run, which may still be training. Without --episodes the file has the
replay of a checkpoint, planner records included: all that its agents have seen, or the newest
train.capacity decisions. With --episodes=K the agent of every seed plays K episodes, without
exploration noise; a planner's records are written too.

--config.train.buffer=FILE.npz starts a run from the file. It is an .npz of plain arrays with
D4RL's names: observations, actions (in [-1, 1]), rewards, terminals, timeouts, next_observations.
Exit codes: 0 done, 2 bad input.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import usage  # isort: skip  # noqa: F401
from experiments import clock  # isort: skip

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import arguments, parsers, streams, trained, xla
from pomcp_jax import arrays, checkpoint, controller, datasets, digests, evaluate, files
from pomcp_jax.checkpoint import CheckpointError, Restored
from pomcp_jax.config import ConfigError
from pomcp_jax.datasets import Rows
from pomcp_jax.envs.protocol import Env
from pomcp_jax.running.progress import duration, waiting

REPLAY = ".replay."
"""Prefix of the arrays of replay in a checkpoint."""
PLAYED = ("actor", "select", "seed", "task", "backend")
"""Flags that have an effect with --episodes alone."""


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(argv))


def _main(argv: list[str] | None) -> int:
    xla.save_memory()
    args, _ = arguments.parse(parsers.dataset(__doc__), argv)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    say(f"reading {args.run}")
    try:
        text = write(args, say)
    except (ConfigError, ValueError, OSError) as error:
        say(f"error: {' '.join(str(error).split())}")
        return 2
    print(text)
    print(f"total time {duration(time.monotonic() - clock.STARTED)}")
    return 0


def write(args: argparse.Namespace, say: Callable[[str], None]) -> str:
    """Check the arguments, collect the transitions and write them; returns lines for the user.

    Raises:
      ValueError: one line; nothing is written.
    """
    _check(args)
    agents, select = trained.load(args)
    config, seeds = agents.config, _seeds(args, agents)
    if args.episodes is None:
        parts = _replayed(args, agents, seeds)
    else:
        env = trained.environment(args, agents)
        parts = _played(args, agents, env, select, seeds)
    rows = datasets.joined(parts)
    if not rows.transitions:
        raise ValueError(f"{args.run}: has no transitions yet; --episodes=K plays some")
    size = datasets.write(
        args.out,
        rows,
        task=config.env.task,
        action_repeat=config.env.action_repeat,
        history=config.env.history,
    )
    first = config.train.seed
    which = f"seed {first + seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
    recorded = int(np.sum(rows.recorded & ~rows.last))
    return "\n".join([
        trained.heading(agents),
        f"{rows.transitions:,} transitions of {rows.episodes:,} episodes, {which}",
        f"{recorded:,} of them with a planner record",
        f"written: {args.out} ({size / 1e6:.2f} MB)",
    ])  # fmt: skip


def _check(args: argparse.Namespace) -> None:
    """Check everything that needs no agent.

    Raises:
      ValueError: one line.
    """
    if args.out.suffix != ".npz":
        raise ValueError(f"--out = {str(args.out)!r}: must end in .npz")
    files.check_writable(args.out, "--out")
    if args.episodes is None:
        for name in PLAYED:
            if getattr(args, name) is not None:
                raise ValueError(f"--{name}: has no effect without --episodes; leave it out")
    args.actor = args.actor or "planner"
    args.seed = parsers.EPISODE_SEED if args.seed is None else args.seed
    trained.check_counts(argparse.Namespace(episodes=args.episodes or 1, seed=args.seed))
    if args.episodes == 0:
        raise ValueError("--episodes = 0: must be >= 1")


def _seeds(args: argparse.Namespace, agents: Restored) -> list[int]:
    """Rows of the seeds to write: all, or that of ``--train-seed``."""
    if args.train_seed is None:
        return list(range(agents.num_seeds))
    return [trained.seed_index(args.train_seed, agents)]


def _replayed(args: argparse.Namespace, agents: Restored, seeds: list[int]) -> list[Rows]:
    """Episodes in the replay of a checkpoint.

    Raises:
      CheckpointError: it is damaged, or an exported agent's.
    """
    folder, cell = controller.find(args.run)
    if cell:
        raise CheckpointError(f"{args.run}: is a cell of a sweep; --episodes=K plays its agents")
    place, manifest = folder / str(agents.decisions), checkpoint.read(folder, agents.decisions)
    digests.verify(place, manifest.files, ("agent", "run"))
    if not any(name.startswith("run/") for name in manifest.files):
        raise CheckpointError(f"{place}: holds an agent without replay; --episodes=K plays it")
    stored = arrays.stored(place / "run")
    wanted = {name: x for name, x in stored.items() if name.startswith(REPLAY)}
    ring = {name.removeprefix(REPLAY): x for name, x in arrays.read(place / "run", wanted).items()}
    return [_of_seed(ring, seed) for seed in seeds]


def _of_seed(ring: dict[str, np.ndarray], seed: int) -> Rows:
    """Episodes of one seed; ``ring`` has the axes ``[S, C, N]``."""
    made = ring["rows.made"][seed]
    rows = Rows(
        obs=ring["rows.obs"][seed],
        action=ring["rows.action"][seed],
        reward=ring["rows.reward"][seed],
        terminated=ring["rows.terminated"][seed],
        last=ring["rows.last"][seed],
        prior_mean=ring["rows.prior.mean"][seed],
        # A std of 0 marks a row without a record, as in files.
        prior_std=np.where(made[..., None] < 0, np.float32(0), ring["rows.prior.std"][seed]),
        prior_value=ring["rows.prior_value"][seed],
    )
    return datasets.of_ring(rows, int(ring["inserted"]))


def _played(
    args: argparse.Namespace, agents: Restored, env: Env, select: Any, seeds: list[int]
) -> list[Rows]:
    """Episodes that the agents play now; those whose environment broke are left out."""
    params = jax.tree.map(lambda x: x[np.array(seeds)], agents.state.params)
    if args.actor == "prior":
        params = params._replace(policy=params.prior)
    keys = jax.random.split(jax.random.key(args.seed), agents.num_seeds)[np.array(seeds)]
    options: dict[str, Any] = {
        "env": env,
        "spec": agents.spec,
        "config": agents.config.agent,
        "episodes": args.episodes,
        "select": select,
    }

    def seen(config: Any, params: Any, key: Any, obs: Any, plan: Any) -> tuple:
        return obs, plan.action, plan.prior, plan.value

    def play(params: Any) -> tuple:
        if args.actor == "planner":
            return evaluate.traced(params, keys, seen, **options)
        played, trace = evaluate.recorded(
            params, keys, lambda state: None, planner=False, **options
        )
        return played, trace._replace(seen=(trace.seen.obs, trace.seen.action, None, None))

    with waiting("compiling and playing"):
        episodes, trace = jax.tree.map(np.asarray, jax.jit(play)(params))
    broken = int(np.sum(~episodes.valid))
    if broken:
        print(f"warning: {broken} episodes broke and are left out", file=sys.stderr)
    return [
        _episode(trace, seed, episode)
        for seed, episode in np.argwhere(episodes.valid)
    ]  # fmt: skip


def _episode(trace: evaluate.Trace, seed: int, episode: int) -> Rows:
    """Rows of one episode of a trace, its final observation included."""
    steps = int(np.sum(trace.alive[seed, :, episode]))
    at = (seed, slice(steps + 1), episode)
    obs, action, prior, value = trace.seen
    absent = np.zeros_like(action[at])
    return Rows(
        obs=obs[at],
        action=action[at],
        reward=trace.reward[at],
        terminated=trace.terminated[at],
        last=np.arange(steps + 1) == steps,
        prior_mean=absent if prior is None else prior.mean[at],
        prior_std=absent if prior is None else prior.std[at],
        prior_value=absent[:, 0] if value is None else value[at],
    )


if __name__ == "__main__":
    sys.exit(main())
