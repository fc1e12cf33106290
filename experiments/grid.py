"""The grid of a sweep: ``--grid`` as swept fields, and the cells that they span."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from pomcp_jax import config as config_lib
from pomcp_jax import nearest, seed_axis, validation
from pomcp_jax.config import Config, ConfigError


class Axis(NamedTuple):
    """One swept field and its values."""

    field: str
    """Dotted, ``agent.`` included."""
    values: tuple[float, ...]

    @property
    def short(self) -> str:
        """The field without ``agent.``."""
        return self.field.removeprefix("agent.")


class Cell(NamedTuple):
    """One setting: what it changes, its own configuration and its rows of the seeds' axis."""

    name: str
    values: dict[str, float]
    """By short field name."""
    config: Config
    rows: slice

    @property
    def seeds(self) -> range:
        """Seed numbers, the same in every cell."""
        return range(self.config.train.seed, self.config.train.seed + self.config.train.num_seeds)


def text(value: float) -> str:
    """Shortest form that reads back as the same number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def parse(flags: Sequence[str], config: Config) -> tuple[Axis, ...]:
    """The axes of all ``--grid`` flags; ``;`` separates fields inside one.

    Raises:
      ConfigError: for anything that is not a list of numbers for a traced float of the agent.
    """
    parts = [part.strip() for flag in flags for part in flag.split(";") if part.strip()]
    if not parts:
        example = '--grid="policy.kl_coef=0.1,1,9"'
        raise ConfigError(f"--grid: missing; for example {example}")
    axes = tuple(_axis(part, config) for part in parts)
    names = [axis.field for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--grid: {name} is there twice; must be one list of values")
    return axes


def _axis(part: str, config: Config) -> Axis:
    name, equals, listed = part.partition("=")
    field = _field(name.strip(), config)
    words = [word.strip() for word in listed.split(",")]
    if not equals or not any(words):
        raise ConfigError(f"--grid = {part!r}: must be FIELD=VALUE,VALUE,...")
    values = []
    for word in words:
        try:
            values.append(float(word))
        except ValueError:
            raise ConfigError(f"--grid: {field} = {word!r}: must be a number") from None
    single = [float(jnp.float32(value)) for value in values]  # what the program sees
    for value, rounded in zip(values, single, strict=True):
        if single.count(rounded) > 1:
            raise ConfigError(f"--grid: {field} = {text(value)} is there twice; must be once")
    return Axis(field, tuple(values))


def _field(name: str, config: Config) -> str:
    """The full name of a field that can be swept."""
    known, traced = config_lib.flatten(config), seed_axis.traced_fields(config)
    name = name.removeprefix("config.")
    field = name if name in known else f"agent.{name}"
    if field in traced:
        return field
    if field in known:
        raise ConfigError(
            f"--grid: {field} is part of the compiled program and cannot be swept; must be run"
            f" value by value, `python -m experiments.run ... --config.{field}=VALUE`"
        )
    shorts = [other.removeprefix("agent.") for other in traced]
    hint = nearest.hint(name.removeprefix("agent."), shorts)
    raise ConfigError(f"--grid: {name}: unknown field{hint}")


def cells(config: Config, axes: Sequence[Axis]) -> tuple[Cell, ...]:
    """Every combination of the axes' values, the last axis fastest, each validated.

    Cell c has the rows ``c k`` to ``c k + k - 1`` for k = ``train.num_seeds``.

    Raises:
      ConfigError: for a combination that cannot work, with the cell named.
    """
    out = []
    for i, values in enumerate(itertools.product(*(axis.values for axis in axes))):
        pairs = list(zip(axes, values, strict=True))
        name = ",".join(f"{axis.short}={text(value)}" for axis, value in pairs)
        try:
            changes = {axis.field: value for axis, value in pairs}
            one = config_lib.replace(config, changes)
            validation.validate_config(one)
        except ConfigError as error:
            raise ConfigError(f"cell {name}: {error}") from None
        seeds = config.train.num_seeds
        rows = slice(i * seeds, (i + 1) * seeds)
        out.append(Cell(name, {axis.short: value for axis, value in pairs}, one, rows))
    return tuple(out)


def joined(cells: Sequence[Cell]) -> Config:
    """All cells as one configuration of ``cells x seeds`` rows."""
    rows = [cell.config for cell in cells for _ in cell.seeds]
    rows = [config_lib.replace(one, {"train.num_seeds": len(rows)}) for one in rows]
    return seed_axis.stack(rows)


def folder(workdir: Path, cell: Cell) -> Path:
    """Where a cell's records go."""
    return workdir / cell.name


def held(workdir: Path) -> list[str]:
    """Folders of the cells of an earlier sweep.

    Raises:
      ConfigError: if its record cannot be read.
    """
    record = workdir / "sweep.json"
    if not record.is_file():
        return []
    try:
        names = [Path(name) for name in json.loads(record.read_text())["cells"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"--workdir = {str(workdir)!r}: its sweep.json is unreadable") from None
    return [name.name for name in names]
