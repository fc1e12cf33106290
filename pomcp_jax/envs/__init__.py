"""Environments by name.

``make("cartpole-swingup")`` builds a batched :class:`Env`; ``make_task`` the
unbatched :class:`Task` below it. A task of your own is named by where it is,
``my_tasks:reach``, or by :func:`register`; it needs no name if you pass its :class:`Env`, from
:func:`make_env`, to the trainer.

There are six families of names: dm_control's (``cartpole-swingup``), HumanoidBench's
(``humanoid/h1hand-walk``, on the model files of a user's checkout), raw brax environments
(``brax/ant``), MuJoCo Playground's (``playground/CheetahRun``, if it is installed), gymnasium's
(``gym/HalfCheetah-v5``, if it is installed) and probes with known values (``probe/constant``).
MuJoCo, brax, Playground and gymnasium are imported only when a task of theirs is built.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax import nearest
from pomcp_jax.envs import registry
from pomcp_jax.envs.importing import load_mujoco, load_suite
from pomcp_jax.envs.mujoco_rules import Body
from pomcp_jax.envs.own_model import mujoco_task
from pomcp_jax.envs.physics import Start
from pomcp_jax.envs.protocol import (
    Env,
    EnvState,
    Scene,
    Task,
    check_action_repeat,
    full_precision,
    make_env,
)
from pomcp_jax.errors import ConfigError

__all__ = [
    "About",
    "Body",
    "Env",
    "EnvState",
    "Scene",
    "Start",
    "Task",
    "about",
    "action_bounds",
    "available",
    "check_action_repeat",
    "check_assets",
    "check_backend",
    "check_name",
    "check_workers",
    "dm_control_tasks",
    "full_precision",
    "is_own",
    "make",
    "make_env",
    "make_task",
    "mujoco_task",
    "register",
    "to_gymnasium",
]

_BENCHMARK = {
    "acrobot": ("swingup",),
    "ball_in_cup": ("catch",),
    "cartpole": ("balance", "balance_sparse", "swingup", "swingup_sparse"),
    "cheetah": ("run",),
    "dog": ("run", "stand", "trot", "walk"),
    "finger": ("spin", "turn_easy", "turn_hard"),
    "fish": ("swim",),
    "hopper": ("hop", "stand"),
    "humanoid": ("run", "stand", "walk"),
    "pendulum": ("swingup",),
    "quadruped": ("run", "walk"),
    "reacher": ("easy", "hard"),
    "walker": ("run", "stand", "walk"),
}
"""The 28 tasks in the DMControl tables of TD-MPC2, BMPC and PO-MPC."""
_MORE = {
    "acrobot": ("swingup_sparse",),
    "fish": ("upright",),
    "humanoid_CMU": ("run", "stand", "walk"),
    "point_mass": ("easy",),
    "swimmer": ("swimmer15", "swimmer6"),
}
"""Other tasks of dm_control."""
_TDMPC2 = {
    "ball_in_cup": ("spin",),
    "cheetah": ("jump", "run_back", "run_backwards", "run_front", "stand_back", "stand_front"),
    "hopper": ("hop_backwards",),
    "pendulum": ("spin",),
    "walker": ("run_backwards", "walk_backwards"),
}
"""Tasks that TD-MPC2 defines on dm_control's models."""
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
_ROBOTS = {"h1": 19, "h1hand": 61}
"""HumanoidBench's robots and their numbers of actions."""
_FALLS = {
    **dict.fromkeys(("walk", "stand", "run"), True),
    **dict.fromkeys(("reach", "crawl"), False),
    **dict.fromkeys(("hurdle", "maze", "sit_simple", "sit_hard"), True),
    **dict.fromkeys(("balance_simple", "balance_hard", "stair", "slide", "pole"), True),
}
"""HumanoidBench's locomotion tasks, and whether a fall ends an episode."""
_HUMANOID = tuple(f"humanoid/{robot}-{task}" for robot in _ROBOTS for task in _FALLS)
_MANY_ACTIONS = {"dog": 38, "humanoid": 21, "humanoid_CMU": 56}
"""Domains of dm_control with 20 actions or more."""
_FAMILIES = {
    "brax": "adapters.brax",
    "gym": "adapters.gymnasium",
    "humanoid": "humanoid_bench.tasks",
    "playground": "adapters.playground",
    "probe": "probes",
}
"""Module of each family."""
_PROBES = ("action", "constant", "delayed", "lqr", "match", "nan", "observation", "truncated")


class About(NamedTuple):
    """What is known of a task before it is built; None: unknown, or not the same for all engines.

    Configuration files choose their values by it.
    """

    action_size: int | None = None
    """Number of actions; dm_control's is known where it is 20 or more."""
    action_repeat: int | None = None
    """Action repeat of the literature."""
    terminates: bool | None = None
    """Whether episodes can end before their time limit."""
    backend: str | None = None
    """The only physics backend of the task; of a task of one's own, its function's default."""
    is_repeat_fixed: bool = False
    """Whether ``action_repeat`` cannot be chosen: the task is an :class:`Env` of one's own."""


