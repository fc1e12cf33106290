"""Forward kinematics in a fixed number of operations, however many bodies there are.

``mjx.kinematics`` emits code for each group of similar bodies at each depth of the tree; for the
dog's 62 bodies that was two thirds of the program of a step and most of its compilation time.
Here the frames of all bodies relative to their parents are computed at once, and chains of frames
are composed by pointer doubling (each round links every body to an ancestor twice as far up):
five rounds for a tree of depth 20. The formulas are those of ``mj_kinematics``
(``engine_core_smooth.c``).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Vectors = Float[Array, "N 3"]
Quaternions = Float[Array, "N 4"]


def multiply(p: Quaternions, q: Quaternions) -> Quaternions:
    """Quaternion products, row by row."""
    w, u = p[:, :1], p[:, 1:]
    s, v = q[:, :1], q[:, 1:]
    real = w * s - jnp.sum(u * v, axis=1, keepdims=True)
    return jnp.concatenate([real, w * v + s * u + jnp.cross(u, v)], axis=1)


def rotate(q: Quaternions, v: Vectors) -> Vectors:
    """Vectors rotated by unit quaternions, row by row."""
    w, u = q[:, :1], q[:, 1:]
    twice = 2.0 * jnp.cross(u, v)
    return v + w * twice + jnp.cross(u, twice)


def _matrices(q: Quaternions) -> Float[Array, "N 3 3"]:
    """Rotation matrices of unit quaternions."""
    w, x, y, z = q.T
    rows = [
        [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
    ]
    return jnp.stack([jnp.stack(row, axis=1) for row in rows], axis=1)


def _normalised(q: Quaternions) -> Quaternions:
    return q / jnp.sqrt(jnp.sum(q * q, axis=1, keepdims=True))


def _joint_rotations(device: Any, qpos: Float[Array, " Q"]) -> Quaternions:
    """Rotation of each joint: about the axis for hinges, as given for balls, else the identity."""
    import mujoco

    kinds, at = np.asarray(device.jnt_type), np.asarray(device.jnt_qposadr)
    half = 0.5 * (qpos - device.qpos0)[at][:, None]
    rotations = jnp.concatenate([jnp.cos(half), jnp.sin(half) * device.jnt_axis], axis=1)
    is_hinge = kinds == mujoco.mjtJoint.mjJNT_HINGE
    identity = jnp.asarray([1.0, 0.0, 0.0, 0.0], qpos.dtype)
    rotations = jnp.where(is_hinge[:, None], rotations, identity[None])
    balls = np.nonzero(kinds == mujoco.mjtJoint.mjJNT_BALL)[0]
    if balls.size:
        rotations = rotations.at[balls].set(qpos[at[balls][:, None] + np.arange(4)])
    return rotations


def _unit_quaternions(device: Any, qpos: Float[Array, " Q"]) -> Float[Array, " Q"]:
    """``qpos`` with the quaternions of free and ball joints normalised."""
    import mujoco

    kinds, at = np.asarray(device.jnt_type), np.asarray(device.jnt_qposadr)
    starts = [
        *(at[kinds == mujoco.mjtJoint.mjJNT_FREE] + 3),
        *at[kinds == mujoco.mjtJoint.mjJNT_BALL],
    ]
    if not starts:
        return qpos
    ids = np.asarray(starts)[:, None] + np.arange(4)
    return qpos.at[ids].set(_normalised(qpos[ids]))


def _compose(
    parents: Int[np.ndarray, " N"], pos: Vectors, quat: Quaternions
) -> tuple[Vectors, Quaternions]:
    """World frames from frames relative to the parent; body 0 is the world."""
    # Body 0 is its own parent with the identity frame, so chains may be extended past it: bodies
    # of different depth need no masks.
    above = parents.copy()
    while above.any():
        pos, quat = (
            pos[above] + rotate(quat[above], pos),
            multiply(quat[above], quat),
        )
        above = above[above]
    return pos, quat


def kinematics(device: Any, data: Any) -> Any:
    """``mjx.kinematics`` for models without mocap bodies: ``data`` with all frames filled in."""
    import mujoco

    kinds, at = np.asarray(device.jnt_type), np.asarray(device.jnt_qposadr)
    bodies, count = np.asarray(device.jnt_bodyid), np.asarray(device.body_jntnum)
    qpos = _unit_quaternions(device, data.qpos)
    rotations = _joint_rotations(device, qpos)
    slides = jnp.where(
        (kinds == mujoco.mjtJoint.mjJNT_SLIDE)[:, None],
        (qpos - device.qpos0)[at][:, None] * device.jnt_axis,
        jnp.zeros_like(device.jnt_axis),
    )
    pos, quat = device.body_pos.astype(qpos.dtype), device.body_quat.astype(qpos.dtype)
    anchors, axes = jnp.zeros_like(slides), jnp.zeros_like(slides)
    for nth in range(int(count.max(initial=0))):
        # Joints of one body apply in sequence, so this loop runs over the rank of a joint in its
        # body (at most six), not over bodies. Frames are relative to the body's parent.
        body = np.nonzero(count > nth)[0]
        joint = np.asarray(device.body_jntadr)[body] + nth
        before, where = quat[body], device.jnt_pos[joint]
        anchor = pos[body] + rotate(before, where)
        anchors = anchors.at[joint].set(anchor)
        axes = axes.at[joint].set(rotate(before, device.jnt_axis[joint]))
        after = multiply(before, rotations[joint])
        quat = quat.at[body].set(after)
        # The anchor is a fixed point of the rotation: shift the body to keep it where it was.
        moved = anchor - rotate(after, where) + rotate(before, slides[joint])
        pos = pos.at[body].set(moved)
    # Free joints give absolute poses; their bodies are always children of the world.
    free = np.nonzero(kinds == mujoco.mjtJoint.mjJNT_FREE)[0]
    if free.size:
        pos = pos.at[bodies[free]].set(qpos[at[free][:, None] + np.arange(3)])
        quat = quat.at[bodies[free]].set(qpos[at[free][:, None] + 3 + np.arange(4)])
    parents = np.asarray(device.body_parentid)
    xpos, xquat = _compose(parents, pos, quat)
    base = parents[bodies]
    anchors = xpos[base] + rotate(xquat[base], anchors)
    axes = rotate(xquat[base], axes)
    if free.size:
        # mj_kinematics reports the z axis for free joints.
        up = jnp.asarray([0.0, 0.0, 1.0], qpos.dtype)
        anchors, axes = anchors.at[free].set(xpos[bodies[free]]), axes.at[free].set(up[None])

    def attached(
        body: Any, pos: Vectors, quat: Quaternions
    ) -> tuple[Vectors, Float[Array, "N 3 3"]]:
        body = np.asarray(body)
        mat = _matrices(multiply(xquat[body], quat))
        return xpos[body] + rotate(xquat[body], pos), mat

    xipos, ximat = attached(np.arange(parents.size), device.body_ipos, device.body_iquat)
    frames = dict(xanchor=anchors, xaxis=axes, xpos=xpos, xquat=xquat, xmat=_matrices(xquat))
    frames |= dict(qpos=qpos, xipos=xipos, ximat=ximat)
    for kind, number in (("geom", device.ngeom), ("site", device.nsite)):
        if number:
            body, pos, quat = (getattr(device, f"{kind}_{x}") for x in ("bodyid", "pos", "quat"))
            frames[f"{kind}_xpos"], frames[f"{kind}_xmat"] = attached(body, pos, quat)
    return data.replace(**frames)
