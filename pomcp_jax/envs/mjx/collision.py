"""Contacts between primitive geoms, computed as in MuJoCo's C code.

MJX adds a small number to each denominator when it finds the closest points of spheres and
capsules, which rotates contact normals by up to 1e-3, and for a steep capsule on a plane it
chooses other tangents than C. With pyramidal friction both show after a few steps. The pairs here
follow the C code (``engine_collision_primitive.c``); cylinders, ellipsoids and all boxes that are
not on planes go through MJX.
"""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_TINY = 1e-15
"""``mjMINVAL``."""


class Geom(NamedTuple):
    """Pose and size of one geom in the world."""

    pos: Float[Array, "3"]
    mat: Float[Array, "3 3"]
    size: Float[Array, "3"]


Contacts = tuple[Float[Array, " C"], Float[Array, "C 3"], Float[Array, "C 3 3"]]
"""Distances, positions and frames of the contacts of one pair."""


def _unit(x: Float[Array, "3"]) -> tuple[Float[Array, "3"], Float[Array, ""]]:
    """``mju_normalize3``: the direction (x axis for a null vector) and the length."""
    length = jnp.sqrt(x @ x)
    null = length < _TINY
    # Divide by one instead of adding an epsilon: every other direction stays exact.
    safe = jnp.where(null, jnp.ones_like(length), length)
    return jnp.where(null, jnp.asarray([1.0, 0.0, 0.0], x.dtype), x / safe), length


