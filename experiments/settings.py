"""The command line's arguments, as a validated configuration; everything wrong is one line."""

import os
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments import arguments, config_files
from pomcp_jax import config as config_lib
from pomcp_jax import nearest
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.running import workdirs
from pomcp_jax.running.options import RESUME

USAGE = """\
usage: python -m experiments.run --config=experiments/configs/NAME.py[:task,preset]
           [--config.any.field=value ...] [--workdir=DIR] [--tensorboard]
           [--cache_dir=DIR|none] [--print_config]
           [--resume=auto|never|reset_envs|change_seeds]

  --config       configuration file; behind a colon the task and the preset
  --config.F     override of a field, for example --config.train.num_seeds=5
  --workdir      where records, pictures and checkpoints go (default runs/NAME/task-preset)
  --tensorboard  write TensorBoard events too (needs pomcp_jax[tensorboard])
  --cache_dir    persistent compilation cache (default ~/.cache/pomcp_jax/xla)
  --resume       what to do with an earlier run in the workdir: auto (default) goes on where it
                 stopped, bit for bit; never moves it to previous-N and starts anew; reset_envs
                 goes on with fresh episodes, after an upgrade that changed the environments;
                 change_seeds allows another train.num_seeds: it drops the last ones, or trains
                 further ones up to where the run stopped and goes on with all
  --print_config print the resolved configuration and stop
  --help         this text and the names of tasks, presets and fields
"""


class Settings(NamedTuple):
    """A resolved command line."""

    config: Config
    workdir: Path
    tensorboard: bool
    cache_dir: str | None
    print_only: bool
    resume: str = "auto"


class HelpWanted(Exception):
    """``--help`` was given."""


MEANT = {
    "task": "--config=FILE.py:TASK",
    "env": "--config=FILE.py:TASK",
    "preset": "--config=FILE.py:TASK,PRESET",
    "agent": "--config=FILE.py:TASK,PRESET",
    "method": "--config=FILE.py:TASK,PRESET",
    "steps": "--config.train.total_decisions",
    "total_steps": "--config.train.total_decisions",
    "lr": "--config.agent.optimizer.learning_rate",
    "gamma": "--config.agent.optimizer.discount",
    "logdir": "--workdir",
    "outdir": "--workdir",
    "output": "--workdir",
    "out": "--workdir",
    "dry_run": "--print_config",
    "device": "the variable JAX_PLATFORMS",
}
"""What other programs call it, and what it is called here."""


def parse(argv: list[str], values: flags.FlagValues | None = None) -> Settings:
    """Resolve ``argv`` (program name first); validates nothing but names and types.

    ``values`` may define further flags; the caller reads them afterwards.

    Raises:
      ConfigError: one line for the user.
      HelpWanted: for ``--help``.
    """
    argv = [*argv[:1], *arguments.underscored(argv[1:])]
    if any(arg in ("--help", "-h", "-help", "--helpfull", "--helpshort") for arg in argv[1:]):
        raise HelpWanted
    values = flags.FlagValues() if values is None else values
    flags.DEFINE_multi_string("config", [], "configuration file", flag_values=values)
    flags.DEFINE_string("workdir", None, "output folder", flag_values=values)
    flags.DEFINE_bool("tensorboard", False, "write TensorBoard events", flag_values=values)
    flags.DEFINE_string("cache_dir", None, "compilation cache", flag_values=values)
    flags.DEFINE_string("resume", "auto", ", ".join(RESUME), flag_values=values)
    flags.DEFINE_bool("print_config", False, "print and stop", flag_values=values)
    overrides, others = config_files.overrides(argv)
    try:
        rest = values(others)
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(_unknown_flag(error.flagname, values)) from None
    except flags.Error as error:
        raise ConfigError(" ".join(str(error).split())) from None
    if len(values.config) != 1 or not values.config[0].partition(":")[0]:
        wrong = "given more than once" if values.config[1:] else "missing"
        raise ConfigError(f"--config: {wrong}; for example --config={config_files.EXAMPLE}")
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r}: unexpected argument; flags look like --config.field=value")
    if values.resume not in RESUME:
        raise ConfigError(f"--resume = {values.resume!r}: must be one of {', '.join(RESUME)}")
    path, colon, argument = values.config[0].partition(":")
    workdir = values.workdir if values.workdir is not None else _default_workdir(path, argument)
    if not workdir:
        raise ConfigError("--workdir = '': must name a folder")
    config = config_files.load(path, argument if colon else None)
    return Settings(
        config=config_files.changed(config, overrides),
        workdir=workdirs.expanded(workdir),
        tensorboard=values.tensorboard,
        cache_dir=_cache_dir(values.cache_dir),
        print_only=values.print_config,
        resume=values.resume,
    )


def _unknown_flag(name: str, values: flags.FlagValues) -> str:
    """One line for a flag that there is not."""
    name, fields = name.partition("=")[0], config_lib.flatten(Config())
    meant = MEANT.get(name, "")
    if not meant and nearest.find(name, values):
        meant = f"--{nearest.find(name, values)}"
    if not meant and nearest.find(name, fields):
        meant = f"--config.{nearest.find(name, fields)}"
    return f"--{name}: unknown flag; " + (f"did you mean {meant}?" if meant else "see --help")


def _cache_dir(chosen: str | None) -> str | None:
    """The folder of compiled programs; None keeps none."""
    folder = chosen or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder == "none":
        return None
    if folder and "://" in folder:
        return folder
    if folder:
        return str(workdirs.expanded(folder, "--cache_dir"))
    home = os.path.expanduser("~")
    # A user without a home, as in a container: "~" stays.
    return str(Path(home, ".cache", "pomcp_jax", "xla")) if os.path.isabs(home) else None


def _default_workdir(path: str, argument: str) -> str:
    tail = argument.replace("/", "_").replace(",", "-").strip("-") or "default"
    return str(Path("runs") / Path(path).stem / tail)


def help_text(usage: str = USAGE) -> str:
    """``usage`` with every name that can be chosen."""
    from pomcp_jax import envs, presets

    lines = [usage, "configurations: " + ", ".join(config_files.known())]
    lines.append("presets: " + ", ".join(presets.PRESETS))
    lines.append("tasks: " + ", ".join(envs.available()))
    lines.append("fields, with the defaults of the 5M PO-MPC agent:")
    lines += [f"  --config.{name}={value}" for name, value in config_lib.flatten(Config()).items()]
    return "\n".join(lines)
