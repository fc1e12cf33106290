"""Batched solves of small linear systems that avoid a deadlock in jaxlib's CPU LAPACK calls.

Above a certain amount of work, jaxlib before 0.11.2 splits a batched LAPACK call over the thread
pool it runs on and waits for the parts: two such calls at once on a two-core machine wait for
each other forever (``ParallelBatchMap`` in ``jaxlib/cpu/lapack_kernels.cc``; seen with 512 fish
and with 16 dogs). Here a batch is solved in parts that stay below that amount.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PARALLEL_FLOPS = 200_000
"""Operations from which jaxlib 0.10 splits a batch between threads. It counts
``rows * V^3 / 3`` for a Cholesky factorisation and ``rows * V^2 * K`` for a triangular
solve; a batch of one row is never split."""
SAFE_VERSION = (0, 11, 2)
"""First jax release whose LAPACK calls stay on their thread."""


def rows_at_once(size: int, columns: int) -> int:
    """Number of V x V systems with K right-hand sides that one call may solve, at least one."""
    return max(1, (PARALLEL_FLOPS - 1) // max(1, size**3 // 3, size * size * columns))


def _lapack(matrices: Float[Array, "... V V"], right: Float[Array, "... V K"]) -> Array:
    # LAPACK reads the lower triangle only, and both callers' matrices are symmetric by
    # construction: symmetrising them first would be an extra pass.
    lower = jax.lax.linalg.cholesky(matrices, symmetrize_input=False)
    half = jax.lax.linalg.triangular_solve(lower, right, left_side=True, lower=True)
    return jax.lax.linalg.triangular_solve(
        lower, half, left_side=True, lower=True, transpose_a=True
    )


@jax.custom_batching.custom_vmap
def _solve(matrices: Float[Array, "... V V"], right: Float[Array, "... V K"]) -> Array:
    """``matrices^-1 right``; a vmapped axis becomes a leading axis, so all rows are counted."""
    size, columns = right.shape[-2:]
    rows = rows_at_once(size, columns)
    flat = matrices.reshape(-1, size, size), right.reshape(-1, size, columns)
    if flat[0].shape[0] <= rows or jax.__version_info__ >= SAFE_VERSION:
        return _lapack(matrices, right)

    def in_parts(matrices: Array, right: Array) -> Array:
        return jax.lax.map(lambda one: _lapack(*one), (matrices, right), batch_size=rows)

    # The platform is chosen when the program is lowered: accelerators keep the single call.
    solved = jax.lax.platform_dependent(*flat, cpu=in_parts, default=_lapack)
    return solved.reshape(right.shape)


@_solve.def_vmap
def _solve_vmap(size: int, batched: list[bool], *args: Array) -> tuple[Array, bool]:
    alike = (
        x if has_axis else jnp.broadcast_to(x, (size, *x.shape))
        for x, has_axis in zip(args, batched, strict=True)
    )
    return _solve(*alike), True


def solve_positive(
    matrix: Float[Array, "V V"], right: Float[Array, "V ..."]
) -> Float[Array, "V ..."]:
    """``matrix^-1 right`` for a symmetric positive definite matrix; NaN for any other.

    Can be nested in any number of ``vmap`` and differentiated (implicitly).
    """
    columns = right.reshape(right.shape[0], -1)
    # custom_vmap has no derivative of its own; the implicit one needs a second solve only.
    solved = jax.lax.custom_linear_solve(
        lambda x: matrix @ x, columns, solve=lambda _, x: _solve(matrix, x), symmetric=True
    )
    return solved.reshape(right.shape)
