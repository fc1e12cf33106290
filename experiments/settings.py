"""The command line's arguments, as a validated configuration; everything wrong is one line."""

import difflib
import os
from pathlib import Path
from typing import NamedTuple, NoReturn

from absl import flags
from ml_collections import config_flags

from pomcp_jax import config as config_lib
from pomcp_jax.config import Config, ConfigError

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
RESUME = ("auto", "never", "reset_envs", "change_seeds")


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


def parse(argv: list[str], values: flags.FlagValues | None = None) -> Settings:
    """Resolve ``argv`` (program name first); validates nothing but names and types.

    ``values`` may define further flags; the caller reads them afterwards.

    Raises:
      ConfigError: one line for the user.
      HelpWanted: for ``--help``.
    """
    if any(arg in ("--help", "-h", "-help", "--helpfull", "--helpshort") for arg in argv[1:]):
        raise HelpWanted
    if not _config_argument(argv):
        example = "--config=experiments/configs/quickstart.py"
        raise ConfigError(f"--config: missing; for example {example}")
    values = flags.FlagValues() if values is None else values
    config_flags.DEFINE_config_file(
        "config", None, "configuration file", flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "output folder", flag_values=values)
    flags.DEFINE_bool("tensorboard", False, "write TensorBoard events", flag_values=values)
    flags.DEFINE_string("cache_dir", None, "compilation cache", flag_values=values)
    flags.DEFINE_string("resume", "auto", ", ".join(RESUME), flag_values=values)
    flags.DEFINE_bool("print_config", False, "print and stop", flag_values=values)
    try:
        rest = values(argv)
        chosen = values.config.to_dict()  # a file that could not be loaded raises here
    except Exception as error:  # ml_collections raises many kinds; all are the user's input
        _explain(error, argv)
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r}: unexpected argument; flags look like --config.field=value")
    config = config_lib.from_dict(Config, chosen)
    cache_dir = values.cache_dir or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if cache_dir is None:
        cache_dir = str(Path.home() / ".cache" / "pomcp_jax" / "xla")
    workdir = values.workdir if values.workdir is not None else _default_workdir(argv)
    if not workdir:
        raise ConfigError("--workdir = '': must name a folder")
    if values.resume not in RESUME:
        raise ConfigError(f"--resume = {values.resume!r}: must be one of {', '.join(RESUME)}")
    return Settings(
        config=config,
        workdir=Path(workdir).expanduser(),
        tensorboard=values.tensorboard,
        cache_dir=None if cache_dir == "none" else cache_dir,
        print_only=values.print_config,
        resume=values.resume,
    )


def _config_argument(argv: list[str]) -> str:
    for i, arg in enumerate(argv):
        if arg.lstrip("-").startswith("config="):
            return arg.split("=", 1)[1]
        if arg in ("--config", "-config") and i + 1 < len(argv):
            return argv[i + 1]
    return ""


def _default_workdir(argv: list[str]) -> str:
    path, _, argument = _config_argument(argv).partition(":")
    tail = argument.replace("/", "_").replace(",", "-").strip("-") or "default"
    return str(Path("runs") / Path(path).stem / tail)


def _explain(error: Exception, argv: list[str]) -> NoReturn:
    """Turn whatever the flag libraries raised into one line that helps."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigError):
            # ml_collections raises the same type anew, with the traceback as its text.
            raise ConfigError(str(cause).strip().split("ConfigError: ")[-1]) from None
        cause = cause.__cause__ or cause.__context__
    path = _config_argument(argv).partition(":")[0]
    if isinstance(error, (OSError, ImportError)) and not Path(path).is_file():
        known = sorted(str(p) for p in Path("experiments/configs").glob("[a-z]*.py"))
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"--config = {path!r}: no such file{hint}") from None
    overrides = [
        arg.lstrip("-").split("=")[0] for arg in argv if arg.lstrip("-").startswith("config.")
    ]
    fields = config_lib.flatten(Config())
    groups = {name.rsplit(".", i)[0] for name in fields for i in (1, 2) if "." in name}
    for name in overrides:
        field = name.removeprefix("config.")
        if field not in fields and field not in groups:
            near = difflib.get_close_matches(field, fields, n=1, cutoff=0.3)
            hint = f"; did you mean config.{near[0]}?" if near else ""
            raise ConfigError(f"--{name}: unknown field{hint}") from None
        kind = type(fields.get(field)).__name__
        if isinstance(error, flags.IllegalFlagValueError) and f"--{name}=" in str(error):
            value = str(error).split(f"--{name}=", 1)[1].split(":")[0]
            what = f"must be {kind}" if field in fields else "is a group of fields, not a value"
            raise ConfigError(f"--{name} = {value!r}: {what}") from None
    text = " ".join(str(error).split())
    raise ConfigError(
        text if isinstance(error, flags.Error) else f"--config = {path!r}: {text}"
    ) from None


def help_text(usage: str = USAGE) -> str:
    """``usage`` with every name that can be chosen."""
    from pomcp_jax import envs, presets

    files = sorted(
        str(p) for p in Path("experiments/configs").glob("[a-z]*.py") if p.stem != "common"
    )
    lines = [usage, "configurations: " + ", ".join(files), "presets: " + ", ".join(presets.PRESETS)]
    lines.append("tasks: " + ", ".join(envs.available()))
    lines.append("fields, with the defaults of the 5M PO-MPC agent:")
    lines += [f"  --config.{name}={value}" for name, value in config_lib.flatten(Config()).items()]
    return "\n".join(lines)
