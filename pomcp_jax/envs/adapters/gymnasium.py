"""gymnasium environments as batches of ours: ``gym/HalfCheetah-v5``, ``gym/my_pkg:MyEnv-v0``.

A gymnasium environment lives on the host and is stateful, so there is no ``Task``: this module
makes the batched :class:`Env` itself. One call to the host steps the whole batch; episodes are
seeded from their row's own key, ``terminated`` and ``truncated`` are kept apart, last observations
are the true ones. Actions of ``[-1, 1]`` are scaled to the bounds of a box; observations are
flattened to float32. What an environment raises, and NaN, breaks its row only (``invalid``).

The state carries the name of each row's live environment, not the environment. One that is gone
(the run was resumed) is restored from bytes in the state if the environment can store itself, and
its episode begins again otherwise, with ``is_first``: no transition leads across.
"""

import contextlib
import functools
import importlib
import importlib.util
import json
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from pomcp_jax import nearest
from pomcp_jax.envs.adapters import gymnasium_rows as rows_lib
from pomcp_jax.envs.adapters.gymnasium_rows import (
    FIRST,
    FLAGS,
    INVALID,
    LENGTH,
    NAME,
    OBS,
    RETURN,
    REWARD,
    TERMINATED,
    TRUNCATED,
    Layout,
    Rows,
    Settings,
    one_line,
)
from pomcp_jax.envs.adapters.gymnasium_workers import Workers
from pomcp_jax.envs.host_call import host_call
from pomcp_jax.envs.protocol import Env, Outside, Scene, check_action_repeat
from pomcp_jax.types import Key, TimeStep

Stepped = Rows | Workers
"""Live environments, in this process or in others."""
_ENDLESS = ("HalfCheetah", "HumanoidStandup", "Pendulum", "Pusher", "Reacher", "Swimmer")
"""Environments of gymnasium whose episodes end at their time limit only."""


class Live(NamedTuple):
    """Names of the live environments of a batch, and what their last step returned."""

    rows: UInt[Array, "B W"]
    """As :class:`gymnasium_rows.Layout` says."""
    saved: UInt[Array, "B bytes"]
    """Stored environments, as of the latest snapshot; no entries if they cannot be stored."""


class HostState(NamedTuple):
    """Carry of the batch; every leaf has the leading axis ``B``."""

    task: Live
    key: Key
    """Key of each row, of which the seeds of its episodes are made; never changed."""


def _spec(name: str) -> Any:
    """Registration of an environment, after importing the module before the colon.

    Raises:
      ModuleNotFoundError: gymnasium is not installed.
      ValueError: the name is unknown, or its module cannot be imported.
    """
    if importlib.util.find_spec("gymnasium") is None:
        raise ModuleNotFoundError('gym/ environments need gymnasium: pip install "pomcp_jax[gym]"')
    import gymnasium

    module, colon, own = name.rpartition(":")
    if colon:
        if os.getcwd() not in sys.path:  # as for `python -m`, also where an entry point started
            sys.path.insert(0, os.getcwd())
        try:
            importlib.import_module(module)
        except Exception as error:  # the user's module may raise anything
            raise ValueError(
                f"gym/{name}: {module} cannot be imported: {one_line(error)}"
            ) from None
    try:
        with rows_lib.quiet():
            return gymnasium.spec(own)
    except Exception as error:
        if own in gymnasium.registry:
            raise ValueError(f"gym/{name}: {one_line(error)}") from None
        hint = nearest.hint(own, tuple(gymnasium.registry), "gym/{}")
        where = "gymnasium.registry has all names; gym/MODULE:NAME imports a module first"
        raise ValueError(f"unknown environment 'gym/{name}'{hint or f'; {where}'}") from None


def check_name(name: str) -> None:
    """Raise a one-line error unless gymnasium is installed and knows ``name``."""
    if _spec(name).max_episode_steps is None:
        raise ValueError(
            f"gym/{name}: has no time limit; gymnasium.register(..., max_episode_steps=N) sets one"
        )


def terminates(name: str) -> bool:
    """Whether episodes may end before their time limit: True unless that is known."""
    if name.partition("-")[0] not in _ENDLESS or importlib.util.find_spec("gymnasium") is None:
        return True
    import gymnasium

    # A user's own may have the same name.
    spec = gymnasium.registry.get(name)
    return spec is None or not str(spec.entry_point).startswith("gymnasium.envs.")


