"""Tables of a run: metrics.csv, metrics.jsonl, evaluations.csv."""

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
"""Columns of every row of metrics.csv, in this order; the rest follows by name."""
TABLES = ("metrics.jsonl", "metrics.csv", "evaluations.csv")


class Written(NamedTuple):
    """Progress of the tables, saved with each checkpoint; plain JSON."""

    columns: list[str]
    """Of metrics.csv and metrics.jsonl."""
    evaluation_columns: list[str]
    """Of evaluations.csv; empty before the first evaluation."""
    sizes: dict[str, int]
    """Bytes of every file."""
    decisions: int
    """The largest of any row."""
    digests: Mapping[str, str] = {}
    """SHA-256 of these bytes; empty where an earlier version wrote them."""

    def header(self, name: str) -> bytes:
        """First line of a table, ``b""`` where there is none."""
        columns = {"metrics.csv": self.columns, "evaluations.csv": self.evaluation_columns}
        return _csv_line(columns[name]) if columns.get(name) else b""


def _plain(value: Any) -> Any:
    """A JSON number; what is not finite becomes null."""
    if isinstance(value, int | str) or value is None:
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def _csv_line(values: list[Any]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerow(values)
    return out.getvalue().encode()


class Table:
    """A file that only grows, with the digest of its contents."""

    def __init__(self, path: Path):
        self.path = path
        self._open()

    def _open(self) -> None:
        # Unbuffered: bytes whose write failed must not be written again at close.
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
        rest = memoryview(line)
        while rest:
            rest = rest[self._file.write(rest) :]
        self.digest.update(line)

    def reopen(self, header: bytes) -> bool:
        """Reopen the path if its file was removed or replaced; returns whether it was."""
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
        """Force what was written to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()


class Record:
    """Tables of a run; ``row`` flushes each row to the operating system before returning.

    ``say`` gets a line for the user if another program changed the files.
    """

    def __init__(
        self,
        workdir: Path,
        columns: list[str],
        tensorboard: bool = False,
        written: Written | None = None,
        say: Callable[[str], None] = lambda text: None,
    ):
        """Open the tables; with ``written`` resume there and cut off later rows."""
        rest = sorted(set(columns) - set(FIRST))
        self._columns = [*FIRST, *rest] if written is None else written.columns
        self._evaluation_columns = [] if written is None else written.evaluation_columns
        self._decisions = -1 if written is None else written.decisions
        self._say = say
        self._tables = {}
        for name in TABLES:
            if written is None:
                (workdir / name).write_bytes(b"")
            else:
                _resume(workdir / name, written)
            self._tables[name] = Table(workdir / name)
        self._events = None
        if tensorboard:
            again = {} if written is None else {"purge_step": written.decisions + 1}
            self._open_events(workdir / "tensorboard", again)
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
        """Write the row of a chunk and seed."""
        values = {name: _plain(values.get(name)) for name in self._columns}
        self._append("metrics.jsonl", (json.dumps(values) + "\n").encode())
        self._append("metrics.csv", _csv_line(list(values.values())))
        self._decisions = max(self._decisions, values["decisions"])
        self._add_events(values)

    def evaluation(self, values: dict[str, Any]) -> None:
        """Write the row of an evaluation and seed, with the return of every episode."""
        if not self._evaluation_columns:
            self._append("evaluations.csv", _csv_line(list(values)))
            self._evaluation_columns = list(values)
        plain = [_plain(values.get(name)) for name in self._evaluation_columns]
        self._append("evaluations.csv", _csv_line(plain))

    def _written_here(self) -> Written:
        return Written(self._columns, self._evaluation_columns, {}, self._decisions)

    def written(self) -> Written:
        """Progress of the files, for the next checkpoint."""
        return self._written_here()._replace(
            sizes={name: table.size for name, table in self._tables.items()},
            digests={name: table.digest.hexdigest() for name, table in self._tables.items()},
        )

    def sync(self) -> None:
        """Force what was written to the disk."""
        for table in self._tables.values():
            table.sync()

    def close(self) -> None:
        """Close all files; safe to call twice."""
        for table in self._tables.values():
            table.close()
        events, self._events = self._events, None
        if events is not None:
            self._guarded(events.close)

    def _open_events(self, folder: Path, arguments: dict[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        def begin() -> None:
            self._events = SummaryWriter(str(folder), **arguments)

        self._guarded(begin)

    def _add_events(self, values: dict[str, Any]) -> None:
        events = self._events
        if events is None:
            return

        def add() -> None:
            for name, value in values.items():
                if value is not None and name not in ("seed", "decisions"):
                    events.add_scalar(f"seed_{values['seed']}/{name}", value, values["decisions"])
            events.flush()

        self._guarded(add)

    def _guarded(self, function: Callable[[], None]) -> None:
        """Call a TensorBoard function; if it fails, the run continues without events."""
        try:
            function()
        except Exception as error:  # whatever the library raises
            self._events = None
            text = " ".join(str(error).split())[:200] or type(error).__name__
            self._say(f"warning: no more TensorBoard events: {text}")


def _intact(path: Path, written: Written) -> bool:
    """Whether a table begins with the bytes that ``written`` describes."""
    left, digest = written.sizes[path.name], written.digests.get(path.name)
    if not path.exists():
        return left == 0
    actual = hashlib.sha256()
    with path.open("rb") as file:
        while left and (block := file.read(min(left, 1 << 20))):
            actual.update(block)
            left -= len(block)
    return not left and digest in (None, actual.hexdigest())


def changed(workdir: Path, written: Written) -> list[str]:
    """Warnings about tables that differ from ``written``; reads only."""
    notes = []
    for name in TABLES:
        path = workdir / name
        if _intact(path, written):
            continue
        size = path.stat().st_size if path.exists() else 0
        short = size < written.sizes[name]
        text = f"{name}: lines are missing" if short else f"{name}: was edited"
        copy = f"; a copy of what is there is {_copy_of(path).name}" if size else ""
        notes.append(f"warning: {text}{copy}; later ones are appended")
    return notes


def _copy_of(path: Path) -> Path:
    number = 1
    while (copy := path.with_name(f"{path.name}.edited-{number}")).exists():
        number += 1
    return copy


def _resume(path: Path, written: Written) -> None:
    """Cut off the rows after those of ``written``; an edited table is copied first."""
    if _intact(path, written):
        if path.exists():
            os.truncate(path, written.sizes[path.name])
        return
    if not path.exists():
        return
    shutil.copyfile(path, _copy_of(path))
    lines = path.read_bytes().splitlines(keepends=True)
    header = written.header(path.name)
    if header and (not lines or lines[0].strip() != header.strip()):
        lines = []  # rows below another header cannot be read: the table starts over
    kept = [line for line in lines if not _is_later(line, path.name, written)]
    if kept and not kept[-1].endswith(b"\n"):
        kept[-1] += b"\n"
    files.write_bytes(path, b"".join(kept))


def _is_later(line: bytes, name: str, written: Written) -> bool:
    """Whether a line is a row of more decisions than in ``written``, or a broken last line."""
    try:
        if name == "metrics.jsonl":
            return json.loads(line)["decisions"] > written.decisions
        columns = written.columns if name == "metrics.csv" else written.evaluation_columns
        (row,) = csv.reader([line.decode()])
        return float(row[columns.index("decisions")]) > written.decisions
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, csv.Error):
        return not line.endswith(b"\n")
