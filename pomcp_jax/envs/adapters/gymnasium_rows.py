"""gymnasium environments on the host, one for each row of a batch; no JAX.

The compiled program owns the state of every row, and this module owns the live environments. A row
names its environment by its key, its episode's number, the control steps done and a checksum of all
actions and results so far. If no live environment has that name (the process was restarted, a
chunk was repeated), it is restored or its episode starts again: a wrong one is never stepped.

Run as a program, this file is a worker process (:mod:`pomcp_jax.envs.adapters.gymnasium_workers`);
it imports nothing of this package.
"""

import contextlib
import importlib
import json
import math
import os
import struct
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

TERMINATED, TRUNCATED, FIRST, INVALID, OVER, FAULT = 1, 2, 4, 8, 16, 32
"""Flags of a row; ``OVER``: the next step begins an episode. ``FAULT``, in a request: the row is
broken whatever its environment does."""
NAME = 3
"""Words that name an environment beside the row's key: episode, control steps, checksum."""
FLAGS, LENGTH, RETURN, REWARD, OBS = range(NAME, NAME + 5)
"""Places of a row's words after its name; decisions and return are those of its episode."""


HEAD = struct.Struct("=IIIIIff")
"""Everything before the observation."""
PATIENCE_AT_CLOSE = 2.0
"""Seconds that closing waits for a step to end."""


class Layout(NamedTuple):
    """Sizes of the rows that the program and the environments exchange, in words of 32 bits.

    row: episode, frames, checksum, flags, decisions, return, reward, obs [O], pose [Q]
    """

    key: int
    action: int
    obs: int
    pose: int
    saved: int
    """Bytes of a stored environment, its name included; 0 if it cannot be stored."""

    @property
    def row(self) -> int:
        """Words of a row."""
        return OBS + self.obs + self.pose


class Settings(NamedTuple):
    """What the processes that hold environments must know of them."""

    name: str
    """As for ``gymnasium.make``."""
    options: dict[str, Any]
    """Further arguments of ``gymnasium.make``."""
    action_repeat: int
    limit: int
    """Control steps of an episode."""


class Unsuitable(ValueError):
    """An environment that cannot be used here; one line."""


def one_line(error: BaseException) -> str:
    """Type and message of an error without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings, which users cannot act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make(name: str, options: dict[str, Any]) -> Any:
    """``gymnasium.make`` without its warnings and its checks of every step."""
    with quiet():
        import gymnasium

        return gymnasium.make(name, disable_env_checker=True, **options)


class Actions(NamedTuple):
    """Scale from ``[-1, 1]`` to an action space."""

    low: np.ndarray
    """``[A]`` in the space's type, as ``high``."""
    high: np.ndarray
    middle: np.ndarray
    """``[A]`` float64, as ``half``."""
    half: np.ndarray
    shape: tuple[int, ...]
    dtype: Any
    plain: bool
    """Actions of ``[-1, 1]`` are passed as they are."""

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """``actions [B, A]`` of ``[-1, 1]`` in the units of the space; a copy."""
        if self.plain:
            actions = actions.copy()
        else:
            scaled = (self.middle + self.half * actions).astype(self.dtype)
            # The sum may round beyond a bound, and a bound of float64 may be none of float32.
            actions = np.minimum(np.maximum(scaled, self.low), self.high)
        return actions.reshape(-1, *self.shape).astype(self.dtype, copy=False)


def actions(space: Any) -> Actions:
    """The scale of an action space.

    Raises:
      Unsuitable: it is no box of numbers with finite bounds.
    """
    from gymnasium import spaces

    wanted = "must be a Box of floats with finite bounds"
    if not isinstance(space, spaces.Box):
        raise Unsuitable(f"action_space is {space!r:.100}; {wanted}")
    if not np.issubdtype(space.dtype, np.floating):
        raise Unsuitable(f"action_space is a Box of {space.dtype}; {wanted}")
    low, high = (np.asarray(x).reshape(-1) for x in (space.low, space.high))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise Unsuitable(f"action_space is unbounded; {wanted} (RescaleAction sets some)")
    if not low.size or not (low < high).all():
        raise Unsuitable(f"action_space is {space!r:.100}; {wanted}, low < high")
    plain = bool((low == -1).all() and (high == 1).all())
    # Halves first: the difference of the largest numbers is infinite.
    bottom, top = (np.asarray(bound, np.float64) / 2.0 for bound in (low, high))
    return Actions(low, high, bottom + top, top - bottom, space.shape, space.dtype, plain)


