"""Files of :mod:`experiments.benchmarks.abuse`: made, damaged, and looked for afterwards."""

import collections
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from experiments.benchmarks import rot


def bytes_of(folder: Path) -> collections.Counter:
    """How often which contents are anywhere below ``folder``."""
    found: collections.Counter = collections.Counter()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and not path.name.endswith(".partial"):
            found[hashlib.sha256(path.read_bytes()).hexdigest(), path.suffix] += 1
    return found


def missing(before: collections.Counter, folder: Path, changed: list[str]) -> list[str]:
    """Contents that are gone; files called ``changed`` may have changed, one of each suffix."""
    gone = before - bytes_of(folder)
    allowed = collections.Counter(Path(name).suffix for name in changed)
    found = []
    for (digest, suffix), count in gone.items():
        if allowed[suffix] >= count:
            allowed[suffix] -= count
        else:
            found.append(f"a file *{suffix} ({digest[:8]})")
    return found


def prepare(work: Path, action: str, name: str) -> None:
    """Make what a workdir of abuse needs."""
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
    """Put something at ``path``, where nothing is."""
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        contents = {
            "empty": b"",
            "binary": bytes(range(256)) * 4,
            "nest": b"[" * 200_000,
            "huge": b" " * (20 << 20),
        }
        path.write_bytes(contents[kind])


def damage(path: Path, action: str) -> None:
    """Change one file or folder."""
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
    """Set a field of a manifest; its digest is right afterwards."""
    whole = json.loads(path.read_bytes())["manifest"]
    group, *parts = whole, *field.split(".")
    for part in parts[:-1]:
        group = group[part]
    group[parts[-1]] = value
    rot.write_manifest(path, whole)
