"""Calls from a compiled program to the host that change something there.

``jax.experimental.io_callback`` copies every argument to a device before the function sees it,
which takes longer than a step of a simple environment. Here the function gets NumPy views of XLA's
own memory. The order of calls is that of the data: the result of a call must be an argument of the
next. XLA neither removes, repeats nor merges them, because they are marked to have effects.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import numpy as np
from jax.interpreters import batching, mlir
from jaxtyping import Array

_call = jax.extend.core.Primitive("host_call")
_call.multiple_results = True


def _shapes(*_: Any, function: Callable, shape: tuple[int, ...]) -> list[Any]:
    return [jax.core.ShapedArray(shape, np.dtype(np.uint32))]


def _lower(ctx: Any, *args: Any, function: Callable, shape: tuple[int, ...]) -> Any:
    def call(*values: np.ndarray) -> tuple[np.ndarray]:
        return (function(*values),)

    results, _, _ = mlir.emit_python_callback(
        ctx, call, None, list(args), ctx.avals_in, ctx.avals_out,
        has_side_effect=True, returns_token=False,
    )  # fmt: skip
    return results


def _batch(*_: Any, **__: Any) -> Any:
    raise NotImplementedError(
        "environments on the host cannot be stepped under vmap; pass them one flat batch"
    )


_call.def_abstract_eval(_shapes)
mlir.register_lowering(_call, _lower, cacheable=False)
batching.primitive_batchers[_call] = _batch


def host_call(function: Callable[..., np.ndarray], shape: tuple[int, ...], *args: Array) -> Array:
    """``function(*args)`` on the host, once for every execution, as ``uint32[shape]``.

    Args:
      function: gets arrays that it may read until it returns, and must not raise: an exception
        ends the program. A result of an earlier call among them orders the calls.
      shape: of its result.
      *args: arrays.
    """
    # Compiled even where the caller is not: without jit a primitive needs an implementation.
    return jax.jit(lambda *args: _call.bind(*args, function=function, shape=shape)[0])(*args)
