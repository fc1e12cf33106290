"""Passes over the kinematic tree as products with constant matrices of zeros and ones.

MJX emits code for every depth of the tree, which the compiler pays for (see
:mod:`pomcp_jax.envs.mjx.kinematics`). Here the sum over a body's subtree and the sum over the
joints above it are one small matrix product each. Formulas: ``mj_comPos``, ``mj_comVel`` and
``mj_rne`` (``engine_core_smooth.c``). Spatial vectors are rotation first, then translation,
about the centre of mass of the whole tree.
"""

import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

_TINY = 1e-15
"""``mjMINVAL``."""

Spatial = Float[Array, "N 6"]


class Tree(NamedTuple):
    """Ancestry of bodies and degrees of freedom; B bodies, V degrees of freedom."""

    above: Bool[np.ndarray, "B B"]
    """``[b, a]``: body a is b or an ancestor of it."""
    moves: Bool[np.ndarray, "B V"]
    """``[b, v]``: degree of freedom v moves body b."""
    before: Bool[np.ndarray, "V V"]
    """``[v, u]``: u moves the frame of v's axis; within a free joint only its translations do."""
    shifts: Bool[np.ndarray, " V"]
    """Translations: those of free joints, and slides."""
    body_axis: np.ndarray
    """``[V]``: the body axis of a free or ball joint's rotation, else -1."""
    world_axis: np.ndarray
    """``[V, 3]``: the world axis of a free joint's translation, else 0."""


def tree(device: Any) -> Tree:
    """Tree of an MJX model; NumPy only, so it is constant in the compiled program."""
    import mujoco

    kinds = mujoco.mjtJoint
    parents, bodies = np.asarray(device.body_parentid), np.asarray(device.dof_bodyid)
    joints, starts = np.asarray(device.dof_jntid), np.asarray(device.jnt_dofadr)
    above = np.eye(parents.size, dtype=bool)
    # MuJoCo numbers parents before their children, so each parent's row is already complete.
    for body in range(1, parents.size):
        above[body] |= above[parents[body]]
    moves = above[:, bodies]
    dofs = np.arange(bodies.size)
    kind, nth = np.asarray(device.jnt_type)[joints], dofs - starts[joints]
    free, ball = kind == kinds.mjJNT_FREE, kind == kinds.mjJNT_BALL
    shifts = (free & (nth < 3)) | (kind == kinds.mjJNT_SLIDE)
    before = moves[bodies] & (joints[:, None] > joints[None, :])
    # The C code computes all three rotations of a free or ball joint from the velocity before
    # the joint; a free joint's translations are applied first.
    before |= (joints[:, None] == joints[None, :]) & (free & (nth >= 3))[:, None] & shifts[None, :]
    body_axis = np.where(free & (nth >= 3), nth - 3, np.where(ball, nth, -1))
    world_axis = np.where((free & (nth < 3))[:, None], np.eye(3)[nth % 3], 0.0)
    return Tree(above, moves, before, shifts, body_axis, world_axis)


def _sum(which: Bool[np.ndarray, "M N"], terms: Float[Array, "N K"]) -> Float[Array, "M K"]:
    """Sums of the selected rows."""
    # Without the explicit precision a GPU would round the terms to TF32.
    return jnp.dot(jnp.asarray(which, terms.dtype), terms, precision=jax.lax.Precision.HIGHEST)


def _cross(motion: Spatial, other: Spatial) -> Spatial:
    """Cross products of spatial motions (``mju_crossMotion``)."""
    angular, linear = motion[:, :3], motion[:, 3:]
    moved = jnp.cross(linear, other[:, :3]) + jnp.cross(angular, other[:, 3:])
    return jnp.concatenate([jnp.cross(angular, other[:, :3]), moved], axis=1)


def _cross_force(motion: Spatial, force: Spatial) -> Spatial:
    """Cross products of spatial motions and forces (``mju_crossForce``)."""
    angular, linear = motion[:, :3], motion[:, 3:]
    torque = jnp.cross(angular, force[:, :3]) + jnp.cross(linear, force[:, 3:])
    return jnp.concatenate([torque, jnp.cross(angular, force[:, 3:])], axis=1)


def _momentum(inertia: Float[Array, "N 10"], motion: Spatial) -> Spatial:
    """Inertias times motions (``mju_mulInertVec``)."""
    matrix = inertia[:, np.array([[0, 3, 4], [3, 1, 5], [4, 5, 2]])]
    offset, mass, angular, linear = inertia[:, 6:9], inertia[:, 9:], motion[:, :3], motion[:, 3:]
    torque = jnp.sum(matrix * angular[:, None, :], axis=2) + jnp.cross(offset, linear)
    return jnp.concatenate([torque, mass * linear - jnp.cross(offset, angular)], axis=1)


