"""A simulated body as tasks see it, whichever engine moves it.

``Physics`` pairs a model with an :class:`Engine` of three functions; the engines are MJX
(:mod:`pomcp_jax.envs.mjx.engine`), MuJoCo's C code on the host
(:mod:`pomcp_jax.envs.host_engine`) and MuJoCo Warp (:mod:`pomcp_jax.envs.warp_engine`).
Observations, rewards and resets are computed in JAX from the same :class:`View` for all of them.

``dm_control`` steps with ``legacy_step`` (``mujoco/engine.py``): after the last physics step,
quantities that depend on positions and velocities are computed again, while forces and
accelerations remain those of the last step. A ``View`` follows the same rule.
"""

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pomcp_jax.envs.importing import load_mujoco
from pomcp_jax.envs.mjx import tree
from pomcp_jax.envs.mjx.kinematics import kinematics
from pomcp_jax.types import Key, PyTree

LARGEST = 1e10
"""Positions and velocities beyond this have diverged (``mjMAXVAL``)."""


class Motion(NamedTuple):
    """A body's state: Q positions, V velocities, M activations."""

    qpos: Float[Array, " Q"]
    qvel: Float[Array, " V"]
    act: Float[Array, " M"]
    hidden: PyTree
    """Private to the engine: a warm start (MJX, Warp) or the float64 state (host)."""


class Start(NamedTuple):
    """Initial state of an episode; velocities and activations are zero unless given."""

    qpos: Float[Array, " Q"]
    qvel: Float[Array, " V"] | None = None
    act: Float[Array, " M"] | None = None
    episode: PyTree = None
    """Values of the episode beside its physics (for example a target)."""


class Engine(NamedTuple):
    """Physics engine of one model; all functions are traceable and unbatched."""

    start: Callable[[Array, Array, Array], tuple[Motion, Array]]
    """``(qpos, qvel, act) -> (motion, force sensors)``; forces exclude actuation, as in
    dm_control's ``after_reset``."""
    advance: Callable[[Motion, Array, int], tuple[Motion, Array]]
    """``(motion, ctrl, physics steps) -> (motion, force sensors)`` under constant controls."""
    touching: Callable[[Array], Array]
    """Whether any two geoms are in contact at ``qpos`` (``ncon > 0``)."""


class Physics(NamedTuple):
    """A compiled domain."""

    model: Any
    """``mujoco.MjModel``, the original."""
    edited: Any
    """``mujoco.MjModel``, the part that MJX supports, without sensors that no task reads."""
    device: Any
    """``edited`` as ``mujoco.mjx.Model``."""
    blank: Any
    """``mujoco.mjx.Data`` to fill in; its arrays are constants of a trace."""
    engine: Engine
    substeps: int
    """Physics steps per control step."""
    sensors: tuple[str, ...]
    """Sensors that the domain reads."""
    forces: tuple[str, ...]
    """Those that depend on forces; the engine reports them in this order."""


class View(NamedTuple):
    """State of a body as observations and rewards see it."""

    motion: Motion
    data: Any
    """``mujoco.mjx.Data`` with frames, centres of mass and velocities of this motion."""
    sensors: dict[str, Array]
    """Values of the sensors that the domain reads, by name."""

    @property
    def qpos(self) -> Float[Array, " Q"]:
        """Positions."""
        return self.motion.qpos

    @property
    def qvel(self) -> Float[Array, " V"]:
        """Velocities."""
        return self.motion.qvel


def quiet_mjx() -> ModuleType:
    """``mujoco.mjx``, imported without its messages about optional packages."""
    load_mujoco()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return importlib.import_module("mujoco.mjx")


@contextlib.contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Suppress warnings of MuJoCo's C code and its deprecation warnings in Python."""
    mujoco = load_mujoco()
    before = mujoco.get_mju_user_warning()
    # The C code writes to the process's stderr, which redirect_stderr does not reach.
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="compiler attribute")
            yield
    finally:
        mujoco.set_mju_user_warning(before)


