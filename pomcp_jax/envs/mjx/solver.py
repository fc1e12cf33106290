"""MuJoCo's constraint solver for one environment: a primal Newton method.

Solves the same convex problem as ``mujoco.mjx``'s solver and MuJoCo's C code
(MuJoCo documentation, "Computation": "Primal problem")::

    min_a  1/2 (a - a_s)' M (a - a_s) + sum_i s_i(J_i a - b_i)

with ``a_s`` the unconstrained acceleration, ``M`` the inertia, rows ``J``, ``b``
(aref), ``D``, and a cost ``s`` for each kind of row: quadratic for equalities,
Huber's for friction loss, one-sided quadratic for limits and pyramidal contacts;
the rows of an elliptic contact have a joint cost. The minimum is unique, so only the
route to it differs: MJX evaluates three points in each of 50 rounds of a line search, all of
which a batch pays for; here a line search ends when its derivative vanishes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax.envs.mjx import linear

ITERATIONS = 100
"""MuJoCo's default ``opt.iterations``; the tasks here need 2 to 8 in contact."""
LINE_ITERATIONS = 50
"""MuJoCo's default ``opt.ls_iterations``."""


class Cones(NamedTuple):
    """C elliptic contacts of the same dimension d."""

    rows: Int[np.ndarray, "C d"]
    """Row indices, known at compile time: first the normal, then d - 1 tangents."""
    scale: Float[Array, "C d"]
    """``[mu, friction_1, ...]``; ``mu = friction_1 / sqrt(impratio)``."""


class Problem(NamedTuple):
    """One physics step's constraint problem; V degrees of freedom, R rows."""

    inertia: Float[Array, "V V"]
    qacc_smooth: Float[Array, " V"]
    jacobian: Float[Array, "R V"]
    aref: Float[Array, " R"]
    weight: Float[Array, " R"]
    """D, the inverse regularisation of each row."""
    equalities: int = 0
    """Number of equality rows, which come first."""
    frictions: int = 0
    """Number of friction-loss rows, which follow; all later rows are one-sided."""
    loss: Float[Array, " R"] | None = None
    """Largest force of each friction-loss row; required if there are any."""
    cones: tuple[Cones, ...] = ()


class _Law(NamedTuple):
    """Constraint cost and its derivatives at one point."""

    cost: Float[Array, ""]
    slope: Float[Array, " R"]
    """Derivative with respect to each row's residual: minus its force."""
    curvature: Float[Array, " R"]
    """Second derivative; zero for rows of elliptic contacts."""
    blocks: tuple[Float[Array, "C d d"], ...]
    """Second derivatives of elliptic contacts."""
    zone: Int[Array, " Z"]
    """Index of the piece of its cost that each row and each elliptic contact is in."""


def residual(problem: Problem, qacc: Float[Array, " V"]) -> Float[Array, " R"]:
    """``J a - b``; a one-sided row exerts a force where this is negative."""
    return problem.jacobian @ qacc - problem.aref


def _law(problem: Problem, value: Float[Array, " R"]) -> _Law:
    """Costs, forces and curvatures of all rows at their residuals."""
    # The kinds of rows are Python integers, so a model without equalities, friction loss or
    # elliptic cones compiles none of their terms.
    weight, rows = problem.weight, np.arange(problem.weight.shape[0])
    active = value < 0
    if problem.equalities:
        active = active | (rows < problem.equalities)
    if problem.cones:
        elliptic = np.isin(rows, np.concatenate([c.rows.ravel() for c in problem.cones]))
        active = active & ~elliptic
    slope = jnp.where(active, weight * value, 0.0)
    cost = 0.5 * jnp.sum(slope * value)
    if problem.frictions:
        assert problem.loss is not None
        # Huber's function: quadratic while the force is below its largest value.
        mine = (rows >= problem.equalities) & (rows < problem.equalities + problem.frictions)
        bound = jnp.where(mine, problem.loss, 0.0)
        push = jnp.clip(weight * value, -bound, bound)
        active = jnp.where(mine, jnp.abs(weight * value) < bound, active)
        slope = jnp.where(mine, push, slope)
        cost = 0.5 * jnp.sum(jnp.where(mine, 0.0, slope * value))
        cost = cost + jnp.sum(jnp.where(mine, push * value - 0.5 * push * push / weight, 0.0))
    curvature = jnp.where(active, weight, 0.0)
    zone, blocks = [active.astype(jnp.int32)], []
    for cones in problem.cones:
        energy, pull, block, where = _cone_law(cones, weight[cones.rows], value[cones.rows])
        cost = cost + jnp.sum(energy)
        slope = slope.at[cones.rows].set(pull)
        blocks.append(block)
        zone.append(where)
    return _Law(cost, slope, curvature, tuple(blocks), jnp.concatenate(zone))


