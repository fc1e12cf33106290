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

import importlib
import importlib.util
import math
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from pomcp_jax import nearest
from pomcp_jax.envs.adapters import gymnasium_rows as rows_lib
from pomcp_jax.envs.adapters.gymnasium_rows import (
    ENDED,
    FAULT,
    FIRST,
    INVALID,
    NAME,
    OVER,
    TERMINATED,
    TRUNCATED,
    Layout,
    Rows,
    Settings,
    one_line,
)
from pomcp_jax.envs.adapters.gymnasium_workers import Workers
from pomcp_jax.envs.adapters.host_call import host_call
from pomcp_jax.envs.protocol import Env, EnvState, Outside, Scene, check_action_repeat
from pomcp_jax.types import Key, TimeStep

Stepped = Rows | Workers
"""Live environments, in this process or in others."""
_ENDLESS = ("HalfCheetah", "HumanoidStandup", "Pendulum", "Pusher", "Reacher", "Swimmer")
"""Environments of gymnasium whose episodes end at their time limit only."""


class Live(NamedTuple):
    """Names of the live environments of a batch; the leaf ``task`` of an ``EnvState``."""

    name: UInt[Array, "B 3"]
    """Episode, control steps, checksum of all actions and results."""
    pose: Float[Array, "B Q"]
    """MuJoCo's positions, for renderers; no entries for other environments."""
    saved: UInt[Array, "B bytes"]
    """Stored environments, as of the latest snapshot; no entries if they cannot be stored."""


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
    return name.partition("-")[0] not in _ENDLESS


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
    doing = "reset"
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
        return env, rows_lib.hook(env)
    except rows_lib.Unsuitable as error:
        raise ValueError(f"gym/{name}: {' '.join(str(error).split())}") from None
    except Exception as error:
        raise RuntimeError(f"gym/{name}: {doing} raises {one_line(error)}") from error


def _spaces(env: Any) -> tuple[rows_lib.Actions, tuple[int, rows_lib.Observe]]:
    return rows_lib.actions(env.action_space), rows_lib.observations(env.observation_space)


def _scene(env: Any) -> Scene | None:
    """How to draw an environment of gymnasium's on MuJoCo; None for all others."""
    core = env.unwrapped
    if type(getattr(core, "model", None)).__name__ != "MjModel" or not hasattr(core, "dt"):
        return None
    return Scene(core.model, lambda live: {"qpos": live.pose}, float(core.dt))


class _Host:
    """The live environments of one :class:`Env`, made when they are first needed."""

    def __init__(self, make: Callable[[], Stepped], notes: list[str]):
        self._make, self._notes, self._lock = make, notes, threading.Lock()
        self._rows: Stepped | None = None

    def rows(self) -> Stepped:
        with self._lock:
            if self._rows is None:
                self._rows = self._make()
            return self._rows

    def _noted(self, result: np.ndarray) -> np.ndarray:
        rows = self.rows()
        if rows.notes:
            self._notes += rows.notes
            rows.notes = []
        return result

    def reset(self, keys: np.ndarray) -> np.ndarray:
        return self._noted(self.rows().reset(np.asarray(keys)))

    def step(self, requests: np.ndarray, saved: np.ndarray) -> np.ndarray:
        return self._noted(self.rows().step(np.asarray(requests), np.asarray(saved)))

    def snapshot(self, names: np.ndarray, saved: np.ndarray) -> np.ndarray:
        return self._noted(self.rows().snapshot(names, saved))


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
    limit = options.get("max_episode_steps")
    if limit is None:
        check_name(name)
        limit = _spec(name).max_episode_steps
    env, hook = _made(name, options)
    scale, (size, _) = _spaces(env)
    scene = _scene(env)
    words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).size
    pose = 0 if scene is None else env.unwrapped.model.nq
    bytes_ = 0 if hook is None else hook.size + 4 * (words + NAME)
    layout = Layout(words, len(scale.low), size, pose, bytes_)
    settings, notes = Settings(name, options, action_repeat, int(limit)), []
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

    return _batched(settings, layout, scene, prepared, notes)


def _batched(
    settings: Settings,
    layout: Layout,
    scene: Scene | None,
    prepared: Callable[[Layout], Stepped],
    notes: list[str],
) -> Env:
    host = _Host(lambda: prepared(layout), notes)

    def reset(keys: Key) -> tuple[EnvState, TimeStep]:
        reply = host_call(host.reset, (len(keys), layout.reply), jax.random.key_data(keys))
        saved = jnp.zeros((len(keys), layout.saved), jnp.uint8)
        zero = jnp.zeros(len(keys), jnp.float32)
        return _read(layout, keys, reply, saved, jnp.zeros_like(zero, jnp.int32), zero)

    def step(state: EnvState, action: Float[Array, "B A"]) -> tuple[EnvState, TimeStep]:
        finite = jnp.all(jnp.isfinite(action), axis=1)
        action = jnp.where(finite[:, None], action, jnp.zeros_like(action))
        flags = jnp.where(state.is_last, ENDED, 0) | jnp.where(finite, 0, FAULT)
        request = [
            jax.random.key_data(state.key),
            state.task.name,
            flags.astype(jnp.uint32)[:, None],
            jax.lax.bitcast_convert_type(action.astype(jnp.float32), jnp.uint32),
        ]
        shape = len(action), layout.reply
        saved = state.task.saved
        reply = host_call(host.step, shape, jnp.concatenate(request, axis=1), saved)
        return _read(layout, state.key, reply, saved, state.decisions, state.episode_return)

    def snapshot(state: EnvState) -> EnvState:
        live = state.task
        if not layout.saved:
            return state
        words = np.asarray(jax.random.key_data(state.key)), np.asarray(live.name)
        saved = host.snapshot(np.concatenate(words, axis=1), np.asarray(live.saved))
        return state._replace(task=live._replace(saved=jax.device_put(saved, live.saved.sharding)))

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
        outside=Outside(apart, snapshot, take_notes),
    )


def _read(
    layout: Layout,
    key: Key,
    reply: UInt[Array, "B W"],
    saved: UInt[Array, "B bytes"],
    decisions: Array,
    episode_return: Array,
) -> tuple[EnvState, TimeStep]:
    """State and time step from a reply of the host, and what the episode had so far."""
    flags, values = reply[:, NAME], jax.lax.bitcast_convert_type(reply[:, NAME + 1 :], jnp.float32)

    def has(flag: int) -> Array:
        return (flags & jnp.uint32(flag)) != 0

    first, reward = has(FIRST), values[:, 0]
    decisions = jnp.where(first, 0, decisions + 1).astype(jnp.int32)
    episode_return = jnp.where(first, jnp.zeros_like(reward), episode_return + reward)
    state = EnvState(
        task=Live(reply[:, :NAME], values[:, 1 + layout.obs :], saved),
        key=key,
        frames=reply[:, 1].astype(jnp.int32),
        decisions=decisions,
        episode_return=episode_return,
        is_last=has(OVER),
    )
    # Copies because trainers donate the state: XLA refuses to donate one buffer twice.
    return state, TimeStep(
        obs=values[:, 1 : 1 + layout.obs],
        reward=reward,
        terminated=has(TERMINATED),
        truncated=has(TRUNCATED),
        is_first=first,
        invalid=has(INVALID),
        episode_return=jnp.copy(episode_return),
        episode_length=jnp.copy(decisions),
    )
