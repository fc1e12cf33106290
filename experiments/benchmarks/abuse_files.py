"""Files for :mod:`experiments.benchmarks.abuse`: create them, damage them, find lost contents."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import checkpoint_damage
from pomcp_jax.running.tables import TABLES


def bytes_of(folder: Path) -> dict[Path, bytes]:
    """Contents of all files below ``folder`` except temporary ones."""
    return {
        path: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and not path.name.endswith(".partial")
    }


def missing(before: dict[Path, bytes], folder: Path, changed: Sequence[str] = ()) -> list[str]:
    """Names of files whose contents are no longer anywhere below ``folder``.

    Files named in ``changed`` may have other contents. A table may have lost its end: rows after
    the checkpoint, which training writes again.
    """
    after = bytes_of(folder)
    # By contents and not by name: a file that was moved aside is not lost.
    kept = set(after.values())
    return [
        path.name
        for path, data in before.items()
        if data not in kept
        and path.name not in changed
        and not (path.name in TABLES and path in after and data.startswith(after[path]))
    ]


def prepare(work: Path, action: str, name: str) -> None:
    """Create the hostile workdir of an input."""
    kind, _, inner = action.partition(" ")
    path = work / name / inner if inner else work / name
    if inner:
        path.parent.mkdir()
    if kind == "file":
        (work / "x").write_text("text")
    elif kind == "dangling":
        path.symlink_to(work / "nothing" / "there")
    elif kind != "none":
        make(path, {"touch": "empty"}.get(kind, kind))


def make(path: Path, kind: str) -> None:
    """Create a file, folder, pipe or link at ``path``."""
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)  # a link to itself: opening it fails with ELOOP
    else:
        contents = {
            "empty": b"",
            "binary": bytes(range(256)) * 4,
            "nest": b"[" * 200_000,  # deeper than the recursion limit of JSON parsers
            "huge": b" " * (20 << 20),
        }
        path.write_bytes(contents[kind])


def damage(path: Path, action: str) -> None:
    """Damage one file or folder."""
    data = path.read_bytes() if path.is_file() else b""
    if action == "rename":
        path.rename(path.with_name(f"{path.name}.damaged"))
    elif action == "stale":
        path.with_name(f".{path.name}.partial").write_text("half")
    elif action in ("half", "flip", "longer"):
        middle = len(data) // 2
        flipped = data[:middle] + bytes(255 - b for b in data[middle : middle + 1])
        changes = {"half": data[:middle], "longer": data[:middle] + b"12" + data[middle:]}
        path.write_bytes(changes.get(action, flipped + data[middle + 1 :]))
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if action != "delete":
            make(path, action)


def rewrite(path: Path, field: str, value: Any) -> None:
    """Set a field of a manifest and correct its digest."""
    whole = json.loads(path.read_bytes())["manifest"]
    group, *parts = whole, *field.split(".")
    for part in parts[:-1]:
        group = group[part]
    group[parts[-1]] = value
    checkpoint_damage.write_manifest(path, whole)
