"""Arrange a workdir for another number of processes: checkpoints and tables by seeds.

The new folders are complete before the old ones move to ``previous-N``, and a process that is
killed between the moves leaves a list of them, which the next one completes.
"""

import csv
import hashlib
import json
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax import acting, arrays, checkpoint, digests, files
from pomcp_jax import config as config_lib
from pomcp_jax import parts as parts_lib
from pomcp_jax.arrays import Arrays
from pomcp_jax.checkpoint import CheckpointError, Manifest, Snapshot
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.parts import Part
from pomcp_jax.running import bookkeeping, metrics, tables, workdirs
from pomcp_jax.running.bookkeeping import Books
from pomcp_jax.running.tables import Written

STAGED = ".arranged"
"""Folder of new parts that are complete, with :data:`MOVES`; ``.partial`` while they are not."""
MOVES = "moves.json"


class Piece(NamedTuple):
    """What one folder holds of a run, at one checkpoint."""

    part: Part
    workdir: Path
    manifest: Manifest
    books: Books


def arrange(workdir: Path, config: Config, processes: int, resume: str = "auto") -> list[str]:
    """Prepare the workdir for so many processes; returns lines for the user.

    Where it holds a run of another number of processes, that run's newest checkpoint that all its
    parts have is divided by the new shares. ``resume="never"`` moves any earlier run aside.

    Args:
      workdir: must be locked; only one process may call this.
      config: of the whole run.
      processes: 1 for an ordinary run.
      resume: one of ``options.RESUME``.

    Raises:
      ConfigError: one line; nothing was changed.
    """
    _finish_moves(workdir)
    wanted = parts_lib.shares(config.train.seed, config.train.num_seeds, processes)
    record = parts_lib.read(workdir) if resume != "never" else None
    if resume == "never":
        names = workdirs.contents(workdir)
        moved = (
            workdirs.set_aside(workdir, names) if processes > 1 or _has_record(workdir) else None
        )
        return [f"the earlier run moved to {moved}/"] if moved else []
    if record is None:
        workdirs.check_workdir(workdir, config, resume)
        present = (workdir / "config.json").exists() or (workdir / "checkpoints").exists()
        if processes == 1 or not present:
            return []
        before = [(Part(config.train.seed, config.train.num_seeds), workdir)]
    else:
        if differ := workdirs.differences(record.config(), config, resume):
            raise ConfigError(
                f"--workdir = {str(workdir)!r:.300}: holds a run with {differ}; choose another"
                " folder"
            )
        if processes > 1 and record.parts == wanted:
            return []
        before = [(part, workdir / part.folder) for part in record.parts]
    try:
        return _rearranged(workdir, config, before, wanted)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        reason = workdirs.reason(error)
        raise ConfigError(f"--workdir = {str(workdir)!r:.300}: {reason}") from None


def _has_record(workdir: Path) -> bool:
    return (workdir / parts_lib.RECORD).exists()


def _rearranged(
    workdir: Path, config: Config, before: list[tuple[Part, Path]], wanted: list[Part]
) -> list[str]:
    old = [name for name in workdirs.contents(workdir) if (workdir / name).exists()]
    ended = f"{len(before)} to {len(wanted)} processes"
    if not any(checkpoint.entries(place / "checkpoints") for _, place in before):
        moved = workdirs.set_aside(workdir, old)
        return [f"an earlier start saved no checkpoint; its files moved to {moved}/"]
    step = newest(before)
    pieces = [_piece(part, place, step) for part, place in before]
    partial = workdir / f"{STAGED}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for part in wanted:
            whole = len(wanted) == 1
            _write(partial if whole else partial / part.folder, config, part, pieces)
        if len(wanted) > 1:
            write_record(partial, config, wanted, {"status": "arranged", "exit_code": None})
        moved = workdirs.free_previous(workdir)
        new = sorted(path.name for path in partial.iterdir())
        files.write_json(partial / MOVES, {"old": old, "previous": moved.name, "new": new})
        files.sync_folder(partial)
        partial.rename(workdir / STAGED)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _finish_moves(workdir)
    return [f"from {ended}: arranged at {step:,} decisions; the previous files are in {moved}/"]


