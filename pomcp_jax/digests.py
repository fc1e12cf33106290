"""Digests of a folder: verify that every file is as written.

A manifest, one JSON file, holds the size and SHA-256 of every other file below its folder. Its
first line is the digest of everything after it, so a flipped bit anywhere is noticed. Reading
executes nothing, and opens no file by a name that the manifest gives.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pomcp_jax import files

NAME = "manifest.json"
MOST_BYTES = 16 << 20
"""Largest manifest; that of a run with a thousand leaves has a quarter of a megabyte."""
_HEAD = re.compile(rb'\{"sha256": "([0-9a-f]{64})",\n')


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line for the user."""


class DamagedError(CheckpointError):
    """Its files differ from those written; an older checkpoint may be intact."""


class ShortageError(CheckpointError):
    """Its files could not be read at present; they may be intact."""


def reason(error: BaseException) -> str:
    """The text of an exception, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def _unreadable(error: OSError, path: Path) -> CheckpointError:
    # The file is gone or of another kind; any other error may be temporary.
    gone = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO)
    kind = DamagedError if error.errno in gone else ShortageError
    return kind(f"{path}: unreadable ({reason(error)})")


def list_files(folder: Path) -> list[str]:
    """Relative names of all files below ``folder`` but the manifest; follows no links.

    Raises:
      OSError: some folder could not be read.
    """

    def fail(error: OSError) -> None:
        raise error

    # By default ``os.walk`` skips folders that it cannot read: their files would look deleted.
    walk = os.walk(folder, onerror=fail)
    paths = (Path(root, name).relative_to(folder) for root, _, names in walk for name in names)
    return sorted(path.as_posix() for path in paths if path != Path(NAME))


def _digest(path: Path, *, sync: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": file.tell()}


def of(folder: Path) -> dict[str, Any]:
    """Digest every file below ``folder`` and force all of it to the disk."""
    # fsync while the file is open anyway; folders last, innermost first, as their entries are data.
    digests = {name: _digest(folder / name, sync=True) for name in list_files(folder)}
    for root, _, _ in os.walk(folder, topdown=False):
        files.sync_folder(Path(root))
    return digests


def verify(folder: Path, digests: Mapping[str, Any], items: tuple[str, ...]) -> None:
    """Compare all that is in the folders ``items`` of ``folder`` with what :func:`of` returned.

    Raises:
      DamagedError: names the first file that is missing, extra or different from the one written.
      ShortageError: names what the system could not read.
    """
    path = folder
    try:
        # Both ways: an extra file could be read by orbax as part of an array.
        there = {f"{item}/{name}" for item in items for name in list_files(folder / item)}
        wanted = {name for name in digests if name.split("/")[0] in items}
        for name in sorted(there | wanted):
            path = folder / name
            if name not in digests:
                raise DamagedError(f"{path}: is an extra file that no save wrote")
            if name not in there or not stat.S_ISREG(path.lstat().st_mode):
                raise DamagedError(f"{path}: unreadable (missing, or a link or the like)")
            if _digest(path) != digests[name]:
                raise DamagedError(f"{path}: does not match its digest; the file is damaged")
    except OSError as error:
        raise _unreadable(error, Path(error.filename or path)) from None


def _json(value: Any) -> Any:
    """Numbers of numpy and JAX as those of JSON."""
    if hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of ``folder``, plain JSON, and force it to the disk."""
    text = json.dumps({"manifest": manifest}, allow_nan=False, separators=(",", ":"), default=_json)
    # The digest becomes the first key of the object, so that the file is still plain JSON.
    body = text[1:].encode()
    head = f'{{"sha256": "{hashlib.sha256(body).hexdigest()}",\n'.encode()
    files.write_bytes(folder / NAME, head + body)
    files.sync_folder(folder)


def read(folder: Path) -> Any:
    """The manifest of ``folder`` as plain JSON; the caller checks its types.

    Raises:
      DamagedError: it is missing or does not match its own digest.
      ShortageError: the system could not read it.
      CheckpointError: it is whole, but no manifest.
    """
    path = folder / NAME
    try:
        if not path.is_file():  # opening a pipe would block
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with path.open("rb") as file:
            # Bounded, whatever the file's size: the name proves nothing.
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise _unreadable(error, path) from None
    if len(data) > MOST_BYTES:
        raise CheckpointError(f"{path}: is larger than {MOST_BYTES >> 20} MiB; not a manifest")
    head = _HEAD.match(data)
    if head is None or hashlib.sha256(data[head.end() :]).hexdigest().encode() != head[1]:
        raise DamagedError(f"{path}: does not match its digest; the file is damaged")
    try:
        return json.loads(data)["manifest"]
    except (ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a manifest ({reason(error)})") from None
