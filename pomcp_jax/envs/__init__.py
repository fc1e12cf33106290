"""Environments by name.

``make("cartpole-swingup")`` builds a batched :class:`Env`; ``make_task`` the
unbatched :class:`Task` below it. A task of one's own needs no name: write a
``Task`` and give it to :func:`make_env`.

Three families of names: dm_control's (``cartpole-swingup``), raw brax
environments (``brax/ant``) and probes with known values (``probe/constant``).
Physics engines are imported when a task is built, not before.
"""

import difflib
import importlib
from typing import Any

from pomcp_jax.envs.protocol import Env, EnvState, Task, check_action_repeat, make_env

__all__ = [
    "Env",
    "EnvState",
    "Task",
    "available",
    "check_action_repeat",
    "check_name",
    "make",
    "make_env",
    "make_task",
]

_DM_CONTROL = (
    "cartpole-balance",
    "cartpole-balance_sparse",
    "cartpole-swingup",
    "cartpole-swingup_sparse",
    "cheetah-run",
    "pendulum-swingup",
    "reacher-easy",
    "reacher-hard",
    "walker-run",
    "walker-stand",
    "walker-walk",
)
_BRAX = (
    "ant",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_double_pendulum",
    "inverted_pendulum",
    "pusher",
    "reacher",
    "walker2d",
)
_PROBES = ("action", "constant", "delayed", "lqr", "match", "nan", "observation", "truncated")


def available() -> tuple[str, ...]:
    """Every name that :func:`make` knows."""
    brax = tuple(f"brax/{name}" for name in _BRAX)
    return _DM_CONTROL + brax + tuple(f"probe/{name}" for name in _PROBES)


def check_name(name: str) -> None:
    """Raise a one-line ``ValueError`` unless ``name`` is known; builds nothing."""
    names = available()
    if name in names:
        return
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)
    raise ValueError(f"unknown environment {name!r}; the nearest known name is {close[0]!r}")


def make_task(name: str, **options: Any) -> Task:
    """The unbatched task of that name; ``options`` go to its builder (brax: ``backend``)."""
    check_name(name)
    family, slash, rest = name.partition("/")
    if not slash:
        domain, task = name.split("-")
        module = importlib.import_module(f"pomcp_jax.envs.tasks.{domain}")
        return module.make(task, **options)
    module = importlib.import_module(
        {"brax": "pomcp_jax.envs.brax", "probe": "pomcp_jax.envs.probes"}[family]
    )
    return module.make(rest, **options)


def make(name: str, action_repeat: int = 1, **options: Any) -> Env:
    """The batched environment of that name, each decision held for ``action_repeat`` steps."""
    check_name(name)
    check_action_repeat(action_repeat)
    return make_env(make_task(name, **options), action_repeat)
