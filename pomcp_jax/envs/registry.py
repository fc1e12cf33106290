"""Tasks of a user's own by name: registered, or found as ``MODULE:ATTRIBUTE``.

The value behind a name is a ``Task``, an ``Env``, or a function that returns one. The function is
called without positional arguments; of ``backend``, ``action_repeat`` and ``assets`` (unless empty)
it receives those that it has parameters for, with the values of the configuration.

Every error is one line (:class:`ConfigError`) that begins with the field or flag that has the name.
"""

import importlib
import inspect
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pomcp_jax import nearest
from pomcp_jax.envs.protocol import Env, Task, make_env
from pomcp_jax.errors import ConfigError

FORM = "MODULE:ATTRIBUTE, for example my_tasks:reach"
OFFERED = ("backend", "action_repeat", "assets")
"""Parameters that a function may have: fields of ``config.env``."""
ENV_TASK = "env.task"
"""Where a name comes from, for errors."""

# Names have to be known to functions that receive nothing but a configuration.
_registered: dict[str, Any] = {}
_traits: dict[str, tuple[Any, "Traits"]] = {}


class Traits(NamedTuple):
    """What configurations need to know of a task."""

    action_size: int
    terminates: bool | None
    backend: str | None
    """Default of the function's parameter ``backend``; None without one."""
    action_repeat: int | None
    """That of an ``Env``, which cannot be changed; None for a ``Task``."""


def register(name: str, make: Task | Env | Callable[..., Task | Env]) -> None:
    """Add a name; see :func:`pomcp_jax.envs.register`."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(
            f"register: name = {name!r:.100}: must be letters, digits, '_', '-' and '.'"
        )
    if not isinstance(make, Task | Env) and not callable(make):
        raise ValueError(
            f"register: {name!r} is {type(make).__name__}; must be a Task, an Env or a function"
            " that returns one"
        )
    _registered[name] = make


def registered() -> tuple[str, ...]:
    """Registered names, sorted."""
    return tuple(sorted(_registered))


def is_place(name: str) -> bool:
    """Whether a name has the form MODULE:ATTRIBUTE, as far as a colon says so."""
    return ":" in name


def find(name: str, field: str = ENV_TASK) -> Any:
    """The value of a registered name or of MODULE:ATTRIBUTE, whose module is imported.

    The current directory is importable, as with ``python -m``.

    Args:
      name: of the task.
      field: where it comes from, for errors.

    Raises:
      ConfigError: one line; the name is malformed, or its code cannot be found or imported.
    """
    if name in _registered:
        return _registered[name]
    what = f"{field} = {name!r}"
    dotted = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
    if not re.fullmatch(f"{dotted}:{dotted}", name) or name.partition(":")[0].endswith(".py"):
        raise ConfigError(f"{what}: must be {FORM}: dots instead of slashes, without .py")
    module_name, _, attribute = name.partition(":")
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        # The name may come from somebody else's run, and functions of Python's own do anything.
        raise ConfigError(f"{what}: {module_name} is a module of Python's own; must be {FORM}")
    module = _imported(module_name, what)
    value, reached = module, module_name
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            names = [known for known in dir(value) if not known.startswith("_")]
            hint = nearest.hint(part, names)
            raise ConfigError(f"{what}: {reached} has no {part!r}{hint}") from None
        reached = f"{reached}.{part}"
    return value


def _imported(name: str, what: str) -> Any:
    """The module called ``name``."""
    here = _here()
    if here and here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may be younger than the folder's listing
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"{what}: there is no module {error.name}{_alike(error.name)} (modules of"
                f" {here or 'the current folder'} and installed ones are found)"
            ) from None
        raise ConfigError(f"{what}: {name} cannot be imported: {said(error)}") from error
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ConfigError(f"{what}: {name} cannot be imported: {said(error)}") from error


def _here() -> str:
    """The current folder; empty if it has been deleted."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _alike(name: str) -> str:
    """Suggestion for a module that does not exist, from the folder in which it should be."""
    package, dot, _ = name.rpartition(".")
    path = getattr(sys.modules.get(package), "__path__", ()) if package else [_here()]
    found = [f"{package}{dot}{module.name}" for module in pkgutil.iter_modules(path)]
    return nearest.hint(name, found)