def _frame(normal: Float[Array, "3"], hint: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """``mju_makeFrame``: tangents from a hint; from the y or z axis where the hint is short."""
    y, z = jnp.asarray([0.0, 1.0, 0.0], hint.dtype), jnp.asarray([0.0, 0.0, 1.0], hint.dtype)
    axis = jnp.where(jnp.abs(normal[1]) < 0.5, y, z)
    hint = jnp.where(hint @ hint < 0.25, axis, hint)
    first, _ = _unit(hint - normal * (normal @ hint))
    return jnp.stack([normal, first, jnp.cross(normal, first)])


def _between_spheres(
    pos1: Float[Array, "3"], radius1: Array, pos2: Float[Array, "3"], radius2: Array
) -> Contacts:
    """``mjraw_SphereSphere``."""
    normal, length = _unit(pos2 - pos1)
    dist = length - radius1 - radius2
    pos = pos1 + normal * (radius1 + 0.5 * dist)
    return dist[None], pos[None], _frame(normal, jnp.zeros_like(normal))[None]


def sphere_sphere(one: Geom, two: Geom) -> Contacts:
    """``mjc_SphereSphere``."""
    return _between_spheres(one.pos, one.size[0], two.pos, two.size[0])


def sphere_capsule(sphere: Geom, capsule: Geom) -> Contacts:
    """``mjc_SphereCapsule``: a sphere at the nearest point of the capsule's axis."""
    axis = capsule.mat[:, 2]
    along = jnp.clip(axis @ (sphere.pos - capsule.pos), -capsule.size[1], capsule.size[1])
    nearest = capsule.pos + axis * along
    return _between_spheres(sphere.pos, sphere.size[0], nearest, capsule.size[0])


def capsule_capsule(one: Geom, two: Geom) -> Contacts:
    """``mjraw_CapsuleCapsule`` for axes that are not parallel.

    C finds two contacts where the axes are parallel to within 1e-15; this finds one of them.
    """
    axis1, axis2 = one.mat[:, 2] * one.size[1], two.mat[:, 2] * two.size[1]
    apart = one.pos - two.pos
    ma, mb, mc = axis1 @ axis1, -(axis1 @ axis2), axis2 @ axis2
    u, v = -(axis1 @ apart), axis2 @ apart
    det = ma * mc - mb * mb
    flat = jnp.abs(det) < _TINY
    safe = jnp.where(flat, jnp.ones_like(det), det)
    x1 = jnp.where(flat, jnp.ones_like(det), (mc * u - mb * v) / safe)
    x2 = jnp.where(flat, (v - mb) / mc, (ma * v - mb * u) / safe)
    # Clip the first to its segment, then the second, then the first again: C's order decides
    # which end of a segment is used.
    x2 = jnp.where(jnp.abs(x1) > 1, (v - mb * jnp.sign(x1)) / mc, x2)
    x1 = jnp.clip(x1, -1.0, 1.0)
    beyond = jnp.abs(x2) > 1
    x1 = jnp.where(beyond, jnp.clip((u - mb * jnp.sign(x2)) / ma, -1.0, 1.0), x1)
    x2 = jnp.clip(x2, -1.0, 1.0)
    return _between_spheres(one.pos + axis1 * x1, one.size[0], two.pos + axis2 * x2, two.size[0])


def _on_plane(plane: Geom, centre: Float[Array, "3"], radius: Array) -> tuple[Array, Array]:
    """Distance and position of the contact between a plane and a sphere."""
    normal = plane.mat[:, 2]
    dist = (centre - plane.pos) @ normal - radius
    return dist, centre - normal * (radius + 0.5 * dist)


def plane_sphere(plane: Geom, sphere: Geom) -> Contacts:
    """``mjc_PlaneSphere``."""
    normal = plane.mat[:, 2]
    dist, pos = _on_plane(plane, sphere.pos, sphere.size[0])
    return dist[None], pos[None], _frame(normal, jnp.zeros_like(normal))[None]


def plane_capsule(plane: Geom, capsule: Geom) -> Contacts:
    """``mjc_PlaneCapsule``: a sphere at each end; the first tangent follows the axis."""
    axis = capsule.mat[:, 2]
    frame = _frame(plane.mat[:, 2], axis)
    ends = [capsule.pos + sign * axis * capsule.size[1] for sign in (1, -1)]
    dist, pos = zip(*[_on_plane(plane, end, capsule.size[0]) for end in ends], strict=True)
    return jnp.stack(dist), jnp.stack(pos), jnp.stack([frame, frame])


def plane_box(plane: Geom, box: Geom) -> Contacts:
    """``mjc_PlaneBox``: the four corners below the box's centre, in C's order."""
    normal = plane.mat[:, 2]
    # C enumerates corners with x fastest and keeps those below the centre: of two opposite
    # corners always one, so four in all.
    signs = np.array([[1 if i & bit else -1 for bit in (1, 2, 4)] for i in range(8)])
    corners = (jnp.asarray(signs, box.pos.dtype) * box.size[None]) @ box.mat.T
    _, lower = jax.lax.top_k(-(corners @ normal), k=4)
    # top_k orders by depth; the noslip pass needs C's order of corners.
    corners = corners[jnp.sort(lower)] + box.pos[None]
    dist = (corners - plane.pos[None]) @ normal
    pos = corners - 0.5 * dist[:, None] * normal[None]
    frame = _frame(normal, jnp.zeros_like(normal))
    return dist, pos, jnp.broadcast_to(frame[None], (4, 3, 3))


def _pairs() -> dict[tuple[int, int], Callable[[Geom, Geom], Contacts]]:
    import mujoco

    kind = mujoco.mjtGeom
    plane, sphere, capsule = kind.mjGEOM_PLANE, kind.mjGEOM_SPHERE, kind.mjGEOM_CAPSULE
    return {
        (plane, sphere): plane_sphere,
        (plane, capsule): plane_capsule,
        (plane, kind.mjGEOM_BOX): plane_box,
        (sphere, sphere): sphere_sphere,
        (sphere, capsule): sphere_capsule,
        (capsule, capsule): capsule_capsule,
    }


def limit(edited: Any, blank: Any, most: Mapping[int, int]) -> Any:
    """``blank`` data with room for at most ``most[condim]`` contacts of each condim.

    MJX gives every candidate pair constraint rows, in contact or not, and the solver's work grows
    with the rows; a body has far fewer contacts at a time than candidate pairs.
    """
    constraint = importlib.import_module("mujoco.mjx._src.constraint")
    io = importlib.import_module("mujoco.mjx._src.io")
    dims = blank._impl.contact.dim
    kept = [dims[dims == dim][: most.get(int(dim))] for dim in np.unique(dims)]
    dim = np.concatenate([*kept, dims[:0]])
    kinds = constraint.make_efc_type(edited, dim)
    address = constraint.make_efc_address(edited, dim, kinds)
    rows, real = kinds.size, blank.qpos.dtype
    vectors = ("efc_pos", "efc_margin", "efc_frictionloss", "efc_D", "efc_aref", "efc_force")
    return blank.tree_replace(
        {f"_impl.{name}": jnp.zeros((rows,), real) for name in vectors}
        | {
            "_impl.efc_J": jnp.zeros((rows, edited.nv), real),
            "_impl.nefc": rows,
            "_impl.ncon": dim.size,
            "_impl.contact": io._make_data_contact_jax(dim, address),
            "_impl.efc_type": kinds,
        }
    )


def collide(device: Any, data: Any, most: Mapping[int, int] = MappingProxyType({})) -> Any:
    """``mjx.collision`` with the pairs above: ``data`` with its contacts filled in.

    Only the ``most[condim]`` deepest contacts of each condim are kept; ``data`` must then come
    from :func:`limit`.
    """
    if data._impl.ncon == 0:
        return data
    driver = importlib.import_module("mujoco.mjx._src.collision_driver")
    pairs = _pairs()
    by_condim: dict[int, list[Any]] = {}
    for key, contact in driver._contact_groups(device, data).items():
        exact = pairs.get((int(key.types[0]), int(key.types[1])))
        if exact is None:
            general = driver._COLLISION_FUNC[key.types]
            dist, pos, frame = general(device, data, key, contact.geom)
        else:
            one, two = (
                Geom(data.geom_xpos[ids], data.geom_xmat[ids], device.geom_size[ids])
                for ids in contact.geom.T
            )
            contacts = jax.vmap(exact)(one, two)
            dist, pos, frame = jax.tree.map(jnp.concatenate, contacts)
        count = dist.shape[0] // contact.geom.shape[0]
        contact = jax.tree.map(lambda x, n=count: jnp.repeat(x, n, axis=0), contact)
        by_condim.setdefault(int(key.condim), []).append(
            contact.replace(dist=dist, pos=pos, frame=frame)
        )
    bodies = jnp.asarray(device.geom_bodyid)
    # MJX lays constraint rows out by ascending condim; contacts must follow the same order.
    groups = [_deepest(_join(by_condim[dim]), most.get(dim), bodies) for dim in sorted(by_condim)]
    return data.tree_replace({"_impl.contact": _join(groups)})


def _join(contacts: list) -> Any:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *contacts)


def _deepest(contact: Any, most: int | None, bodies: Int[Array, " G"]) -> Any:
    """The deepest contacts, in C's order of body pairs (the noslip pass depends on the order)."""
    if most is None or contact.dist.shape[0] <= most:
        return contact
    _, index = jax.lax.top_k(-contact.dist, k=most)
    kept = jax.tree.map(lambda x: x[jnp.sort(index)], contact)
    geoms = jnp.asarray(kept.geom)
    pair = bodies[geoms]
    swapped = pair[:, 0] > pair[:, 1]
    first, second = pair.min(axis=1), pair.max(axis=1)
    one = jnp.where(swapped, geoms[:, 1], geoms[:, 0])
    two = jnp.where(swapped, geoms[:, 0], geoms[:, 1])
    # lexsort's last key is the most significant, and the sort is stable.
    order = jnp.lexsort((two, one, second, first))
    return jax.tree.map(lambda x: x[order], kept)