def com_pos(device: Any, data: Any) -> Any:
    """``mjx.com_pos``: centres of mass, and inertias and joint axes about them."""
    links, root = tree(device), np.asarray(device.body_rootid)
    mass = device.body_mass[:, None]
    sums = _sum(links.above.T, jnp.concatenate([data.xipos * mass, mass], axis=1))
    total = sums[:, 3:]
    # Massless subtrees (dummy bodies) take their own position, as in mj_comPos.
    com = jnp.where(total < _TINY, data.xipos, sums[:, :3] / jnp.maximum(total, _TINY))
    offset = data.xipos - com[root]
    # Parallel axis theorem: R diag(I) R' + m (|r|^2 - r r'). MuJoCo stores its six distinct
    # entries in the order xx, yy, zz, xy, xz, yz, then m r and m.
    turned = data.ximat * device.body_inertia[:, None, :]
    inertia = jnp.sum(turned[:, :, None, :] * data.ximat[:, None, :, :], axis=3)
    outer = offset[:, :, None] * offset[:, None, :]
    square = jnp.sum(offset * offset, axis=1)[:, None, None] * jnp.eye(3, dtype=mass.dtype)[None]
    inertia = inertia + mass[:, :, None] * (square - outer)
    rows, columns = np.array([0, 1, 2, 0, 0, 1]), np.array([0, 1, 2, 1, 2, 2])
    cinert = jnp.concatenate([inertia[:, rows, columns], offset * mass, mass], axis=1)

    bodies, joints = np.asarray(device.dof_bodyid), np.asarray(device.dof_jntid)
    own = data.xmat[bodies, :, np.maximum(links.body_axis, 0)]
    axes = jnp.where((links.body_axis >= 0)[:, None], own, data.xaxis[joints])
    is_free = np.asarray(links.world_axis.any(axis=1))
    axes = jnp.where(is_free[:, None], jnp.asarray(links.world_axis, axes.dtype), axes)
    arm = jnp.cross(axes, com[root[bodies]] - data.xanchor[joints])
    shifts, still = links.shifts[:, None], jnp.zeros_like(axes)
    turning = jnp.where(shifts, still, axes)
    cdof = jnp.concatenate([turning, jnp.where(shifts, axes, arm)], axis=1)
    return data.tree_replace({"subtree_com": com, "_impl.cinert": cinert, "cdof": cdof})


def com_vel(device: Any, data: Any) -> Any:
    """``mjx.com_vel``: velocities of bodies and of joint axes."""
    links = tree(device)
    moving = data.cdof * data.qvel[:, None]
    is_free = np.asarray(links.world_axis.any(axis=1))
    turning = _cross(_sum(links.before, moving), data.cdof)
    # The translation axes of a free joint are the world's: they do not turn with the body.
    cdof_dot = jnp.where(is_free[:, None], jnp.zeros_like(turning), turning)
    return data.tree_replace({"cvel": _sum(links.moves, moving), "cdof_dot": cdof_dot})


def rne(device: Any, data: Any) -> Any:
    """``mjx.rne`` without joint accelerations: bias forces of gravity and velocity."""
    import mujoco

    links = tree(device)
    weightless = device.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_GRAVITY
    gravity = jnp.zeros_like(device.opt.gravity) if weightless else device.opt.gravity
    # An upward acceleration of the world stands in for gravity (mj_rne does the same).
    upward = jnp.concatenate([jnp.zeros_like(gravity), -gravity])[None]
    acceleration = upward + _sum(links.moves, data.cdof_dot * data.qvel[:, None])
    inertia = data._impl.cinert
    spin = _cross_force(data.cvel, _momentum(inertia, data.cvel))
    force = _sum(links.above.T, _momentum(inertia, acceleration) + spin)
    bias = jnp.sum(data.cdof * force[np.asarray(device.dof_bodyid)], axis=1)
    return data.replace(qfrc_bias=bias)


def fwd_velocity(device: Any, data: Any) -> Any:
    """``mjx.fwd_velocity`` with the passes above."""
    mjx = importlib.import_module("mujoco.mjx")
    rows = data._impl
    data = data.tree_replace(
        {
            "_impl.actuator_velocity": rows.actuator_moment @ data.qvel,
            "_impl.ten_velocity": rows.ten_J @ data.qvel,
        }
    )
    data = mjx.passive(device, com_vel(device, data))
    return mjx.tendon_bias(device, rne(device, data))
