"""The table of a suite's cells, read from their folders alone; no JAX.

``reproduce --status`` prints it once, from any machine that sees the folders, and launchers of
clusters show it while they wait.
"""

import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from experiments.launchers import cell
from experiments.launchers.study import Place
from pomcp_jax.reporting.keeping import is_finished
from pomcp_jax.running.progress import duration

STATUS_SECONDS = 60.0
"""Seconds between status lines when stderr is not a terminal."""
SILENT = 900.0
"""Seconds without a line in the log after which a cell is said to be silent."""
ORDER = ("finished", "training", "queued", "stopped", "failed", "to train")


class Row(NamedTuple):
    """State of a cell."""

    name: str
    state: str
    """One of :data:`ORDER`."""
    decisions: int = 0
    """Per seed, at the latest checkpoint or at the end."""
    total: int | None = None
    seconds: float = 0.0
    """Wall-clock time of all attempts, up to the latest checkpoint."""
    host: str = ""
    attempt: int = 0
    text: str = ""


def row(place: Place, jobs: Mapping[str, str]) -> Row:
    """State of a cell; at most four small files are read.

    Args:
      place: the cell.
      jobs: submitted jobs by the cell's name.
    """
    about = cell.read(place.folder / "run.json")
    if is_finished(about):
        return _row(place, "finished", about, {})
    about = cell.read(place.workdir / "run.json")
    log = cell.beside(place.workdir, ".log")
    record = cell.read(cell.beside(place.workdir, ".job.json"))
    queued = jobs.get(place.name)
    # Another launcher may train the cell of a job that was cancelled.
    if queued and record.get("by") != queued and not cell.is_locked(log):
        return _row(place, "queued", about, {}, f"job {queued}")
    if not (about or record):
        return Row(place.name, "training" if cell.is_locked(log) else "to train")
    code = about.get("exit_code")
    ending = record.get("ending")
    if _is_training(place, record, about, log):
        return _row(place, "training", about, record, _silence(log))
    if code == 3 or ending == "broke":
        text = str(record.get("text") or about.get("status") or f"exit code {code}")
        return _row(place, "failed", about, record, text)
    return _row(place, "stopped", about, record)


def _is_training(
    place: Place, record: Mapping[str, Any], about: Mapping[str, Any], log: Path
) -> bool:
    if record and record.get("ending") is None and record.get("host") != socket.gethostname():
        return True  # locks of other machines may be invisible here
    return (not record or record.get("ending") is None) and cell.is_locked(log)


def _silence(log: Path) -> str:
    """A note on a log that has had no line for long."""
    try:
        quiet = time.time() - log.stat().st_mtime
    except OSError:
        return ""
    return f"silent for {duration(quiet)}, see {log}" if quiet > SILENT else ""


def _row(
    place: Place, state: str, about: Mapping[str, Any], record: Mapping[str, Any], text: str = ""
) -> Row:
    total = None
    if state != "finished" and about:
        train = cell.read(place.workdir / "config.json").get("train")
        total = train.get("total_decisions") if isinstance(train, dict) else None
    done = about.get("decisions_per_seed" if state == "finished" else "last_checkpoint")
    seconds = about.get("seconds")
    return Row(
        name=place.name,
        state=state,
        decisions=done if _is_number(done) and isinstance(done, int) else 0,
        total=total if _is_number(total) and isinstance(total, int) else None,
        seconds=float(seconds) if _is_number(seconds) else 0.0,
        host=_printable(str(record.get("host") or "")),
        attempt=cell.attempts(record),
        text=_printable(text),
    )


def _is_number(value: Any) -> bool:
    """Whether a file that may be damaged has a number here that can be shown."""
    return isinstance(value, int | float) and 0 <= value < 1e12


def _printable(text: str) -> str:
    """``text`` in one line and without control characters, which a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def rows(places: Sequence[Place], jobs: Mapping[str, str], known: Sequence[Row] = ()) -> list[Row]:
    """State of all cells; those that ``known`` has as finished are not read again."""
    finished = {old.name: old for old in known if old.state == "finished"}
    return [finished.get(place.name) or row(place, jobs) for place in places]


def summary(name: str, table: Sequence[Row], gpus: float = 0.0) -> str:
    """One line: how many cells are in which state, and what they have cost."""
    counts = Counter(each.state for each in table)
    states = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
    hours = sum(each.seconds for each in table) / 3600
    cost = f"{hours:,.1f} cell-hours" + (f", {hours * gpus:,.1f} GPU-hours" if gpus else "")
    return f"{name}: {len(table)} cells: {states}; {cost}"


def lines(table: Sequence[Row]) -> list[str]:
    """A line for every cell that has begun and is not finished."""
    shown = [each for each in table if each.state not in ("finished", "to train", "queued")]
    shown.sort(key=lambda each: ORDER.index(each.state))
    width = max((len(each.name) for each in shown), default=0)
    out = []
    for each in shown:
        of = f" of {each.total:,}" if each.total else ""
        attempt = f"attempt {each.attempt}" if each.attempt > 1 else ""
        parts = [f"{each.decisions:,}{of} decisions", duration(each.seconds)]
        parts += [part for part in (each.host, attempt, each.text) if part]
        out.append(f"{each.name:<{width}}  {each.state:<8}  {', '.join(parts)}")
    return out


class Screen:
    """Shows the table in place on a terminal; elsewhere prints its summary every minute."""

    def __init__(self, stream: TextIO | None = None):
        """``stream`` is stderr by default, since stdout belongs to results."""
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._shown, self._last = 0, -STATUS_SECONDS

    def say(self, text: str) -> None:
        """Print a permanent line."""
        self._erase()
        self._stream.write(text + "\n")
        self._stream.flush()

    def show(self, head: str, below: Sequence[str]) -> None:
        """Show the current state: its summary and, on a terminal, the lines below it."""
        if self._live:
            size = shutil.get_terminal_size()
            visible = [head, *below][: max(1, size.lines - 2)]
            self._erase()
            self._stream.writelines(f"{line[: size.columns - 1]}\n" for line in visible)
            self._shown = len(visible)
        elif time.monotonic() - self._last >= STATUS_SECONDS:
            self._last = time.monotonic()
            self._stream.write(head + "\n")
        self._stream.flush()

    def _erase(self) -> None:
        if self._shown:
            self._stream.write(f"\x1b[{self._shown}F\x1b[J")
        self._shown = 0
