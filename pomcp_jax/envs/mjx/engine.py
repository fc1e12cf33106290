"""MJX engine: MuJoCo's forward dynamics in JAX with this project's own passes and solver.

MJX computes passive forces, actuation and constraint rows. Kinematics, tree passes, contacts of
primitives and the constrained acceleration come from the modules beside this one; the solver
reaches the same minimum as MuJoCo's C code.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pomcp_jax.envs.mjx import collision, linear, noslip, solver, tree
from pomcp_jax.envs.mjx.kinematics import kinematics
from pomcp_jax.envs.physics import (
    Engine,
    Motion,
    force_sensors,
    guarded,
    quiet_mjx,
    relaxed,
    sensor_indices,
)


def check(model: Any, domain: str) -> None:
    """Refuse a model that this engine does not cover; it covers all of dm_control's tasks here.

    Raises:
      NotImplementedError: for another integrator, or RK4 with activations or quaternions.
    """
    import mujoco

    rk4 = model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    unsupported = {
        "an integrator other than Euler and RK4": not rk4
        and model.opt.integrator != mujoco.mjtIntegrator.mjINT_EULER,
        "RK4 with activations or quaternions": rk4 and (model.na > 0 or model.nq != model.nv),
    }
    missing = [name for name, present in unsupported.items() if present]
    if missing:
        raise NotImplementedError(f"{domain} has {', '.join(missing)}")


class _Model(NamedTuple):
    """Constants of one physics step."""

    device: Any
    blank: Any
    noslip: noslip.Setting | None
    max_contacts: Mapping[int, int]
    """Contacts of each condim to solve for, see :func:`collision.limit`."""
    explicit: Any = None
    """``device`` without MJX's implicit damping, which :func:`_euler` does itself."""
    is_damped: bool = False


def make(
    edited: Any,
    device: Any,
    blank: Any,
    forces: tuple[str, ...],
    noslip_iterations: int = 0,
    max_contacts: Mapping[int, int] = MappingProxyType({}),
) -> Engine:
    """Engine of one model; ``forces`` are the sensors that it reports."""
    import mujoco

    model = _prepare(edited, device, blank, noslip_iterations, max_contacts)
    wanted = sensor_indices(edited, forces)
    timestep = float(edited.opt.timestep)
    is_rk4 = edited.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    sized = wanted.shape

    def sense(data: Any) -> Float[Array, " F"]:
        return quiet_mjx().sensor_acc(device, data).sensordata[wanted]

    def start(
        qpos: Float[Array, " Q"], qvel: Float[Array, " V"], act: Float[Array, " M"]
    ) -> tuple[Motion, Float[Array, " F"]]:
        # No warm start: the solver then compares zero with the unconstrained acceleration.
        motion = Motion(qpos, qvel, act, jnp.zeros_like(qvel))
        if not forces:
            return motion, jnp.zeros(sized, qpos.dtype)
        with relaxed():
            ctrl = jnp.zeros((edited.nu,), qpos.dtype)
            data = _accelerate(model, motion, ctrl, actuated=False)
            return motion, sense(data)

    def euler(motion: Motion, ctrl: Float[Array, " U"], sensed: Array, last: Array | bool):
        data = _accelerate(model, motion, ctrl)
        if forces:
            # Only the last physics step of a control step is observed.
            sensed = jax.lax.cond(last, sense, lambda _: sensed, data)
        data = _euler(model, data)
        return Motion(data.qpos, data.qvel, data.act, data.qacc_warmstart), sensed

    def rk4(motion: Motion, ctrl: Float[Array, " U"], sensed: Array, last: Array | bool):
        return _rk4(model, timestep, motion, ctrl), sensed

    step = rk4 if is_rk4 else euler

    def advance(
        motion: Motion, ctrl: Float[Array, " U"], steps: int
    ) -> tuple[Motion, Float[Array, " F"]]:
        sensed = jnp.zeros(sized, motion.qpos.dtype)
        with relaxed():
            if steps == 1:
                motion, sensed = step(motion, ctrl, sensed, True)
            else:
                # A scan compiles the step once, however many a control step has.
                body = lambda now, last: (step(now[0], ctrl, now[1], last), None)  # noqa: E731
                last = jnp.arange(steps) == steps - 1
                (motion, sensed), _ = jax.lax.scan(body, (motion, sensed), last)
        return guarded(motion), sensed

    return Engine(start, advance, functools.partial(_touching, model))