def _made(name: str, options: dict[str, Any]) -> tuple[Any, rows_lib.Hook | None]:
    """An environment and how it is stored, after a step to see what it returns.

    Raises:
      RuntimeError: it raises.
      ValueError: it returns what cannot be used.
    """
    try:
        env = rows_lib.make(name, options)
    except Exception as error:
        raise RuntimeError(f"gym/{name}: cannot be made: {one_line(error)}") from error
    doing, checked = "reset", False
    try:
        scale, (_, flat) = _spaces(env)
        obs, _ = rows_lib.unpacked(env.reset(seed=0), 2, "reset")
        flat(obs)
        doing = "step"
        middle = scale(np.zeros((1, len(scale.low)), np.float32))[0]
        obs, reward, *flags, _ = rows_lib.unpacked(env.step(middle), 5, "step")
        flat(obs), rows_lib.number(reward), [rows_lib.flag(x) for x in flags]
        doing = "reset"
        env.reset(seed=0)
        hook, checked = rows_lib.hook(env), True
        return env, hook
    except rows_lib.Unsuitable as error:
        raise ValueError(f"gym/{name}: {' '.join(str(error).split())}") from None
    except Exception as error:
        raise RuntimeError(f"gym/{name}: {doing} raises {one_line(error)}") from error
    finally:
        if not checked:
            _close_all([env])


