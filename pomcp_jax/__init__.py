"""PO-MPC in pure JAX: a latent MPPI planner as the prior of a KL-regularised policy.

The planner is :mod:`pomcp_jax.mppi`, which does not depend on agents or environments;
configurations are :mod:`pomcp_jax.config` and :mod:`pomcp_jax.presets`; ``Trainer`` runs them, from
Python or as ``python -m experiments.run``; ``load_controller`` acts with what was trained.
Submodules load on first use, so that the planner does not import environments.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = (
    "acting",
    "agent",
    "checkpoint",
    "config",
    "controller",
    "envs",
    "evaluate",
    "losses",
    "maths",
    "mppi",
    "presets",
    "replay",
    "train",
    "world_model",
)
_NAMES = {
    "Config": "config",
    "ConfigError": "config",
    "Controller": "controller",
    "ModelFns": "mppi",
    "MppiConfig": "config",
    "PlanOutput": "mppi",
    "PlanState": "mppi",
    "Task": "envs",
    "Trainer": "running.trainer",
    "load_controller": "controller",
    "make_env": "envs",
}
__all__ = [*_MODULES, *_NAMES, "__version__"]  # noqa: PLE0604

# Type checkers and editors do not run ``__getattr__``; keep both lists equal.
if TYPE_CHECKING:
    from pomcp_jax import (  # noqa: F401
        acting,
        agent,
        checkpoint,
        config,
        controller,
        envs,
        evaluate,
        losses,
        maths,
        mppi,
        presets,
        replay,
        train,
        world_model,
    )
    from pomcp_jax.config import Config, ConfigError, MppiConfig  # noqa: F401
    from pomcp_jax.controller import Controller, load_controller  # noqa: F401
    from pomcp_jax.envs import Task, make_env  # noqa: F401
    from pomcp_jax.mppi import ModelFns, PlanOutput, PlanState  # noqa: F401
    from pomcp_jax.running.trainer import Trainer  # noqa: F401


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
