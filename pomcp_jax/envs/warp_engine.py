"""Warp engine: MuJoCo Warp's kernels behind MJX's interface.

Made for NVIDIA GPUs; without one its kernels run on the CPU, at a fixed cost of about 15 ms a
physics step. Models are edited as for MJX, and arithmetic is float32 whatever JAX's precision.
Contacts for :func:`Engine.touching` (resets) are found by the MJX engine.
"""

import copy
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pomcp_jax.envs.physics import (
    Engine,
    Motion,
    guarded,
    quiet_mjx,
    relaxed,
    sensor_indices,
)

CONTACTS = 1 << 16
"""Contacts of a whole batch together: a dozen for each of 5,000 bodies. Warp drops the excess."""


def check(model: Any, domain: str) -> None:
    """Refuse a model that needs what Warp lacks, and an installation without Warp.

    Raises:
      ModuleNotFoundError: without the package ``warp-lang``.
      NotImplementedError: for a model with noslip iterations (the dog).
    """
    if importlib.util.find_spec("warp") is None:
        raise ModuleNotFoundError('backend warp needs warp-lang: pip install "warp-lang"')
    if model.opt.noslip_iterations:
        raise NotImplementedError(
            f"{domain}: backend warp has no noslip iterations; choose mjx or host"
        )


def make(edited: Any, rows: int, forces: tuple[str, ...], plain: Engine) -> Engine:
    """Engine of one model.

    Args:
      edited: ``mujoco.MjModel`` as for MJX.
      rows: Largest number of constraint rows of one body.
      forces: The sensors that the engine reports.
      plain: MJX engine of the same model, which finds contacts for resets.
    """
    import mujoco

    passive = copy.copy(edited)
    passive.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ACTUATION
    mjx, wanted = quiet_mjx(), sensor_indices(edited, forces)
    with relaxed():
        model = mjx.put_model(edited, impl="warp")
        still = mjx.put_model(passive, impl="warp") if forces else None
        blank = mjx.make_data(edited, impl="warp", naconmax=CONTACTS, njmax=max(rows, 1))

    def fill(motion: Motion, ctrl: Array) -> Any:
        parts = (motion.qpos, motion.qvel, motion.act, ctrl, motion.hidden)
        qpos, qvel, act, ctrl, warm = (part.astype(jnp.float32) for part in parts)
        return blank.replace(qpos=qpos, qvel=qvel, act=act, ctrl=ctrl, qacc_warmstart=warm)

    def start(
        qpos: Float[Array, " Q"], qvel: Float[Array, " V"], act: Float[Array, " M"]
    ) -> tuple[Motion, Float[Array, " F"]]:
        motion = Motion(qpos, qvel, act, jnp.zeros_like(qvel))
        if still is None:
            return motion, jnp.zeros(wanted.shape, qpos.dtype)
        with relaxed():
            data = mjx.forward(still, fill(motion, jnp.zeros((edited.nu,), qpos.dtype)))
        return motion, data.sensordata[wanted].astype(qpos.dtype)

    def advance(
        motion: Motion, ctrl: Float[Array, " U"], steps: int
    ) -> tuple[Motion, Float[Array, " F"]]:
        def one(carry: tuple[Motion, Array], _: None) -> tuple[tuple[Motion, Array], None]:
            # Only these fields belong to a row; Warp shares its other arrays between all rows of
            # a batch, so they must not be carried.
            data = mjx.step(model, fill(carry[0], ctrl))
            moved = (data.qpos, data.qvel, data.act, data.qacc_warmstart)
            moved = Motion(*(part.astype(motion.qpos.dtype) for part in moved))
            return (moved, data.sensordata[wanted].astype(motion.qpos.dtype)), None

        first = (motion, jnp.zeros(np.shape(wanted), motion.qpos.dtype))
        with relaxed():
            (moved, sensed), _ = jax.lax.scan(one, first, length=steps)
        return guarded(moved), sensed

    return Engine(start, advance, plain.touching)
