"""The manifest of a checkpoint: what it holds, with a digest of every leaf and of every file.

One JSON file in the checkpoint's folder, written last. Its first line is the digest of
everything after it, so that a flipped bit anywhere in a checkpoint is noticed: in arrays,
in the files of the library that writes them, and in the manifest itself. Reading it runs
nothing and believes nothing: types, names and sizes are checked before they are used.
"""

import errno
import hashlib
import importlib.metadata
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT = 2
"""Of this version. 1 was ``checkpoint.json``, the agent only, before any release."""
NAME = "manifest.json"
MOST_BYTES = 16 << 20
"""Of a manifest; one of a thousand leaves has a quarter of a megabyte."""
_HEAD = re.compile(rb'\{"sha256": "([0-9a-f]{64})",\n')
_HEX = re.compile(r"[0-9a-f]{64}")
_BLOCK = 4 << 20


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line for the user."""


class DamagedError(CheckpointError):
    """Its bytes are not those that were written: an older checkpoint may serve."""


class ShortageError(CheckpointError):
    """The system could not read it at present; its bytes may be as they were written."""


_DAMAGE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO})
"""What says that a file is gone or is another kind of thing; other errors pass."""


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """``error`` as damage (something is missing) or as a shortage (reading failed)."""
    kind = DamagedError if error.errno in _DAMAGE else ShortageError
    return kind(f"{path}: unreadable ({error.strerror or error})")


class Leaf(NamedTuple):
    """One array of a pytree."""

    shape: tuple[int, ...]
    dtype: str
    """As numpy or JAX print it; ``key<fry>`` and the like are PRNG keys, saved as uint32."""
    sha256: str


class File(NamedTuple):
    """One file; its name is relative to the checkpoint's folder."""

    size: int
    sha256: str


class Manifest(NamedTuple):
    """Everything of a checkpoint that is not an array."""

    format: int
    decisions: int
    versions: dict[str, str]
    """Of the packages that decide whether a run goes on bit for bit, by name."""
    config: dict[str, Any]
    sizes: tuple[int, int, int]
    """Of an observation, of an action, and S."""
    score: float | None
    """Mean evaluation return at this very checkpoint, if there was an evaluation."""
    host: dict[str, Any]
    """Whatever the caller wants back; plain JSON."""
    leaves: dict[str, dict[str, Leaf]]
    """By item (``agent``, ``run``) and path in the pytree."""
    files: dict[str, File]