def bounds(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest action ``[A]`` in the environment's units.

    Raises:
      RuntimeError: the environment cannot be made.
      ValueError: its action space has no finite bounds.
    """
    env = _made(name, {})[0]
    scale = rows_lib.actions(env.action_space)
    env.close()
    low, high = (x.astype(np.float32) for x in (scale.low, scale.high))
    # Rounded inwards: what is allowed in float64 may not be as a float32.
    low = np.where(low < scale.low, np.nextafter(low, np.float32(np.inf)), low)
    return low, np.where(high > scale.high, np.nextafter(high, np.float32(-np.inf)), high)


def _spaces(env: Any) -> tuple[rows_lib.Actions, tuple[int, rows_lib.Observe]]:
    return rows_lib.actions(env.action_space), rows_lib.observations(env.observation_space)


def _scene(env: Any, obs_size: int) -> Scene | None:
    """How to draw an environment on MuJoCo; None for all others."""
    core = env.unwrapped
    if type(getattr(core, "model", None)).__name__ != "MjModel" or not hasattr(core, "dt"):
        return None

    def pose(live: Live) -> dict[str, Array]:
        place = live.rows[OBS + obs_size :]
        return {"qpos": jax.lax.bitcast_convert_type(place, jnp.float32)}

    return Scene(core.model, pose, float(core.dt))


class _Host:
    """The live environments of one :class:`Env`, made when they are first needed.

    They are closed when they cannot be used any more, or the process ends.
    """

    def __init__(self, make: Callable[[], Stepped], notes: list[str]):
        self._make, self._notes, self._lock = make, notes, threading.Lock()
        self._rows: Stepped | None = None
        self._closes: Callable[[], Any] = lambda: None

    def rows(self) -> Stepped:
        with self._lock:
            if self._rows is None:
                self._rows = self._make()
                self._closes = weakref.finalize(self, self._rows.close)
            return self._rows

    def close(self) -> None:
        """Close all; later calls make new ones."""
        with self._lock:
            self._closes()
            self._rows = None

    def call(self, do: str, *arrays: np.ndarray) -> np.ndarray:
        """A method of the rows; what they have to say goes to the notes."""
        rows = self._rows if self._rows is not None else self.rows()
        result = getattr(rows, do)(*map(np.asarray, arrays))
        if rows.notes:
            self._notes += rows.notes
            rows.notes = []
        return result


def _check_sent(options: dict[str, Any]) -> None:
    """Refuse what would be something else, or nothing, in the process of a worker."""
    for name, value in options.items():
        try:
            kept = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError):
            kept = False
        if not kept:
            raise ValueError(
                f"{name} = {value!r}: must be what JSON keeps (numbers, texts, lists, dicts with"
                " texts as keys) where env.workers > 0"
            )


def make(name: str, action_repeat: int = 1, workers: int = 0, **options: Any) -> Env:
    """Batched environment.

    Args:
      name: of a registered environment, or ``module:name`` to import a module first.
      action_repeat: control steps of a decision; rewards are summed.
      workers: processes that hold the environments; 0 for the calling one.
      **options: further arguments of ``gymnasium.make``.

    Raises:
      ModuleNotFoundError: gymnasium is not installed.
      RuntimeError: the environment raises.
      ValueError: one line; the name is unknown, or its spaces or results cannot be used.
    """
    check_action_repeat(action_repeat)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise ValueError(f"workers must be an int of at least 0, got {workers!r}")
    if workers:
        _check_sent(options)
    limit = options.get("max_episode_steps")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"max_episode_steps must be an int of at least 1, got {limit!r}")
    if limit is None:
        check_name(name)
        limit = _spec(name).max_episode_steps
    env, hook = _made(name, options)
    scale, (size, _) = _spaces(env)
    scene = _scene(env, size)
    words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).size
    pose = 0 if scene is None else env.unwrapped.model.nq
    bytes_ = 0 if hook is None else hook.size + 4 * (words + NAME)
    layout = Layout(words, len(scale.low), size, pose, bytes_)
    settings = Settings(name, options, action_repeat, int(limit))
    notes: list[str] = []
    spaces = env.action_space, env.observation_space
    first = [env]
    if workers:
        first.pop().close()

    def prepared(layout: Layout) -> Stepped:
        if workers:
            return Workers(settings, layout, workers)
        rows = Rows(settings, layout, *spaces)
        # The first batch to be made gets the environment that was checked.
        if first:
            rows.adopt(first.pop())
        return rows

    weakref.finalize(prepared, _close_all, first)
    batched = _batched(settings, layout, scene, prepared, notes)
    assert batched.outside is not None
    close_live = batched.outside.close

    def close() -> None:
        close_live()
        _close_all(first)

    return batched._replace(outside=batched.outside._replace(close=close))


def _close_all(made: list[Any]) -> None:
    while made:
        with contextlib.suppress(Exception):
            made.pop().close()


def _batched(
    settings: Settings,
    layout: Layout,
    scene: Scene | None,
    prepared: Callable[[Layout], Stepped],
    notes: list[str],
) -> Env:
    host = _Host(lambda: prepared(layout), notes)

    begin, advance = functools.partial(host.call, "reset"), functools.partial(host.call, "step")

    def reset(keys: Key) -> tuple[HostState, TimeStep]:
        shape = len(keys), layout.row
        rows = host_call(begin, shape, jax.random.key_data(keys))
        saved = jnp.zeros((len(keys), layout.saved), jnp.uint8)
        return HostState(Live(rows, saved), keys), _timestep(layout, rows)

    def step(state: HostState, action: Float[Array, "B A"]) -> tuple[HostState, TimeStep]:
        rows, saved = state.task
        action = jnp.clip(action.astype(jnp.float32), -1.0, 1.0)
        # The rows before are an argument, which orders the calls.
        args = rows, jax.random.key_data(state.key), action, saved
        rows = host_call(advance, rows.shape, *args)
        return HostState(Live(rows, saved), state.key), _timestep(layout, rows)

    def snapshot(state: HostState) -> HostState:
        rows, saved = state.task
        if not layout.saved:
            return state
        args = rows, jax.random.key_data(state.key), saved
        stored = host.call("snapshot", *(np.asarray(x) for x in args))
        return state._replace(task=Live(rows, jax.device_put(stored, saved.sharding)))

    def take_notes() -> list[str]:
        lines, notes[:] = list(dict.fromkeys(notes)), []
        return lines

    def apart() -> Env:
        # Nothing restores an evaluation, so its state has no bytes of environments.
        return _batched(settings, layout._replace(saved=0), scene, prepared, notes)

    return Env(
        name=f"gym/{settings.name}",
        reset=reset,
        step=step,
        observation_size=layout.obs,
        action_size=layout.action,
        episode_length=math.ceil(settings.limit / settings.action_repeat),
        action_repeat=settings.action_repeat,
        terminates=terminates(settings.name),
        scene=scene,
        outside=Outside(apart, snapshot, take_notes, host.close),
    )


def _timestep(layout: Layout, rows: UInt[Array, "B W"]) -> TimeStep:
    flags = rows[:, FLAGS]
    values = jax.lax.bitcast_convert_type(rows[:, RETURN : OBS + layout.obs], jnp.float32)

    def has(flag: int) -> Array:
        return (flags & jnp.uint32(flag)) != 0

    return TimeStep(
        obs=values[:, OBS - RETURN :],
        reward=values[:, REWARD - RETURN],
        terminated=has(TERMINATED),
        truncated=has(TRUNCATED),
        is_first=has(FIRST),
        invalid=has(INVALID),
        episode_return=values[:, 0],
        episode_length=rows[:, LENGTH].astype(jnp.int32),
    )