@contextlib.contextmanager
def relaxed() -> Iterator[None]:
    """Allow the dtype and rank promotion that MJX and brax rely on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def sensor_indices(model: Any, names: tuple[str, ...]) -> np.ndarray:
    """Indices of ``sensordata`` that belong to the named sensors, in their order."""
    sensors = [model.sensor(name) for name in names]
    spans = [np.arange(s.adr[0], s.adr[0] + s.dim[0]) for s in sensors]
    # concatenate needs at least one array; a model may have no sensors.
    return np.concatenate([*spans, np.arange(0)]).astype(np.int32)


def force_sensors(model: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """The named sensors that depend on forces or accelerations."""
    import mujoco

    stage = mujoco.mjtStage.mjSTAGE_ACC
    return tuple(name for name in names if model.sensor_needstage[model.sensor(name).id] == stage)


def view(physics: Physics, motion: Motion, forces: Float[Array, " F"]) -> View:
    """Frames, velocities and sensors of a motion; ``forces`` come from the engine."""
    mjx, model = quiet_mjx(), physics.device
    with relaxed():
        data = physics.blank.replace(qpos=motion.qpos, qvel=motion.qvel, act=motion.act)
        data = tree.com_vel(model, tree.com_pos(model, kinematics(model, data)))
        # Sensors of positions and velocities only: forces would need the constraint solver again.
        if model.nsensor > len(physics.forces):
            data = mjx.sensor_vel(model, mjx.sensor_pos(model, data))
    sensors, at = {}, 0
    for name in physics.sensors:
        if name in physics.forces:
            size = physics.edited.sensor(name).dim[0]
            sensors[name] = forces[at : at + size]
            at += size
        else:
            sensors[name] = data.sensordata[sensor_indices(physics.edited, (name,))]
    return View(motion, data, sensors)


def escaped(motion: Motion) -> Bool[Array, ""]:
    """Whether a motion has diverged, by MuJoCo's own criterion (``mj_checkPos`` ...)."""
    parts = (motion.qpos, motion.qvel, motion.act)
    # <= instead of > so that NaN counts as diverged.
    bounded = [jnp.all(jnp.abs(part) <= LARGEST) for part in parts]
    return ~(bounded[0] & bounded[1] & bounded[2])


def guarded(motion: Motion) -> Motion:
    """``motion``, NaN if it has diverged, which makes the environment start a fresh episode."""
    bad = escaped(motion)
    return motion._replace(
        qpos=jnp.where(bad, jnp.full_like(motion.qpos, jnp.nan), motion.qpos),
        qvel=jnp.where(bad, jnp.full_like(motion.qvel, jnp.nan), motion.qvel),
    )


def begin(engine: Engine, model: Any, start: Start) -> tuple[Motion, Array]:
    """Motion and reported sensors at the beginning of an episode."""
    real = start.qpos.dtype
    qvel = jnp.zeros((model.nv,), real) if start.qvel is None else start.qvel
    act = jnp.zeros((model.na,), real) if start.act is None else start.act
    return engine.start(start.qpos, qvel, act)


def random_joints(model: Any, key: Key) -> Float[Array, " Q"]:
    """Positions uniform within joint limits, any angle for unlimited hinges, ``qpos0`` for slides.

    A free joint keeps its position and takes the orientation ``rand(4)``, normalised: the positive
    orthant only, as in ``randomize_limited_and_rotational_joints`` of
    ``dm_control/suite/utils/randomizers.py``.
    """
    import mujoco

    low, high = np.array(model.qpos0), np.array(model.qpos0)
    free = []
    for joint in range(model.njnt):
        at, kind = model.jnt_qposadr[joint], model.jnt_type[joint]
        if kind == mujoco.mjtJoint.mjJNT_FREE:
            free.append(at + 3)
            low[at + 3 : at + 7], high[at + 3 : at + 7] = 0.0, 1.0
        elif kind == mujoco.mjtJoint.mjJNT_BALL:
            raise ValueError("random_joints: ball joints are in none of these models")
        elif model.jnt_limited[joint]:
            low[at], high[at] = model.jnt_range[joint]
        elif kind == mujoco.mjtJoint.mjJNT_HINGE:
            low[at], high[at] = -np.pi, np.pi
    share = jax.random.uniform(key, (model.nq,))
    qpos = jnp.asarray(low, share.dtype) + share * jnp.asarray(high - low, share.dtype)
    for at in free:
        quaternion = qpos[at : at + 4]
        qpos = qpos.at[at : at + 4].set(quaternion / jnp.linalg.norm(quaternion))
    return qpos


def draw_until(
    key: Key,
    draw: Callable[[Key], Float[Array, " Q"]],
    good: Callable[[Array], Array],
    attempts: int = 1000,
) -> Float[Array, " Q"]:
    """Draw positions until ``good`` accepts them; after ``attempts`` draws, keep the last.

    dm_control's domains do the same, most without a limit, finger with 1,000 attempts.
    """
    # The limit matters more here: under vmap a batch waits for its slowest row, so one row that
    # can never succeed would hang all of them.

    def unfinished(carry: tuple) -> Bool[Array, ""]:
        return ~carry[2] & (carry[3] < attempts)

    def again(carry: tuple) -> tuple:
        key, here = jax.random.split(carry[0])
        qpos = draw(here)
        return key, qpos, good(qpos), carry[3] + 1

    shape = jax.eval_shape(draw, key)
    start = (key, jnp.zeros(shape.shape, shape.dtype), jnp.zeros((), bool), jnp.int32(0))
    return jax.lax.while_loop(unfinished, again, start)[1]


def until_apart(
    engine: Engine, key: Key, draw: Callable[[Key], Float[Array, " Q"]]
) -> Float[Array, " Q"]:
    """Draw positions until no two geoms touch (``ncon > 0`` in dm_control's domains)."""
    return draw_until(key, draw, lambda qpos: ~engine.touching(qpos))
