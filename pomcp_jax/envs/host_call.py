"""Calls from a compiled program to functions on the host.

``jax.pure_callback`` and ``io_callback`` put every argument on a device before the function sees
it. That takes longer than a step of a simple environment, and on a CPU of several devices it never
ends: large arguments are copied by threads that wait in the same calls themselves. Here functions
get NumPy views of XLA's own memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.interpreters import batching, mlir
from jaxtyping import Array

Shapes = tuple[tuple[tuple[int, ...], np.dtype], ...]
"""Shape and dtype of every result."""

_effect = jax.extend.core.Primitive("host_call")
_pure = jax.extend.core.Primitive("pure_host_call")


def _avals(*_: Any, function: Callable, shapes: Shapes) -> list[Any]:
    return [jax.core.ShapedArray(shape, dtype) for shape, dtype in shapes]


def _lowering(has_side_effect: bool) -> Callable:
    def lower(ctx: Any, *args: Any, function: Callable, shapes: Shapes) -> Any:
        def call(*values: Any) -> tuple[np.ndarray, ...]:
            return function(*map(np.asarray, values))

        results, _, _ = mlir.emit_python_callback(
            ctx, call, None, list(args), ctx.avals_in, ctx.avals_out,
            has_side_effect=has_side_effect, returns_token=False,
        )  # fmt: skip
        return results

    return lower


def _refuse(*_: Any, **__: Any) -> Any:
    raise NotImplementedError(
        "environments on the host cannot be stepped under vmap; pass them one flat batch"
    )


def _all_at_once(
    args: Sequence[Any], axes: Sequence[Any], *, function: Callable, shapes: Shapes
) -> Any:
    """One call for the whole batch, all arguments with its axis in front."""
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    front = [
        jnp.broadcast_to(x[None], (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(args, axes, strict=True)
    ]
    more = tuple(((size, *shape), dtype) for shape, dtype in shapes)
    return _pure.bind(*front, function=function, shapes=more), (0,) * len(shapes)


for _primitive in (_effect, _pure):
    _primitive.multiple_results = True
    _primitive.def_abstract_eval(_avals)
    mlir.register_lowering(_primitive, _lowering(_primitive is _effect), cacheable=False)
batching.primitive_batchers[_effect] = _refuse
batching.primitive_batchers[_pure] = _all_at_once


def host_call(function: Callable[..., np.ndarray], shape: tuple[int, ...], *args: Array) -> Array:
    """``function(*args)`` on the host, once for every execution, as ``uint32[shape]``.

    For functions that change something there. The order of calls is that of the data: the result
    of a call must be an argument of the next. XLA neither removes, repeats nor merges them, because
    they are marked to have effects. ``vmap`` is refused.

    Args:
      function: gets arrays that it may read until it returns, and must not raise: an exception
        ends the program. A result of an earlier call among them orders the calls.
      shape: of its result.
      *args: arrays.
    """

    def call(*values: np.ndarray) -> tuple[np.ndarray]:
        return (function(*values),)

    shapes = ((shape, np.dtype(np.uint32)),)
    # Compiled even where the caller is not: without jit a primitive needs an implementation.
    return jax.jit(lambda *args: _effect.bind(*args, function=call, shapes=shapes)[0])(*args)


def pure_host_call(
    function: Callable[..., tuple[np.ndarray, ...]],
    results: Sequence[jax.ShapeDtypeStruct],
    *args: Array,
) -> tuple[Array, ...]:
    """``function(*args)`` on the host, which XLA may repeat, merge or leave out.

    Args:
      function: gets arrays that it may read until it returns. Under ``vmap`` it is called once:
        all arguments and results then have the batch axes in front.
      results: what it returns, without batch axes.
      *args: arrays.
    """
    shapes = tuple((tuple(of.shape), np.dtype(of.dtype)) for of in results)
    return tuple(jax.jit(lambda *args: _pure.bind(*args, function=function, shapes=shapes))(*args))
