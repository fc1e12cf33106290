"""Bodies moved by MuJoCo's own C code on the host, from inside jitted JAX.

The models are dm_control's, unedited. A batch is stepped on all cores the
process may use (``mujoco.rollout``) behind one callback per control step. The
float64 state lives in the pytree, as pairs of uint32, so that a run resumes
exactly whatever JAX' precision; the engine itself remembers nothing.

On CPUs it is many times cheaper than MJX for bodies with contacts
(docs/environments.md); accelerators want MJX. The solver starts every control
step cold, where dm_control starts from the last acceleration: both end within
the solver's tolerance of the same minimum.
"""

import copy
import os
import statistics
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pomcp_jax.envs.physics import LARGEST, Engine, Motion, quiet_mujoco, sensor_indices

SERIAL_SECONDS = 4e-4
"""Less work than this is done by the calling thread: waking others takes longer (measured on two
cores: 16 cartpoles 0.10 ms alone, 0.24 ms by a pool; 64 cheetahs 0.43 ms either way)."""


def _seconds_of_a_step(model: Any, data: Any, runs: int = 20) -> float:
    """Of one physics step from rest: the median of a few."""
    import mujoco

    took = []
    with quiet_mujoco():
        for _ in range(runs):
            begin = time.perf_counter()
            mujoco.mj_step(model, data)
            took.append(time.perf_counter() - begin)
    mujoco.mj_resetData(model, data)
    return statistics.median(took)


def make(model: Any, forces: tuple[str, ...]) -> Engine:
    """The engine of one model; ``forces`` are the sensors it reports."""
    import mujoco
    from mujoco import rollout

    full = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS)
    if full != 1 + model.nq + model.nv + model.na:
        raise NotImplementedError("the host engine knows models without plugins and histories only")
    active = copy.copy(model)
    # A diverged body must look diverged, not be put back to its first pose silently.
    active.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    if not forces:
        active.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_SENSOR
    passive = copy.copy(active)
    passive.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ACTUATION
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool, alone = rollout.Rollout(nthread=threads), rollout.Rollout(nthread=0)
    data = [mujoco.MjData(active) for _ in range(threads)]
    # Two XLA programs may run at once (training and evaluation); the pool serves one.
    lock = threading.Lock()
    wanted = sensor_indices(model, forces)
    home = np.concatenate([[0.0], model.qpos0, np.zeros(model.nv + model.na)])
    ends = np.cumsum([model.nq, model.nv, model.na])
    step_seconds = _seconds_of_a_step(active, data[0])

    def broken(state: np.ndarray) -> np.ndarray | None:
        """Which rows have diverged; None when, as nearly always, none has."""
        if np.abs(state).max() <= LARGEST:
            return None
        return ~np.all(np.abs(state) <= LARGEST, axis=1)

    def run(which: Any, state: np.ndarray, ctrl: np.ndarray, steps: int) -> tuple:
        """``steps`` physics steps of rows ``state[B, 1 + Q + V + M]`` (float64)."""
        rows = state.shape[0]
        bad = broken(state)
        if bad is not None:
            state = np.where(bad[:, None], home, state)
        control = np.empty((rows, steps, model.nu))
        control[:] = ctrl[:, None]
        states = np.empty((rows, steps, full))
        sensed = np.empty((rows, steps, model.nsensordata))
        serial = rows * steps * step_seconds < SERIAL_SECONDS
        with lock:
            (alone if serial else pool).rollout(
                [which] * rows,
                data[:1] if serial else data,
                state,
                control,
                skip_checks=True,
                nstep=steps,
                state=states,
                sensordata=sensed,
                chunk_size=max(1, rows // (4 * threads)),
            )
        ahead = np.ascontiguousarray(states[:, -1])
        worse = broken(ahead)
        if bad is not None or worse is not None:
            ahead[(False if bad is None else bad) | (False if worse is None else worse)] = np.nan
        return ahead, sensed[:, -1, wanted]

    def results(lead: tuple, state: np.ndarray, sensed: np.ndarray, real: Any) -> tuple:
        """A callback's answer: the state's bits, and what JAX computes with."""
        seen = np.empty((state.shape[0], full - 1 + wanted.size), real)
        seen[:, : full - 1] = state[:, 1:]
        seen[:, full - 1 :] = sensed
        bits = state.view(np.uint32)
        return bits.reshape(*lead, -1), seen.reshape(*lead, -1)

    def call(function: Any, real: Any, *args: Array) -> tuple[Motion, Array]:
        shapes = (
            jax.ShapeDtypeStruct((2 * full,), jnp.uint32),
            jax.ShapeDtypeStruct((full - 1 + wanted.size,), real),
        )
        bits, seen = jax.pure_callback(function, shapes, *args, vmap_method="broadcast_all")
        qpos, qvel, act, sensed = jnp.split(seen, ends)
        return Motion(qpos, qvel, act, bits), sensed

    def start(
        qpos: Float[Array, " Q"], qvel: Float[Array, " V"], act: Float[Array, " M"]
    ) -> tuple[Motion, Float[Array, " F"]]:
        real = qpos.dtype

        def begin(moving: np.ndarray) -> tuple:
            moving = np.asarray(moving, np.float64)
            lead, rows = moving.shape[:-1], moving.reshape(-1, full - 1)
            state = np.concatenate([np.zeros((len(rows), 1)), rows], axis=1)
            sensed = np.zeros((len(rows), wanted.size))
            if forces:
                sensed = run(passive, state, np.zeros((len(rows), model.nu)), 1)[1]
            return results(lead, state, sensed, real)

        return call(begin, real, jnp.concatenate([qpos, qvel, act]))

    def advance(
        motion: Motion, ctrl: Float[Array, " U"], steps: int
    ) -> tuple[Motion, Float[Array, " F"]]:
        real = motion.qpos.dtype

        def move(bits: np.ndarray, ctrl: np.ndarray) -> tuple:
            bits, ctrl = np.asarray(bits), np.asarray(ctrl)
            lead = bits.shape[:-1]
            state = bits.reshape(-1, 2 * full).view(np.float64)
            return results(lead, *run(active, state, ctrl.reshape(-1, model.nu), steps), real)

        return call(move, real, motion.hidden, ctrl)

    def touching(qpos: Float[Array, " Q"]) -> Bool[Array, ""]:
        def look(qpos: np.ndarray) -> np.ndarray:
            qpos = np.asarray(qpos, np.float64)
            found = []
            with lock:
                for row in qpos.reshape(-1, model.nq):
                    data[0].qpos[:] = row
                    mujoco.mj_fwdPosition(active, data[0])
                    found.append(data[0].ncon > 0)
            return np.asarray(found, bool).reshape(qpos.shape[:-1])

        shape = jax.ShapeDtypeStruct((), jnp.bool_)
        return jax.pure_callback(look, shape, qpos, vmap_method="broadcast_all")

    return Engine(start, advance, touching)