Observe = Callable[[Any], np.ndarray]
"""An observation of an environment as a vector."""


def observations(space: Any) -> tuple[int, Observe]:
    """Entries of an observation, and how to flatten it.

    Raises:
      Unsuitable: observations have no fixed number of entries.
    """
    from gymnasium import spaces

    if not _flattens(space):
        raise Unsuitable(
            f"observation_space is {space!r:.100}; must be a Box, or a Dict or Tuple of those"
        )
    size, shape = int(spaces.flatdim(space)), getattr(space, "shape", None)
    is_vector = shape is not None and len(shape) == 1
    if size < 1:
        raise Unsuitable(f"observation_space is {space!r:.100}; must have entries")

    def box(obs: Any) -> np.ndarray:
        obs = np.asarray(obs)
        if obs.shape != shape:
            raise Unsuitable(f"observation has shape {obs.shape}; its space has {shape}")
        return obs if is_vector else obs.reshape(-1)

    def flat(obs: Any) -> np.ndarray:
        obs = np.asarray(spaces.flatten(space, obs))
        if obs.shape != (size,):
            raise Unsuitable(f"observation has {obs.size} entries; its space has {size}")
        return obs

    return size, box if isinstance(space, spaces.Box) else flat


def _flattens(space: Any) -> bool:
    """Whether a space has vectors of numbers."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        return all(map(_flattens, space.values() if isinstance(space, spaces.Dict) else space))
    plain = spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete
    return isinstance(space, plain)


def number(reward: Any) -> float:
    """A reward as a float.

    Raises:
      Unsuitable: it is not one real number.
    """
    if isinstance(reward, float | int | np.floating | np.integer):
        return float(reward)
    if np.shape(reward) == () and np.asarray(reward).dtype.kind in "fiub":
        return float(reward)
    raise Unsuitable(f"reward is {reward!r:.80}; must be a number")


def flag(value: Any) -> bool:
    """A flag of a step as a bool.

    Raises:
      Unsuitable: it is not a single one.
    """
    if value.__class__ is bool:
        return value
    if np.shape(value) != ():
        raise Unsuitable(f"terminated or truncated is {value!r:.80}; must be a bool")
    return bool(value)


def unpacked(result: Any, length: int, what: str) -> Any:
    """``result``, a tuple of ``length``.

    Raises:
      Unsuitable: it is something else.
    """
    if not isinstance(result, tuple) or len(result) != length:
        given = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        names = "(obs, info)" if length == 2 else "(obs, reward, terminated, truncated, info)"
        raise Unsuitable(f"{what} returns {given}; must return {names}")
    return result


class Hook(NamedTuple):
    """Storage of an environment's state as bytes of a fixed length."""

    size: int
    before: Callable[["Instance"], Any]
    """Called before every step; its result goes to ``take``."""
    take: Callable[[Any, Any, Any], bytes]
    """``(env, before, action) -> state``, after a step or a reset (then both are None)."""
    put: Callable[[Any, bytes], None]
    """The inverse, on a freshly reset environment."""


_STATELESS = ("PassiveEnvChecker", "OrderEnforcing", "TimeLimit")


def _wrappers(env: Any) -> list[Any]:
    out = []
    while env is not env.unwrapped:
        out.append(env)
        env = env.env
    return out


def _limit(env: Any) -> Any:
    """The wrapper that counts steps, None without."""
    return next((x for x in _wrappers(env) if type(x).__name__ == "TimeLimit"), None)


def _elapsed(env: Any) -> int:
    limit = _limit(env)
    return 0 if limit is None else int(limit._elapsed_steps or 0)


def _set_elapsed(env: Any, steps: int) -> None:
    limit = _limit(env)
    if limit is not None:
        limit._elapsed_steps = steps


def hook(env: Any) -> Hook | None:
    """How to store a freshly reset environment; None if that is not known.

    Environments may have ``get_state()``, which returns bytes or an array of always the same size,
    and ``set_state(state)``. Those of ``gymnasium.envs.mujoco`` need none.

    Raises:
      Unsuitable: their ``get_state`` and ``set_state`` do not work.
    """
    # The state of unknown wrappers (statistics, frames) would be lost.
    if any(
        type(x).__name__ not in _STATELESS or not type(x).__module__.startswith("gymnasium.")
        for x in _wrappers(env)
    ):
        return None
    core = env.unwrapped
    if callable(getattr(core, "get_state", None)) and callable(getattr(core, "set_state", None)):
        return _own_hook(env)
    if type(core).__module__.startswith("gymnasium.envs.mujoco."):
        return _mujoco_hook(env)
    return None


