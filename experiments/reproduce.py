"""Train a set of tasks x methods x seeds: ``python -m experiments.reproduce --suite=debug``.

Each cell (one task, one method, all seeds as one program) is a run of :mod:`experiments.run` in its
own process. The same command resumes an interrupted suite: finished cells are skipped, and an
interrupted cell continues from its newest checkpoint. A cell that failed or had another
configuration is moved to ``previous-N`` and starts over; nothing is deleted. Ctrl-C stops after the
current chunks. With --minutes the suite ends after that time: the cells still to train share what
is left of it, and the results of those that do not reach their end are kept as well.

Results are in runs/results/SUITE, checkpoints and logs in runs/reproduce/SUITE. The published
results in experiments/results are only read, unless --out names them. A suite of your own is a JSON
file:

EXAMPLE
--launcher=slurm submits the cells as jobs, --launcher=ray runs them on a Ray cluster; the same
command resumes there too, and --status shows the cells. docs/how-to/many-runs.md has the details.

Exit codes: 0 all done, 1 an unexpected exception, 2 bad input, 3 some cell failed, 75 --minutes are
over, 129/130/143 stopped by SIGHUP/SIGINT/SIGTERM.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import usage  # isort: skip  # noqa: F401
from experiments.launchers import status  # isort: skip
from experiments import clock  # isort: skip

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments import arguments, parsers, streams
from experiments import gpus as gpus_lib
from experiments.launchers import checks, local, ray_cluster, slurm, study
from experiments.launchers import plans as plans_lib
from experiments.launchers.plans import Outcome, Plan, Ready
from experiments.launchers.study import Study
from pomcp_jax import files
from pomcp_jax.config import ConfigError
from pomcp_jax.running import loggers
from pomcp_jax.running.options import Options
from pomcp_jax.running.progress import Progress

PUBLISHED = Path(__file__).parent / "results"
"""Folder of the published results of each suite."""
STATUS_SECONDS = 60.0
"""Seconds between status lines when stderr is not a terminal."""


def main(argv: list[str] | None = None) -> int:
    """The command line; arguments ``--config.FIELD=VALUE`` are passed to every cell."""
    return streams.guarded(lambda: _main(argv))


def prepare(args: argparse.Namespace, overrides: Sequence[str]) -> tuple[Study, list[Plan]]:
    """The suite with its folders, and all its cells.

    Raises:
      ConfigError: one line for the user.
    """
    which = study.of(args)
    plans = plans_lib.make_plans(which, args.methods, args.tasks, overrides)
    if args.wandb is not None:
        loggers.check(Options(plans[0].config, plans[0].workdir, wandb=args.wandb or " "))
        plans = [p._replace(command=[*p.command, f"--wandb={args.wandb}"]) for p in plans]
    return which, plans


def print_cells(plans: Sequence[Plan], name: str) -> None:
    """Number, name and state of every cell."""
    width = max(len(plan.name) for plan in plans)
    for i, plan in enumerate(plans):
        print(f"{i:3}  {plan.name:<{width}}  {plans_lib.state(plan, PUBLISHED / name)}")


def _main(argv: list[str] | None) -> int:
    args, overrides = arguments.parse(parsers.reproduce(__doc__), argv, others=True)
    if args.list and not args.suite:
        print(parsers.listed_suites())
        return 0
    if args.status:
        return status.show(args)
    try:
        checks.check_flags(args)
        which, plans = prepare(args, overrides)
        if args.list:
            print_cells(plans, Path(args.suite).stem)
            return 0
        # Results come last: a folder that cannot be made would cost a training.
        files.check_folder(which.out, "--out")
        plans = plans_lib.chosen(plans, args.cell)
        finished, todo = plans_lib.split(plans)
        launch = {"local": _local, "slurm": slurm.prepare, "ray": ray_cluster.prepare}
        ready = launch[args.launcher](args, which, todo)  # checks only; starts nothing
        if args.dry_run:
            for line in ready.preview():
                print(line)
            for plan in plans:
                done = "finished" if plan in finished else "to train"
                print(f"{done}  {plan.name}: {shlex.join(plan.command)}")
            return 0
        # Array jobs of any scheduler: each has its cells, whose own locks are enough.
        with study.launching(which.work, shared=args.cell is not None):
            counts = f"{len(plans)} cells, {len(finished)} finished, {len(todo)} to train"
            line = f"{args.suite}: {counts}, {ready.text}; results in {which.out}/"
            outcome = ready.run(lambda: print(line, file=sys.stderr))
            return _conclude(args, which, (plans, finished, todo), outcome)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _local(args: argparse.Namespace, which: Study, todo: list[Plan]) -> Ready:
    """Check the flags of ``--launcher=local``.

    Raises:
      ConfigError: one line for the user.
    """
    deadline = _deadline(args.minutes)
    gpus = gpus_lib.chosen(args.gpus)
    jobs = (len(gpus) if args.gpus else 1) if args.jobs is None else args.jobs
    runner = local.Runner(todo, jobs, deadline, gpus)

    def run(begin: Callable[[], None]) -> Outcome:
        begin()
        runner.start()
        ended = local.follow(runner, len(todo), Progress(interval=STATUS_SECONDS))
        return Outcome(ended, runner.received, is_late=runner.late())

    return Ready(f"{jobs} at once{_on(jobs, gpus)}", run)


def _conclude(
    args: argparse.Namespace,
    which: Study,
    cells: tuple[list[Plan], list[Plan], list[Plan]],
    outcome: Outcome,
) -> int:
    """Print how a suite ended; ``cells`` are all, those finished before, those to train."""
    plans, finished, todo = cells
    ended = outcome.ended
    for plan in ended["broke"] + ended["lost"]:
        print(f"error: {plan.name}: broke; see {plan.log}", file=sys.stderr)
    missing = len(todo) - len(ended["finished"])
    done = len(finished) + len(ended["finished"])
    print(f"{done} of {len(plans)} cells finished in {which.out}/")
    if outcome.text:
        print(outcome.text)
    if outcome.received:
        print("stopped; the same command resumes")
        return 128 + outcome.received
    if outcome.detached:
        return 3 if ended["broke"] else 0
    if ended["paused"] or (missing and outcome.is_late):
        print(f"stopped after {args.minutes:g} minutes; the same command resumes")
        return 3 if ended["broke"] else clock.TIME_IS_UP
    return 3 if missing else 0


def _on(jobs: int, gpus: Sequence[str]) -> str:
    """Text on where workers train."""
    if not gpus:
        return ""
    return (
        f" on GPU{'s' * (len(gpus) > 1)} {', '.join(gpus)}"
        if len(gpus) <= 16
        else f" on {len(gpus)} GPUs"
    )


def _deadline(minutes: float | None) -> float | None:
    """End of ``--minutes`` by ``time.monotonic``; they count from the start of the process.

    Raises:
      ConfigError: it is no time.
    """
    if minutes is None:
        return None
    if not 0.0 < minutes < math.inf:
        raise ConfigError(f"--minutes = {minutes:g}: must be above 0")
    return clock.STARTED + 60.0 * minutes


if __name__ == "__main__":
    sys.exit(main())