def sensing(
    edited: Any, device: Any, blank: Any, names: tuple[str, ...]
) -> Callable[[Motion, Float[Array, " U"]], Float[Array, " F"]]:
    """Function that computes sensors of a state under controls, as ``mj_forward`` does."""
    model, wanted = _prepare(edited, device, blank, 0, {}), sensor_indices(edited, names)
    has_forces = bool(force_sensors(edited, names))

    def sense(motion: Motion, ctrl: Float[Array, " U"]) -> Float[Array, " F"]:
        if not names:
            return jnp.zeros(wanted.shape, motion.qpos.dtype)
        mjx = quiet_mjx()
        with relaxed():
            if has_forces:
                data = mjx.sensor_acc(device, _accelerate(model, motion, ctrl))
            else:
                data = blank.replace(qpos=motion.qpos, qvel=motion.qvel, act=motion.act)
                data = tree.fwd_velocity(device, _position(model, data))
            return mjx.sensor_vel(device, mjx.sensor_pos(device, data)).sensordata[wanted]

    return sense


def _touching(model: _Model, qpos: Float[Array, " Q"]) -> Bool[Array, ""]:
    """Whether any contact is active at a pose."""
    with relaxed():
        data = kinematics(model.device, model.blank.replace(qpos=qpos))
        data = collision.collide(model.device, data, model.max_contacts)
        contact = data._impl.contact
        return jnp.any(contact.dist < contact.includemargin)


def _prepare(
    edited: Any,
    device: Any,
    blank: Any,
    noslip_iterations: int,
    max_contacts: Mapping[int, int],
) -> _Model:
    import mujoco

    if max_contacts:
        blank = collision.limit(edited, blank, max_contacts)
    # MJX's own implicit damping calls LAPACK on the whole batch at once, see linear.py.
    flags = int(edited.opt.disableflags) | int(mujoco.mjtDisableBit.mjDSBL_EULERDAMP)
    return _Model(
        device=device,
        blank=blank,
        noslip=_noslip(edited, blank, noslip_iterations),
        max_contacts=max_contacts,
        explicit=device.replace(opt=device.opt.replace(disableflags=flags)),
        is_damped=flags != int(edited.opt.disableflags) and bool(edited.dof_damping.any()),
    )


def _noslip(edited: Any, blank: Any, iterations: int) -> noslip.Setting | None:
    """Options of the noslip pass over opposing edges of friction pyramids; None without one."""
    contact = blank._impl.contact
    slides = contact.dim > 1  # condim 1 has a normal force only
    if not iterations or not slides.any():
        return None
    edges = [
        address + 2 * np.arange(dim - 1)
        for address, dim in zip(contact.efc_address[slides], contact.dim[slides], strict=True)
    ]
    first = np.concatenate(edges)
    return noslip.Setting(
        iterations=iterations,
        tolerance=float(edited.opt.noslip_tolerance),
        scale=1.0 / (float(edited.stat.meaninertia) * max(1, edited.nv)),
        edges=np.stack([first, first + 1], axis=1),
    )


def _accelerate(
    model: _Model, motion: Motion, ctrl: Float[Array, " U"], actuated: bool = True
) -> Any:
    """``mj_forward`` up to the acceleration: MJX data with ``qacc`` and its forces."""
    mjx, device = quiet_mjx(), model.device
    data = model.blank.replace(qpos=motion.qpos, qvel=motion.qvel, act=motion.act, ctrl=ctrl)
    data = tree.fwd_velocity(device, _position(model, data))
    if actuated:
        data = mjx.fwd_actuation(device, data)
    inertia = _inertia(device, data)
    # mj_fwdAcceleration also adds externally applied forces, which no task has.
    smooth = data.qfrc_passive - data.qfrc_bias + data.qfrc_actuator
    right = smooth[:, None]
    # The noslip pass needs M^-1 J': solving for it here shares the factorisation of M.
    if model.noslip is not None:
        right = jnp.concatenate([right, data._impl.efc_J.T], axis=1)
    moved = linear.solve_positive(inertia, right)
    data = data.replace(qfrc_smooth=smooth, qacc_smooth=moved[:, 0])
    if data._impl.efc_J.size == 0:
        return data.replace(qacc=data.qacc_smooth)
    problem = _problem(device, data, inertia)
    qacc = solver.solve(problem, motion.hidden)
    force = solver.row_force(problem, qacc)
    if model.noslip is not None:
        qacc, force = noslip.refine(problem, force, moved[:, 1:], model.noslip)
    return data.replace(qacc=qacc, qfrc_constraint=force @ problem.jacobian).tree_replace(
        {"_impl.efc_force": force}
    )