def _own_hook(env: Any) -> Hook:
    """Hook of an environment with ``get_state`` and ``set_state``."""
    core = env.unwrapped
    try:
        first = core.get_state()
        is_bytes = isinstance(first, bytes)
        like = np.frombuffer(first, np.uint8) if is_bytes else np.asarray(first)
        if like.dtype.kind not in "biuf":
            raise Unsuitable(f"get_state returns {type(first).__name__}; must be bytes or numbers")
        core.set_state(first)
    except Exception as error:
        raise Unsuitable(f"get_state and set_state fail: {one_line(error)}") from error

    def take(env: Any, before: Any, action: Any) -> bytes:
        state = env.unwrapped.get_state()
        array = np.frombuffer(state, np.uint8) if is_bytes else np.asarray(state)
        if array.shape != like.shape or array.dtype != like.dtype:
            raise Unsuitable(f"get_state returns another size or type than first ({like.size})")
        return struct.pack("=i", _elapsed(env)) + array.tobytes()

    def put(env: Any, data: bytes) -> None:
        _set_elapsed(env, struct.unpack_from("=i", data)[0])
        array = np.frombuffer(data, like.dtype, offset=4).reshape(like.shape).copy()
        env.unwrapped.set_state(array.tobytes() if is_bytes else array)

    return Hook(4 + like.nbytes, lambda instance: None, take, put)


_PCG64 = struct.Struct("=16s16siI")


def _random_state(core: Any) -> bytes:
    """State of an environment's random numbers, of gymnasium's usual generator."""
    state = core.np_random.bit_generator.state
    numbers = (state["state"][name].to_bytes(16, "little") for name in ("state", "inc"))
    return _PCG64.pack(*numbers, state["has_uint32"], state["uinteger"])


def _set_random_state(core: Any, data: bytes) -> None:
    *numbers, has, uinteger = _PCG64.unpack(data)
    state, inc = (int.from_bytes(x, "little") for x in numbers)
    core.np_random.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": state, "inc": inc},
        "has_uint32": has,
        "uinteger": uinteger,
    }


def _mujoco_hook(env: Any) -> Hook | None:
    """Hook of gymnasium's own MuJoCo environments, exact to the bit.

    Some rewards read positions that MuJoCo computed before it integrated (``xipos`` lags behind
    ``qpos``), so the state before the last step is stored too, and that step is repeated.
    """
    import mujoco

    core, parts = env.unwrapped, mujoco.mjtState.mjSTATE_INTEGRATION
    size = mujoco.mj_stateSize(core.model, parts)
    controls = int(np.prod(env.action_space.shape))
    head = struct.Struct("=ii")
    if type(core.np_random.bit_generator).__name__ != "PCG64":
        return None

    def now(core: Any, out: np.ndarray) -> np.ndarray:
        mujoco.mj_getState(core.model, core.data, out, parts)
        return out

    def before(instance: Instance) -> np.ndarray:
        # Into the same memory at every step: it is needed only if the run is saved here.
        if instance.memory is None:
            instance.memory = np.empty(size)
        return now(instance.core, instance.memory)

    def take(env: Any, start: Any, action: Any) -> bytes:
        first = head.pack(_elapsed(env), start is not None) + _random_state(env.unwrapped)
        start = np.zeros(size) if start is None else start
        action = np.zeros(controls) if action is None else np.asarray(action, np.float64)
        return (
            first
            + now(env.unwrapped, np.empty(size)).tobytes()
            + start.tobytes()
            + action.tobytes()
        )

    def put(env: Any, data: bytes) -> None:
        elapsed, stepped = head.unpack_from(data)
        arrays = np.frombuffer(data, np.float64, offset=head.size + _PCG64.size)
        after, start, action = arrays[:size], arrays[size : 2 * size], arrays[2 * size :]
        core = env.unwrapped
        _set_random_state(core, data[head.size : head.size + _PCG64.size])
        if stepped:
            mujoco.mj_setState(core.model, core.data, start, parts)
            core.step(action.astype(env.action_space.dtype).reshape(env.action_space.shape))
        else:
            mujoco.mj_setState(core.model, core.data, after, parts)
            mujoco.mj_forward(core.model, core.data)
        mujoco.mj_setState(core.model, core.data, after, parts)
        _set_elapsed(env, elapsed)

    return Hook(head.size + _PCG64.size + 8 * (2 * size + controls), before, take, put)


