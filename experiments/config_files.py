"""Configuration files and overrides; every mistake raises a one-line error."""

import ast
import importlib.machinery
import importlib.util
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from pomcp_jax import config as config_lib
from pomcp_jax import nearest
from pomcp_jax.config import Config, ConfigError

HOME = Path(__file__).parents[1]
"""Folder that contains ``experiments``, in a clone or installed."""
FOLDER = Path("experiments/configs")
EXAMPLE = f"{FOLDER}/quickstart.py"
SIGNATURE = "get_config(argument=None)"


def known() -> list[str]:
    """Paths of the repository's configuration files."""
    files = (HOME / FOLDER).glob("[a-z]*.py")
    return sorted(str(p.relative_to(HOME)) for p in files if p.stem != "common")


def first_line(path: str) -> str:
    """First line of a configuration file's docstring; parsed, since a list must run no file."""
    text = ast.get_docstring(ast.parse((HOME / path).read_text())) or ""
    return text.partition("\n")[0]


def located(path: str) -> str:
    """``path``, or the file of that name in this distribution if ``path`` does not exist."""
    ours = os.path.join(HOME, path)  # os.path: a name that is too long is no file
    return ours if not os.path.lexists(path) and os.path.isfile(ours) else path


def is_ours(path: str) -> bool:
    """Whether ``path`` is one of the configuration files of this distribution."""
    return Path(located(path)).absolute().parent.resolve() == (HOME / FOLDER).resolve()


def load(path: str, argument: str | None) -> Config:
    """Configuration of ``--config=PATH[:ARGUMENT]``.

    ``get_config`` may return an ``ml_collections.ConfigDict``, a mapping (missing fields get
    their defaults) or a :class:`Config`.

    Raises:
      ConfigError: one line that names the file and what would be right.
    """
    name = f"--config = {path!r}"
    path = located(path)
    function = _function(path, name)
    arguments = [] if argument is None else [argument]
    try:
        # Bound before the call: a TypeError from inside of it has another cause.
        inspect.signature(function).bind(*arguments)
    except TypeError:
        given = f"cannot be called with {argument!r}" if arguments else "needs arguments"
        raise ConfigError(f"{name}: its get_config {given}; must be {SIGNATURE}") from None
    config = _guarded(lambda: _plain(function(*arguments)), path, name)
    if isinstance(config, Config):
        return config
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"{name}: its get_config returns {type(config).__name__}; must return a ConfigDict,"
            " a dictionary or a pomcp_jax.Config"
        )
    try:
        return config_lib.from_dict(Config, config)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _plain(config: Any) -> Any:
    return config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config


def _function(path: str, name: str) -> Callable[..., Any]:
    """The function ``get_config`` of a file."""
    try:
        if Path(path).is_file():
            # Raises here, where the reason is known, if the file is unreadable.
            if b"\0" in Path(path).read_bytes():
                # Python before 3.11.4 has a ValueError for them, as if the file's code raised it.
                raise ConfigError(f"{name}: not valid Python (it holds null bytes)")
        elif Path(path).is_dir():
            raise ConfigError(f"{name}: is a folder; must be a file like {EXAMPLE}")
        elif Path(path).exists():  # reading a pipe would block
            raise ConfigError(f"{name}: is not a regular file; must be a file like {EXAMPLE}")
        else:
            raise ConfigError(f"{name}: no such file{_meant(path)}")
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    # Not spec_from_file_location: it accepts the suffix .py only, and users may have others.
    loader = importlib.machinery.SourceFileLoader("pomcp_jax_configuration", path)
    spec = importlib.machinery.ModuleSpec(loader.name, loader, origin=path)
    module = importlib.util.module_from_spec(spec)
    module.__file__ = path
    sys.modules[loader.name] = module  # dataclasses of the file look themselves up
    _guarded(lambda: loader.exec_module(module), path, name)
    function = getattr(module, "get_config", None)
    if not callable(function):
        raise ConfigError(f"{name}: has no function get_config; must have {SIGNATURE}")
    return function