def _position(model: _Model, data: Any) -> Any:
    """``mjx.fwd_position`` with our kinematics, tree passes and contacts."""
    mjx, device = quiet_mjx(), model.device
    data = tree.com_pos(device, kinematics(device, data))
    data = mjx.crb(device, mjx.tendon(device, data))
    data = mjx.tendon_armature(device, data)
    data = mjx.make_constraint(device, collision.collide(device, data, model.max_contacts))
    return mjx.transmission(device, data)


def _inertia(device: Any, data: Any) -> Float[Array, "V V"]:
    mjx = quiet_mjx()
    return mjx.full_m(device, data) if mjx.is_sparse(device) else data._impl.M


def _euler(model: _Model, data: Any) -> Any:
    """``mj_Euler``: semi-implicit in velocity, and implicit in joint damping if there is any."""
    qacc = data.qacc
    if model.is_damped:
        damping = jnp.diag(model.device.opt.timestep * model.device.dof_damping)
        inertia = _inertia(model.device, data) + damping
        qacc = linear.solve_positive(inertia, data.qfrc_smooth + data.qfrc_constraint)
    # The warm start of the next step is the solver's acceleration, not the damped one.
    moved = quiet_mjx().euler(model.explicit, data.replace(qacc=qacc))
    return moved.replace(qacc_warmstart=data.qacc)


def _problem(device: Any, data: Any, inertia: Float[Array, "V V"]) -> solver.Problem:
    """Constraint problem of our solver, from MJX's rows."""
    import mujoco

    rows, contact = data._impl, data._impl.contact
    cones = []
    if device.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC:
        for dim in sorted(set(contact.dim[contact.dim > 1].tolist())):
            which = np.nonzero(contact.dim == dim)[0]
            friction = contact.friction[which][:, : dim - 1]
            mu = friction[:, :1] / jnp.sqrt(device.opt.impratio)
            address = contact.efc_address[which][:, None] + np.arange(dim)[None]
            cones.append(solver.Cones(address, jnp.concatenate([mu, friction], axis=1)))
    return solver.Problem(
        inertia=inertia,
        qacc_smooth=data.qacc_smooth,
        jacobian=rows.efc_J,
        aref=rows.efc_aref,
        weight=rows.efc_D,
        equalities=int(rows.ne),
        frictions=int(rows.nf),
        loss=rows.efc_frictionloss,
        cones=tuple(cones),
    )


def _rk4(model: _Model, timestep: float, now: Motion, ctrl: Float[Array, " U"]) -> Motion:
    """MuJoCo's fourth-order Runge-Kutta step (``mj_RungeKutta``).

    The stages are scanned, so that the forward dynamics are compiled once instead of four times.
    """
    # The last stage has no successor: its reach of 0 only fills the scan's shape.
    reach = jnp.asarray([0.5, 0.5, 1.0, 0.0], now.qpos.dtype)
    share = jnp.asarray([1 / 6, 1 / 3, 1 / 3, 1 / 6], now.qpos.dtype)

    def stage(carry: tuple, tableau: tuple) -> tuple:
        point, velocity, acceleration = carry
        ahead, part = tableau
        qacc = _accelerate(model, point, ctrl).qacc
        following = Motion(
            qpos=now.qpos + ahead * timestep * point.qvel,
            qvel=now.qvel + ahead * timestep * qacc,
            act=now.act,
            hidden=qacc,
        )
        return (following, velocity + part * point.qvel, acceleration + part * qacc), None

    zero = jnp.zeros_like(now.qvel)
    (last, velocity, acceleration), _ = jax.lax.scan(stage, (now, zero, zero), (reach, share))
    return Motion(
        now.qpos + timestep * velocity, now.qvel + timestep * acceleration, now.act, last.hidden
    )
