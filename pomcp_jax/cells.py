"""Cells of a sweep: settings that differ in traced floats, each with its rows of the seeds' axis.

A plain run has one cell without a name, whose folder is the workdir itself.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from pomcp_jax import config as config_lib
from pomcp_jax import nearest, seed_axis, validation
from pomcp_jax.config import Config, ConfigError

Grid = Mapping[str, Sequence[float]]
"""Swept fields of the agent and their values: ``{"policy.kl_coef": (0.1, 1.0)}``."""


class Cell(NamedTuple):
    """One setting: what it changes, its own configuration and its rows of the seeds' axis."""

    name: str
    """Also of its folder; empty in a plain run."""
    values: dict[str, float]
    """By field name without ``agent.``."""
    config: Config
    rows: slice

    @property
    def seeds(self) -> range:
        """Seed numbers, the same in every cell."""
        return range(self.config.train.seed, self.config.train.seed + self.config.train.num_seeds)

    def folder(self, workdir: Path) -> Path:
        """Where its tables go."""
        return workdir / self.name

    def row_seeds(self) -> zip:
        """Pairs of a row and its seed number."""
        return zip(range(self.rows.start, self.rows.stop), self.seeds, strict=True)


def short(field: str) -> str:
    """A field's name without ``agent.``."""
    return field.removeprefix("agent.")


def text(value: float) -> str:
    """Shortest form that reads back as the same number."""
    shown = f"{value:g}"
    return shown if float(shown) == value else repr(value)


def check_grid(grid: Grid, config: Config) -> dict[str, tuple[float, ...]]:
    """``grid`` with full names of fields.

    Raises:
      ConfigError: for anything that is not a list of numbers for a traced float of the agent.
    """
    out: dict[str, tuple[float, ...]] = {}
    for name, listed in grid.items():
        field = _field(name, config)
        if field in out:
            raise ConfigError(f"grid: {field} is there twice; must be one list of values")
        if isinstance(listed, str) or not isinstance(listed, Sequence) or not listed:
            raise ConfigError(f"grid: {field} = {listed!r:.100}: must be a list of numbers")
        values = tuple(_value(field, value) for value in listed)
        single = [float(jnp.float32(value)) for value in values]  # what the program sees
        for value, rounded in zip(values, single, strict=True):
            if single.count(rounded) > 1:
                raise ConfigError(f"grid: {field} = {text(value)} is there twice; must be once")
        out[field] = values
    return out


def _value(field: str, value: object) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ConfigError(f"grid: {field} = {value!r:.100}: must be a number") from None


def _field(name: str, config: Config) -> str:
    """The full name of a field that can be swept."""
    known, traced = config_lib.flatten(config), seed_axis.traced_fields(config)
    name = name.removeprefix("config.")
    field = name if name in known else f"agent.{name}"
    if field in traced:
        return field
    if field in known:
        raise ConfigError(
            f"grid: {field} is part of the compiled program and cannot be swept; must be run"
            f" value by value, `python -m experiments.run ... --config.{field}=VALUE`"
        )
    hint = nearest.hint(short(name), [short(other) for other in traced])
    raise ConfigError(f"grid: {name}: unknown field{hint}")


def cells(config: Config, grid: Grid) -> tuple[Cell, ...]:
    """Every combination of the grid's values, the last field fastest, each validated.

    Cell c has the rows ``c k`` to ``c k + k - 1`` for k = ``train.num_seeds``. Without a grid
    there is one cell, of ``config`` itself.

    Args:
      config: what all cells share.
      grid: from :func:`check_grid`.

    Raises:
      ConfigError: for a combination that cannot work, with the cell named.
    """
    seeds = config.train.num_seeds
    if not grid:
        return (Cell("", {}, config, slice(0, seeds)),)
    out = []
    for i, values in enumerate(itertools.product(*grid.values())):
        changes = dict(zip(grid, values, strict=True))
        named = {short(field): value for field, value in changes.items()}
        name = ",".join(f"{field}={text(value)}" for field, value in named.items())
        try:
            one = config_lib.replace(config, changes)
            validation.validate_run(one)
        except ConfigError as error:
            raise ConfigError(f"cell {name}: {error}") from None
        out.append(Cell(name, named, one, slice(i * seeds, (i + 1) * seeds)))
    return tuple(out)


def joined(cells: Sequence[Cell]) -> Config:
    """All cells as one configuration of ``cells x seeds`` rows."""
    if len(cells) == 1:
        return cells[0].config
    rows = [cell.config for cell in cells for _ in cell.seeds]
    rows = [config_lib.replace(one, {"train.num_seeds": len(rows)}) for one in rows]
    return seed_axis.stack(rows)


def seeds(cells: Sequence[Cell]) -> list[int]:
    """The seed number of every row."""
    return [seed for cell in cells for seed in cell.seeds]


def labels(cells: Sequence[Cell]) -> list[str]:
    """What every row is called: ``seed 3``, with the cell before it in a sweep."""
    return [
        f"{cell.name}, seed {seed}" if cell.name else f"seed {seed}"
        for cell in cells
        for seed in cell.seeds
    ]