def _meant(path: str) -> str:
    """Suggestion for a file that does not exist."""
    # Imported here: the registry of tasks takes seconds, which only this mistake has to pay.
    from pomcp_jax import envs, presets

    task = path.partition(",")[0]
    if task in envs.available() or task in presets.PRESETS:
        what, argument = ("task", path) if task in envs.available() else ("preset", f",{path}")
        return f", but a {what}: --config={EXAMPLE}:{argument}"
    files = {Path(file).stem: file for file in known()}
    name = nearest.find(Path(path).stem, files)
    return f"; did you mean {files[name]}?" if name else f"; for example {EXAMPLE}"


def _guarded(call: Callable[[], Any], path: str, name: str) -> Any:
    """Result of ``call``, which runs code of the user's file; any exception becomes one line."""
    try:
        return call()
    except ConfigError:
        raise
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        raise ConfigError(f"{name}: {where}not valid Python ({error.msg})") from None
    except (Exception, SystemExit) as error:  # a file may call sys.exit
        frames = traceback.extract_tb(error.__traceback__)
        # The deepest line of the user's own file: libraries below it are not where to look.
        lines = [frame.lineno for frame in frames if frame.filename == path]
        where = f"line {lines[-1]}: " if lines else ""
        text = " ".join(str(error).split())
        raise ConfigError(f"{name}: {where}{type(error).__name__}: {text}") from None


def overrides(argv: list[str]) -> tuple[dict[str, str | None], list[str]]:
    """Split a command line into ``--config.FIELD=VALUE`` (the last of each) and other arguments.

    Switches may have no value: ``--config.FIELD`` is true, ``--noconfig.FIELD`` is false. Any
    other field takes the next argument as its value, None if there is none.
    """
    texts: dict[str, str | None] = {}
    others: list[str] = []
    kinds = {name: type(value) for name, value in config_lib.flatten(Config()).items()}
    remaining = iter(argv)
    for arg in remaining:
        name, equals, value = arg.lstrip("-").partition("=")
        field = name.removeprefix("no").removeprefix("config.")
        if arg == "--":
            others += [arg, *remaining]
        elif arg == f"--noconfig.{field}" and kinds.get(field) is bool:
            texts[field] = "false"
        elif not arg.startswith("-") or not name.startswith("config."):
            others.append(arg)
        elif equals:
            texts[field] = value
        elif kinds.get(field) is bool:
            texts[field] = "true"
        else:
            texts[field] = next(remaining, None)
    return texts, others


def changed(config: Config, texts: Mapping[str, str | None]) -> Config:
    """Copy of ``config`` with fields replaced by the texts of a command line.

    Raises:
      ConfigError: one line that names the flag.
    """
    fields = config_lib.flatten(config)
    groups = {name.rsplit(".", i)[0] for name in fields for i in range(1, name.count(".") + 1)}
    values = {}
    for name, text in texts.items():
        # Cut, so that the message stays readable whatever the value's length.
        shown = f"--config.{name}" + ("" if text is None else f" = {text!r:.80}")
        if name in groups:
            example = next(field for field in fields if field.startswith(f"{name}."))
            raise ConfigError(
                f"{shown}: is a group of fields, not a value; must be for example"
                f" --config.{example}={fields[example]}"
            )
        if name not in fields:
            hint = nearest.hint(name, fields, "--config.{}")
            raise ConfigError(f"{shown}: unknown field{hint or '; --help=all has a list'}")
        if text is None:
            raise ConfigError(f"{shown}: needs a value, for example {fields[name]}")
        try:
            values[name] = _parsed(type(fields[name]), text)
        except ValueError:
            kind = type(fields[name]).__name__
            raise ConfigError(f"{shown}: must be {kind}, for example {fields[name]}") from None
    return config_lib.replace(config, values)


def _parsed(kind: type, text: str) -> Any:
    if kind is bool:  # bool("false") is True
        if text.lower() not in ("true", "1", "false", "0"):
            raise ValueError
        return text.lower() in ("true", "1")
    if kind is not int:
        return kind(text)
    try:
        return int(text)
    except ValueError:
        number = float(text)  # 1e6, which int() rejects
        if not math.isfinite(number) or not number.is_integer():
            raise
        return int(number)
