"""Speed of a training in two settings or two versions, as a ratio: alternating runs.

    python -m experiments.benchmarks.ab --a="--config=C/small.py" \\
        --b="--config=C/small.py --config.agent.mppi.iterations=2" [--rounds=5] [--minutes=1]
    python -m experiments.benchmarks.ab --a="--config=C/quickstart.py" --b_tree=../other-clone

``--a`` and ``--b`` are arguments of :mod:`experiments.run` (--b: by default those of --a; C is
experiments/configs), and trees are clones of this repository (by default this one). Each round
runs both for --minutes after a first run that fills the compilation caches, in an order that turns
with every round: a machine that slows down hits both. A run's speed is the median of its chunks
that train, so compiling and evaluating do not count. A ratio above 1 says that B is faster; the
claim is worth something if the range of the rounds' ratios does not contain 1.
"""

import argparse
import csv
import math
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from experiments import arguments
from experiments.benchmarks import rows
from pomcp_jax import files
from pomcp_jax.running import process

HERE = pathlib.Path(__file__).parents[2]


class Side(NamedTuple):
    """One of the two that are compared."""

    name: str
    arguments: tuple[str, ...]
    tree: pathlib.Path


def decisions_per_second(workdir: pathlib.Path) -> float:
    """Median over the chunks of a run that train, of its first seed.

    Raises:
      ValueError: there is none.
    """
    try:
        with (workdir / "metrics.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
    except OSError:
        table = []
    first = [row for row in table if row["seed"] == table[0]["seed"]]
    # The first chunk that trains also waits for its compiler.
    training = [row for row in first if float(row["updates"] or 0) > 0][1:]
    if not training:
        raise ValueError("no chunk was trained; must have more --minutes")
    return statistics.median(float(row["decisions_per_second"]) for row in training)


def measure(side: Side, minutes: float, place: pathlib.Path) -> float:
    """Train for ``minutes`` in a new workdir; returns decisions per second.

    Raises:
      ValueError: the run failed, or was too short.
    """
    with tempfile.TemporaryDirectory(dir=place) as folder:
        workdir = pathlib.Path(folder) / "run"
        command = [sys.executable, "-m", "experiments.run", *side.arguments]
        command += [f"--workdir={workdir}", f"--minutes={minutes:g}"]
        command += [f"--cache_dir={place / side.name}"]
        done = subprocess.run(command, cwd=side.tree, capture_output=True, text=True)
        if done.returncode not in (0, 75):
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ValueError(f"--{side.name}: {lines[-1].removeprefix('error: ')}")
        try:
            return decisions_per_second(workdir)
        except ValueError as error:
            raise ValueError(f"--{side.name}: {error}") from None


def compare(a: Side, b: Side, minutes: float, rounds: int, first: float) -> Iterator[rows.Row]:
    """A row for each round, then the median, lowest and highest of each column.

    Args:
      a: the one that ratios are relative to.
      b: the other.
      minutes: of a run.
      rounds: number of pairs of runs.
      first: minutes of the run of each side that fills its compilation cache.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        for side in (a, b):
            measure(side, first, place)
        speeds: dict[str, list[float]] = {"a": [], "b": []}
        for i in range(rounds):
            for side in (a, b) if i % 2 == 0 else (b, a):
                speeds[side.name].append(measure(side, minutes, place))
            a_speed, b_speed = speeds["a"][-1], speeds["b"][-1]
            yield _row(str(i + 1), a_speed, b_speed, b_speed / a_speed)
    ratios = [y / x for x, y in zip(speeds["a"], speeds["b"], strict=True)]
    for name, of in (("median", statistics.median), ("lowest", min), ("highest", max)):
        yield _row(name, of(speeds["a"]), of(speeds["b"]), of(ratios))


def _row(name: str, a: float, b: float, ratio: float) -> rows.Row:
    return {"round": name, "A, decisions/s": a, "B, decisions/s": b, "B / A": ratio}


def _side(name: str, text: str, tree: pathlib.Path) -> Side:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"--{name} = {text!r}: {str(error).lower()}") from None
    if not any(word.startswith("--config=") for word in words):
        raise ValueError(f"--{name} = {text!r}: must have --config=FILE")
    if not (tree / "experiments" / "run.py").is_file():
        raise ValueError(f"--{name}_tree = {str(tree)!r}: is no clone of this repository")
    return Side(name, words, tree)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--a", required=True, help="arguments of experiments.run, in quotes")
    add("--b", help="likewise (default: those of --a)")
    add("--a_tree", type=pathlib.Path, default=HERE, help="clone that A runs in")
    add("--b_tree", type=pathlib.Path, default=HERE, help="clone that B runs in")
    add("--rounds", type=int, default=5, help="pairs of runs (default 5)")
    add("--minutes", type=float, default=1.0, help="of a run (default 1)")
    add("--first", type=float, default=3.0, help="of the runs that compile (default 3)")
    add("--json", type=pathlib.Path, help="file of the rows")
    args, _ = arguments.parse(parser, argv)
    try:
        if args.rounds < 1:
            raise ValueError(f"--rounds = {args.rounds}: must be at least 1")
        for name in ("minutes", "first"):
            if not 0.0 < getattr(args, name) < math.inf:
                raise ValueError(f"--{name} = {getattr(args, name):g}: must be above 0 and finite")
        if args.json is not None:
            files.check_folder(args.json.parent, "--json")
        a, b = (_side("a", args.a, args.a_tree), _side("b", args.b or args.a, args.b_tree))
        if a[1:] == b[1:]:
            raise ValueError("--b: is the same as --a; must differ in its arguments or its tree")
        found = compare(a, b, args.minutes, args.rounds, args.first)
        command = process.command("experiments.benchmarks.ab", list(argv or sys.argv))
        rows.show(found, args.json, command)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
