"""Host engine: MuJoCo's C code, called from inside jitted JAX.

A batch is stepped on all cores available to the process, with one callback per control step. The
float64 state is part of the pytree, as pairs of uint32, so a run resumes exactly whatever JAX's
precision; the engine keeps no state.

There are two ways to step (``make``). With ``mujoco.rollout`` the solver has no warm start at the
first physics step of a control step, where dm_control starts from the previous acceleration: both
end within the solver's tolerance of the same minimum. With ``warm=True`` the acceleration is part
of the state and the numbers are those of ``mj_step`` in a loop, bit for bit; bodies with many
contacts amplify the difference within a few control steps.

On CPUs it is many times cheaper than MJX for bodies with contacts (docs/environments.md); on
accelerators MJX pays off from about a thousand environments.
"""

import copy
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pomcp_jax.envs.host_call import pure_host_call
from pomcp_jax.envs.physics import LARGEST, Engine, Motion, quiet_mujoco, sensor_indices

SERIAL_SECONDS = 4e-4
"""Below this much work, step serially: waking the pool costs more (measured on two cores:
16 cartpoles 0.10 ms serially, 0.24 ms with a pool; 64 cheetahs 0.43 ms either way)."""


Controls = Callable[[np.ndarray], np.ndarray]
"""What an action means: ``actions [B, A] -> controls [B, U]``, in numpy."""


class _Host(NamedTuple):
    """A model in MuJoCo's memory, and the thread pool that steps it."""

    active: Any
    passive: Any
    """``active`` without actuators."""
    data: list[Any]
    """Scratch memory for each thread of the pool."""
    pool: Any
    """Rollouts by all threads."""
    idle: list[tuple[list[Any], Any]]
    """Scratch memory and a rollout for the calling thread alone, of callers that have returned."""
    workers: ThreadPoolExecutor | None
    """Threads beside the calling one, for states with a warm start; None without."""
    fresh: bool
    """Whether sensors are those of the state that is reached, not of the last physics step."""
    lock: threading.Lock
    """Of ``data``: two XLA programs may run at once, on several devices for example."""
    sensors: np.ndarray
    """Indices of the reported sensor values, ``[F]``."""
    step_seconds: float

    @property
    def seen(self) -> int:
        """Number of positions, velocities and activations."""
        return self.active.nq + self.active.nv + self.active.na

    @property
    def full(self) -> int:
        """Size of a state: time, positions, velocities, activations, and a warm start if any."""
        return 1 + self.seen + (0 if self.workers is None else self.active.nv)


def _seconds_of_a_step(model: Any, data: Any, runs: int = 20) -> float:
    """Seconds of one physics step from rest: the median of ``runs``."""
    import mujoco

    took = []
    with quiet_mujoco():
        for _ in range(runs):
            begin = time.perf_counter()
            mujoco.mj_step(model, data)
            took.append(time.perf_counter() - begin)
    mujoco.mj_resetData(model, data)
    return statistics.median(took)


def _prepare(model: Any, forces: tuple[str, ...], warm: bool, fresh: bool) -> _Host:
    """Copies of ``model`` with and without actuators, and a pool with one thread per core.

    Raises:
      NotImplementedError: for models whose state has more than positions, velocities and
        activations.
    """
    import mujoco
    from mujoco import rollout

    active = copy.copy(model)
    # Without this flag MuJoCo silently resets a diverged body to its initial pose, and the episode
    # would continue from there.
    active.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    if not forces:
        active.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_SENSOR
    passive = copy.copy(active)
    passive.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ACTUATION
    # cpu_count() ignores taskset and container limits; macOS has no affinity.
    if hasattr(os, "sched_getaffinity"):
        threads = len(os.sched_getaffinity(0))
    else:
        threads = os.cpu_count() or 1
    data = [mujoco.MjData(active) for _ in range(threads)]
    host = _Host(
        active,
        passive,
        data,
        pool=None if warm else rollout.Rollout(nthread=threads),
        idle=[],
        workers=ThreadPoolExecutor(max(1, threads - 1)) if warm else None,
        fresh=fresh and bool(forces),
        lock=threading.Lock(),
        sensors=sensor_indices(model, forces),
        step_seconds=_seconds_of_a_step(active, data[0]),
    )
    if mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS) != 1 + host.seen:
        raise NotImplementedError("the host engine supports no models with plugins or histories")
    return host


