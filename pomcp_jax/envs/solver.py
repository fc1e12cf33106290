"""MuJoCo's constraint solver for small models: a primal Newton method.

Solves the same convex problem as ``mujoco.mjx``'s solver and MuJoCo's C code
(MuJoCo documentation, "Computation": "Primal problem"; pyramidal friction cones)::

    min_a  1/2 (a - a_s)' M (a - a_s) + 1/2 sum_i D_i min(0, J_i a - b_i)^2

with ``a_s`` the unconstrained acceleration, ``M`` the inertia, and rows ``J``,
``b`` (aref), ``D`` of joint limits and contacts. Its minimum is unique, so only
the route differs: MJX searches each line with 50 rounds of three points, all
of which a batch has to pay; here a line ends when its derivative vanishes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Bool, Float, Int

ITERATIONS = 100
"""MuJoCo's default ``opt.iterations``; contacts of the tasks here need 2 to 8."""
LINE_ITERATIONS = 50
"""MuJoCo's default ``opt.ls_iterations``."""


class Problem(NamedTuple):
    """One physics step's constraint problem; V degrees of freedom, R rows."""

    inertia: Float[Array, "V V"]
    qacc_smooth: Float[Array, " V"]
    jacobian: Float[Array, "R V"]
    aref: Float[Array, " R"]
    weight: Float[Array, " R"]
    """D, the inverse regularisation of each row."""


class _Newton(NamedTuple):
    qacc: Float[Array, " V"]
    active: Bool[Array, " R"]
    stable: Int[Array, ""]
    """Consecutive full steps that left the set of active rows as it was."""
    iteration: Int[Array, ""]


def residual(problem: Problem, qacc: Float[Array, " V"]) -> Float[Array, " R"]:
    """``J a - b``; a row pushes where this is negative."""
    return problem.jacobian @ qacc - problem.aref


def cost(problem: Problem, qacc: Float[Array, " V"]) -> Float[Array, ""]:
    """The objective above."""
    delta = qacc - problem.qacc_smooth
    violation = jnp.minimum(residual(problem, qacc), 0.0)
    return 0.5 * (
        delta @ (problem.inertia @ delta) + jnp.sum(problem.weight * jnp.square(violation))
    )


def force(problem: Problem, qacc: Float[Array, " V"]) -> Float[Array, " V"]:
    """The constraint force in joint coordinates at an acceleration."""
    violation = jnp.minimum(residual(problem, qacc), 0.0)
    return -(problem.weight * violation) @ problem.jacobian


def solve(problem: Problem, warmstart: Float[Array, " V"]) -> Float[Array, " V"]:
    """The constrained acceleration, from the better of two starting points.

    Where the unconstrained acceleration violates no row it is the solution, and
    a batch of such problems iterates not once.
    """
    free = jnp.all(residual(problem, problem.qacc_smooth) >= 0)
    better = cost(problem, warmstart) < cost(problem, problem.qacc_smooth)
    qacc = jnp.where(better & ~free, warmstart, problem.qacc_smooth)
    start = _Newton(
        qacc=qacc,
        active=residual(problem, qacc) < 0,
        stable=jnp.where(free, jnp.int32(2), jnp.int32(0)),
        iteration=jnp.zeros((), jnp.int32),
    )

    def unfinished(now: _Newton) -> Bool[Array, ""]:
        # In float32 the second step with the same rows refines the first one's rounding.
        return (now.stable < 2) & (now.iteration < ITERATIONS)

    return jax.lax.while_loop(unfinished, lambda now: _newton_step(problem, now), start).qacc


def _newton_step(problem: Problem, now: _Newton) -> _Newton:
    """One Newton direction with its exact line search."""
    value = residual(problem, now.qacc)
    weight = jnp.where(value < 0, problem.weight, 0.0)
    slope = problem.inertia @ (now.qacc - problem.qacc_smooth)
    gradient = slope + (weight * value) @ problem.jacobian
    hessian = problem.inertia + (problem.jacobian.T * weight[None, :]) @ problem.jacobian
    direction = -cho_solve(cho_factor(hessian), gradient)
    step = _line_search(problem, value, slope, direction)
    qacc = now.qacc + step * direction
    active = residual(problem, qacc) < 0
    same = jnp.all(active == now.active)
    return _Newton(
        qacc=qacc,
        active=active,
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
    slope: Float[Array, " V"],
    direction: Float[Array, " V"],
) -> Float[Array, ""]:
    """The minimum of the objective along a line.

    Its derivative is piecewise linear and rises, so Newton's method (kept inside
    a bracket) ends after as many pieces as it has to cross.
    """
    change = problem.jacobian @ direction
    linear = slope @ direction
    quadratic = direction @ (problem.inertia @ direction)

    def derivatives(alpha: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        at = value + alpha * change
        push = jnp.where(at < 0, problem.weight * change, 0.0)
        return linear + alpha * quadratic + push @ at, quadratic + push @ change

    # What rounding leaves of the derivative where it vanishes: its terms cancel.
    either = (value < 0) | (value + change < 0)
    terms = problem.weight * jnp.abs(change) * (jnp.abs(value) + jnp.abs(change))
    size = jnp.abs(linear) + quadratic + jnp.sum(jnp.where(either, terms, 0.0))
    small = 8 * jnp.finfo(size.dtype).eps * size

    def body(line: _Line) -> _Line:
        first, second = derivatives(line.alpha)
        done = jnp.abs(first) <= small
        low = jnp.where(first < 0, line.alpha, line.low)
        high = jnp.where(first < 0, line.high, line.alpha)
        step = line.alpha - first / second
        outside = (step <= low) | (step >= high)
        middle = jnp.where(jnp.isfinite(high), 0.5 * (low + high), 2.0 * low + 1.0)
        following = jnp.where(outside, middle, step)
        alpha = jnp.where(done, line.alpha, following)
        return _Line(alpha, low, high, done, line.iteration + 1)

    def unfinished(line: _Line) -> Bool[Array, ""]:
        return ~line.done & (line.iteration < LINE_ITERATIONS)

    first = _Line(
        alpha=jnp.ones_like(linear),
        low=jnp.zeros_like(linear),
        high=jnp.full_like(linear, jnp.inf),
        done=jnp.zeros((), bool),
        iteration=jnp.zeros((), jnp.int32),
    )
    return jax.lax.while_loop(unfinished, body, first).alpha
