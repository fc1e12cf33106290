"""Everything that docs/benchmarks.md says about a machine, for this one, beside an earlier run.

    python -m experiments.benchmarks.all [--minutes=N] [--only PART ...] [--out=DIR]
        [--against=FILE] [--list]

Each part is another benchmark in a process of its own. After each part DIR (default
runs/machine) has machine.json with all rows, versions and device, machine.md with the tables, and
machine.png with the ratios to the earlier run: FILE, by default the stored one of the same kind of
device (experiments/results/machines).

With --minutes, counted from the start, parts that do not fit are cut or left out, and named. On a
GPU the parts compile side by side, and only their timing is one after another; the last one trains
until the time is up: --minutes=9 suits a machine that is borrowed for ten.

Exit codes: 0 all parts done, 2 bad input, 3 a part failed or was left out.
"""

import argparse
import concurrent.futures
import csv
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from experiments import arguments
from experiments.benchmarks import rows
from experiments.benchmarks.rows import Row
from pomcp_jax import files, nearest
from pomcp_jax.reporting import canvas, results
from pomcp_jax.running import crash, process

BEGAN = time.monotonic()
STORED = pathlib.Path(__file__).parents[1] / "results" / "machines"
GRACE = 20.0
"""Seconds that a part has to end after its time is up."""


class Part(NamedTuple):
    """A benchmark of the list."""

    name: str
    about: str
    command: tuple[str, ...]
    """Module and arguments; ``{json}`` is the file of its rows, ``{minutes}`` what is left."""
    seconds: float
    """What it took on two CPU cores, or is likely to take on an H100."""
    alone: bool = False
    """It shares the machine with no other part."""


def parts(platform: str, out: pathlib.Path) -> list[Part]:
    """The parts for a kind of device, most important first."""
    speed, envs = "experiments.benchmarks.speed", "experiments.benchmarks.envs"
    bodies = ("cartpole-swingup", "cheetah-run", "walker-walk")
    file = "--json={json}"

    def bodies_on(backend: str, *batches: str) -> tuple[str, ...]:
        place = f"--out={out / 'environments'}"
        return envs, *bodies, f"--backend={backend}", place, file, "--batches", *batches

    agent5 = (speed, "efficiency", "--size=5M", file)
    if platform != "cpu":
        arranged = ("--set", "agent.world_model.arranged_for=gpu")
        walker = ("env.task=walker-run", "env.backend=host", "env.num_envs=1")
        many = ("seeds", "--size=5M", file, *arranged, *walker, "--seeds")
        return [
            Part("agent 5M", "plans and updates", (*agent5, *arranged), 90),
            *(
                Part(f"seeds {n}", f"{n} seeds, 5M, walker-run", (speed, *many, str(n)), 120)
                for n in (1, 4, 8, 16)
            ),
            Part("environments", "MJX, control steps", bodies_on("mjx", "16", "1024"), 120),
            Part("training", "walker-run, 8 seeds, two methods", _borrowed(out), 120, alone=True),
        ]
    quick = ("experiments.benchmarks.quickstart", "--seeds=0", f"--out={out / 'quickstart'}", file)
    return [
        Part("agent", "plans and updates, small", (speed, "efficiency", "--size=small", file), 60),
        Part("seeds", "1 and 4 seeds, small", (speed, "seeds", file), 120),
        Part("host environments", "control steps in C", bodies_on("host", "1", "16"), 60),
        Part("environments", "MJX, control steps", bodies_on("mjx", "1", "8"), 180),
        Part("startup", "to the first action and update, 5M", (speed, "startup", file), 90),
        Part("agent 5M", "plans and updates", agent5, 180),
        Part("capacity", "small and large replay", (speed, "capacity", file), 90),
        Part("training", "quick start, seed 0, cold", quick, 600, alone=True),
    ]


def _borrowed(out: pathlib.Path) -> tuple[str, ...]:
    """A comparison of two methods for the time that a GPU is left."""
    tables = ("--config.train.eval_decisions=10000", "--config.train.checkpoint_decisions=0")
    places = (f"--out={out / 'training'}", f"--work={out / 'work'}", "--minutes={minutes}")
    methods = ("--tasks=walker-run", "--methods", "po_mpc", "tdmpc2", "--jobs=2")
    seeds = "--config.train.num_seeds=8"
    return "experiments.reproduce", "--suite=gpu", *methods, *places, *tables, seeds