def _finish_moves(workdir: Path) -> None:
    """Move old files aside and staged ones into place, also where a kill interrupted that.

    Raises:
      ConfigError: the list of moves is unreadable.
    """
    shutil.rmtree(workdir / f"{STAGED}.partial", ignore_errors=True)
    staged = workdir / STAGED
    if not staged.is_dir():
        return
    try:
        moves = json.loads((staged / MOVES).read_text())
        old, new = ([Path(name).name for name in moves[key]] for key in ("old", "new"))
        previous = workdir / Path(moves["previous"]).name
        if previous == workdir or not new or not all((*old, *new)):
            raise ValueError("names nothing")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(
            f"{staged / MOVES}: is unreadable; the parts of the run are in {staged}/"
        ) from None
    try:
        previous.mkdir(exist_ok=True)
        for name in old:
            # Whatever has a copy there has been moved: a file of that name is a new one.
            if not (previous / name).exists() and (workdir / name).exists():
                (workdir / name).rename(previous / name)
        for name in new:
            if (staged / name).exists():
                (staged / name).rename(workdir / name)
        files.sync_folder(workdir)
        shutil.rmtree(staged)
    except OSError as error:
        raise ConfigError(f"{staged}: cannot be moved into place: {error}") from None


def newest(before: Sequence[tuple[Part, Path]]) -> int:
    """Decisions of the newest checkpoint that all parts have, undamaged and at the same point.

    Raises:
      CheckpointError: there is none.
    """
    steps = [checkpoint.steps(place / "checkpoints") for _, place in before]
    common = sorted(set(steps[0]).intersection(*steps[1:]))
    why = ""
    for step in reversed(common):
        try:
            pieces = [_piece(part, place, step) for part, place in before]
            for piece in pieces:
                folder = piece.workdir / "checkpoints" / str(step)
                digests.verify(folder, piece.manifest.files, ("agent", "run"))
        except digests.DamagedError as error:
            why = why or f"; {error}"
            continue
        if len({_point(piece.books) for piece in pieces}) == 1:
            return step
        why = why or f"; at {step} one has been evaluated and another has not"
    have = ", ".join(f"{place.name} {s}" for (_, place), s in zip(before, steps, strict=True))
    raise CheckpointError(
        f"{before[0][1].parent}: its parts have no usable checkpoint in common ({have:.300}{why});"
        f" resume with {len(before)} processes first, or --resume=never moves everything aside"
    )


def _point(books: Books) -> tuple[Any, ...]:
    """What seeds must have in common to continue as one batch, besides their decisions."""
    pending = books.pending is None
    return books.updates, books.finished, books.evaluated_at, books.last_evaluation, pending


def _piece(part: Part, place: Path, step: int) -> Piece:
    manifest = checkpoint.read(place / "checkpoints", step)
    name = f"{place / 'checkpoints' / str(step)}"
    if not any(file.startswith("run/") for file in manifest.files):
        raise CheckpointError(f"{name}: holds a trained agent without replay and optimiser")
    if manifest.sizes[2] != part.num_seeds:
        raise CheckpointError(
            f"{name}: has {manifest.sizes[2]} seeds, must have {part.num_seeds}; change the number"
            " of seeds and that of processes one after the other"
        )
    try:
        books = bookkeeping.from_json(manifest.host, part.num_seeds)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: was not made by this command line ({error})") from None
    if books.grid or len(books.tables) != 1:
        raise CheckpointError(f"{name}: is of a sweep, which is one process")
    return Piece(part, place, manifest, books)


def _write(place: Path, config: Config, part: Part, pieces: list[Piece]) -> None:
    """Write the run of ``part`` to the folder ``place``, from the pieces that have its seeds."""
    place.mkdir(exist_ok=True)
    own = parts_lib.config(config, part)
    sources = [piece for piece in pieces if _overlap(piece.part, part)]
    manifest = sources[0].manifest
    books = joined([take(piece, part) for piece in sources])
    written = write_tables(place, part, pieces)
    books = books._replace(tables=(written,))
    fresh = books.evaluated_at == manifest.decisions
    checkpoint.save(
        place / "checkpoints",
        manifest.decisions,
        _snapshot(sources, part),
        own,
        acting.build(own.agent, *manifest.sizes[:2]),
        score=metrics.score(books.evaluated) if fresh else None,
        host=bookkeeping.to_json(books),
    )
    files.write_text(place / "config.json", workdirs.config_text(own))
    files.write_json(place / "run.json", _about(part, pieces, manifest.decisions))


def _overlap(a: Part, b: Part) -> range:
    """Numbers of the seeds that both have."""
    return range(max(a.first, b.first), min(a.seeds.stop, b.seeds.stop))


def _which(piece: Part, part: Part) -> slice:
    """Indices into the seeds of ``piece`` of those that ``part`` has too."""
    both = _overlap(piece, part)
    return slice(both.start - piece.first, both.stop - piece.first)


def take(piece: Piece, part: Part) -> Books:
    """Books of those seeds of a piece that ``part`` has."""
    return bookkeeping.take_seeds(piece.books, _which(piece.part, part))


def joined(books: list[Books]) -> Books:
    """Books of several groups of seeds side by side."""
    out = books[0]
    for more in books[1:]:
        out = bookkeeping.join(out, more)
    return out._replace(seconds=max(each.seconds for each in books))


