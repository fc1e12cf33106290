"""Cholesky factors of many small matrices, in calls that XLA's CPU client survives.

jaxlib before 0.11.2 hands a batched factorisation to the threads it runs on, and waits for
them: two at once on a machine of two cores wait for each other for ever (``ParallelBatchMap``
in ``jaxlib/cpu/lapack_kernels.cc``; seen with 512 fish and with 16 dogs). It does so from a
certain amount of work on. Here a batch is factored in parts that stay below it. Solving with
the factors is not affected.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PARALLEL_FLOPS = 200_000
"""From so many operations on, ``rows * V^3 / 3``, jaxlib 0.10 splits a batch between threads."""
SAFE_VERSION = (0, 11, 2)
"""The first jax whose factorisations stay in their thread."""


def rows_at_once(size: int) -> int:
    """How many V x V matrices one call may factor, at least one (which is never split)."""
    return max(1, (PARALLEL_FLOPS - 1) // max(1, size**3 // 3))


def _lapack(matrices: Float[Array, "... V V"]) -> Float[Array, "... V V"]:
    return jax.lax.linalg.cholesky(matrices, symmetrize_input=False)


@jax.custom_batching.custom_vmap
def factor(matrices: Float[Array, "... V V"]) -> Float[Array, "... V V"]:
    """Lower Cholesky factors of symmetric matrices; NaN where one is not positive definite.

    May be vmapped, any number of times.
    """
    size = matrices.shape[-1]
    rows = rows_at_once(size)
    flat = matrices.reshape(-1, size, size)
    if flat.shape[0] <= rows or jax.__version_info__ >= SAFE_VERSION:
        return _lapack(matrices)

    def in_parts(many: Array) -> Array:
        return jax.lax.map(_lapack, many, batch_size=rows)

    return jax.lax.platform_dependent(flat, cpu=in_parts, default=_lapack).reshape(matrices.shape)


@factor.def_vmap
def _factor_vmap(size: int, batched: list[bool], matrices: Array) -> tuple[Array, bool]:
    """The axis that ``vmap`` adds becomes one more leading axis."""
    del size, batched
    return factor(matrices), True


def solve(factors: Float[Array, "V V"], right: Float[Array, "V ..."]) -> Float[Array, "V ..."]:
    """``A^-1 right`` from ``factor(A)``."""
    return jax.scipy.linalg.cho_solve((factors, True), right)


def solve_positive(
    matrix: Float[Array, "V V"], right: Float[Array, "V ..."]
) -> Float[Array, "V ..."]:
    """``matrix^-1 right`` of a positive definite matrix."""
    return solve(factor(jnp.asarray(matrix)), right)
