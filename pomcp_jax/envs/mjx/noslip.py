"""MuJoCo's optional second solver pass, which removes slip from friction contacts.

The constraint solver regularises friction as it regularises contacts; ``noslip`` iterations
solve again for the friction forces alone, without regularisation, with the normal forces fixed
(MuJoCo documentation, "noslip_iterations"; ``mj_solNoSlip`` in ``engine_solver.c``). MJX lacks
this pass; the dog uses it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax.envs.mjx import solver

_TINY = 1e-15
"""``mjMINVAL``."""


class Setting(NamedTuple):
    """A model's noslip options and its friction pyramids."""

    iterations: int
    tolerance: float
    """Smallest improvement per sweep, in units of the objective times ``scale``."""
    scale: float
    """``1 / (meaninertia * V)``."""
    edges: Int[np.ndarray, "P 2"]
    """Rows of opposing pyramid edges."""


class _Sweep(NamedTuple):
    force: Float[Array, " R"]
    done: Bool[Array, ""]


def refine(
    problem: solver.Problem,
    force: Float[Array, " R"],
    spread: Float[Array, "V R"],
    setting: Setting,
) -> tuple[Float[Array, " V"], Float[Array, " R"]]:
    """Acceleration and row forces after the pass: projected Gauss-Seidel over pyramid edges.

    Args:
      problem: the constraint problem.
      force: row forces of the first pass.
      spread: ``M^-1 J'``.
      setting: of the model.
    """
    edges = jnp.asarray(setting.edges)
    rows = problem.jacobian[edges]
    # Rows of A = J M^-1 J' and of b = J a_smooth - aref, two for each pair of edges.
    couple = jnp.einsum("pev,vr->per", rows, spread)
    offset = jnp.einsum("pev,v->pe", rows, problem.qacc_smooth) - problem.aref[edges]
    ids = jnp.arange(edges.shape[0])
    block = couple[ids[:, None, None], np.arange(2)[None, :, None], edges[:, None, :]]

    # Gauss-Seidel: each pair sees the forces that earlier pairs left, so the pairs are scanned in
    # C's order. Another order converges to other forces within so few iterations.
    def pair(carry: tuple, i: Int[Array, ""]) -> tuple:
        force, gained = carry
        at, a = edges[i], block[i]
        old = force[at]
        residual = couple[i] @ force + offset[i]
        # The mean of opposing edges is the normal force, which stays; their difference is the
        # tangential force, the one unknown of a scalar quadratic.
        middle = 0.5 * (old[0] + old[1])
        bend = a[0, 0] + a[1, 1] - a[0, 1] - a[1, 0]
        others = residual - a @ old
        slope = middle * (a[0, 0] - a[1, 1]) + others[0] - others[1]
        flat = bend < _TINY
        half = jnp.clip(-slope / jnp.where(flat, 1.0, bend), -middle, middle)
        half = jnp.where(flat, 0.0, half)
        new = jnp.stack([middle + half, middle - half])
        delta = new - old
        change = 0.5 * (delta @ (a @ delta)) + delta @ residual
        # C's costChange rejects the same increase, which only rounding can cause.
        worse = change > 1e-10
        force = force.at[at].set(jnp.where(worse, old, new))
        return (force, gained - jnp.where(worse, 0.0, change)), None

    def sweep(now: _Sweep, first: Bool[Array, ""]) -> tuple[_Sweep, None]:
        # As in C: the first sweep is also credited with the regularisation cost that it drops.
        softness = 0.5 * jnp.sum(now.force * now.force / problem.weight)
        gained = jnp.where(first, softness, 0.0)
        (force, gained), _ = jax.lax.scan(pair, (now.force, gained), ids)
        force = jnp.where(now.done, now.force, force)
        done = now.done | (gained * setting.scale < setting.tolerance)
        return _Sweep(force, done), None

    start = _Sweep(force, jnp.zeros((), bool))
    swept, _ = jax.lax.scan(sweep, start, jnp.arange(setting.iterations) == 0)
    return problem.qacc_smooth + spread @ swept.force, swept.force