def _snapshot(sources: list[Piece], part: Part) -> Snapshot:
    items = []
    for item in ("agent", "run"):
        shares: list[Arrays] = []
        for piece in sources:
            folder = piece.workdir / "checkpoints" / str(piece.manifest.decisions) / item
            read = arrays.read(folder, arrays.stored(folder))
            which = _which(piece.part, part)
            shares.append({name: rows(x, piece.part.num_seeds, which) for name, x in read.items()})
        items.append(_side_by_side(shares))
    return Snapshot(*items)


def rows(array: np.ndarray, num_seeds: int, which: slice) -> np.ndarray:
    """Some seeds of a leaf of a run's state."""
    if not array.ndim:  # counters have no axis of seeds
        return array
    each = len(array) // num_seeds  # environments are S N
    return array[which.start * each : which.stop * each]


def _side_by_side(shares: list[Arrays]) -> Arrays:
    if len({tuple(sorted(share)) for share in shares}) > 1:
        raise CheckpointError("checkpoints of different versions cannot be joined")
    return {
        name: np.concatenate([share[name] for share in shares]) if x.ndim else x
        for name, x in shares[0].items()
    }


def write_tables(place: Path, part: Part, pieces: list[Piece]) -> Written:
    """Write the rows of a part's seeds, in the order in which one run writes them.

    Raises:
      CheckpointError: the tables of two pieces have different columns.
    """
    sizes, sums, columns = {}, {}, {}
    for name in tables.TABLES:
        found = []
        for piece in pieces:
            lines = tables.kept(piece.workdir / name, piece.books.tables[0])
            found.append(lines.splitlines(keepends=True))
        header, data = merged(name, found, part)
        columns[name] = header
        files.write_bytes(place / name, data)
        sizes[name], sums[name] = len(data), hashlib.sha256(data).hexdigest()
    first = pieces[0].books.tables[0]
    return first._replace(
        columns=columns["metrics.csv"] or first.columns,
        evaluation_columns=columns["evaluations.csv"],
        sizes=sizes,
        digests=sums,
        decisions=max(piece.books.tables[0].decisions for piece in pieces),
    )


def merged(name: str, found: list[list[bytes]], part: Part) -> tuple[list[str], bytes]:
    """Header and bytes of a table of the seeds of ``part``, from the lines of several tables.

    Lines are copied as they are. Of each seed they stay in order; otherwise they are ordered by
    decisions, then by their number within the seed, then by seed.
    """
    columns: list[str] = []
    top = b""
    keyed = []
    for lines in found:
        if name.endswith(".csv") and lines:
            (header,) = csv.reader([lines[0].decode()])
            if columns and header != columns:
                raise CheckpointError(f"{name}: the parts have different columns")
            columns, top, lines = header, lines[0], lines[1:]
        seen: dict[int, int] = {}
        for line in lines:
            decisions, seed = _place_of(name, line, columns)
            seen[seed] = seen.get(seed, 0) + 1
            if seed in part.seeds:
                keyed.append(((decisions, seen[seed], seed), line))
    return columns, top + b"".join(line for _, line in sorted(keyed, key=lambda item: item[0]))


def _place_of(name: str, line: bytes, columns: list[str]) -> tuple[float, int]:
    try:
        if name.endswith(".jsonl"):
            row = json.loads(line)
        else:
            (cells,) = csv.reader([line.decode()])
            row = dict(zip(columns, cells, strict=True))
        return float(row["decisions"]), int(row["seed"])
    except (ValueError, KeyError, TypeError, csv.Error):
        raise CheckpointError(f"{name}: the line {line[:60]!r} is no row of a run") from None


def _about(part: Part, pieces: list[Piece], step: int) -> dict[str, Any]:
    """The record of a part that has not been started yet."""
    abouts = []
    for piece in pieces:
        try:
            abouts.append(workdirs.read_json(piece.workdir / "run.json"))
        except (OSError, ValueError):
            abouts.append({})
    kept = {k: abouts[0][k] for k in ("preset", "method", "command") if k in abouts[0]}
    lost = {k: v for about in abouts for k, v in (about.get("diverged") or {}).items()}
    own = {k: v for k, v in lost.items() if k.isdecimal() and int(k) in part.seeds}
    state = {"status": "arranged", "exit_code": None, "last_checkpoint": step, "diverged": own}
    return kept | state


def write_record(
    workdir: Path, config: Config, wanted: Sequence[Part], about: dict[str, Any]
) -> str:
    """Write the record of a run over several processes; returns its new identity."""
    identity = secrets.token_hex(8)
    values = {
        "parts": [part.folder for part in wanted],
        "id": identity,
        "config": config_lib.to_dict(config),
    }
    files.write_json(workdir / parts_lib.RECORD, about | values)
    return identity
