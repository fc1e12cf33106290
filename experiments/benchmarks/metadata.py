"""What a checkpoint asks of a file system: files, and operations on names, counted by strace.

    python -m experiments.benchmarks.metadata [--saves=4] [--json=FILE]

A process saves checkpoints of a tiny agent under strace; system calls that name the folder are
counted, per checkpoint, the removal of the oldest one included. On a network file system each of
them is a request to the metadata server. How many files orbax writes depends on how fast it
writes, and strace slows it down: files are counted without strace as well, and what counts is the
number of operations for each file.
"""

import argparse
import collections
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from experiments import arguments
from experiments.benchmarks import rows
from experiments.benchmarks.rows import Row
from pomcp_jax.running import process

SAVE = """
import pathlib, sys
from experiments.benchmarks import footprint, scaling_point
from pomcp_jax import checkpoint, train
config = scaling_point.configuration(["--config=experiments/configs/debug.py"])
program = train.build(config, footprint.environment(config))
shot = checkpoint.snapshot(scaling_point.filled(program, config))
folder, saves, keep = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for step in range(1, saves + 1):
    checkpoint.save(folder, step, shot, config, program.spec, keep=keep)
"""
CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")
KINDS = {
    "open": ("open", "openat", "creat"),
    "look up": ("stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2",
                "readlink", "readlinkat"),
    "create folder": ("mkdir", "mkdirat"),
    "rename": ("rename", "renameat", "renameat2"),
    "remove": ("unlink", "unlinkat", "rmdir"),
    "force to disk": ("fsync", "fdatasync"),
}  # fmt: skip
"""Kinds of operations with the names of their system calls; others are ``other``."""


def calls(log: Iterable[str], folder: str) -> collections.Counter[str]:
    """Operations of strace's log on ``folder``, by kind."""
    kinds = {name: kind for kind, names in KINDS.items() for name in names}
    found: collections.Counter[str] = collections.Counter()
    for line in log:
        match = CALL.match(line)
        if match and folder in line:
            found[kinds.get(match.group(1), "other")] += 1
    return found


class Saved(NamedTuple):
    """What a process did that saved checkpoints."""

    calls: collections.Counter[str]
    """Operations by kind; empty without strace."""
    files: float
    """Mean number of files of its checkpoints that are left."""


def saved(saves: int, keep: int, is_traced: bool) -> Saved:
    """Save so many checkpoints in a process, with or without strace.

    Raises:
      ValueError: strace may not trace, or saving failed.
    """
    with tempfile.TemporaryDirectory(prefix="metadata-") as place:
        folder, log = pathlib.Path(place) / "checkpoints", pathlib.Path(place) / "log"
        log.touch()
        watched = "trace=%file,fsync,fdatasync"
        strace = ["strace", "-f", "-y", "-qq", "-s", "512", "-e", watched, "-o", str(log)]
        command = [sys.executable, "-c", SAVE, str(folder), str(saves), str(keep)]
        command = [*strace, *command] if is_traced else command
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            raise ValueError(f"{command[0]}: exit code {done.returncode}: {last}")
        left = [sum(path.is_file() for path in kept.rglob("*")) for kept in folder.iterdir()]
        with log.open(errors="replace") as lines:
            return Saved(calls(lines, str(folder)), statistics.mean(left))


def measured(saves: int) -> Iterator[Row]:
    """A row for each kind of operation, and one for files; per checkpoint.

    Raises:
      ValueError: there is no strace; or as :func:`saved`.
    """
    if shutil.which("strace") is None:
        raise ValueError("strace: is not installed")
    plain = saved(saves, saves, is_traced=False)
    # The difference between two processes: what the first checkpoint costs once cancels out.
    few, many = (saved(count, 1, is_traced=True) for count in (2, 2 + saves))
    traced = {kind: (many.calls[kind] - few.calls[kind]) / saves for kind in (*KINDS, "other")}
    # As many checkpoints are removed as are made, and what is removed are files and folders.
    files = traced["remove"] - traced["create folder"]
    for kind, number in traced.items():
        yield {"what": kind, "under strace": number, "per checkpoint": number * plain.files / files}
    yield {"what": "files", "under strace": files, "per checkpoint": plain.files}


def parser() -> argparse.ArgumentParser:
    """Flags of this program."""
    made = argparse.ArgumentParser(
        description=arguments.plain(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--saves", type=int, default=4, help="checkpoints that are counted")
    made.add_argument("--json", type=pathlib.Path, help="file of the rows")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args, _ = arguments.parse(parser(), argv)
    command = process.command("experiments.benchmarks.metadata", sys.argv)
    try:
        if args.saves < 1:
            raise ValueError(f"--saves = {args.saves}: must be at least 1")
        if args.json is not None and not args.json.parent.is_dir():
            raise ValueError(f"--json = {str(args.json)!r}: there is no folder {args.json.parent}")
        rows.show(measured(args.saves), args.json, command)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