def left(minutes: float) -> float:
    """Seconds until the time is up."""
    return BEGAN + 60.0 * minutes - time.monotonic()


class Ended(NamedTuple):
    """A part that was run, or left out."""

    rows: list[Row]
    problem: str
    """One line; empty if it is complete."""
    seconds: float


def run(part: Part, out: pathlib.Path, seconds: float, share: float) -> Ended:
    """Run one part for at most ``seconds``; what it measured until then is kept."""
    if seconds < 1.0:
        return Ended([], "left out, the time is up", 0.0)
    slug, begin = _slug(part.name), time.monotonic()
    table, log = out / f"{slug}.json", out / f"{slug}.log"
    table.unlink(missing_ok=True)
    # A part that trains stops by itself, so that it saves and writes its results.
    values = {"json": table, "minutes": f"{max(1.0, seconds - GRACE) / 60.0:.2f}"}
    module, *arguments = part.command
    command = [sys.executable, "-m", module, *(text.format(**values) for text in arguments)]
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.2f}"} | os.environ
    with log.open("w") as file:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = child.wait(timeout=None if math.isinf(seconds) else seconds)
            problem = f"exit code {code}; see {log}" if code not in (0, 75) else ""
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            problem = "cut, the time was up"
        except KeyboardInterrupt:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    return Ended(_measured(part, out, table), problem, time.monotonic() - begin)


def _measured(part: Part, out: pathlib.Path, table: pathlib.Path) -> list[Row]:
    if any(word.startswith("--suite") for word in part.command):
        return list(_trained(out / "training"))
    try:
        return json.loads(table.read_text())["rows"]
    except (OSError, ValueError, KeyError):  # it ended before its first row
        return []


def _trained(folder: pathlib.Path) -> Iterator[Row]:
    """A row for each method of a result set."""
    for cell in results.read(folder) if folder.is_dir() else []:
        about = cell.about
        done, seconds = about.get("decisions_per_seed", 0), about.get("seconds", math.nan)
        returns = _last(cell.folder / "metrics.csv", "train/return")
        yield {
            "task": cell.task,
            "method": cell.method,
            "seeds": len(returns),
            "decisions": done,
            "seconds": float(seconds),
            "training return": math.fsum(returns) / max(1, len(returns)),
        }


def _last(path: pathlib.Path, column: str) -> list[float]:
    """The last value of a column of each seed."""
    with path.open(newline="") as file:
        found = {row["seed"]: row[column] for row in csv.DictReader(file) if row[column]}
    return [float(value) for value in found.values()]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class Figure(NamedTuple):
    """One number of a part."""

    part: str
    name: str
    value: float


def figures(measured: dict[str, list[Row]]) -> list[Figure]:
    """All measured numbers with names; what a row was asked for is part of its name."""
    asked = ("size", "what", "variant", "task", "backend", "batch", "cache", "method", "seed")
    found = []
    for part, table in measured.items():
        for row in table:
            of = " ".join(str(row[column]) for column in asked if column in row)
            for column, value in row.items():
                if column not in asked and isinstance(value, int | float) and value:
                    found.append(Figure(part, f"{of}: {column}", float(value)))
    return found


