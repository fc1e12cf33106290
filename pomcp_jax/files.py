"""Atomic replacement of files."""

import json
import os
from pathlib import Path
from typing import Any

from pomcp_jax.errors import ConfigError


def check_writable(path: Path, name: str) -> None:
    """Refuse a file that could not be written; ``name`` is the argument that gives it.

    Raises:
      ValueError: one line.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{name} = {str(path)!r}: {path.parent} is no folder")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"{name} = {str(path)!r}: cannot be written")


def check_folder(path: Path, name: str) -> None:
    """Refuse a folder in which nothing could be written; ``name`` is the argument that gives it.

    Raises:
      ConfigError: one line.
    """
    existing = nearest_existing(path)
    if not existing.is_dir():
        raise ConfigError(f"{name} = {str(path)!r}: {str(existing)!r} is no folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{name} = {str(path)!r}: {str(existing)!r} is not writable")


def nearest_existing(path: Path) -> Path:
    """``path`` or the folder nearest above it that exists, below which it would be created."""
    existing = Path(os.path.abspath(path))
    # A link to nothing exists too: no folder can be made in its place.
    while not os.path.lexists(existing):
        existing = existing.parent
    return existing


def are_nested(one: Path, other: Path) -> bool:
    """Whether two folders are the same or one lies in the other, through links too."""
    one, other = one.resolve(), other.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file in one step: it has the old bytes or the new ones, whatever happens.

    Raises:
      OSError: nothing was changed.
    """
    # In the same folder: a rename is atomic only within a file system.
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            # Otherwise a power cut could keep the rename and lose the bytes.
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    write_bytes(path, text.encode())


def write_json(path: Path, values: Any) -> None:
    """Replace a JSON file in one step."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk."""
    # A folder cannot be opened for writing, and fsync does not need that.
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)
