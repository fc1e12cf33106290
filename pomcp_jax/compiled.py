"""Jitted functions that receive only the settings they read.

The integers and strings of a :class:`Config` are part of the compilation key: a function that
received all of them would be compiled again for another ``train.checkpoint_keep``.
"""

import dataclasses
import os
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomcp_jax import program_store
from pomcp_jax.config import Config
from pomcp_jax.program_store import Program, Signature, Store
from pomcp_jax.types import PyTree

LEVEL = "xla_backend_optimization_level"


def once() -> dict[str, int]:
    """Compiler options for a program that runs once, where its compiler is what takes time.

    LLVM's level 1 instead of 3 takes a fifth to a half of the compiler's time for an initial state
    (docs/benchmarks.md, "Start-up"). Level 0 would take less, but runs four times as long. A level
    in ``XLA_FLAGS`` stays.
    """
    return {} if LEVEL in os.environ.get("XLA_FLAGS", "") else {LEVEL: 1}


def reduced(config: Config, reads: frozenset[str]) -> Config:
    """``config`` with the defaults in all fields of ``env`` and ``train`` but ``reads``."""

    def group(name: str) -> Any:
        values = getattr(config, name)
        fields = [field.name for field in dataclasses.fields(values)]
        unread = [field for field in fields if f"{name}.{field}" not in reads]
        # Defaults, not removed fields: functions receive an ordinary configuration.
        default = type(values)()
        return dataclasses.replace(values, **{field: getattr(default, field) for field in unread})

    return dataclasses.replace(config, env=group("env"), train=group("train"))


def hide_nans(tree: PyTree) -> tuple[PyTree, PyTree]:
    """``tree`` with 0 for NaN, and masks of them: ``jax_debug_nans`` looks at results only."""
    # Undefined metrics are NaN by design and would stop a debugging run.
    masks = jax.tree.map(jnp.isnan, tree)
    return jax.tree.map(lambda x, nan: jnp.where(nan, 0.0, x), tree, masks), masks


def show_nans(tree: PyTree, masks: PyTree) -> PyTree:
    """Inverse of :func:`hide_nans`, on the host."""

    def show(x: Any, nan: Any) -> np.ndarray:
        x = np.asarray(x)
        # A NaN of the array's own dtype, which the result then keeps.
        return np.where(nan, x.dtype.type(np.nan), x)

    return jax.tree.map(show, tree, masks)


def _shape(x: Any) -> Any:
    """Shape, dtype and placement of an array; other leaves as they are."""
    if not isinstance(x, jax.Array):
        return x
    # The placement of an array that was never committed is no part of the cache's key.
    place = x.sharding if x.committed else None
    weak = getattr(x, "weak_type", False)  # arrays of keys have none
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place, weak_type=weak)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """``function``, whose :class:`Config` arguments are reduced to the fields that it ``reads``."""

    function: jax.stages.Wrapped
    """From ``jax.jit``."""
    reads: frozenset[str]
    """Names as ``train.num_seeds``; all of ``agent`` besides."""
    check: Callable[..., None] | None = None
    """Called with the arguments first; raises if they do not fit."""
    finish: Callable[..., Any] | None = None
    """``(result, *arguments) -> result``, on the host."""
    name: str = ""
    """Of the programs in ``store``; tells apart functions of the same arguments."""
    store: Store | None = None
    """Where programs are kept for later processes; without one, each process traces its own."""
    types: tuple[type, ...] = ()
    """Named tuples in the result, as :func:`program_store.find` has to know them."""
    _programs: dict[Signature, Program | None] = dataclasses.field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    _lock: Any = dataclasses.field(
        default_factory=threading.Lock, init=False, compare=False, repr=False
    )

    def _reduced(self, args: tuple) -> tuple:
        return tuple(reduced(x, self.reads) if isinstance(x, Config) else x for x in args)

    def __call__(self, *args: Any) -> Any:
        """``function`` of the arguments, with the reduced configuration."""
        if self.check is not None:
            self.check(*args)
        # ``check`` and ``finish`` run in Python and get the whole configuration.
        args_read = self._reduced(args)
        out = (self._stored(args_read) or self.function)(*args_read)
        return out if self.finish is None else self.finish(out, *args)

    def _stored(self, args: tuple) -> Program | None:
        """The program for arguments like ``args`` from the store, to which it may be new."""
        signature = None if self.store is None else program_store.signature(args)
        if self.store is None or signature is None:
            return None
        with self._lock:  # so that two threads do not trace the same
            if signature not in self._programs:
                self._programs[signature] = program_store.find(
                    self.store, self.name, signature, self.function, args, self.types
                )
            return self._programs[signature]

    def prepare(self, *args: Any) -> Callable[[], None]:
        """A function that compiles for arguments like these, which may be called in a thread.

        Arrays may be donated or changed meanwhile: only their shapes are kept. Later calls with
        such arguments find the program in JAX's cache.
        """
        shapes = jax.tree.map(_shape, self._reduced(args))

        def work() -> None:
            stored = self._stored(shapes)
            if stored is None:
                self.function.lower(*shapes).compile()
            else:
                stored.compile(*shapes)

        return work

    def eval_shape(self, *args: Any) -> Any:
        """Shapes of the result, as ``jax.jit`` has it."""
        return self.function.eval_shape(*self._reduced(args))  # type: ignore[attr-defined]

    def lower(self, *args: Any) -> Any:
        """The lowered program, as ``jax.jit`` has it."""
        return self.function.lower(*self._reduced(args))

    def _cache_size(self) -> int:
        return self.function._cache_size()  # type: ignore[attr-defined]
