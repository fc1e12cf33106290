"""Train an agent: ``python -m experiments.run --config=experiments/configs/quickstart.py``.

``--help`` is short; ``--help=TOPIC`` describes fields, tasks, presets and sizes.

The same command line resumes a stopped run; see docs/reliability.md.

Exit codes: 0 done, 1 an unexpected exception, 2 bad input, 3 training diverged, 4 the disk is full
or cannot be written or read, 75 stopped by --minutes, or another process of the run is gone,
129/130/143 stopped by SIGHUP/SIGINT/SIGTERM.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import usage  # isort: skip
from experiments import clock  # isort: skip

import functools
import sys
from typing import NamedTuple

import numpy as np

from experiments import config_files, devices, processes, settings, start, streams, xla
from pomcp_jax import config as config_lib
from pomcp_jax import effects, seed_axis
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.running import cost, metrics, process, workdirs
from pomcp_jax.running.background import Control, Stop
from pomcp_jax.running.group import Group
from pomcp_jax.running.progress import Progress, duration, number
from pomcp_jax.running.trainer import Outcome, Trainer


def summary(outcome: Outcome, config: Config) -> str:
    """Result, task, returns, time and files of a run as text."""
    seeds = [str(config.train.seed + i) for i in range(config.train.num_seeds)]

    def each(values: np.ndarray) -> str:
        if not np.isfinite(values).any():  # nothing was evaluated yet, or all of it was broken
            return "-"
        average = f"{metrics.mean(values):.1f}"
        shown = " ".join(number(v, 1) for v in values)
        return average if len(values) == 1 else f"{average}  (seeds {', '.join(seeds)}: {shown})"

    frames = outcome.decisions * config.env.action_repeat
    took = f"{duration(outcome.seconds)}, peak memory {process.peak_memory_gb():.2f} GB"
    rows = [
        ("result", outcome.text),
        (
            "task",
            f"{config.env.task}, {outcome.decisions:,} decisions per seed ({frames:,} frames)",
        ),
        ("training return", each(outcome.training) + "  (latest 8 episodes)"),
        ("evaluation", each(outcome.evaluation) + "  (planner)"),
        ("", each(outcome.policy) + "  (bare policy)"),
        ("time", took),
    ]
    kept = [name for name in workdirs.FILES if (outcome.workdir / name).exists()]
    rows.append(("files", f"{outcome.workdir}/ ({', '.join(kept)})"))
    return "\n".join(f"{name:>16}  {value}" for name, value in rows)


def announce(config: Config) -> None:
    """Print preset, size and what differs from them: the first line of a run."""
    print("\n".join(settings.shown(config)), flush=True)


class Prepared(NamedTuple):
    """What a command line asks for."""

    options: settings.Settings
    """Of this process."""
    trainer: Trainer
    ending: start.Ending
    lock: int | None
    """Descriptor of the lock of a workdir that several processes share."""


def prepare(argv: list[str]) -> Prepared:
    """Parsed arguments and a trainer; every check runs before anything is compiled.

    Raises:
      ConfigError: one line for the user.
      Stop: another process of the run refused, or is gone.
    """
    values = processes.own_flags()
    options = settings.parse(argv, values)
    # Before the trainer: JAX settles on devices and cache when it computes for the first time.
    devices.use(devices.on_cpu(options, processes.most_seeds(values, options)))
    xla.begin(options.cache_dir)
    joined = processes.enter(values, options)
    try:
        return _prepare(argv, options, joined)
    except (ConfigError, Stop) as error:
        processes.fails(joined, options, error)
        raise


def _prepare(argv: list[str], whole: settings.Settings, joined: Group | None) -> Prepared:
    control, command = Control(Progress()), process.command("experiments.run", argv)
    options, lock = processes.assigned(joined, whole, control.progress.say, command)
    # Of this process: the others may have another number of devices.
    config = devices.chosen(options, options.config.train.num_seeds)
    options = options._replace(config=config)
    trainer = Trainer(
        options.config,
        options.workdir,
        resume=options.resume,
        tensorboard=options.tensorboard,
        wandb=options.wandb,
        control=control,
        on_checked=lambda trainer: None if options.print_only else announce(options.config),
        command=command,
        began=clock.STARTED,
        programs=settings.programs(options.cache_dir),
        together=processes.together(joined, options.workdir, control),
    )
    for line in effects.without_effect(options.config):
        print(f"warning: {line}", file=sys.stderr)
    processes.checked(joined)
    processes.watch(joined, control)
    ending = functools.partial(processes.leave, joined, whole)
    return Prepared(options, trainer, ending, lock)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(sys.argv if argv is None else argv))


def _main(argv: list[str]) -> int:
    xla.save_memory()
    try:
        options, trainer, ending, _lock = prepare(argv)
    except settings.HelpWanted as wanted:
        print(wanted.answer or usage.short_help())
        return 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stop as stop:  # another process refused, or is gone
        print(f"error: {stop}", file=sys.stderr)
        return stop.code
    if options.print_only:  # after `prepare`: what is printed has passed all checks
        for name, value in config_lib.flatten(options.config).items():
            print(f"{name} = {value}")
        return 0
    hint = cheaper(trainer)
    if hint:
        print(hint)
    return start.train(
        trainer,
        lambda outcome: report(outcome, options.config),
        minutes=options.minutes,
        ending=ending,
    )


LONG = 43_200.0
"""Seconds beyond which a run on a CPU is met with a cheaper proposal."""
SMALL = "experiments/configs/small.py"


def cheaper(trainer: Trainer) -> str:
    """Proposal of a small model where a run on a CPU would take more than :data:`LONG`."""
    machine, env = cost.measure(), trainer.functions.program.env
    task = trainer.config.env.task

    def seconds(config: Config, devices: int) -> float:
        known = cost.estimate(config, env, machine, devices)
        return cost.todo(config, 0, 0, -1).seconds(known.decision, known.evaluation)

    devices = seed_axis.mesh_size(trainer.functions.program.mesh)
    if machine is None or "/" in task or seconds(trainer.config, devices) < LONG:
        return ""
    small = config_files.load(SMALL, task)
    took = seconds(config_lib.replace(small, {"train.num_seeds": 1}), 1)
    return (
        f"hint: --config={SMALL}:{task} has a model for CPUs: about {cost.text(took)} for one"
        f" seed and {small.train.total_decisions:,} decisions"
    )


def report(outcome: Outcome, config: Config) -> None:
    """Print the outcome of a run."""
    if outcome.nothing_to_do:
        total = config.train.total_decisions
        print(
            f"this run is complete: {outcome.decisions:,} decisions; nothing to do"
            f" (a larger train.total_decisions than {total:,} extends it,"
            " --resume=never starts over)"
        )
    print(summary(outcome, config))
    if outcome.code == clock.TIME_IS_UP and not outcome.decisions:
        print(
            "hint: nothing was trained: compiling is a part of --minutes, and what it had not"
            " finished it begins anew; give more minutes"
        )


if __name__ == "__main__":
    sys.exit(main())