def earlier(path: pathlib.Path | None) -> dict[tuple[str, str], float]:
    """Numbers of an earlier run by part and name; none without a file.

    Raises:
      ValueError: the file is no result of this benchmark.
    """
    if path is None:
        return {}
    try:
        stored = json.loads(path.read_text())["parts"]
        return {(f.part, f.name): f.value for f in figures(stored)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--against = {str(path)!r}: must be a machine.json ({error})") from None


def report(
    ended: dict[str, Ended], before: dict[tuple[str, str], float], about: dict[str, Any]
) -> str:
    """Markdown of all parts; figures with their earlier value and the ratio."""
    lines = [f"# {about['device']}, {about['cpu_cores']} CPU cores, commit {about['commit']}"]
    for name, part in ended.items():
        problem = f" ({part.problem})" if part.problem else ""
        lines += ["", f"## {name}, {part.seconds:.0f} s{problem}", ""]
        if part.rows:
            lines += ["| figure | now | earlier | ratio |", "|---|---|---|---|"]
        for figure in figures({name: part.rows}):
            old = before.get((name, figure.name))
            cells = ("-", "-") if old is None else (rows.text(old), f"{figure.value / old:.2f}")
            lines.append(f"| {figure.name} | {rows.text(figure.value)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(now: Sequence[Figure], before: dict[tuple[str, str], float], out: pathlib.Path) -> bool:
    """Picture of the ratios to the earlier run; returns whether there was anything to draw."""
    both = [(f, f.value / before[f.part, f.name]) for f in now if (f.part, f.name) in before]
    if not both or not canvas.available():
        return False
    figure = canvas.figure(7.0, 1.2 + 0.17 * len(both))
    axes = figure.add_subplot()
    names = [f"{f.part} | {f.name}" for f, _ in both]
    places = range(len(both))
    axes.axvline(1.0, color="0.6", linewidth=1)
    axes.plot([ratio for _, ratio in both], places, "o", markersize=4, color="#4269d0")
    axes.set_xscale("log", base=2)
    axes.set_yticks(list(places), names, fontsize=6)
    axes.set_ylim(len(both) - 0.5, -0.5)
    axes.set_xlabel("now / earlier run")
    axes.grid(axis="x", alpha=0.3)
    canvas.save(figure, out)
    return True


def _save(ended: dict[str, Ended], before: dict, about: dict[str, Any], out: pathlib.Path) -> None:
    measured = {name: part.rows for name, part in ended.items()}
    problems = {name: part.problem for name, part in ended.items() if part.problem}
    seconds = {name: round(part.seconds, 1) for name, part in ended.items()}
    stored = {"parts": measured, "problems": problems, "seconds": seconds, **about}
    files.write_json(out / "machine.json", stored)
    files.write_text(out / "machine.md", report(ended, before, about))
    draw(figures(measured), before, out / "machine.png")


def _stored(kind: str) -> pathlib.Path | None:
    path = STORED / f"{_slug(kind)}.json"
    return path if path.is_file() else None


def device() -> tuple[str, str]:
    """Platform and kind of the device.

    Raises:
      ValueError: JAX finds none.
    """
    # No process may reserve a GPU's memory: this one holds the device while its parts use it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        first = jax.devices()[0]
    except RuntimeError as error:
        raise ValueError(f"JAX finds no device: {crash.one_line(error)}") from None
    return first.platform, first.device_kind


def _chosen(every: list[Part], only: Sequence[str] | None) -> list[Part]:
    names = [part.name for part in every]
    for name in only or ():
        if name not in names:
            hint = nearest.hint(name, names)
            raise ValueError(f"--only = {name!r}: must be of {', '.join(names)}{hint}")
    return [part for part in every if only is None or part.name in only]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="time for all parts")
    parser.add_argument("--only", nargs="+", help="parts to run")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/machine"))
    parser.add_argument("--against", type=pathlib.Path, help="machine.json of an earlier run")
    parser.add_argument("--list", action="store_true", help="print the parts and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args, _ = arguments.parse(_parser(), argv)
    try:
        files.check_folder(args.out, "--out")
        if not args.minutes > 0.0:
            raise ValueError(f"--minutes = {args.minutes:g}: must be above 0")
        platform, kind = device()
        todo = _chosen(parts(platform, args.out), args.only)
        before = earlier(args.against or _stored(kind))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.list:
        for part in todo:
            print(f"{part.name:<20}{part.about}, about {part.seconds:.0f} s")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    about = process.describe(process.command("experiments.benchmarks.all", list(argv or sys.argv)))
    together = 1 if platform == "cpu" else sum(not part.alone for part in todo)
    ended: dict[str, Ended] = {}

    def finish(part: Part, result: Ended) -> None:
        ended[part.name] = result
        _save(ended, before, about, args.out)
        print(f"{part.name}: {result.problem or 'done'}, {result.seconds:.0f} s", flush=True)

    with concurrent.futures.ThreadPoolExecutor(max(1, together)) as pool:
        share = 0.9 / max(1, together)
        jobs = {
            pool.submit(lambda p: run(p, args.out, left(args.minutes), share), part): part
            for part in todo
            if not part.alone
        }
        for job in concurrent.futures.as_completed(jobs):
            finish(jobs[job], job.result())
    for part in (part for part in todo if part.alone):
        finish(part, run(part, args.out, left(args.minutes), 0.9))
    print((args.out / "machine.md").read_text())
    return 3 if any(part.problem for part in ended.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
