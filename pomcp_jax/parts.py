"""Parts of a run over several processes: which seeds each trains, and the record of the whole.

The workdir of such a run holds ``parts.json`` and a folder for each process, ``seeds-0-4`` for
example, which is an ordinary run of those seeds.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from pomcp_jax import config as config_lib
from pomcp_jax.config import Config, ConfigError

RECORD = "parts.json"
"""The record of the whole, in the workdir."""
_NAME = re.compile(r"seeds-(\d{1,10})-(\d{1,10})")
_MOST_BYTES = 4 << 20


class Part(NamedTuple):
    """The seeds of one process."""

    first: int
    """Number of its first seed."""
    num_seeds: int

    @property
    def folder(self) -> str:
        """Name of its folder below the workdir."""
        return f"seeds-{self.first}-{self.first + self.num_seeds - 1}"

    @property
    def seeds(self) -> range:
        """Numbers of its seeds."""
        return range(self.first, self.first + self.num_seeds)


def shares(first: int, num_seeds: int, processes: int) -> list[Part]:
    """Consecutive shares of the seeds, one for each process; they differ by at most one seed.

    Raises:
      ConfigError: there are more processes than seeds.
    """
    if processes > num_seeds:
        raise ConfigError(
            f"--num_processes = {processes}: must be <= train.num_seeds = {num_seeds}; every"
            " process trains seeds of its own"
        )
    size, more = divmod(num_seeds, processes)
    parts, start = [], first
    for i in range(processes):
        parts.append(Part(start, size + (i < more)))
        start += parts[-1].num_seeds
    return parts


def config(whole: Config, part: Part) -> Config:
    """Configuration of a part of a run."""
    own = {"train.seed": part.first, "train.num_seeds": part.num_seeds}
    return config_lib.replace(whole, own)


class Record(NamedTuple):
    """Contents of :data:`RECORD`."""

    parts: list[Part]
    values: dict[str, Any]
    """All of it, as JSON."""

    def config(self) -> Config:
        """Configuration of the whole run.

        Raises:
          ConfigError: it is of another version.
        """
        return config_lib.from_dict(Config, self.values["config"])


def read(workdir: Path) -> Record | None:
    """The record of a workdir; None if it is not that of a run over several processes.

    Raises:
      ConfigError: one line: it is there but cannot be used.
    """
    path = workdir / RECORD
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(_MOST_BYTES))
        # Numbers from names of one fixed form: no name can reach outside of the workdir.
        found = [_NAME.fullmatch(name) for name in values["parts"]]
        ranges = [(int(name[1]), int(name[2])) for name in found if name]
        parts = [Part(first, last - first + 1) for first, last in ranges]
        follows = all(a.seeds.stop == b.first for a, b in zip(parts, parts[1:], strict=False))
        if not parts or not all(found) or not follows or min(part.num_seeds for part in parts) < 1:
            raise ValueError
        if not isinstance(values["config"], dict):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(
            f"{path}: is unreadable; must be the record of a run over several processes"
        ) from None
    return Record(parts, values)
