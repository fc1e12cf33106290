"""Tasks of a user's own for commands that load a trained run: ``--task=MODULE:ATTRIBUTE``.

The name of a task is all that a run stores of it. A task that is part of no registry has to be
named by where its code is.
"""

import importlib
import os
import sys
from typing import Any

from pomcp_jax import envs
from pomcp_jax.acting import AgentSpec
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.envs import history
from pomcp_jax.envs.protocol import Env, Task, make_env
from pomcp_jax.running import crash


def given(task: str | None, config: Config, spec: AgentSpec) -> Env | None:
    """The environments of ``--task``; None without it, for a task of the registry.

    Args:
      task: value of the flag.
      config: of the run.
      spec: static part of its agent, with the sizes that the task must have.

    Raises:
      ValueError: one line; the run's task is unknown, or the one that is given does not fit.
    """
    name = config.env.task
    if task is None:
        try:
            envs.check_name(name)
        except ValueError:
            raise ValueError(
                f"env.task = {name!r}: is no task of this package; if it is one of your own,"
                " --task=MODULE:ATTRIBUTE names its code"
            ) from None
        return None
    env = _as_env(_attribute(task), config, f"--task = {task!r}")
    env = history.stacked(env, config.env.history)
    sizes = env.observation_size, env.action_size
    if sizes != (spec.obs_size, spec.action_size):
        raise ConfigError(
            f"--task = {task!r}: has {sizes[0]} observations and {sizes[1]} actions, the agent"
            f" {spec.obs_size} and {spec.action_size}"
        )
    if env.name != name:
        raise ConfigError(f"--task = {task!r}: is {env.name!r}, the run was trained on {name!r}")
    return env


def _attribute(task: str) -> Any:
    module, colon, attribute = task.partition(":")
    flag = f"--task = {task!r}"
    if not module or not attribute or "/" in module or module.endswith(".py"):
        raise ConfigError(f"{flag}: must be MODULE:ATTRIBUTE, for example my_tasks:reach")
    if os.getcwd() not in sys.path:  # as for `python -m`, also where an entry point started
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(f"{flag}: cannot be imported: {crash.one_line(error)}") from None


def _as_env(value: Any, config: Config, flag: str) -> Env:
    try:
        made = value() if callable(value) and not isinstance(value, Task | Env) else value
        if isinstance(made, Task):
            made = make_env(made, config.env.action_repeat)
    except Exception as error:
        raise ConfigError(f"{flag}: {crash.one_line(error)}") from None
    if not isinstance(made, Env):
        raise ConfigError(f"{flag}: is {type(made).__name__}; must be a Task, an Env or a function")
    return made
