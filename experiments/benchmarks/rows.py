"""Rows of a benchmark: printed as a markdown table and written to a JSON file as they come."""

import pathlib
from collections.abc import Iterable
from typing import Any

from pomcp_jax import files
from pomcp_jax.running import process

Row = dict[str, Any]
"""Names, which say what was measured, and numbers, by column."""


def text(value: Any) -> str:
    """A cell of a table: names and whole numbers as they are, others with three digits or more."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f}"


def show(rows: Iterable[Row], path: pathlib.Path | None = None, command: str = "") -> list[Row]:
    """Print ``rows``, which may be a generator that measures, as a table; returns them.

    Args:
      rows: with the same columns each.
      path: JSON file, complete after every row: a benchmark that is killed leaves what it measured.
      command: that measures, for the file.
    """
    done: list[Row] = []
    for row in rows:
        if not done:
            print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
        print(f"| {' | '.join(map(text, row.values()))} |", flush=True)
        done.append(row)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, {"rows": done, **process.describe(command)})
    return done