def _cone_law(
    cones: Cones, weight: Float[Array, "C d"], value: Float[Array, "C d"]
) -> tuple[Float[Array, " C"], Float[Array, "C d"], Float[Array, "C d d"], Int[Array, " C"]]:
    """Cost, derivatives and zone of elliptic contacts.

    MuJoCo documentation, "Computation", "Friction cones": with ``N = mu x_0`` and
    ``T = |friction x_t|`` the cost is zero in the dual cone (top zone), quadratic in every row in
    the polar cone (bottom zone) and ``D_m / 2 (N - mu T)^2`` between them (middle zone;
    ``mj_constraintUpdate`` in ``engine_core_constraint.c``).
    """
    scaled = value * cones.scale
    mu, normal, tangent = cones.scale[:, 0], scaled[:, 0], scaled[:, 1:]
    length = jnp.sqrt(jnp.sum(jnp.square(tangent), axis=1))
    slides = length > 0
    # Without tangential motion the direction is undefined; the middle zone is empty then.
    safe = jnp.where(slides, length, 1.0)
    below = jnp.where(slides, mu * normal + length <= 0, normal < 0)
    between = slides & ~below & (normal < mu * length)
    stiffness = weight[:, 0] / (mu * mu * (1 + mu * mu))
    gap = normal - mu * length
    unit = tangent / safe[:, None]
    # Derivative of the gap, then of the cost, in scaled coordinates.
    gap_slope = jnp.concatenate([jnp.ones_like(normal)[:, None], -mu[:, None] * unit], axis=1)
    pull = (stiffness * gap)[:, None] * gap_slope * cones.scale
    eye = jnp.eye(value.shape[1], dtype=value.dtype)[None]
    across = eye[:, 1:, 1:] - unit[:, :, None] * unit[:, None, :]
    bend = jnp.pad((-mu * gap / safe)[:, None, None] * across, ((0, 0), (1, 0), (1, 0)))
    hessian = stiffness[:, None, None] * (gap_slope[:, :, None] * gap_slope[:, None, :] + bend)
    hessian = hessian * cones.scale[:, :, None] * cones.scale[:, None, :]
    full = weight[:, :, None] * eye
    return (
        jnp.where(
            below,
            0.5 * jnp.sum(weight * value * value, axis=1),
            jnp.where(between, 0.5 * stiffness * gap * gap, 0.0),
        ),
        jnp.where(below[:, None], weight * value, jnp.where(between[:, None], pull, 0.0)),
        jnp.where(below[:, None, None], full, jnp.where(between[:, None, None], hessian, 0.0)),
        below.astype(jnp.int32) + 2 * between.astype(jnp.int32),
    )


def cost(problem: Problem, qacc: Float[Array, " V"]) -> Float[Array, ""]:
    """Objective of the module's docstring."""
    delta = qacc - problem.qacc_smooth
    gauss = 0.5 * (delta @ (problem.inertia @ delta))
    return gauss + _law(problem, residual(problem, qacc)).cost


def row_force(problem: Problem, qacc: Float[Array, " V"]) -> Float[Array, " R"]:
    """Force of every row at an acceleration (``efc_force``)."""
    return -_law(problem, residual(problem, qacc)).slope


def force(problem: Problem, qacc: Float[Array, " V"]) -> Float[Array, " V"]:
    """Constraint force in joint coordinates at an acceleration."""
    return row_force(problem, qacc) @ problem.jacobian


class _Newton(NamedTuple):
    qacc: Float[Array, " V"]
    zone: Int[Array, " Z"]
    stable: Int[Array, ""]
    """Consecutive steps that left every row in its zone."""
    iteration: Int[Array, ""]


def solve(problem: Problem, warmstart: Float[Array, " V"]) -> Float[Array, " V"]:
    """Constrained acceleration, from the better of two starting points.

    If no row exerts a force at the unconstrained acceleration, that is the solution; a batch of
    such problems does not iterate at all.
    """
    free = jnp.all(_law(problem, residual(problem, problem.qacc_smooth)).slope == 0)
    better = cost(problem, warmstart) < cost(problem, problem.qacc_smooth)
    qacc = jnp.where(better & ~free, warmstart, problem.qacc_smooth)
    start = _Newton(
        qacc=qacc,
        zone=_law(problem, residual(problem, qacc)).zone,
        stable=jnp.where(free, jnp.int32(2), jnp.int32(0)),
        iteration=jnp.zeros((), jnp.int32),
    )

    def unfinished(now: _Newton) -> Bool[Array, ""]:
        # Within fixed zones the cost is quadratic and one step is exact; in float32 a second one
        # removes the rounding of the first.
        return (now.stable < 2) & (now.iteration < ITERATIONS)

    return jax.lax.while_loop(unfinished, lambda now: _newton_step(problem, now), start).qacc


