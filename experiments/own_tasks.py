"""Tasks of a user's own in command lines: what they change in a configuration, and ``--task``."""

from experiments import config_files
from experiments.configs import common
from pomcp_jax import config as config_lib
from pomcp_jax import envs
from pomcp_jax.acting import AgentSpec
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.envs import history, registry
from pomcp_jax.envs.protocol import Env

AGAIN = "--task=MODULE:ATTRIBUTE names its code"


def named(path: str, argument: str | None, task: str | None) -> tuple[str | None, bool]:
    """Argument of a configuration file once ``--config.env.task=`` names a task of one's own.

    Files of this distribution choose values by their task: they are asked for this one.

    Args:
      path: of the file.
      argument: given behind its colon; None without one.
      task: value of the flag; None without it.

    Returns:
      The argument, and whether :func:`with_facts` must follow because the file was not asked.
    """
    if task is None or not envs.is_own(task):
        return argument, False
    if not config_files.is_ours(path):
        return argument, True
    return ",".join([task, *(argument or "").split(",")[1:]]), False


def with_facts(config: Config, task: str) -> Config:
    """``config`` with what a task of one's own requires, for a file that was not asked for it.

    Raises:
      ConfigError: one line; the task cannot be found or built.
    """
    return config_lib.replace(config, {"env.task": task} | common.of_task(task))


def given(task: str | None, config: Config, spec: AgentSpec) -> Env | None:
    """The environments of ``--task``; None without it, for a task that its name finds.

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
        except ConfigError as error:
            raise ConfigError(f"{error}; if it has moved, {AGAIN}") from None
        except ValueError:
            raise ValueError(
                f"env.task = {name!r}: is no task of this package; if it is one of your own,"
                f" {AGAIN}"
            ) from None
        return None
    options = {"backend": config.env.backend, "action_repeat": config.env.action_repeat}
    if config.env.assets:
        options["assets"] = config.env.assets
    env = registry.environments(task, options, "--task")
    env = history.stacked(env, config.env.history)
    check_sizes(env, spec, f"--task = {task!r}")
    # A name that says where the code was, or that this module has registered, is no task's own.
    if env.name != name and not envs.is_own(name):
        raise ConfigError(f"--task = {task!r}: is {env.name!r}, the run was trained on {name!r}")
    return env


def check_sizes(env: Env, spec: AgentSpec, what: str) -> None:
    """Refuse environments that an agent was not trained on.

    Raises:
      ConfigError: names the sizes of both.
    """
    sizes = env.observation_size, env.action_size
    if sizes != (spec.obs_size, spec.action_size):
        raise ConfigError(
            f"{what}: has {sizes[0]} observations and {sizes[1]} actions, the agent"
            f" {spec.obs_size} and {spec.action_size}"
        )
