"""Cholesky factors: right, under any number of vmaps, and never split between threads."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomcp_jax import envs
from pomcp_jax.envs import linear


def positive(shape: tuple[int, ...], size: int) -> np.ndarray:
    """Random positive definite matrices."""
    root = np.random.default_rng(0).normal(size=(*shape, size, size))
    return root @ np.swapaxes(root, -1, -2) + size * np.eye(size)


def calls(text: str) -> list[tuple[int, int]]:
    """Rows and sizes of the factorisations in a lowered program."""
    shapes = re.findall(r"@lapack_\wpotrf_ffi\(.*?\}? : \(tensor<([0-9x]+)xf\d+>\)", text)
    found = []
    for shape in shapes:
        *rows, size, _ = (int(part) for part in shape.split("x"))
        found.append((int(np.prod(rows)), size))
    return found


def test_factors_of_more_matrices_than_one_call_takes():
    size = 40
    assert linear.rows_at_once(size) == 9
    matrices = positive((3, 7), size)  # 21 rows: two whole parts and a rest
    lower = jax.jit(jax.vmap(jax.vmap(linear.factor)))(jnp.asarray(matrices, jnp.float32))
    np.testing.assert_allclose(lower, np.linalg.cholesky(matrices), rtol=1e-4, atol=1e-4)


def test_solving_beside_numpy():
    matrices, right = positive((30,), 40), np.random.default_rng(1).normal(size=(30, 40, 2))
    solved = jax.vmap(linear.solve_positive)(
        jnp.asarray(matrices, jnp.float32), jnp.asarray(right, jnp.float32)
    )
    np.testing.assert_allclose(solved, np.linalg.solve(matrices, right), rtol=1e-3, atol=1e-5)


def test_rows_do_not_depend_on_their_number():
    matrices = jnp.asarray(positive((21,), 40), jnp.float32)
    many = jax.vmap(linear.factor)(matrices)
    np.testing.assert_array_equal(many[:5], jax.vmap(linear.factor)(matrices[:5]))


def test_a_matrix_that_is_not_positive_spoils_its_own_row_only():
    matrices = positive((21,), 40)
    matrices[13] = -np.eye(40)
    lower = jax.vmap(linear.factor)(jnp.asarray(matrices, jnp.float32))
    bad = np.isnan(np.asarray(lower)).any(axis=(1, 2))
    np.testing.assert_array_equal(np.nonzero(bad)[0], [13])


@pytest.mark.skipif(jax.__version_info__ >= linear.SAFE_VERSION, reason="never split there")
def test_no_call_of_a_physics_step_is_split_between_threads():
    env = envs.make("fish-swim")
    keys = jax.random.split(jax.random.key(0), 512)
    state = jax.eval_shape(env.reset, keys)[0]
    action = jax.ShapeDtypeStruct((512, env.action_size), jnp.float32)
    found = calls(jax.jit(env.step).lower(state, action).as_text())
    assert len(found) >= 3  # the inertia, the solver's Hessian, implicit damping
    assert all(rows * (size**3 // 3) < linear.PARALLEL_FLOPS or rows == 1 for rows, size in found)
