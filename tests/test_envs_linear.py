"""Linear solves: correct under nested vmaps, and never split between threads."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomcp_jax import envs
from pomcp_jax.envs.mjx import linear


def positive(shape: tuple[int, ...], size: int) -> np.ndarray:
    """Random positive definite matrices."""
    root = np.random.default_rng(0).normal(size=(*shape, size, size))
    return root @ np.swapaxes(root, -1, -2) + size * np.eye(size)


THREADS_FROM = 200_000
"""Operations of a batch from which jaxlib 0.10 waits for other threads (its source)."""


def costs(program: jax.stages.Lowered) -> list[tuple[int, int]]:
    """Rows and operations of each LAPACK call of a program, as jaxlib counts them."""
    found = []
    for line in program.as_text().splitlines():
        call = re.search(r"@lapack_\w(potrf|trsm)_ffi\(.*: \((.*)\) ->", line)
        if call is None:
            continue
        shapes = re.findall(r"tensor<((?:\d+x)+)f\d+>", call[2])
        first, last = ([int(n) for n in shape[:-1].split("x")] for shape in (shapes[0], shapes[-1]))
        rows, size = int(np.prod(first[:-2])), first[-1]
        each = size**3 // 3 if call[1] == "potrf" else size * size * last[-1]
        found.append((rows, rows * each))
    return found


def test_solving_beside_numpy_more_systems_than_one_call_takes():
    assert linear.rows_at_once(40, 2) == 9
    matrices = positive((3, 7), 40)  # 21 rows: two whole parts and a remainder
    right = np.random.default_rng(1).normal(size=(3, 7, 40, 2))
    solve = jax.jit(jax.vmap(jax.vmap(linear.solve_positive)))
    solved = solve(jnp.asarray(matrices, jnp.float32), jnp.asarray(right, jnp.float32))
    np.testing.assert_allclose(solved, np.linalg.solve(matrices, right), rtol=1e-3, atol=1e-5)


def test_one_matrix_for_many_right_hand_sides():
    matrix, right = positive((), 5), np.random.default_rng(1).normal(size=(4, 5))
    solve = jax.vmap(linear.solve_positive, in_axes=(None, 0))
    solved = solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(right, jnp.float32))
    np.testing.assert_allclose(solved, np.linalg.solve(matrix, right.T).T, rtol=1e-4, atol=1e-6)


def test_derivatives_of_both_modes_and_their_batches():
    matrix, right = positive((), 4), np.arange(4.0)
    with jax.enable_x64(True):
        arguments = jnp.asarray(matrix), jnp.asarray(right)
        ours = [d(linear.solve_positive, (0, 1))(*arguments) for d in (jax.jacfwd, jax.jacrev)]
        wanted = jax.jacrev(jnp.linalg.solve, (0, 1))(*arguments)
        for found in ours:
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)


def test_rows_do_not_depend_on_their_number():
    matrices, right = jnp.asarray(positive((21,), 40), jnp.float32), jnp.ones((21, 40))
    solve = jax.vmap(linear.solve_positive)
    many, few = solve(matrices, right), solve(matrices[:5], right[:5])
    np.testing.assert_array_equal(many[:5], few)


def test_a_matrix_that_is_not_positive_spoils_its_own_row_only():
    matrices = positive((21,), 40)
    matrices[13] = -np.eye(40)
    solved = jax.vmap(linear.solve_positive)(jnp.asarray(matrices, jnp.float32), jnp.ones((21, 40)))
    bad = np.isnan(np.asarray(solved)).any(axis=1)
    np.testing.assert_array_equal(np.nonzero(bad)[0], [13])


never_split = pytest.mark.skipif(
    jax.__version_info__ >= linear.SAFE_VERSION, reason="jaxlib splits no call any more"
)


@never_split
@pytest.mark.parametrize("rows,size,columns", [(512, 13, 1), (100, 79, 1), (64, 79, 100)])
def test_no_call_is_split_between_threads(rows, size, columns):
    shapes = (rows, size, size), (rows, size, columns)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    found = costs(jax.jit(jax.vmap(linear.solve_positive)).lower(*arguments))
    assert len(found) >= 3
    assert all(rows == 1 or cost < THREADS_FROM for rows, cost in found), found


@never_split
def test_no_call_of_a_physics_step_is_split_between_threads():
    env = envs.make("fish-swim")
    keys = jax.random.split(jax.random.key(0), 512)
    state = jax.eval_shape(env.reset, keys)[0]
    action = jax.ShapeDtypeStruct((512, env.action_size), jnp.float32)
    found = costs(jax.jit(env.step).lower(state, action))
    # The inertia, the solver's Hessian, implicit damping; three calls each, and for the rest.
    assert len(found) >= 9
    assert all(rows == 1 or cost < THREADS_FROM for rows, cost in found), found
