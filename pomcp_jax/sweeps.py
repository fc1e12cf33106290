"""Several settings in one program: traced floats of ``config.agent`` with one value per row.

A row is one seed of one setting; rows share the seeds' axis S of a run
(:mod:`pomcp_jax.train`). A float that differs between rows is an array ``[S]``,
all others stay plain numbers, and ``vmap`` maps exactly those that have the axis.
Static fields (sizes, names, switches) decide the compiled program, so they are
the same in every row.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from pomcp_jax import config as config_lib
from pomcp_jax.config import ConfigError

C = TypeVar("C")


def traced_fields(config: Any) -> tuple[str, ...]:
    """Dotted names of the fields that may differ between rows: the traced floats."""
    paths, _ = jax.tree_util.tree_flatten_with_path(config)
    return tuple(jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths)


def stack(configs: Sequence[C]) -> C:
    """One configuration of S rows, its traced floats ``[S]`` where the rows differ.

    Args:
      configs: one for each row, all of the same type.

    Raises:
      ConfigError: if a static field differs, with its name.
    """
    first, *others = configs
    traced, reference = set(traced_fields(first)), config_lib.flatten(first)
    for other in others:
        for name, value in config_lib.flatten(other).items():
            if value != reference[name] and name not in traced:
                raise ConfigError(
                    f"{name} = {value!r}: must be {reference[name]!r} in every row of a sweep"
                    " because it is part of the compiled program"
                )

    def join(*values: float) -> Any:
        if all(value == values[0] for value in values):
            return values[0]
        # Stacked from weakly typed numbers, so that nothing is promoted that a float would not.
        return jnp.stack([jnp.asarray(value) for value in values])

    return jax.tree.map(join, *configs)


def axes(config: C) -> C:
    """``in_axes`` of ``vmap`` for ``config``: 0 for floats with the seeds' axis, None else."""
    return jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, config)


def row(config: C, index: int) -> C:
    """The configuration of one row, by indexing; works under ``jit``."""
    return jax.tree.map(lambda x: x[index] if jnp.ndim(x) else x, config)


def over_seeds(function: Callable, config: Any, *args: Any) -> Any:
    """``vmap`` of ``function(config, *args)`` over the seeds' axis.

    All of ``args`` have the axis; floats of ``config`` may have it. One seed goes
    without: XLA's CPU code for the same arithmetic with a leading axis of one
    takes a third longer (docs/decisions.md).
    """
    if jax.tree.leaves(args)[0].shape[0] > 1:
        in_axes = (axes(config), *(0 for _ in args))
        return jax.vmap(function, in_axes=in_axes)(config, *args)
    out = function(row(config, 0), *jax.tree.map(lambda x: x[0], args))
    return jax.tree.map(lambda x: x[None], out)


def unstack(config: C, num_rows: int) -> list[C]:
    """The plain configuration of each of S rows; just one where nothing differs.

    Raises:
      ConfigError: if a float is neither a number nor one for each row.
    """
    values = config_lib.flatten(config)
    shapes = {name: jnp.shape(values[name]) for name in traced_fields(config)}
    for name, shape in shapes.items():
        if shape not in ((), (num_rows,)):
            raise ConfigError(
                f"{name}: has shape {shape}; must be a number, or one for each of"
                f" {num_rows} rows of the seeds' axis"
            )

    def plain(x: Any) -> float:
        return x if isinstance(x, float) else float(str(x))  # 0.1, not its float32 digits

    if not any(shapes.values()):
        return [jax.tree.map(plain, config)]
    return [jax.tree.map(plain, row(config, i)) for i in range(num_rows)]
