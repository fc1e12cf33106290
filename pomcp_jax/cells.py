"""Cells of a sweep: settings that differ in traced floats, each with a slice of the seed axis.

A plain run has one cell without a name, whose folder is the workdir itself.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from pomcp_jax import config as config_lib
from pomcp_jax import nearest, seed_axis, validation
from pomcp_jax.config import Config, ConfigError

Grid = Mapping[str, Sequence[float]]
"""Swept fields of the agent and their values: ``{"policy.kl_coef": (0.1, 1.0)}``."""


LONGEST_NAME = 255
"""Bytes in the name of a folder (NAME_MAX of Linux' file systems)."""


class Cell(NamedTuple):
    """One setting: its changed values, its configuration and its slice of the seed axis."""

    name: str
    """Also the name of its folder; empty in a plain run."""
    values: dict[str, float]
    """Swept values by field name without ``agent.``."""
    config: Config
    rows: slice

    @property
    def seeds(self) -> range:
        """Seed numbers, the same in every cell."""
        return range(self.config.train.seed, self.config.train.seed + self.config.train.num_seeds)

    def folder(self, workdir: Path) -> Path:
        """Folder of its tables."""
        return workdir / self.name

    def row_seeds(self) -> Iterator[tuple[int, int]]:
        """Pairs of an index into the seed axis and its seed number."""
        return zip(range(self.rows.start, self.rows.stop), self.seeds, strict=True)


def short(field: str) -> str:
    """A field's name without ``agent.``."""
    return field.removeprefix("agent.")


def text(value: float) -> str:
    """Shortest text that parses to the same number; names folders, so cells cannot collide."""
    shown = f"{value:g}"
    return shown if float(shown) == value else repr(value)


def check_grid(grid: Grid, config: Config) -> dict[str, tuple[float, ...]]:
    """``grid`` with full names of fields.

    Raises:
      ConfigError: for anything but a list of distinct numbers for a traced float of the agent.
    """
    out: dict[str, tuple[float, ...]] = {}
    for name, listed in grid.items():
        field = _field(name, config)
        if field in out:
            raise ConfigError(f"grid: {field} appears twice; must be one list of values")
        # A string is a sequence too: "0.1" would become the values 0, ., 1.
        if isinstance(listed, str) or not isinstance(listed, Sequence) or not listed:
            raise ConfigError(f"grid: {field} = {listed!r:.100}: must be a list of numbers")
        values = tuple(_value(field, value) for value in listed)
        # Compared in float32, as the program does: two cells would otherwise train the same agent.
        single = [float(jnp.float32(value)) for value in values]
        for value, rounded in zip(values, single, strict=True):
            if single.count(rounded) > 1:
                raise ConfigError(f"grid: {field} = {text(value)} appears twice; must appear once")
        out[field] = values
    return out


def _value(field: str, value: object) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"grid: {field} = {value!r:.100}: must be a number") from None


def _field(name: str, config: Config) -> str:
    """Full name of a field that can be swept.

    Raises:
      ConfigError: the field is unknown, or part of the compiled program.
    """
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
    """Cells for all combinations of the grid's values, the last field varying fastest.

    Cell c has the indices ``c k`` to ``c k + k - 1`` of the seed axis for k = ``train.num_seeds``.
    Without a grid there is one cell with ``config`` itself.

    Args:
      config: shared by all cells.
      grid: from :func:`check_grid`.

    Raises:
      ConfigError: for an invalid combination; names the cell.
    """
    seeds = config.train.num_seeds
    if not grid:
        return (Cell("", {}, config, slice(0, seeds)),)
    out = []
    for i, values in enumerate(itertools.product(*grid.values())):
        changes = dict(zip(grid, values, strict=True))
        named = {short(field): value for field, value in changes.items()}
        name = ",".join(f"{field}={text(value)}" for field, value in named.items())
        if len(name) > LONGEST_NAME:
            raise ConfigError(
                f"grid: the cell {name!r:.60}... has a name of {len(name)} bytes; must be <="
                f" {LONGEST_NAME}, for it is a folder: fewer fields, or shorter numbers"
            )
        try:
            cell_config = config_lib.replace(config, changes)
            validation.validate_run(cell_config)
        except ConfigError as error:
            raise ConfigError(f"cell {name}: {error}") from None
        out.append(Cell(name, named, cell_config, slice(i * seeds, (i + 1) * seeds)))
    return tuple(out)


def joined(cells: Sequence[Cell]) -> Config:
    """All cells as one configuration with ``cells x seeds`` entries on the seed axis."""
    # A single cell is not stacked: its floats stay scalars, and so the program is a plain run's.
    if len(cells) == 1:
        return cells[0].config
    configs = [cell.config for cell in cells for _ in cell.seeds]
    configs = [config_lib.replace(c, {"train.num_seeds": len(configs)}) for c in configs]
    return seed_axis.stack(configs)


def seeds(cells: Sequence[Cell]) -> list[int]:
    """Seed number of each entry of the seed axis; the same numbers in every cell."""
    return [seed for cell in cells for seed in cell.seeds]


def labels(cells: Sequence[Cell]) -> list[str]:
    """Label of each entry of the seed axis: ``seed 3``, preceded by the cell's name in a sweep."""
    return [
        f"{cell.name}, seed {seed}" if cell.name else f"seed {seed}"
        for cell in cells
        for seed in cell.seeds
    ]
