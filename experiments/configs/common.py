"""Shared code of the configuration files: preset, size, task and changes as a ConfigDict."""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_collections

from pomcp_jax import config as config_lib
from pomcp_jax import envs, nearest, presets
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.envs import registry

FORM = "'task', 'task,preset' or 'task,preset,size', where each may be empty"


class Argument(NamedTuple):
    """Parts of the text behind the colon of ``--config=FILE.py:task,preset,size``."""

    task: str = ""
    preset: str = ""
    size: str = ""


def split(argument: str | None) -> Argument:
    """Parts of an argument; missing parts are "".

    Raises:
      ConfigError: for more than three parts.
    """
    parts = (argument or "").split(",")
    if len(parts) > 3:
        raise ConfigError(f"config argument = {argument!r}: must be {FORM}")
    return Argument(*parts)


def make(
    argument: str | None,
    changes: Mapping[str, Any],
    *,
    task: str = "cartpole-swingup",
    preset: str = "po_mpc",
    size: str = "5M",
    tasks: Iterable[str] | None = None,
    tuned: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> ml_collections.ConfigDict:
    """Configuration of ``--config=FILE.py:task,preset,size``.

    Args:
      argument: text behind the colon; each part may be missing or empty.
      changes: dotted fields of :class:`pomcp_jax.Config` that differ from the preset. A size in
        ``argument`` overrides the fields that it determines, and the task those of
        :func:`of_task`.
      task: default task.
      preset: default preset.
      size: default size of the world model.
      tasks: names that this file accepts beside tasks of one's own; all by default.
      tuned: further changes for single presets.

    Raises:
      ConfigError: for an unknown task, preset or size, with the nearest name.
    """
    asked = split(argument)
    task, preset = asked.task or task, asked.preset or preset
    known = tuple(tasks or envs.available())
    # gymnasium's registry is asked when the configuration is checked.
    is_gym = tasks is None and task.startswith("gym/")
    if envs.is_own(task):
        envs.check_name(task)
    elif task not in known and not is_gym:
        hint = nearest.hint(task, (*known, *registry.registered()))
        raise ConfigError(
            f"task = {task!r}: unknown{hint} (python -m experiments.run --help=tasks lists all; a"
            " task of your own is MODULE:ATTRIBUTE)"
        )
    agent = presets.with_size(presets.get(preset), asked.size or size)
    if asked.size:  # the user's choice is more specific than the file's
        sized = {f"agent.world_model.{name}" for name in presets.SIZE_FIELDS}
        changes = {name: value for name, value in changes.items() if name not in sized}
    changes = {"env.task": task, **changes, **tuned.get(preset, {})}
    changes |= of_task(task, changes.get("env.action_repeat"))
    config = config_lib.replace(Config(agent=agent), changes)
    return ml_collections.ConfigDict(config_lib.to_dict(config))


def more_iterations(task: str) -> int:
    """Iterations that [TD-MPC2]'s ``tdmpc2.py`` adds where A >= 20; BMPC and BOOM do too."""
    return 2 if (envs.about(task).action_size or 0) >= 20 else 0


def of_task(task: str, action_repeat: int | None = None) -> dict[str, Any]:
    """What a task requires of its configuration, whatever the file.

    Args:
      task: its name.
      action_repeat: of the file; replaced by 1 where the literature repeats no action, and by that
        of an ``Env`` of one's own.

    Raises:
      ConfigError: one line; a task of one's own cannot be found or built.
    """
    about = envs.about(task)
    changes: dict[str, Any] = {}
    if about.backend is not None:
        changes["env.backend"] = about.backend
    if about.terminates:
        # Bodies that fall end their episode; a model that does not know plans past the end.
        changes["agent.world_model.termination"] = True
    if about.is_repeat_fixed:
        changes["env.action_repeat"] = about.action_repeat
    elif action_repeat is not None:
        changes["env.action_repeat"] = 1 if about.action_repeat == 1 else action_repeat
    return changes


def make_small(
    argument: str | None, changes: Mapping[str, Any], preset: str = "po_mpc"
) -> ml_collections.ConfigDict:
    """Small agent with four environments for two CPU cores; ``changes`` override its fields.

    Chosen by measurement (docs/notebook.md, 2026-11-23): per decision the tiny world model learns
    cartpole-swingup nearly as well as larger ones at a third of the cost, and a plan of two steps
    nearly as well as one of three; the time saved pays for more updates. A value horizon of 50
    decisions (one second) and faster target networks suit so short a training.
    """
    shared = {
        "env.action_repeat": 2,
        "env.num_envs": 4,
        "agent.mppi.horizon": 2,
        "agent.mppi.num_samples": 128,
        "agent.mppi.num_elites": 16,
        "agent.mppi.num_proposals": 16,
        "agent.mppi.iterations": 3 + more_iterations(split(argument).task),
        "agent.optimizer.batch_size": 128,
        # 6e-4 and 2e-3 learned more slowly (docs/notebook.md).
        "agent.optimizer.learning_rate": 1e-3,
        "agent.optimizer.encoder_rate_scale": 1.0,
        "agent.optimizer.target_rate": 0.03,
        # TD-MPC2's rule gives 0.99 here, which learned more slowly (docs/notebook.md).
        "agent.optimizer.discount": 0.98,
        "train.seed_decisions": 1_000,
        "train.pretrain_updates": 500,
    }
    # The paper's weakest strength; 0.3 and 1 learned more slowly (docs/notebook.md).
    tuned = {"po_mpc": {"agent.policy.kl_coef": 0.1}}
    changes = shared | dict(changes)
    largest = changes["env.action_repeat"] / (1.0 - changes["agent.optimizer.discount"])
    changes = _narrow_bins(split(argument).task, largest) | changes
    return make(argument, changes, preset=preset, size="tiny", tuned=tuned)


def _narrow_bins(task: str, largest: float) -> dict[str, Any]:
    """Bins for values up to ``largest`` in symlog space, for dm_control's tasks.

    Their rewards are at most 1 per frame. The outermost bins are whole numbers, and the first that
    leave room: ±5 decode to ±147, ±6 to ±402. Rewards of other tasks have no known bound: these
    tasks keep the default range.
    """
    if "/" in task or envs.is_own(task):
        return {}
    bound = float(math.ceil(math.log1p(largest)))
    return {
        "agent.world_model.num_bins": int(10 * bound) + 1,
        "agent.world_model.bin_low": -bound,
        "agent.world_model.bin_high": bound,
    }
