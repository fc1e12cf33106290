"""Train a grid of settings x seeds as one program: ``python -m experiments.sweep --help``.

Any traced float of ``config.agent`` can be swept; every cell uses the same seeds. A row that
diverges is dropped or reset; the others continue.

The same command line resumes a stopped sweep; see docs/reliability.md.

Exit codes: 0 done, 1 an unexpected exception, 2 bad input, 3 every row diverged, 4 the disk is full
or cannot be written or read, 75 stopped by --minutes, 129/130/143 stopped by SIGHUP/SIGINT/SIGTERM.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import usage  # isort: skip
from experiments import clock  # isort: skip

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import config_files, devices, settings, start, streams, xla
from pomcp_jax import config as config_lib
from pomcp_jax import effects
from pomcp_jax.cells import text
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.running import process, sweeps
from pomcp_jax.running.background import Control
from pomcp_jax.running.progress import Progress, duration
from pomcp_jax.running.trainer import Outcome, Trainer


def parse_grid(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Values of all ``--grid`` flags by field, as text; ``;`` separates fields inside one flag.

    Raises:
      ConfigError: a flag is not a list of fields with values.
    """
    parts = [part.strip() for flag in given for part in flag.split(";") if part.strip()]
    if not parts:
        raise ConfigError('grid: missing; for example --grid="policy.kl_coef=0.1,1,9"')
    grid: dict[str, tuple[str, ...]] = {}
    for part in parts:
        name, equals, listed = part.partition("=")
        words = tuple(word.strip() for word in listed.split(","))
        if not equals or not any(words):
            raise ConfigError(f"grid = {part!r}: must be FIELD=VALUE,VALUE,...")
        if name.strip() in grid:
            raise ConfigError(f"grid: {name.strip()} appears twice; must be one list of values")
        grid[name.strip()] = words
    return grid


def num_cells(given: Sequence[str]) -> int:
    """Number of cells of a grid; 1 for one that :class:`Trainer` will refuse."""
    try:
        return math.prod(map(len, parse_grid(given).values()))
    except ConfigError:
        return 1


def own_flags() -> flags.FlagValues:
    """The flags that a sweep has in addition to those of a run."""
    values = flags.FlagValues()
    flags.DEFINE_multi_string("grid", [], "swept field and values", flag_values=values)
    flags.DEFINE_integer("seeds", None, "seeds of every cell", flag_values=values)
    return values


def listed(trainer: Trainer) -> dict[str, str]:
    """Values of the swept fields as text."""
    return {name: ", ".join(map(text, values)) for name, values in trainer.options.grid.items()}


def announce(trainer: Trainer, config: Config) -> None:
    """Print preset, size, what differs from them, and what is swept: the first lines of a sweep."""
    swept = listed(trainer)
    # Swept fields are printed with their values below, not with the value of the shared part.
    lines = settings.shown(config)
    lines = [line for line in lines if line.partition(" = ")[0] not in swept]
    lines += [f"{name} = {values}  (swept)" for name, values in swept.items()]
    print("\n".join(lines), flush=True)


def prepare(argv: list[str]) -> tuple[settings.Settings, Trainer]:
    """Parsed arguments and a trainer; every check runs before anything is compiled or written.

    Raises:
      ConfigError: one line for the user.
    """
    values = own_flags()
    options = settings.parse(argv, values)
    if values.workdir is None:
        # Not the default of experiments.run: a run of the same file must not find a sweep there.
        own = Path("runs", "sweep", *options.workdir.parts[1:])
        options = options._replace(workdir=own)
    seeds = options.config.train.num_seeds if values.seeds is None else values.seeds
    if seeds < 1:
        raise ConfigError(f"--seeds = {seeds}: must be >= 1")
    config = config_lib.replace(options.config, {"train.num_seeds": seeds})
    options = options._replace(config=config)
    rows = seeds * num_cells(values.grid)
    devices.use(devices.on_cpu(options, rows, "sweep.json"))
    xla.begin(options.cache_dir)
    config = devices.chosen(options, rows)

    def checked(trainer: Trainer) -> None:
        for field in trainer.options.grid:
            if field in config_files.overrides(argv)[0]:
                raise ConfigError(f"--config.{field}: is swept by --grid; must be in one of them")
        if not options.print_only:
            announce(trainer, config)

    try:
        trainer = Trainer(
            config,
            options.workdir,
            resume=options.resume,
            tensorboard=options.tensorboard,
            wandb=options.wandb,
            control=Control(Progress()),
            grid=parse_grid(values.grid),
            on_checked=checked,
            command=process.command("experiments.sweep", argv),
            began=clock.STARTED,
            programs=settings.programs(options.cache_dir),
        )
    except ConfigError as error:
        # The trainer names its arguments; here they are flags.
        flag = str(error).startswith(("grid:", "grid =", "resume ="))
        raise ConfigError(f"--{error}" if flag else str(error)) from None
    for line in effects.without_effect(*(cell.config for cell in trainer.cells)):
        print(f"warning: {line}", file=sys.stderr)
    return options._replace(config=config), trainer


def report(outcome: Outcome) -> None:
    """Print the outcome of a sweep."""
    if outcome.nothing_to_do:
        print(
            "this sweep is complete; nothing to do (a larger train.total_decisions extends it,"
            " --resume=never starts over)"
        )
    took = f"{duration(outcome.seconds)}, peak {process.peak_memory_gb():.2f} GB"
    if outcome.cells:
        print(sweeps.table(outcome.cells))
    place = outcome.workdir / sweeps.SUMMARY
    print(f"{outcome.text}: {outcome.decisions:,} decisions per seed, {took}; {place}")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(sys.argv if argv is None else argv))


def _main(argv: list[str]) -> int:
    xla.save_memory()
    try:
        options, trainer = prepare(argv)
    except settings.HelpWanted as wanted:
        print(wanted.answer or usage.short_help(usage.SWEEP))
        return 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    swept = listed(trainer)
    if options.print_only:
        for name, value in config_lib.flatten(options.config).items():
            print(f"{name} = {swept[name]}  (swept)" if name in swept else f"{name} = {value}")
        return 0
    about = f"{len(trainer.cells)} cells x {options.config.train.num_seeds} seeds; "
    return start.train(trainer, report, about, options.minutes)


if __name__ == "__main__":
    sys.exit(main())