def _broken(state: np.ndarray) -> np.ndarray | None:
    """Mask of the rows that have diverged, or None if none has."""
    # The reduction over everything is the fast path. NaN compares false, so it counts as diverged.
    if np.abs(state).max() <= LARGEST:
        return None
    return ~np.all(np.abs(state) <= LARGEST, axis=1)


def _run(
    host: _Host, model: Any, state: np.ndarray, ctrl: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """``steps`` physics steps of rows ``state[B, full]`` (float64); NaN where diverged.

    Returns:
      The new rows, and their sensors ``[B, F]``.
    """
    bad = _broken(state)
    # Broken rows are stepped from the initial pose, so that MuJoCo never sees a NaN, and become
    # NaN again below.
    if bad is not None:
        home = np.zeros(host.full)
        home[1 : 1 + model.nq] = model.qpos0
        state = np.where(bad[:, None], home, state)
    serial = len(state) * steps * host.step_seconds < SERIAL_SECONDS
    if host.workers is not None:
        with host.lock:
            ahead, sensed = _follow(host, model, state, ctrl, steps, serial)
    # Where other devices have the threads at work, waiting for them would gain nothing.
    elif serial or not host.lock.acquire(blocking=False):
        ahead, sensed = _alone(host, model, state, ctrl, steps)
    else:
        try:
            ahead, sensed = _rollout(host.pool, host.data, model, state, ctrl, steps)
        finally:
            host.lock.release()
    worse = _broken(ahead)
    if bad is not None or worse is not None:
        ahead[(False if bad is None else bad) | (False if worse is None else worse)] = np.nan
    return ahead, sensed[:, host.sensors]


def _alone(
    host: _Host, model: Any, state: np.ndarray, ctrl: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`_rollout` by the calling thread, while others may step the same model."""
    import mujoco
    from mujoco import rollout

    try:
        data, rolling = host.idle.pop()
    except IndexError:
        data, rolling = [mujoco.MjData(host.active)], rollout.Rollout(nthread=0)
    try:
        return _rollout(rolling, data, model, state, ctrl, steps)
    finally:
        host.idle.append((data, rolling))


def _rollout(
    rolling: Any, data: list[Any], model: Any, state: np.ndarray, ctrl: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """New rows and all sensors, by ``mujoco.rollout``."""
    rows, full = state.shape
    control = np.empty((rows, steps, model.nu))
    control[:] = ctrl[:, None]
    states = np.empty((rows, steps, full))
    sensed = np.empty((rows, steps, model.nsensordata))
    rolling.rollout(
        [model] * rows,
        data,
        state,
        control,
        skip_checks=True,
        nstep=steps,
        state=states,
        sensordata=sensed,
        # Several chunks a thread balance rows whose contacts take longer.
        chunk_size=max(1, rows // (4 * len(data))),
    )
    return np.ascontiguousarray(states[:, -1]), sensed[:, -1]


def _follow(
    host: _Host, model: Any, state: np.ndarray, ctrl: np.ndarray, steps: int, serial: bool
) -> tuple[np.ndarray, np.ndarray]:
    """New rows and all sensors, by ``mj_step`` from each row's own warm start."""
    import mujoco

    rows = len(state)
    # rollout takes a warm start but does not return one.
    parts = mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_WARMSTART
    ahead, sensed = np.empty((rows, host.full)), np.empty((rows, model.nsensordata))

    def work(data: Any, own: Iterator[int]) -> None:
        for i in own:
            mujoco.mj_setState(model, data, state[i], parts)
            data.ctrl[:] = ctrl[i]
            if steps:
                mujoco.mj_step(model, data, nstep=steps)
            mujoco.mj_getState(model, data, ahead[i], parts)
            if host.fresh:
                mujoco.mj_forward(model, data)
            sensed[i] = data.sensordata

    # Threads draw the next row from one iterator: rows with more contacts take longer.
    own = iter(range(rows))
    helpers = 0 if serial else min(len(host.data), rows) - 1
    # A diverged row is reported as NaN; MuJoCo would write a log file besides.
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        assert host.workers is not None
        running = [host.workers.submit(work, data, own) for data in host.data[1 : 1 + helpers]]
        work(host.data[0], own)
        for each in running:
            each.result()
    finally:
        mujoco.set_mju_user_warning(before)
    return ahead, sensed


def _touching(host: _Host, qpos: np.ndarray) -> np.ndarray:
    """Whether any two geoms are in contact at each of the poses ``[..., Q]``."""
    import mujoco

    qpos = np.asarray(qpos, np.float64)
    touching, data = [], host.data[0]
    with host.lock:
        for row in qpos.reshape(-1, host.active.nq):
            data.qpos[:] = row
            mujoco.mj_fwdPosition(host.active, data)
            touching.append(data.ncon > 0)
    return np.asarray(touching, bool).reshape(qpos.shape[:-1])


def _results(
    host: _Host, lead: tuple, state: np.ndarray, sensed: np.ndarray, real: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return value of a callback: the bits of the state, and its values in JAX's precision."""
    values = [state[:, 1 : 1 + host.seen], sensed]
    seen = np.concatenate(values, axis=1, dtype=real, casting="same_kind")
    # JAX would truncate float64 unless x64 is enabled; uint32 passes unchanged.
    bits = state.view(np.uint32)
    return bits.reshape(*lead, -1), seen.reshape(*lead, -1)


def _call(host: _Host, function: Any, real: Any, *args: Array) -> tuple[Motion, Array]:
    """Call ``function``, which returns :func:`_results`, on the host, once for a whole batch."""
    model, full = host.active, host.full
    shapes = (
        jax.ShapeDtypeStruct((2 * full,), jnp.uint32),
        jax.ShapeDtypeStruct((host.seen + host.sensors.size,), real),
    )
    bits, seen = pure_host_call(function, shapes, *args)
    qpos, qvel, act, sensed = jnp.split(seen, np.cumsum([model.nq, model.nv, model.na]))
    return Motion(qpos, qvel, act, bits), sensed


def make(
    model: Any,
    forces: tuple[str, ...],
    *,
    warm: bool = False,
    fresh: bool = False,
    controls: Controls | None = None,
) -> Engine:
    """Engine of one model.

    Args:
      model: ``mujoco.MjModel``.
      forces: names of the sensors that it reports.
      warm: step exactly as ``mj_step`` in a loop does, with the solver's warm start in the state;
        sensors at the start are those of no control instead of no actuation.
      fresh: with ``warm``, compute sensors once more in the state that is reached; by default they
        are those of the last physics step, from the state before it.
      controls: what ``advance`` does to its ``ctrl`` in numpy, in double precision if need be,
        before MuJoCo reads it; nothing by default.
    """
    host = _prepare(model, forces, warm, fresh)

    def start(
        qpos: Float[Array, " Q"], qvel: Float[Array, " V"], act: Float[Array, " M"]
    ) -> tuple[Motion, Float[Array, " F"]]:
        real = qpos.dtype

        def begin(moving: np.ndarray) -> tuple:
            moving = np.asarray(moving, np.float64)
            lead, rows = moving.shape[:-1], moving.reshape(-1, host.seen)
            state = np.zeros((len(rows), host.full))
            state[:, 1 : 1 + host.seen] = rows
            sensed = np.zeros((len(rows), host.sensors.size))
            if forces:
                still = host.active if warm else host.passive
                rest = np.zeros((len(rows), model.nu))
                sensed = _run(host, still, state, rest, 0 if host.fresh else 1)[1]
            return _results(host, lead, state, sensed, real)

        return _call(host, begin, real, jnp.concatenate([qpos, qvel, act]))

    def advance(
        motion: Motion, ctrl: Float[Array, " U"], steps: int
    ) -> tuple[Motion, Float[Array, " F"]]:
        real = motion.qpos.dtype

        def move(bits: np.ndarray, ctrl: np.ndarray) -> tuple:
            state = bits.reshape(-1, 2 * host.full).view(np.float64)
            ctrl = ctrl.reshape(len(state), model.nu)
            ctrl = ctrl if controls is None else controls(ctrl)
            ahead = _run(host, host.active, state, ctrl, steps)
            return _results(host, bits.shape[:-1], *ahead, real)

        return _call(host, move, real, motion.hidden, ctrl)

    def touching(qpos: Float[Array, " Q"]) -> Bool[Array, ""]:
        shape = jax.ShapeDtypeStruct((), jnp.bool_)
        return pure_host_call(lambda qpos: (_touching(host, qpos),), [shape], qpos)[0]

    return Engine(start, advance, touching)