def said(error: BaseException) -> str:
    """``ValueError: text (file.py, line 3)``, with the last line outside of installed packages."""
    text = " ".join(str(error).split())[:300]
    shown = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError):  # its text names file and line
        return shown
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    others = ("site-packages", ours, os.path.dirname(os.__file__))
    lines = [
        f" ({os.path.basename(frame.filename)}, line {frame.lineno})"
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.isfile(frame.filename) and not any(part in frame.filename for part in others)
    ]
    return shown + (lines[-1] if lines else "")


def build(name: str, options: Mapping[str, Any] | None = None, field: str = ENV_TASK) -> Task | Env:
    """The task, or the environments, of a name.

    Args:
      name: registered, or MODULE:ATTRIBUTE.
      options: values of :data:`OFFERED` for a function that has such parameters; None calls it
        with its own defaults.
      field: where the name comes from, for errors.

    Raises:
      ConfigError: one line; also if the function raises, or returns something else.
    """
    what, value = f"{field} = {name!r}", find(name, field)
    if isinstance(value, Task | Env):
        return value
    if not callable(value):
        raise ConfigError(f"{what}: is {_kind(value)}; must be a Task, an Env or a function")
    wanted = _arguments(value, what)
    given = {key: x for key, x in (options or {}).items() if key in wanted}
    try:
        made = value(**given)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ConfigError(f"{what}: {said(error)}") from error
    if not isinstance(made, Task | Env):
        raise ConfigError(f"{what}: returns {_kind(made)}; must return a Task or an Env")
    return made


def _kind(value: Any) -> str:
    """Type of a value, with advice for what is often mistaken for a task."""
    if hasattr(value, "action_space") and hasattr(value, "reset"):
        return "a gymnasium environment (gym/ID and gym/MODULE:ID name those)"
    return type(value).__name__


def _arguments(function: Callable, what: str) -> dict[str, Any]:
    """Parameters of :data:`OFFERED` that a function has, with their defaults.

    Raises:
      ConfigError: it cannot be called with these alone.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # functions written in C may have no signature
        return {}
    empty, known = inspect.Parameter.empty, {}
    for parameter in parameters:
        is_extra = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is empty and not is_extra:
            raise ConfigError(
                f"{what}: has the parameter {parameter.name!r} without a default; must be callable"
                f" without arguments (it may have {', '.join(OFFERED)})"
            )
        if parameter.name in OFFERED and parameter.kind != parameter.POSITIONAL_ONLY:
            known[parameter.name] = parameter.default
    return known


def environments(name: str, options: Mapping[str, Any] | None = None, field: str = ENV_TASK) -> Env:
    """Checked environments of a name; arguments as of :func:`build`.

    Raises:
      ConfigError: one line; also if the task does not pass the checks of :func:`make_env`.
    """
    repeat = (options or {}).get("action_repeat", 1)
    return _checked(build(name, options, field), repeat, f"{field} = {name!r}")


def _checked(made: Task | Env, action_repeat: int, what: str) -> Env:
    if isinstance(made, Env):
        return made
    try:
        return make_env(made, action_repeat)
    except (Exception, SystemExit) as error:  # its functions are traced, and may raise anything
        # The checks' own lines name task and field.
        is_ours = str(error).startswith(f"task {made.name!r}: ")
        raise ConfigError(f"{what}: {error if is_ours else said(error)}") from error


def check_options(name: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse values of a configuration that the task of ``name`` would not see.

    Raises:
      ConfigError: one line that names the field and its value.
    """
    value = find(name)
    is_made = isinstance(value, Task | Env) or not callable(value)
    wanted = {} if is_made else _arguments(value, f"{ENV_TASK} = {name!r}")
    for key, given in options.items():
        if key not in wanted and given != defaults[key]:
            raise ConfigError(
                f"env.{key} = {given!r}: {name} is no function with a parameter {key!r}; must be"
                f" {defaults[key]!r}"
            )


def traits(name: str) -> Traits:
    """What is known of a task once it is built, by a function with its own defaults.

    Raises:
      ConfigError: one line.
    """
    value = find(name)
    # A module that was reloaded, or a name that was registered again, has another value.
    if name not in _traits or _traits[name][0] is not value:
        what, made = f"{ENV_TASK} = {name!r}", build(name)
        env = _checked(made, 1, what)
        default = None if isinstance(value, Task | Env) else _arguments(value, what).get("backend")
        _traits[name] = (
            value,
            Traits(
                env.action_size,
                env.terminates,
                default if isinstance(default, str) else None,
                env.action_repeat if isinstance(made, Env) else None,
            ),
        )
    return _traits[name][1]
