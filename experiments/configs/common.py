"""What all configuration files share: a preset, a model size and changes, as a ConfigDict."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import ml_collections

from pomcp_jax import config as config_lib
from pomcp_jax import envs, nearest, presets
from pomcp_jax.config import Config, ConfigError


def narrow_bins(argument: str | None) -> dict[str, Any]:
    """Bins from -5 to 5 in symlog space for dm_control's tasks, whose rewards end at 1.

    Their values stay below 147 then, if the discount is at most 0.99. Nothing is known of other
    tasks: they keep the default range.
    """
    if "/" in (argument or "").split(",")[0]:
        return {}
    names = ("num_bins", "bin_low", "bin_high")
    return {f"agent.world_model.{k}": v for k, v in zip(names, (51, -5.0, 5.0), strict=True)}


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
    """The configuration of ``--config=FILE.py:task,preset``.

    Args:
      argument: what stands behind the colon: ``task``, ``task,preset`` or ``,preset``.
      changes: dotted fields of :class:`pomcp_jax.Config` that differ from the preset.
      task: default task.
      preset: default preset.
      size: of the world model.
      tasks: names that this file offers; all by default.
      tuned: further changes for single presets.

    Raises:
      ConfigError: for an unknown task or preset, with the nearest name.
    """
    parts = (argument or "").split(",")
    if len(parts) > 2:
        raise ConfigError(
            f"config argument = {argument!r}: must be 'task', 'task,preset' or ',preset'"
        )
    task = parts[0] or task
    preset = (parts[1] if len(parts) == 2 else "") or preset
    known = tuple(tasks or envs.available())
    if task not in known:
        hint = nearest.hint(task, known)
        raise ConfigError(f"task = {task!r}: unknown{hint} (tasks: {', '.join(known)})")
    agent = presets.with_size(presets.get(preset), size)
    changes = {"env.task": task, **changes, **tuned.get(preset, {})}
    config = config_lib.replace(Config(agent=agent), changes)
    return ml_collections.ConfigDict(config_lib.to_dict(config))