def about(name: str) -> About:
    """What is known of the task called ``name`` before it is built; nothing of unknown names.

    A task of one's own is built to know it.

    Raises:
      ConfigError: one line; a task of one's own cannot be found or built.
    """
    if is_own(name):
        known = registry.traits(name)
        repeat = known.action_repeat
        return About(known.action_size, repeat, known.terminates, known.backend, bool(repeat))
    if name in _HUMANOID:
        robot, _, task = name.partition("/")[2].partition("-")
        return About(_ROBOTS[robot], 1, _FALLS[task], "host")
    if name in dm_control_tasks():
        return About(_MANY_ACTIONS.get(name.partition("-")[0]), 2, False)
    if name.startswith("gym/"):
        return About(None, 1, _module("gym").terminates(name.partition("/")[2]))
    return About()


def dm_control_tasks(*, extra: bool = True) -> tuple[str, ...]:
    """The 28 benchmark tasks, sorted; with ``extra`` followed by all others, sorted too."""

    def names(table: dict[str, tuple[str, ...]]) -> list[str]:
        return [f"{domain}-{task}" for domain, tasks in table.items() for task in tasks]

    more = sorted(names(_MORE) + names(_TDMPC2)) if extra else []
    return tuple(sorted(names(_BENCHMARK)) + more)


def available() -> tuple[str, ...]:
    """Every name that :func:`make` knows, except Playground's and gymnasium's."""
    # Listing Playground's would import it, even to build a pendulum.
    brax = tuple(f"brax/{name}" for name in _BRAX)
    return dm_control_tasks() + _HUMANOID + brax + tuple(f"probe/{name}" for name in _PROBES)


def is_own(name: str) -> bool:
    """Whether ``name`` is a task of one's own: registered, or of the form MODULE:ATTRIBUTE.

    Names of the package's families may have colons: ``gym/my_package:MyEnv-v0``.
    """
    name = str(name)
    family, slash, _ = name.partition("/")
    if slash and family in ("gym", *_FAMILIES):
        return False
    return registry.is_place(name) or name in registry.registered()


def register(name: str, make: Task | Env | Callable[..., Task | Env]) -> None:
    """Give a task of one's own a name that configurations and :func:`make` know.

    The name lasts as long as the process; a later call with the same name replaces the task. Files
    of runs remember names only, so a command that loads such a run has to import the module that
    registers it, or be given ``--task=MODULE:ATTRIBUTE``.

    Args:
      name: letters, digits, ``_``, ``-`` and ``.``; none of the package's names.
      make: the task, its environments, or a function that returns one of them.

    Raises:
      ValueError: one line; the name is malformed or taken, or what is registered is none of these.
    """
    if name in available():
        raise ValueError(f"register: name = {name!r}: is a task of the package; must be another")
    registry.register(name, make)


def check_name(name: str) -> None:
    """Raise a one-line ``ValueError`` unless ``name`` is known; builds nothing.

    The module of a name of the form MODULE:ATTRIBUTE is imported.
    """
    if is_own(name):
        registry.find(name)
        return
    family, _, own = str(name).partition("/")
    if family in ("gym", "playground"):
        # Their own registries are the only lists of their names; this imports them, builds nothing.
        _module(family).check_name(own)
        return
    names = available()
    if name in names:
        return
    hint = nearest.hint(name, (*names, *registry.registered()))
    raise ValueError(f"unknown environment {name!r}{hint or '; envs.available() has all names'}")


def check_backend(name: str, backend: str) -> None:
    """Raise a one-line ``ValueError`` unless the environment supports that physics backend."""
    if is_own(name):
        registry.check_options(name, {"backend": backend}, {"backend": "mjx"})
        return
    known = {
        "": ("mjx", "host", "warp"),
        "brax": ("mjx", "spring", "positional", "generalized"),
        "gym": ("host", "mjx"),  # both mean gymnasium's own physics; mjx is the default
        "humanoid": ("host",),
        "playground": ("mjx", "warp"),
    }
    choices = known.get(name.split("/")[0] if "/" in name else "", ("mjx",))
    if backend not in choices:
        raise ValueError(f"{name} has the backend {' or '.join(choices)}, not {backend!r}")


def check_workers(name: str, workers: int) -> None:
    """Raise a one-line ``ValueError`` if ``workers`` processes have nothing to hold."""
    if workers and name.partition("/")[0] != "gym":
        raise ValueError(f"{name} runs in no process of its own; must be 0")


def check_assets(name: str, assets: str) -> None:
    """Raise a one-line error unless the files that the environment reads can be found.

    Args:
      name: a known name.
      assets: folder of the files; "" for the usual places.

    Raises:
      FileNotFoundError: says what to clone and what to set.
      ValueError: the environment reads no files, but a folder is given.
    """
    if is_own(name):
        registry.check_options(name, {"assets": assets}, {"assets": ""})
    elif name.partition("/")[0] == "humanoid":
        importlib.import_module("pomcp_jax.envs.humanoid_bench.models").find(assets)
    elif assets:
        raise ValueError(f"{name} reads no files; must be ''")