class Instance:
    """A live environment, and what its hook needs of its last step."""

    __slots__ = ("env", "core", "memory", "before", "action", "closed")

    def __init__(self, env: Any):
        self.env, self.core = env, env.unwrapped
        self.memory: Any = None
        self.closed = False
        self.before: Any = None
        self.action: Any = None


def seed_of(key: bytes, episode: int) -> int:
    """Seed of an episode, for ``reset(seed=...)``; below 2**31, which every generator accepts."""
    words = np.frombuffer(key, np.uint32)
    state = np.random.SeedSequence([*map(int, words), episode]).generate_state(1)
    return int(state[0] >> 1)


class Rows:
    """Live environments of one batch, in the process that calls."""

    def __init__(self, settings: Settings, layout: Layout, action_space: Any, obs_space: Any):
        """Prepare; environments are made when a row needs them.

        Raises:
          Unsuitable: one line; the spaces are not supported.
        """
        self.settings, self.layout = settings, layout
        self.notes: list[str] = []
        """Lines for the user since they were last taken."""
        self._scale, self._observe = actions(action_space), observations(obs_space)[1]
        self._hook: Hook | None = None
        self._live: dict[bytes, list[Instance]] = {}
        """Environments by name. Rows with equal keys and actions, such as those of a seed in two
        cells of a sweep, have equal names: their environments are in the same state."""
        self._left: dict[bytes, list[Instance]] = {}
        """During a step: those that no row of its batch has named."""
        self._free: list[Instance] = []
        self._lock = threading.Lock()

    def adopt(self, env: Any) -> None:
        """Use an environment that was made already."""
        if self.layout.saved and self._hook is None:
            env.reset(seed=0)
            self._hook = hook(env)
        self._free.append(Instance(env))

    def reset(self, keys: np.ndarray) -> np.ndarray:
        """First rows ``[B, row]`` of a batch with these keys ``[B, K]``."""
        with self._lock:
            # One batch at a time: the environments of an earlier one are used again.
            for same in self._live.values():
                self._free += same
            self._live = {}
            out = np.zeros((len(keys), self.layout.row), np.uint32)
            try:
                for row, key in zip(out, keys, strict=True):
                    self._begin(None, key.tobytes(), 0, row, 0)
            except BaseException:
                self._close_all()
                raise
            return out

    def step(
        self, rows: np.ndarray, keys: np.ndarray, actions: np.ndarray, saved: np.ndarray
    ) -> np.ndarray:
        """Rows ``[B, row]`` after a decision.

        Args:
          rows: those before it.
          keys: of the rows, ``[B, K]``.
          actions: ``[B, A]`` float32 of ``[-1, 1]``; a row with a non-finite one is broken.
          saved: stored environments, ``[B, bytes]``.
        """
        with self._lock:
            out, size = np.zeros(rows.shape, np.uint32), 4 * self.layout.key
            # Python's numbers and bytes: of single rows they are faster than NumPy's.
            heads, key = rows[:, :OBS].tobytes(), keys.tobytes()
            names = [
                key[i * size : (i + 1) * size] + heads[j : j + 4 * NAME]
                for i, j in enumerate(range(0, len(heads), HEAD.size))
            ]
            # Claimed before any is stepped: what is left belongs to no row of this batch.
            claimed = [self._claimed(name) for name in names]
            self._left, self._live = self._live, {}
            try:
                again = self._step_all(heads, names, claimed, actions, saved, out)
            except BaseException:  # interrupted: some environments have moved, some have not
                self._free += filter(None, claimed)
                self._close_all()
                raise
            if self._left:
                self._live, self._left = self._left | self._live, {}
            if again:
                self.notes.append(
                    f"{again} running episode{'s' * (again > 1)} of gym/{self.settings.name} began"
                    " again: the environment cannot be restored"
                )
            return out

    def _step_all(
        self,
        heads: bytes,
        names: list[bytes],
        claimed: list[Instance | None],
        actions: np.ndarray,
        saved: np.ndarray,
        out: np.ndarray,
    ) -> int:
        """Write all rows to ``out``; returns how many episodes had to begin again."""
        scaled, again, size = self._scale(actions), 0, 4 * self.layout.key
        for i, head in enumerate(HEAD.iter_unpack(heads)):
            instance, name, action, flags = claimed[i], names[i], actions[i], head[FLAGS]
            broken = flags & FAULT or not math.isfinite(action.dot(action))
            if flags & OVER or broken:
                invalid = INVALID if broken and not flags & OVER else 0
                self._begin(instance, name[:size], head[0] + 1, out[i], invalid)
                continue
            if instance is None:
                instance = self._restored(name[:size], name, saved[i])
                if instance is None:
                    self._begin(None, name[:size], head[0], out[i], 0)
                    again += 1
                    continue
            mark = zlib.crc32(action, head[2])
            self._advance(instance, scaled[i], name[:size], (*head[:2], mark, *head[3:]), out[i])
        return again

    def snapshot(self, rows: np.ndarray, keys: np.ndarray, saved: np.ndarray) -> np.ndarray:
        """Stored environments ``[B, bytes]`` of rows; the given ones where they still hold."""
        out = np.array(saved)
        with self._lock:
            for i, (row, key) in enumerate(zip(rows, keys, strict=True)):
                name = key.tobytes() + row[:NAME].tobytes()
                if name not in self._live or self._hook is None:
                    continue
                instance = self._live[name][0]
                try:
                    state = self._hook.take(instance.env, instance.before, instance.action)
                    out[i] = np.frombuffer(name + state, np.uint8)
                except Exception as error:
                    self._note("its state cannot be stored", error)
        return out

    def close(self) -> None:
        """Close all environments, unless one is in a step that does not end."""
        if self._lock.acquire(timeout=PATIENCE_AT_CLOSE):
            try:
                self._close_all()
            finally:
                self._lock.release()

    def _close_all(self) -> None:
        every = *sum((*self._live.values(), *self._left.values()), []), *self._free
        self._live, self._left, self._free = {}, {}, []
        for instance in every:
            self._close(instance)

    def _note(self, what: str, error: BaseException) -> None:
        self.notes.append(f"gym/{self.settings.name}: {what}: {one_line(error)}")

    def _close(self, instance: Instance) -> None:
        if instance.closed:
            return
        instance.closed = True
        try:
            instance.env.close()
        except Exception as error:
            self._note("close() fails", error)

    def _claimed(self, name: bytes) -> Instance | None:
        same = self._live.pop(name, None)
        if same is None:
            return None
        instance = same.pop()
        if same:
            self._live[name] = same
        return instance

    def _take(self) -> Instance:
        if not self._free and self._left:  # of an earlier batch
            self._free += self._left.pop(next(iter(self._left)))
        if not self._free:
            self.adopt(make(self.settings.name, self.settings.options))
        return self._free.pop()

    def _restored(self, key: bytes, name: bytes, saved: np.ndarray) -> Instance | None:
        """The environment of that name from its stored state, if there is one."""
        data = saved.tobytes()
        if not data or not data.startswith(name):
            return None
        instance = None
        try:
            instance = self._take()
            if self._hook is None:
                self._free.append(instance)
                return None
            instance.env.reset(seed=seed_of(key, 0))
            self._hook.put(instance.env, data[len(name) :])
            return instance
        except Exception as error:
            self._note("its state cannot be restored", error)
            if instance is not None:
                self._close(instance)
            return None

    def _begin(
        self, instance: Instance | None, key: bytes, episode: int, row: np.ndarray, invalid: int
    ) -> None:
        """Begin an episode and write its first row to ``row``, which is 0."""
        values, flags, mark = row.view(np.float32), FIRST | invalid, 0
        seen = values[OBS : OBS + self.layout.obs]
        try:
            instance = self._take() if instance is None else instance
            obs, _ = unpacked(instance.env.reset(seed=seed_of(key, episode)), 2, "reset")
            seen[:] = self._observe(obs)
            if not np.isfinite(seen).all():
                raise Unsuitable("the first observation is not finite")
            instance.before = instance.action = None
            mark = zlib.crc32(seen.data)
            self._pose(instance, values)
            name = key + struct.pack("=III", episode, 0, mark)
            self._live.setdefault(name, []).append(instance)
        except BaseException as error:
            if instance is not None:
                self._close(instance)
            if not isinstance(error, Exception):  # interrupted
                raise
            self._note("reset breaks", error)
            row[:] = 0
            flags |= INVALID | OVER
        row[: FLAGS + 1] = episode, 0, mark, flags

    def _pose(self, instance: Instance, values: np.ndarray) -> None:
        if self.layout.pose:
            values[OBS + self.layout.obs :] = instance.core.data.qpos

    def _advance(
        self,
        instance: Instance,
        action: np.ndarray,
        key: bytes,
        head: tuple[Any, ...],
        row: np.ndarray,
    ) -> None:
        """One decision of a live environment.

        Args:
          instance: the environment.
          action: in its units.
          key: of the row.
          head: first words of the row before; the checksum counts the action already.
          row: to write to; zeros.
        """
        episode, frames, mark, _, length, returned, _ = head
        values, total = row.view(np.float32), 0.0
        seen = values[OBS : OBS + self.layout.obs]
        try:
            for _ in range(self.settings.action_repeat):
                if self._hook is not None:
                    instance.before, instance.action = self._hook.before(instance), action
                result = unpacked(instance.env.step(action), 5, "step")
                obs, reward, terminated, truncated, _ = result
                total += number(reward)
                frames += 1
                terminated, truncated = flag(terminated), flag(truncated)
                if terminated or truncated or frames >= self.settings.limit:
                    break
            seen[:] = self._observe(obs)
            # The sum of squares is finite for all but broken and huge numbers.
            if not math.isfinite(total + seen.dot(seen)):
                if not math.isfinite(total) or not np.isfinite(seen).all():
                    what = "observation" if math.isfinite(total) else "reward"
                    raise FloatingPointError(f"{what} is not finite")
            mark = zlib.crc32(seen.data, mark)
            self._pose(instance, values)
            cut = truncated or frames >= self.settings.limit
            flags = TERMINATED | OVER if terminated else TRUNCATED | OVER if cut else 0
            HEAD.pack_into(
                row.data, 0, episode, frames, mark, flags, length + 1, returned + total, total
            )
        except Exception as error:
            self._note("step breaks", error)
            row[:] = 0
            if not isinstance(error, FloatingPointError):  # it may be in any state
                self._close(instance)
                self._begin(None, key, episode + 1, row, INVALID)
            else:
                self._begin(instance, key, episode + 1, row, INVALID)
            return
        self._live.setdefault(key + row[:NAME].tobytes(), []).append(instance)


