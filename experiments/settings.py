"""Arguments of a training; every mistake raises a one-line error."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments import arguments, config_files, help_topics, own_tasks, usage
from pomcp_jax import config as config_lib
from pomcp_jax import nearest, presets
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.reporting import results
from pomcp_jax.running import workdirs
from pomcp_jax.running.options import RESUME


class Settings(NamedTuple):
    """A resolved command line."""

    config: Config
    workdir: Path
    tensorboard: bool
    cache_dir: str | None
    print_only: bool
    resume: str = "auto"
    wandb: str = ""
    minutes: float | None = None
    """Wall-clock time until training stops; None without a limit."""
    cores: bool = False
    """``--num_devices=cores``: every core, also for a run that resumes with fewer."""


class HelpWanted(Exception):
    """Raised for ``--help`` and, with the answer, for ``--help=TOPIC``."""

    def __init__(self, answer: str = ""):
        super().__init__(answer)
        self.answer = answer


DEVICES = "train.num_devices"

MEANT = {
    "seeds": "--config.train.num_seeds",
    "num_seeds": "--config.train.num_seeds",
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
    "model_size": "--size",
    "dry_run": "--print_config",
    "time_limit": "--minutes",
    "max_minutes": "--minutes",
    "device": "the variable JAX_PLATFORMS",
    "devices": "--num_devices",
    "cores": "--num_devices",
}
"""Common names in other programs, and their names here."""


def parse(argv: list[str], values: flags.FlagValues | None = None) -> Settings:
    """Resolve ``argv`` (program name first); checks names and types only.

    ``values`` may define further flags, which the caller reads afterwards.

    Raises:
      ConfigError: one line for the user.
      HelpWanted: for ``--help`` and ``--help=TOPIC``.
    """
    argv = [*argv[:1], *arguments.underscored(argv[1:])]
    if usage.is_plain(argv):
        raise HelpWanted
    topics = [arg.partition("=")[2] for arg in argv[1:] if arg.startswith("--help=")]
    if topics:
        # With a configuration file, the help shows its values: the other arguments count too.
        others = [arg for arg in argv if not arg.startswith("--help=")]
        has_config = any(arg.lstrip("-").startswith("config=") for arg in others[1:])
        config = _resolved(others, values).config if has_config else None
        raise HelpWanted("\n\n".join(help_topics.text(topic, config) for topic in topics))
    return _resolved(argv, values)


def _resolved(argv: list[str], values: flags.FlagValues | None) -> Settings:
    values = _defined(values)
    overrides, others = config_files.overrides(argv)
    try:
        words = values(others)  # those that are no flags, program name first
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(_unknown_flag(error.flagname, values)) from None
    except flags.Error as error:
        raise ConfigError(" ".join(str(error).split())) from None  # absl's texts have line breaks
    if len(values.config) != 1 or not values.config[0].partition(":")[0]:
        wrong = "given more than once" if values.config[1:] else "missing"
        raise ConfigError(f"--config: {wrong}; for example --config={config_files.EXAMPLE}")
    if len(words) > 1:
        raise ConfigError(
            f"{words[1]!r}: unexpected argument; flags look like --config.field=value"
        )
    if values.resume not in RESUME:
        hint = nearest.hint(values.resume, RESUME)
        raise ConfigError(f"--resume = {values.resume!r}: must be one of {', '.join(RESUME)}{hint}")
    path, colon, text = values.config[0].partition(":")
    task = overrides.get("env.task")
    argument, is_unasked = own_tasks.named(path, text if colon else None, task)
    default = _default_workdir(path, argument or "", values.size or "")
    workdir = default if values.workdir is None else values.workdir
    if not workdir:
        raise ConfigError("--workdir = '': must name a folder")
    # The size first: an override of one of its fields is more specific and must win.
    config = _sized(config_files.load(path, argument), values.size)
    if is_unasked and task is not None:
        config = own_tasks.with_facts(config, task)
    overrides |= _devices(values.num_devices, overrides)
    return Settings(
        config=config_files.changed(config, overrides),
        workdir=workdirs.expanded(workdir),
        tensorboard=values.tensorboard,
        cache_dir=_cache_dir(values.cache_dir),
        print_only=values.print_config,
        resume=values.resume,
        wandb=_project(values.wandb),
        minutes=_minutes(values.minutes),
        cores=values.num_devices == CORES,
    )


def _defined(values: flags.FlagValues | None) -> flags.FlagValues:
    """``values`` with the flags that all trainings share."""
    values = flags.FlagValues() if values is None else values
    flags.DEFINE_multi_string("config", [], "configuration file", flag_values=values)
    flags.DEFINE_string("size", None, "size of the world model", flag_values=values)
    flags.DEFINE_string("workdir", None, "output folder", flag_values=values)
    flags.DEFINE_bool("tensorboard", False, "write TensorBoard events", flag_values=values)
    flags.DEFINE_string("wandb", None, "project of Weights & Biases", flag_values=values)
    flags.DEFINE_string("cache_dir", None, "compilation cache", flag_values=values)
    flags.DEFINE_string("resume", "auto", ", ".join(RESUME), flag_values=values)
    flags.DEFINE_float("minutes", None, "time until training stops", flag_values=values)
    flags.DEFINE_string("num_devices", None, "devices of the seeds", flag_values=values)
    flags.DEFINE_bool("print_config", False, "print and stop", flag_values=values)
    return values


def _project(name: str | None) -> str:
    """Project of ``--wandb``, empty without the flag.

    Raises:
      ConfigError: ``--wandb=`` without a name, which would log nothing.
    """
    if name is not None and not name.strip():
        raise ConfigError("--wandb = '': must name a project, for example --wandb=pomcp")
    return name or ""


def _minutes(given: float | None) -> float | None:
    """Value of ``--minutes``.

    Raises:
      ConfigError: it is no time.
    """
    if given is not None and not 0.0 < given < float("inf"):
        raise ConfigError(f"--minutes = {given:g}: must be above 0")
    return given


CORES = "cores"


def _devices(given: str | None, overrides: Mapping[str, Any]) -> dict[str, str | None]:
    """Override that ``--num_devices`` stands for.

    Raises:
      ConfigError: it is no number of devices, or the field is overridden too.
    """
    if given is None:
        return {}
    if DEVICES in overrides:
        raise ConfigError(f"--num_devices = {given!r}: is --config.{DEVICES} too; must be one")
    if given == CORES:
        return {DEVICES: "0"}
    if not re.fullmatch(r"[1-9][0-9]{0,5}", given):
        raise ConfigError(
            f"--num_devices = {given!r}: must be {CORES}, or a number of devices >= 1"
        )
    return {DEVICES: given}


def _sized(config: Config, size: str | None) -> Config:
    """``config`` with the world model of ``--size``."""
    if size is None:
        return config
    try:
        return config_lib.replace(config, {"agent": presets.with_size(config.agent, size)})
    except ConfigError as error:  # "size = ...": here it is a flag
        raise ConfigError(f"--{error}") from None


def _unknown_flag(name: str, values: flags.FlagValues) -> str:
    """Error message for an unknown flag."""
    name, fields = name.partition("=")[0], config_lib.flatten(Config())
    meant = MEANT.get(name, "")
    if not meant and nearest.find(name, values):
        meant = f"--{nearest.find(name, values)}"
    if not meant and nearest.find(name, fields):
        meant = f"--config.{nearest.find(name, fields)}"
    return f"--{name}: unknown flag; " + (f"did you mean {meant}?" if meant else "see --help")


def _cache_dir(chosen: str | None) -> str | None:
    """Folder of the compilation cache; None without a cache."""
    folder = chosen or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder == "none":
        return None
    if folder and "://" in folder:  # a bucket, which JAX opens itself
        return folder
    if folder:
        return str(workdirs.expanded(folder, "--cache_dir"))
    home = os.path.expanduser("~")
    # Without a home, as in some containers, "~" is not expanded.
    return str(Path(home, ".cache", "pomcp_jax", "xla")) if os.path.isabs(home) else None


def programs(cache_dir: str | None) -> Path | None:
    """Folder of lowered programs beside the compilation cache; None without a local one."""
    local = cache_dir is not None and "://" not in cache_dir
    return Path(cache_dir, "programs") if local else None


def _default_workdir(path: str, argument: str, size: str) -> str:
    parts = [*results.folder_name(argument).split(","), size]
    tail = "-".join(part for part in parts if part) or "default"
    return str(Path("runs") / Path(path).stem / tail)


def shown(config: Config) -> list[str]:
    """Preset, size and task of a configuration, and the fields that differ from them.

    Floats must be plain numbers.
    """
    origin = presets.origin(config)
    first = (
        f"preset {origin.preset}, size {origin.size}; fields that differ from them, or from the"
        " defaults of env and train:"
    )
    changes = {"env.task": config.env.task} | origin.changes
    return [first, *(f"{name} = {value}" for name, value in changes.items())]