def make_task(name: str, backend: str = "mjx", **options: Any) -> Task:
    """Unbatched task of that name.

    Args:
      name: one of :func:`available`, Playground's, or a task of one's own.
      backend: physics: ``mjx``; for dm_control's tasks also ``host`` (MuJoCo's C code on the CPU)
        and ``warp`` (for NVIDIA GPUs); for brax also its own pipelines.
      **options: passed to the builder of the task's family; for HumanoidBench's tasks ``assets``,
        the folder of a checkout.

    Raises:
      FileNotFoundError: files that the task reads are missing.
      ValueError: for an unknown name or backend.
    """
    check_name(name)
    check_backend(name, backend)
    if is_own(name):
        made = registry.build(name, {"backend": backend, **options})
        if isinstance(made, Env):
            raise ConfigError(f"env.task = {name!r}: is an Env, not a Task; envs.make takes it")
        return made
    family, slash, own_name = name.partition("/")
    if family == "gym":
        raise ValueError(f"{name} lives on the host and is no Task; make() gives the Env")
    if not slash:
        # First, because some domains' modules import mujoco at the top, where a broken GL library
        # would raise.
        load_mujoco()
        domain, task = name.split("-")
        module = importlib.import_module(f"pomcp_jax.envs.dm_control.tasks.{domain}")
        return full_precision(module.make(task, backend, **options), trusted=True)
    if family == "brax":
        options = {"backend": backend, **options}
    if family == "playground":
        options = {"impl": {"mjx": "jax"}.get(backend, backend), **options}
    return full_precision(_module(family).make(own_name, **options), trusted=True)


def _module(family: str) -> Any:
    return importlib.import_module(f"pomcp_jax.envs.{_FAMILIES[family]}")


def make(name: str, action_repeat: int = 1, backend: str = "mjx", **options: Any) -> Env:
    """Batched environment of that name; each decision lasts ``action_repeat`` control steps."""
    # All checks come first: building a task compiles a model and may take seconds.
    check_name(name)
    check_backend(name, backend)
    check_action_repeat(action_repeat)
    if is_own(name):
        own = {"backend": backend, "action_repeat": action_repeat, **options}
        env = registry.environments(name, own)
        if env.action_repeat != action_repeat:
            raise ConfigError(
                f"env.action_repeat = {action_repeat}: {name} is an Env made with"
                f" {env.action_repeat}; must be the same"
            )
        return env
    family, _, own_name = name.partition("/")
    if family == "gym":
        return _module(family).make(own_name, action_repeat, **options)
    return make_env(make_task(name, backend, **options), action_repeat)


def to_gymnasium(
    env: str | Task | Env,
    num_envs: int = 1,
    *,
    action_repeat: int = 1,
    backend: str = "mjx",
    seed: int = 0,
    **options: Any,
) -> Any:
    """A ``gymnasium.vector.VectorEnv`` of ``num_envs`` rows, for agents of other libraries.

    Args:
      env: a name for :func:`make`, a ``Task``, or an ``Env``, whose own repeat counts.
      num_envs: rows of the batch.
      action_repeat: control steps of a decision.
      backend: physics.
      seed: of the first ``reset`` without one.
      **options: as for :func:`make`.

    Raises:
      ModuleNotFoundError: gymnasium is not installed.
    """
    if importlib.util.find_spec("gymnasium") is None:
        raise ModuleNotFoundError('to_gymnasium needs gymnasium: pip install "pomcp_jax[gym]"')
    vector = importlib.import_module("pomcp_jax.envs.adapters.vector_env").Vector
    if isinstance(env, str):
        own = make(env, action_repeat, backend, **options)
        return vector(own, num_envs, seed, owns=True)
    if isinstance(env, Task):
        env = make_env(env, action_repeat)
    return vector(env, num_envs, seed)


def action_bounds(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest action ``[A]`` of a task of dm_control or gymnasium, in its own units.

    Actions of our tasks are always in ``[-1, 1]``, which is scaled to these bounds.

    Raises:
      ValueError: for all other tasks.
    """
    if not is_own(name):  # whose code must not run for this
        check_name(name)
    if name.startswith("gym/"):
        return _module("gym").bounds(name.partition("/")[2])
    if "/" in name or is_own(name):
        raise ValueError(f"{name}: its bounds are not known; give bounds=(low, high)")
    suite = load_suite()
    domain, _, task = name.partition("-")
    # TD-MPC2's tasks are not in dm_control; they keep the actuators of their domain's other tasks.
    known = [own for own_domain, own in suite.ALL_TASKS if own_domain == domain]
    spec = suite.load(domain, task if task in known else known[0]).action_spec()
    return spec.minimum.copy(), spec.maximum.copy()