def installed(name: str) -> str:
    """A package's version; ``unknown`` where it is on the path without being installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes, in C order."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(flat).hexdigest()


def file_digest(path: Path, *, sync: bool = False) -> File:
    """Size and SHA-256 of a file; ``sync`` also forces it to the disk."""
    found, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
            size += len(block)
        if sync:
            os.fsync(file.fileno())
    return File(size, found.hexdigest())


def list_files(folder: Path) -> list[str]:
    """Every file below ``folder`` but the manifest, relative, sorted."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return sorted(str(p.relative_to(folder)) for p in found if p != folder / NAME)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk."""
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def _numbers(value: Any) -> Any:
    """Numbers of numpy and JAX as those of JSON."""
    if isinstance(value, np.generic) or hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def write(folder: Path, manifest: Manifest) -> None:
    """Write ``folder/manifest.json`` and force it to the disk."""
    record = manifest._asdict()
    record["leaves"] = {
        item: {name: leaf._asdict() for name, leaf in leaves.items()}
        for item, leaves in manifest.leaves.items()
    }
    record["files"] = {name: file._asdict() for name, file in manifest.files.items()}
    body = json.dumps(
        {"manifest": record}, allow_nan=False, separators=(",", ":"), default=_numbers
    )[1:].encode()
    head = f'{{"sha256": "{hashlib.sha256(body).hexdigest()}",\n'.encode()
    with (folder / NAME).open("wb") as file:
        file.write(head + body)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> Manifest:
    """Read and check ``folder/manifest.json``; touches no other file.

    Raises:
      DamagedError: it is missing or does not match its own digest.
      ShortageError: the system could not read it.
      CheckpointError: it is whole and cannot be used: another format, or not a manifest.
    """
    path = folder / NAME
    try:
        if not path.exists() and (folder / "checkpoint.json").exists():
            raise CheckpointError(
                f"{folder}: is of format 1, this version reads {FORMAT}; it holds an agent only:"
                " read it with the version that wrote it, or train anew"
            )
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from None
    head = _HEAD.match(data)
    if len(data) > MOST_BYTES:
        raise CheckpointError(f"{path}: is larger than {MOST_BYTES >> 20} MiB; not a manifest")
    if head is None or hashlib.sha256(data[head.end() :]).hexdigest().encode() != head[1]:
        raise DamagedError(f"{path}: does not match its digest; the file is damaged")
    try:
        # RecursionError: a million open brackets. ValueError: also integers too long to read.
        return _checked(json.loads(data)["manifest"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"{path}: not a manifest ({text})") from None


def _checked(record: Mapping[str, Any]) -> Manifest:
    """``record`` with every type, name and size checked."""
    if record["format"] != FORMAT:
        raise CheckpointError(
            f"format {record['format']!r}, this version reads {FORMAT}: it needs another version"
            f" of pomcp_jax (written by {record.get('versions', {}).get('pomcp_jax', 'unknown')!s})"
        )
    leaves = {
        _kind(item, str): {_kind(name, str): _leaf(leaf) for name, leaf in named.items()}
        for item, named in _kind(record["leaves"], dict).items()
    }
    if not set(leaves) <= {"agent", "run"} or "agent" not in leaves:
        raise CheckpointError(f"items {sorted(leaves)!r:.100}: must be agent and run")
    files = {
        _relative(name): File(_natural(file["size"]), _hex(file["sha256"]))
        for name, file in _kind(record["files"], dict).items()
    }
    score = record["score"]
    if score is not None and not math.isfinite(_kind(score, float)):
        raise CheckpointError(f"score {score!r}: must be finite")
    obs_size, action_size, num_seeds = (_natural(x) for x in record["sizes"])
    versions = _kind(record["versions"], dict)
    return Manifest(
        format=FORMAT,
        decisions=_natural(record["decisions"]),
        versions={_kind(k, str): _kind(v, str) for k, v in versions.items()},
        config=_kind(record["config"], dict),
        sizes=(obs_size, action_size, num_seeds),
        score=score,
        host=_kind(record["host"], dict),
        leaves=leaves,
        files=files,
    )


def _kind(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise CheckpointError(f"{value!r:.100}: must be {kind.__name__}")
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise CheckpointError(f"{value!r:.100}: must be a whole number in [0, 2**48)")
    return value


def _hex(value: Any) -> str:
    if type(value) is not str or not _HEX.fullmatch(value):
        raise CheckpointError(f"{value!r:.100}: must be a SHA-256 digest")
    return value


def _leaf(record: Mapping[str, Any]) -> Leaf:
    shape = tuple(_natural(size) for size in _kind(record["shape"], list))
    if math.prod(shape) >= 2**48 or len(shape) > 32:
        raise CheckpointError(f"shape {shape!r:.100}: too large")
    return Leaf(shape, _kind(record["dtype"], str), _hex(record["sha256"]))


def _relative(name: Any) -> str:
    """A file name that stays inside of its folder."""
    parts = _kind(name, str).split("/")
    plain = re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_./-]*", name)
    if plain is None or any(part in ("", ".", "..") for part in parts):
        raise CheckpointError(f"file {name!r:.100}: must be a plain name inside of the checkpoint")
    if parts[0] not in ("agent", "run"):
        raise CheckpointError(f"file {name!r:.100}: must be in agent/ or run/")
    return name


def verify_files(folder: Path, manifest: Manifest, items: tuple[str, ...]) -> None:
    """Read every file of ``items`` and compare its digest.

    Raises:
      DamagedError: names the first file that is missing or differs.
      ShortageError: names the first file that the system could not read.
    """
    root = Path(os.path.realpath(folder))
    for name, wanted in manifest.files.items():
        if name.split("/")[0] not in items:
            continue
        path = folder / name
        # Unlike Path.resolve, which raises RuntimeError, this leaves links that form a loop.
        if not Path(os.path.realpath(path)).is_relative_to(root):
            raise CheckpointError(f"{path}: leads out of the checkpoint")
        try:
            if not path.is_file():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if path.stat().st_size != wanted.size:
                raise DamagedError(
                    f"{path}: has {path.stat().st_size} bytes, must have {wanted.size};"
                    " the file is damaged"
                )
            found = file_digest(path)
        except OSError as error:
            raise unreadable(path, error) from None
        if found != wanted:
            raise DamagedError(f"{path}: does not match its digest; the file is damaged")