def _newton_step(problem: Problem, now: _Newton) -> _Newton:
    """One Newton direction with its exact line search."""
    value = residual(problem, now.qacc)
    law = _law(problem, value)
    gauss = problem.inertia @ (now.qacc - problem.qacc_smooth)
    gradient = gauss + law.slope @ problem.jacobian
    hessian = problem.inertia + (problem.jacobian.T * law.curvature[None, :]) @ problem.jacobian
    for cones, block in zip(problem.cones, law.blocks, strict=True):
        rows = problem.jacobian[cones.rows]
        hessian = hessian + jnp.einsum("cdv,cde,cew->vw", rows, block, rows)
    direction = -linear.solve_positive(hessian, gradient)
    step = _line_search(problem, value, gauss, direction)
    qacc = now.qacc + step * direction
    zone = _law(problem, residual(problem, qacc)).zone
    same = jnp.all(zone == now.zone)
    if problem.cones:
        # In the middle zone of a cone the cost is not quadratic, but Newton's method converges
        # quadratically: once a step is below sqrt(eps), the next one is below eps.
        moved = jnp.max(jnp.abs(step * direction))
        enough = jnp.sqrt(jnp.finfo(qacc.dtype).eps) * (1 + jnp.max(jnp.abs(qacc)))
        same = same & (moved <= enough)
    return _Newton(
        qacc=qacc,
        zone=zone,
        stable=jnp.where(same, now.stable + 1, 0),
        iteration=now.iteration + 1,
    )


class _Line(NamedTuple):
    """A point of the line search inside a bracket of the minimum."""

    alpha: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    done: Bool[Array, ""]
    iteration: Int[Array, ""]


def _line_search(
    problem: Problem,
    value: Float[Array, " R"],
    gauss: Float[Array, " V"],
    direction: Float[Array, " V"],
) -> Float[Array, ""]:
    """Step size that minimises the objective along a line.

    The derivative is increasing and piecewise linear except for elliptic contacts, so bracketed
    Newton's method needs about one evaluation for each piece that it crosses.
    """
    change = problem.jacobian @ direction
    linear = gauss @ direction
    quadratic = direction @ (problem.inertia @ direction)

    def derivatives(alpha: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        law = _law(problem, value + alpha * change)
        second = quadratic + law.curvature @ (change * change)
        for cones, block in zip(problem.cones, law.blocks, strict=True):
            along = change[cones.rows]
            second = second + jnp.einsum("cd,cde,ce->", along, block, along)
        return linear + alpha * quadratic + law.slope @ change, second

    # At the minimum the terms of the derivative cancel, so its rounding error scales with their
    # sizes, not with the derivative; a fixed tolerance would never be met in float32.
    here, there = _law(problem, value).slope, _law(problem, value + change).slope
    either = (here != 0) | (there != 0)
    terms = problem.weight * jnp.abs(change) * (jnp.abs(value) + jnp.abs(change))
    size = jnp.abs(linear) + quadratic + jnp.sum(jnp.where(either, terms, 0.0))
    small = 8 * jnp.finfo(size.dtype).eps * size

    def body(line: _Line) -> _Line:
        first, second = derivatives(line.alpha)
        done = jnp.abs(first) <= small
        low = jnp.where(first < 0, line.alpha, line.low)
        high = jnp.where(first < 0, line.high, line.alpha)
        step = line.alpha - first / second
        # Bisect where Newton leaves the bracket; without an upper end yet, double the step.
        outside = (step <= low) | (step >= high)
        middle = jnp.where(jnp.isfinite(high), 0.5 * (low + high), 2.0 * low + 1.0)
        following = jnp.where(outside, middle, step)
        alpha = jnp.where(done, line.alpha, following)
        return _Line(alpha, low, high, done, line.iteration + 1)

    def unfinished(line: _Line) -> Bool[Array, ""]:
        return ~line.done & (line.iteration < LINE_ITERATIONS)

    # The full Newton step first: it is exact unless a row changes its zone on the way.
    first = _Line(
        alpha=jnp.ones_like(linear),
        low=jnp.zeros_like(linear),
        high=jnp.full_like(linear, jnp.inf),
        done=jnp.zeros((), bool),
        iteration=jnp.zeros((), jnp.int32),
    )
    return jax.lax.while_loop(unfinished, body, first).alpha