def serve(connection: Any) -> None:
    """Work of a worker process: answer requests until the other end is closed."""
    rows: Rows | None = None
    answer: dict[str, Any]
    while True:
        try:
            text, _, data = connection.recv_bytes().partition(b"\n")
        except (EOFError, OSError):
            break
        call = json.loads(text)
        if rows is None:
            try:
                rows = _start(call)
                answer, out = {}, b""
            except Exception as error:
                answer, out = {"error": one_line(error)}, b""
        else:
            result = _answer(rows, call, data)
            answer = {"notes": rows.notes, "dtype": result.dtype.name, "shape": result.shape}
            rows.notes, out = [], result.tobytes()
        try:
            connection.send_bytes(json.dumps(answer).encode() + b"\n" + out)
        except OSError:  # nobody waits for it any more
            break
    if rows is not None:
        rows.close()


def _start(call: dict[str, Any]) -> Rows:
    sys.path[:] = call["path"]
    settings, layout = Settings(*call["settings"]), Layout(*call["layout"])
    env = make(settings.name, settings.options)
    rows = Rows(settings, layout, env.action_space, env.observation_space)
    rows.adopt(env)
    return rows


def _answer(rows: Rows, call: dict[str, Any], data: bytes) -> np.ndarray:
    arrays = []
    for dtype, shape in call["arrays"]:
        array = np.frombuffer(data, dtype, count=int(np.prod(shape))).reshape(shape)
        arrays.append(array)
        data = data[array.nbytes :]
    methods: dict[str, Callable] = {
        "reset": rows.reset,
        "step": rows.step,
        "snapshot": rows.snapshot,
    }
    return methods[call["do"]](*arrays)


def _leave_with(parent: int) -> None:
    # An environment that never returns would keep this process alive after its parent was killed.
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    Connection = importlib.import_module("multiprocessing.connection").Connection
    # What environments start must not keep the connection open when this process dies.
    os.set_inheritable(int(sys.argv[1]), False)
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    serve(Connection(int(sys.argv[1])))
