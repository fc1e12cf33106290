"""dm_control's own physics in JAX: loading a domain, stepping it, making tasks of it.

The models are the XML files of the installed ``dm_control`` package, compiled
by MuJoCo and handed to MJX. Nothing here renders, so only the files are read:
importing ``dm_control.suite`` would ask for a GL library.

``dm_control`` steps with ``legacy_step`` (``mujoco/engine.py``): after the last
physics step everything that depends on position and velocity is computed anew.
``Domain.measure`` does the same for what observations and rewards need.
"""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pomcp_jax.envs import solver
from pomcp_jax.envs.protocol import Task
from pomcp_jax.types import Key, PyTree

_SHARED = ("materials.xml", "skybox.xml", "visual.xml")
"""What every domain's XML includes; see ``dm_control/suite/common/__init__.py``."""


class Physics(NamedTuple):
    """A compiled domain."""

    model: Any
    """``mujoco.MjModel``, the original."""
    device: Any
    """``mujoco.mjx.Model``."""
    blank: Any
    """``mujoco.mjx.Data`` to fill in; constants of a trace."""
    substeps: int
    """Physics steps per control step."""


class State(NamedTuple):
    """What a task carries: the physics that moves, and what was measured of it."""

    qpos: Float[Array, " Q"]
    qvel: Float[Array, " V"]
    warmstart: Float[Array, " V"]
    """Where the constraint solver starts: the last acceleration."""
    ctrl: Float[Array, " U"]
    measured: PyTree
    """Positions and velocities in sync with ``qpos`` and ``qvel``."""
    episode: PyTree
    """What a task draws once per episode (for example a target)."""


class Domain(NamedTuple):
    """How a family of tasks starts and what it looks at; Q positions, V velocities."""

    physics: Physics
    begin: Callable[[Key], tuple[Float[Array, " Q"], Float[Array, " V"], PyTree]]
    """``key -> (qpos, qvel, episode)``."""
    measure: Callable[[Float[Array, " Q"], Float[Array, " V"], PyTree], PyTree]
    """``(qpos, qvel, episode) -> measured``."""
    observe: Callable[[State], Float[Array, " O"]]
    observation_size: int
    episode_steps: int


def quiet_mjx() -> ModuleType:
    """``mujoco.mjx``, imported without its remarks about optional packages."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from mujoco import mjx
    return mjx


@contextlib.contextmanager
def relaxed():
    """Let MJX and brax promote dtypes and ranks, whatever the caller's strictness."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def load(domain: str, control_timestep: float | None = None) -> Physics:
    """Compile ``dm_control/suite/<domain>.xml``; by default a control step is one physics step."""
    mjx = quiet_mjx()
    import mujoco

    package = importlib.util.find_spec("dm_control")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(f"the {domain} tasks read their models from dm_control")
    suite = Path(package.submodule_search_locations[0]) / "suite"
    assets = {f"./common/{name}": (suite / "common" / name).read_bytes() for name in _SHARED}
    spec = mujoco.MjSpec.from_string((suite / f"{domain}.xml").read_text(), assets)
    # MJX has no enable flags; those used here ask for energies, which move nothing.
    spec.option.enableflags = 0
    with warnings.catch_warnings():
        # cheetah.xml uses an attribute that MuJoCo deprecates; it still does what it says.
        warnings.filterwarnings("ignore", message="compiler attribute")
        model = spec.compile()
    _check(model, domain)
    with relaxed():
        device = mjx.put_model(model, impl="jax")
        blank = mjx.make_data(model, impl="jax")
    timestep = float(model.opt.timestep)
    substeps = 1 if control_timestep is None else round(control_timestep / timestep)
    return Physics(model=model, device=device, blank=blank, substeps=substeps)


def _check(model: Any, domain: str) -> None:
    """Refuse models outside what :mod:`solver` and :class:`State` cover."""
    import mujoco

    unsupported = {
        "equality constraints": model.neq > 0,
        "friction loss": bool((model.dof_frictionloss > 0).any()),
        "tendons": model.ntendon > 0,
        "activations": model.na > 0,
        "elliptic cones": model.opt.cone != mujoco.mjtCone.mjCONE_PYRAMIDAL,
        "ball or free joints": model.nq != model.njnt,
    }
    found = [name for name, present in unsupported.items() if present]
    if found:
        raise NotImplementedError(f"{domain} has {', '.join(found)}")


class _Moving(NamedTuple):
    """The carry of the scan over physics steps."""

    qpos: Float[Array, " Q"]
    qvel: Float[Array, " V"]
    warmstart: Float[Array, " V"]


def _accelerate(physics: Physics, ctrl: Float[Array, " U"], now: _Moving) -> Any:
    """``mj_forward`` up to the acceleration: MJX data with ``qacc`` and its forces."""
    mjx, model = quiet_mjx(), physics.device
    data = physics.blank.replace(qpos=now.qpos, qvel=now.qvel, ctrl=ctrl)
    data = mjx.fwd_position(model, data)
    data = mjx.fwd_velocity(model, data)
    data = mjx.fwd_actuation(model, data)
    data = mjx.fwd_acceleration(model, data)
    if data._impl.efc_J.size == 0:
        return data.replace(qacc=data.qacc_smooth)
    problem = solver.Problem(
        inertia=mjx.full_m(model, data) if mjx.is_sparse(model) else data._impl.M,
        qacc_smooth=data.qacc_smooth,
        jacobian=data._impl.efc_J,
        aref=data._impl.efc_aref,
        weight=data._impl.efc_D,
    )
    qacc = solver.solve(problem, now.warmstart)
    return data.replace(qacc=qacc, qfrc_constraint=solver.force(problem, qacc))


