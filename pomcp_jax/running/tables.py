"""Tables of a run: metrics.csv, metrics.jsonl and evaluations.csv."""

import csv
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pomcp_jax import files

FIRST = (
    "seconds",
    "decisions",
    "frames",
    "seed",
    "train/return",
    "eval/return",
    "decisions_per_second",
)
"""First columns of metrics.csv, in this order; the others follow by name."""
TABLES = ("metrics.jsonl", "metrics.csv", "evaluations.csv")


class Written(NamedTuple):
    """What has been written to a run's tables, as JSON values."""

    columns: list[str]
    """Columns of metrics.csv and metrics.jsonl."""
    evaluation_columns: list[str]
    """Columns of evaluations.csv; empty before the first evaluation."""
    sizes: dict[str, int]
    """Bytes of each file."""
    decisions: int
    """Largest number of decisions of any row."""
    digests: Mapping[str, str] = {}
    """SHA-256 of these bytes; empty if an earlier version wrote them."""

    def header(self, name: str) -> bytes:
        """First line of a table, ``b""`` if it has none."""
        columns = {"metrics.csv": self.columns, "evaluations.csv": self.evaluation_columns}
        return _csv_line(columns[name]) if columns.get(name) else b""


def _plain(value: Any) -> Any:
    """JSON value of a cell; non-finite numbers become null, since JSON has no NaN."""
    if isinstance(value, int | str) or value is None:
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def _csv_line(values: list[Any]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerow(values)
    return out.getvalue().encode()


class Table:
    """An append-only file with a digest of its whole contents."""

    def __init__(self, path: Path):
        self.path = path
        self._open()

    def _open(self) -> None:
        # Unbuffered: a buffer would write the bytes of a failed row when the file is closed, after
        # the run has reported that row as not written.
        self._file = self.path.open("ab", buffering=0)
        with self.path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256")

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file.fileno()).st_size

    def write(self, line: bytes) -> None:
        """Append a line.

        Raises:
          OSError: nothing, or only a part, was written.
        """
        unwritten = memoryview(line)
        # An unbuffered write may be partial, on a nearly full disk for example.
        while unwritten:
            unwritten = unwritten[self._file.write(unwritten) :]
        self.digest.update(line)

    def reopen(self, header: bytes) -> bool:
        """Continue with the file that has the name now, if it is another; returns whether it is."""
        # Editors and sync tools replace files instead of changing them; later rows would be
        # appended to a file that has no name any more.
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
                return False
        except FileNotFoundError:
            pass
        self._file.close()
        self._open()
        data = self.path.read_bytes()
        if not data:
            self.write(header)
        elif not data.endswith(b"\n"):
            self.write(b"\n")
        return True

    def sync(self) -> None:
        """Force written rows onto the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()


class Record:
    """Tables of one run; ``row`` passes each row to the operating system before returning.

    ``say`` prints a line for the user if another program changed the files.
    """

    def __init__(
        self,
        workdir: Path,
        columns: list[str],
        written: Written | None = None,
        say: Callable[[str], None] = lambda text: None,
    ):
        """Create the tables, or continue those that ``written`` describes without later rows."""
        others = sorted(set(columns) - set(FIRST))
        self._columns = [*FIRST, *others] if written is None else written.columns
        self._evaluation_columns = [] if written is None else written.evaluation_columns
        self._decisions = -1 if written is None else written.decisions
        self._say = say
        self._tables = {}
        for name in TABLES:
            if written is None:
                (workdir / name).write_bytes(b"")
            else:
                _cut_to(workdir / name, written)
            self._tables[name] = Table(workdir / name)
        if self._tables["metrics.csv"].size == 0:
            self._tables["metrics.csv"].write(_csv_line(self._columns))
        if self._tables["evaluations.csv"].size == 0:
            self._evaluation_columns = []

    def _append(self, name: str, line: bytes) -> None:
        table = self._tables[name]
        if table.reopen(self._written_here().header(name)):
            self._say(f"warning: {table.path} was removed or replaced; later rows are appended")
        table.write(line)

    def row(self, values: dict[str, Any]) -> None:
        """Write the row of one chunk of one seed."""
        values = {name: _plain(values.get(name)) for name in self._columns}
        self._append("metrics.jsonl", (json.dumps(values) + "\n").encode())
        self._append("metrics.csv", _csv_line(list(values.values())))
        self._decisions = max(self._decisions, values["decisions"])

    def evaluation(self, values: dict[str, Any]) -> None:
        """Write the row of one evaluation of one seed, with the return of every episode."""
        if not self._evaluation_columns:
            self._append("evaluations.csv", _csv_line(list(values)))
            self._evaluation_columns = list(values)
        plain = [_plain(values.get(name)) for name in self._evaluation_columns]
        self._append("evaluations.csv", _csv_line(plain))

    def _written_here(self) -> Written:
        return Written(self._columns, self._evaluation_columns, {}, self._decisions)

    def written(self) -> Written:
        """What has been written to the files."""
        return self._written_here()._replace(
            sizes={name: table.size for name, table in self._tables.items()},
            digests={name: table.digest.hexdigest() for name, table in self._tables.items()},
        )

    def sync(self) -> None:
        """Force written rows onto the disk."""
        for table in self._tables.values():
            table.sync()

    def close(self) -> None:
        """Close all files; safe to call twice."""
        for table in self._tables.values():
            table.close()


def _intact(path: Path, written: Written) -> bool:
    """Whether a table begins with the bytes that ``written`` describes."""
    size, digest = written.sizes[path.name], written.digests.get(path.name)
    if not path.exists():
        return size == 0
    actual, left = hashlib.sha256(), size
    # Blocks of 1 MiB: tables of long runs need not fit into memory.
    with path.open("rb") as file:
        while left and (block := file.read(min(left, 1 << 20))):
            actual.update(block)
            left -= len(block)
    return not left and digest in (None, actual.hexdigest())


def changed(workdir: Path, written: Written) -> list[str]:
    """Lines for the user about tables that differ from ``written``; reads only."""
    notes = []
    for name in TABLES:
        path = workdir / name
        if _intact(path, written):
            continue
        size = path.stat().st_size if path.exists() else 0
        short = size < written.sizes[name]
        text = f"{name}: lines are missing" if short else f"{name}: was edited"
        copy = f"; a copy is kept as {_copy_of(path).name}" if size else ""
        notes.append(f"warning: {text}{copy}; later ones are appended")
    return notes


def _copy_of(path: Path) -> Path:
    number = 1
    while (copy := path.with_name(f"{path.name}.edited-{number}")).exists():
        number += 1
    return copy


def kept(path: Path, written: Written) -> bytes:
    """A table without rows after those of ``written``; reads only."""
    if not path.exists():
        return b""
    data = path.read_bytes()
    return data[: written.sizes[path.name]] if _intact(path, written) else _earlier(path, written)


def _cut_to(path: Path, written: Written) -> None:
    """Remove rows after those of ``written``; of an edited table a copy is kept."""
    # An intact table is cut by its size, exactly. An edited one has lost its offsets: its rows are
    # selected by their decisions instead.
    if _intact(path, written):
        if path.exists():
            os.truncate(path, written.sizes[path.name])
        return
    if not path.exists():
        return
    shutil.copyfile(path, _copy_of(path))
    files.write_bytes(path, _earlier(path, written))


def _earlier(path: Path, written: Written) -> bytes:
    """An edited table without the lines that have more decisions than ``written``."""
    lines = path.read_bytes().splitlines(keepends=True)
    header = written.header(path.name)
    if header and (not lines or lines[0].strip() != header.strip()):
        lines = []  # new rows under another header could not be read
    earlier = [line for line in lines if not _is_later(line, path.name, written)]
    if earlier and not earlier[-1].endswith(b"\n"):
        earlier[-1] += b"\n"
    return b"".join(earlier)


def _is_later(line: bytes, name: str, written: Written) -> bool:
    """Whether a line has more decisions than ``written``, or is an incomplete last line."""
    try:
        if name == "metrics.jsonl":
            return json.loads(line)["decisions"] > written.decisions
        columns = written.columns if name == "metrics.csv" else written.evaluation_columns
        (row,) = csv.reader([line.decode()])
        return float(row[columns.index("decisions")]) > written.decisions
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, csv.Error):
        return not line.endswith(b"\n")