def _euler(physics: Physics, ctrl: Float[Array, " U"], now: _Moving) -> _Moving:
    """MuJoCo's semi-implicit Euler step, joint damping implicit (``mj_Euler``)."""
    data = quiet_mjx().euler(physics.device, _accelerate(physics, ctrl, now))
    return _Moving(data.qpos, data.qvel, data.qacc_warmstart)


def _rk4(physics: Physics, ctrl: Float[Array, " U"], now: _Moving) -> _Moving:
    """MuJoCo's fourth-order Runge-Kutta step (``mj_RungeKutta``), its stages scanned."""
    timestep = float(physics.model.opt.timestep)
    reach = jnp.asarray([0.5, 0.5, 1.0, 0.0], now.qpos.dtype)
    share = jnp.asarray([1 / 6, 1 / 3, 1 / 3, 1 / 6], now.qpos.dtype)

    def stage(carry: tuple, tableau: tuple) -> tuple:
        point, velocity, acceleration = carry
        ahead, part = tableau
        qacc = _accelerate(physics, ctrl, point).qacc
        following = _Moving(
            qpos=now.qpos + ahead * timestep * point.qvel,
            qvel=now.qvel + ahead * timestep * qacc,
            warmstart=qacc,
        )
        return (following, velocity + part * point.qvel, acceleration + part * qacc), None

    zero = jnp.zeros_like(now.qvel)
    (last, velocity, acceleration), _ = jax.lax.scan(stage, (now, zero, zero), (reach, share))
    return _Moving(
        now.qpos + timestep * velocity, now.qvel + timestep * acceleration, last.warmstart
    )


def advance(
    physics: Physics,
    qpos: Float[Array, " Q"],
    qvel: Float[Array, " V"],
    warmstart: Float[Array, " V"],
    ctrl: Float[Array, " U"],
    steps: int,
) -> tuple[Float[Array, " Q"], Float[Array, " V"], Float[Array, " V"]]:
    """``steps`` physics steps under constant controls: ``(qpos, qvel, warmstart)``."""
    import mujoco

    is_rk4 = physics.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    one = _rk4 if is_rk4 else _euler
    start = _Moving(qpos, qvel, warmstart)
    with relaxed():
        if steps == 1:
            return tuple(one(physics, ctrl, start))
        body = lambda now, _: (one(physics, ctrl, now), None)  # noqa: E731
        return tuple(jax.lax.scan(body, start, length=steps)[0])


def kinematics(physics: Physics, qpos: Float[Array, " Q"]) -> Any:
    """MJX data with the frames of bodies and geoms in sync with ``qpos``."""
    with relaxed():
        return quiet_mjx().kinematics(physics.device, physics.blank.replace(qpos=qpos))


def subtree_velocity(
    physics: Physics, data: Any, qvel: Float[Array, " V"], body: int
) -> Float[Array, "3"]:
    """Velocity of the centre of mass of ``body`` and all below it (``mj_subtreeVel``)."""
    mjx, model = quiet_mjx(), physics.device
    with relaxed():
        data = mjx.com_vel(model, mjx.com_pos(model, data.replace(qvel=qvel)))
        return mjx.subtree_vel(model, data)._impl.subtree_linvel[body]


def velocity_after_one_step(model: Any) -> np.ndarray:
    """Velocities ``[V]`` one physics step after ``qpos0`` at rest, by MuJoCo itself."""
    import mujoco

    data = mujoco.MjData(model)
    mujoco.mj_step(model, data)
    return data.qvel.copy()


def random_joints(physics: Physics, key: Key) -> Float[Array, " Q"]:
    """Uniform joints inside their limits, hinges without limits anywhere, slides at rest.

    ``dm_control/suite/utils/randomizers.py``, randomize_limited_and_rotational_joints.
    """
    import mujoco

    model = physics.model
    limited = np.asarray(model.jnt_limited, bool)
    free = ~limited & (model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)
    low, high = np.asarray(model.jnt_range).T
    low = np.where(free, -np.pi, np.where(limited, low, model.qpos0))
    high = np.where(free, np.pi, np.where(limited, high, model.qpos0))
    share = jax.random.uniform(key, (model.nq,))
    return jnp.asarray(low, share.dtype) + share * jnp.asarray(high - low, share.dtype)


def make_task(name: str, domain: Domain, reward: Callable[[State], Float[Array, ""]]) -> Task:
    """A task of a domain. dm_control's own never terminate, they only run out of time."""
    model = domain.physics.model
    low, high = model.actuator_ctrlrange.T

    def reset(key: Key) -> State:
        qpos, qvel, episode = domain.begin(key)
        return State(
            qpos=qpos,
            qvel=qvel,
            warmstart=jnp.zeros_like(qvel),
            ctrl=jnp.zeros((model.nu,), qpos.dtype),
            measured=domain.measure(qpos, qvel, episode),
            episode=episode,
        )

    def step(state: State, action: Float[Array, " A"]) -> State:
        middle = jnp.asarray((high + low) / 2, state.qpos.dtype)
        half = jnp.asarray((high - low) / 2, state.qpos.dtype)
        ctrl = middle + half * action.astype(state.qpos.dtype)
        qpos, qvel, warmstart = advance(
            domain.physics, state.qpos, state.qvel, state.warmstart, ctrl, domain.physics.substeps
        )
        measured = domain.measure(qpos, qvel, state.episode)
        return State(qpos, qvel, warmstart, ctrl, measured, state.episode)

    return Task(
        name=name,
        reset=reset,
        step=step,
        observe=domain.observe,
        reward=reward,
        terminated=lambda state: jnp.zeros((), bool),
        observation_size=domain.observation_size,
        action_size=model.nu,
        episode_steps=domain.episode_steps,
    )
