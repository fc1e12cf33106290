"""Cost of a training step against seeds, environments, capacity, horizon, samples and size.

    python -m experiments.benchmarks.scaling [--axes=seeds,envs,capacity,horizon,samples,size]
        [--minutes=N] [--out=DIR] [--config=FILE.py:task,preset] [--config.any.field=value ...]
        [--computed] [--point_seconds=60]

One setting at a time differs from a base configuration. Each point is a process of its own
(:mod:`experiments.benchmarks.scaling_point`), most important first. After each, DIR (default
runs/scaling) has scaling.json with all rows, versions and device, scaling.md with a table for each
axis, a picture for each axis and scaling.png with all of them. The same command continues: points
that scaling.json has are skipped. --minutes counts from the start; what is left then stays as
computed.

Two kinds of numbers: *computed* ones follow from shapes and formulas (bytes of the training state,
GFLOP), *measured* ones from running. A point that would take longer than --point_seconds on this
CPU, by the estimate of :mod:`pomcp_jax.running.cost`, is computed only; --computed measures none.

Exit codes: 0 done, 2 bad input, 3 a point failed, 75 --minutes are over.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import arguments
from experiments.benchmarks import all as machine
from experiments.benchmarks import footprint, rows, scaling_point
from experiments.benchmarks.rows import Row
from pomcp_jax import config as config_lib
from pomcp_jax import files, nearest, presets
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.reporting import canvas, palette
from pomcp_jax.running import cost, process

BEGAN = time.monotonic()
FIELDS = {
    "seeds": "train.num_seeds",
    "envs": "env.num_envs",
    "capacity": "train.capacity",
    "horizon": "agent.mppi.horizon",
    "samples": "agent.mppi.num_samples",
}
"""Fields of the axes; the last axis, ``size``, sets several."""
AXES = (*FIELDS, "size")
VALUES: dict[str, dict[str, tuple]] = {
    "cpu": {
        "seeds": (1, 2, 4, 8),
        "envs": (1, 4, 16, 64),
        "capacity": (10_000, 100_000, 1_000_000),
        "horizon": (1, 2, 3, 5),
        "samples": (64, 128, 256, 512),
        "size": ("tiny", "small", "1M", "5M", "19M", "48M"),
    },
    "gpu": {
        "seeds": (1, 2, 5, 10, 20, 40),
        "envs": (1, 4, 16, 64, 256),
        "capacity": (100_000, 500_000, 2_000_000),
        "horizon": (1, 3, 5),
        "samples": (128, 512, 2048),
        "size": ("tiny", "1M", "5M", "19M", "48M"),
    },
}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cpu": (
        "experiments/configs/small.py:cartpole-swingup",
        # Physics in C: MJX takes longer to compile than the agent.
        {
            "env.backend": "host",
            "train.num_seeds": 1,
            "train.capacity": 100_000,
            "train.total_decisions": 100_000,
        },
    ),
    "gpu": (
        "experiments/configs/dm_control.py:walker-walk",
        {"env.backend": "host", "agent.world_model.arranged_for": "gpu"},
    ),
}
"""Configuration and changes from which one setting at a time differs, by kind of device."""
ALLOWED = {"train.memory_limit_gb": 1e6}
"""A limit of a run's replay; here memory is what is measured."""
KILL_AFTER = 900.0
"""Seconds after which a point counts as failed."""


class Point(NamedTuple):
    """The settings of a row."""

    seeds: int
    envs: int
    capacity: int
    horizon: int
    samples: int
    size: str


class Base(NamedTuple):
    """What all points share."""

    arguments: tuple[str, ...]
    """``--config`` and overrides of :mod:`experiments.run`."""
    point: Point
    values: Mapping[str, tuple]
    """Values of each axis."""


def point_of(config: Config) -> Point:
    """The settings of a configuration."""
    flat = config_lib.flatten(config)
    return Point(*(flat[field] for field in FIELDS.values()), presets.origin(config).size)


def flags(base: Base, point: Point) -> list[str]:
    """Arguments of ``experiments.run`` for a point."""
    # Fields of the size come after it: --size sets what the configuration file says of the model.
    size = [] if point.size == base.point.size else [f"--size={point.size}"]
    fields = [f"--config.{FIELDS[axis]}={getattr(point, axis)}" for axis in FIELDS]
    return [*base.arguments, *fields, *size]


def base_of(platform: str, config: str | None, overrides: Sequence[str]) -> Base:
    """The base configuration on a kind of device.

    Raises:
      ConfigError: one line.
    """
    kind = "cpu" if platform == "cpu" else "gpu"
    default, changes = BASES[kind]
    shared = ALLOWED if config else ALLOWED | changes
    words = [f"--config={config or default}"]
    words += [f"--config.{field}={value}" for field, value in shared.items()]
    words += overrides
    return Base(tuple(words), point_of(scaling_point.configuration(words)), VALUES[kind])


def points(base: Base, axes: Sequence[str]) -> list[Point]:
    """Points of ``axes``, most important first: the base, then the ends of each axis."""

    def inwards(values: Sequence) -> list:
        return [*values[::-1][:1], *values[:1], *values[1:-1][::-1]]

    orders = {axis: inwards(base.values[axis]) for axis in axes}
    longest = max(map(len, orders.values()))
    found = [base.point]
    for i in range(longest):
        for axis, order in orders.items():
            found += [base.point._replace(**{axis: value}) for value in order[i : i + 1]]
    return list(dict.fromkeys(found))


def computed(base: Base, todo: Sequence[Point]) -> Iterator[tuple[Row, Config]]:
    """What shapes say of each point, with its configuration.

    Raises:
      ConfigError: a point cannot work.
    """
    env = footprint.environment(scaling_point.configuration(base.arguments))
    for point in todo:
        config = scaling_point.configuration(flags(base, point))
        known = footprint.row(config, env)
        decisions = point.seeds * point.envs
        yield (
            point._asdict()
            | {"kind": "computed"}
            | known
            | {
                "state, MB": point.seeds * known["seed, MB"],
                "step, GFLOP": decisions * known["plan, GFLOP"],
                "updates, GFLOP": point.seeds * known["update, GFLOP"],
            },
            config,
        )


def too_slow(config: Config, seconds: float) -> bool:
    """Whether timing a step and an update takes longer than ``seconds`` on this CPU."""
    speed = cost.measure()
    if speed is None:
        return False
    env = footprint.environment(config)
    sizes = config.agent, env.observation_size, env.action_size
    work = config.env.num_envs * cost.plan(*sizes) + cost.update(*sizes)
    calls = 2 + scaling_point.CALLS[0]
    return calls * config.train.num_seeds * work.seconds(speed) > seconds


def run(words: Sequence[str], seconds: float) -> tuple[Row, str]:
    """Measure one point in a process; its row, or why there is none, in one line."""
    module = "experiments.benchmarks.scaling_point"
    begin = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, errors = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return {}, f"cut after {time.monotonic() - begin:.0f} s"
    except KeyboardInterrupt:
        child.kill()
        raise
    if child.returncode:
        last = (errors.strip().splitlines() or [""])[-1]
        return {}, f"exit code {child.returncode}: {last}"
    return json.loads(out.splitlines()[-1]), ""


def series(table: Sequence[Row], base: Point, axis: str) -> list[Row]:
    """Rows of an axis in its order: those that differ from the base there and nowhere else."""
    others = [name for name in AXES if name != axis]
    of = [row for row in table if all(row[name] == getattr(base, name) for name in others)]
    order = list(presets.SIZES).index if axis == "size" else float
    return sorted(of, key=lambda row: order(row[axis]))


COLUMNS = (
    "kind", "step, ms", "decision, ms", "update, ms", "compile, s", "seed, MB", "state, MB",
    "temporary, MB", "peak, GB", "device peak, GB", "step, GFLOP", "updates, GFLOP",
)  # fmt: skip


def report(table: Sequence[Row], base: Point, axes: Sequence[str]) -> str:
    """Markdown with a table for each axis."""
    lines = []
    for axis in axes:
        of = series(table, base, axis)
        names = [name for name in COLUMNS if any(name in row for row in of)]
        lines += [f"## {axis}", "", f"| {axis} | {' | '.join(names)} |"]
        lines += [f"|{'---|' * (1 + len(names))}"]
        for row in of:
            cells = [rows.text(row[name]) if name in row else "" for name in names]
            lines.append(f"| {rows.text(row[axis])} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


LINES = {
    "step, ms": (0, "-", "step of all environments"),
    "step, GFLOP": (0, ":", "arithmetic of a step"),
    "update, ms": (1, "-", "update of all seeds"),
    "updates, GFLOP": (1, ":", "arithmetic of an update"),
    "state, MB": (2, ":", "training state"),
    "peak, GB": (2, "-", "peak memory"),
    "compile, s": (3, "-", "compiling"),
}
"""Place of the colour, line and name of each column that is drawn; dotted ones are computed."""


def panel(axes: Any, of: Sequence[Row], base: Row, axis: str) -> None:
    """Draw the columns of an axis relative to the base."""
    places = list(range(len(of)))
    for column, (place, dash, name) in LINES.items():
        if not base.get(column):
            continue
        pairs = [(i, row[column] / base[column]) for i, row in enumerate(of) if column in row]
        axes.plot(
            *zip(*pairs, strict=True), dash, marker="o" if dash == "-" else None, markersize=3,
            linewidth=1.3, color=palette.color(place), label=name,
        )  # fmt: skip
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(places, [rows.text(row[axis]) for row in of], fontsize=8)
    axes.set_xlabel(axis)
    axes.grid(axis="y", alpha=0.3)


def draw(table: Sequence[Row], base: Point, axes: Sequence[str], out: pathlib.Path) -> None:
    """A picture with a panel for each of ``axes``."""
    if not canvas.available():
        return
    reference = next(row for row in table if point_in(row) == base)
    columns = min(3, len(axes))
    lines = math.ceil(len(axes) / columns)
    figure = canvas.figure(1.0 + 2.9 * columns, 0.7 + 2.4 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    for place, axis in zip(grid.flat, axes, strict=False):
        panel(place, series(table, base, axis), reference, axis)
    for place in grid.flat[len(axes) :]:
        place.set_visible(False)
    for line in grid[:, 0]:
        line.set_ylabel("relative to the base")
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=7)
    canvas.save(figure, out, dpi=90)


def point_in(row: Row) -> Point:
    """The settings of a row."""
    return Point(*(row[axis] for axis in AXES))


def earlier(path: pathlib.Path, about: Mapping[str, Any]) -> list[Row]:
    """Measured rows of an earlier run of the same command on the same machine.

    Raises:
      ConfigError: the file is of another base, device or version, or is no result.
    """
    if not path.is_file():
        return []
    try:
        stored = json.loads(path.read_text())
        found = [row for row in stored["rows"] if row["kind"] == "measured"]
        list(map(point_in, found))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: must be a result of this benchmark ({error!r})") from None
    for name in ("arguments", "device", "num_devices", "cpu_cores", "versions"):
        if stored.get(name) != about[name]:
            raise ConfigError(
                f"{path}: has {name} = {stored.get(name)}, now {about[name]}; must be the same, or"
                " another --out"
            )
    return found


def busy_cores(seconds: float = 0.5) -> float | None:
    """Cores that other programs use at present; None where the system does not say."""

    def idle() -> float:
        fields = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()
        return float(fields[4]) / os.sysconf("SC_CLK_TCK")

    try:
        before, begin = idle(), time.monotonic()
        time.sleep(seconds)
        free = (idle() - before) / (time.monotonic() - begin)
    except (OSError, IndexError, ValueError):
        return None
    return max(0.0, (os.cpu_count() or 1) - free)


def note(table: Sequence[Row]) -> str:
    """What the times are worth: whether other programs ran while they were taken."""
    timed = [row for row in table if row["kind"] == "measured"]
    if not timed:
        return "computed from shapes; nothing was timed"
    busy = [row["busy cores"] for row in timed if row.get("busy cores") is not None]
    if not busy:
        return "it is not known whether other programs ran beside it"
    text = f"other programs used {min(busy):.1f} to {max(busy):.1f} of {os.cpu_count()} cores"
    return text + ("; ratios count, not times" if max(busy) > 0.3 else "")


def save(table: Sequence[Row], base: Base, axes: Sequence[str], out: pathlib.Path, about: Any):
    """Write JSON, tables and pictures."""
    stored = {"rows": list(table), "base": base.point._asdict(), "note": note(table), **about}
    files.write_json(out / "scaling.json", stored)
    files.write_text(out / "scaling.md", report(table, base.point, axes))
    for axis in axes:
        draw(table, base.point, [axis], out / f"{axis}.png")
    draw(table, base.point, axes, out / "scaling.png")


def chosen(text: str) -> list[str]:
    """Axes of ``--axes``.

    Raises:
      ConfigError: an unknown one, with the nearest name.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in AXES:
            hint = nearest.hint(name, AXES)
            raise ConfigError(f"--axes = {text!r}: {name!r} must be of {', '.join(AXES)}{hint}")
    return names


def parser() -> argparse.ArgumentParser:
    """Flags of this program."""
    made = argparse.ArgumentParser(
        description=arguments.plain(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--axes", default=",".join(AXES), help="settings to vary, separated by commas")
    add("--minutes", type=float, default=math.inf, help="time for all points")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/scaling"))
    add("--config", help="base configuration (default: small.py on a CPU, dm_control.py on a GPU)")
    add("--computed", action="store_true", help="measure nothing")
    add("--point_seconds", type=float, default=60.0, help="longer points are computed only")
    return made


def prepare(args: argparse.Namespace, overrides: Sequence[str]) -> tuple[Base, list[str], dict]:
    """Base, axes and provenance.

    Raises:
      ConfigError: one line.
    """
    if not args.minutes > 0.0:
        raise ConfigError(f"--minutes = {args.minutes:g}: must be above 0")
    for wrong in (text for text in overrides if not text.startswith("--config.")):
        raise ConfigError(f"{wrong!r}: unexpected argument; overrides look like --config.F=VALUE")
    axes = chosen(args.axes)
    try:
        platform, _ = machine.device()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    base = base_of(platform, args.config, overrides)
    words = [text for text in sys.argv[1:] if not text.startswith("--out")]
    about = process.describe(process.command("experiments.benchmarks.scaling", ["", *words]))
    return base, axes, {"arguments": list(base.arguments), **about}


def measure_all(
    table: dict[Point, Row], configs: Mapping[Point, Config], base: Base, args: argparse.Namespace
) -> Iterator[tuple[Point, str]]:
    """Measure the points that are only computed so far; yields each with its problem."""
    for point, config in configs.items():
        row, left = table[point], BEGAN + 60.0 * args.minutes - time.monotonic()
        if row["kind"] == "measured" or too_slow(config, args.point_seconds):
            continue
        if left <= 0.0:
            return
        busy = busy_cores()
        words = [*flags(base, point), f"--seconds={args.point_seconds / 3.0}"]
        found, problem = run(words, min(left, KILL_AFTER))
        if found:
            facts = {"kind": "measured", "busy cores": busy, "commit": process.commit()}
            table[point] = row | found | facts
        yield point, problem


def main(argv: Sequence[str] | None = None) -> int:
    args, overrides = arguments.parse(parser(), argv, others=True)
    try:
        base, axes, about = prepare(args, overrides)
        done = {point_in(row): row for row in earlier(args.out / "scaling.json", about)}
        todo = points(base, axes)
        known = list(computed(base, todo))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = {point: row for point, (row, _) in zip(todo, known, strict=True)} | done
    configs = {point: config for point, (_, config) in zip(todo, known, strict=True)}
    args.out.mkdir(parents=True, exist_ok=True)
    save([*table.values()], base, axes, args.out, about)
    failed = False
    for point, problem in [] if args.computed else measure_all(table, configs, base, args):
        failed |= bool(problem) and not problem.startswith("cut")
        print(f"{', '.join(map(str, point))}: {problem or 'measured'}", flush=True)
        save([*table.values()], base, axes, args.out, about)
    print(report([*table.values()], base.point, axes))
    if failed:
        return 3
    return 75 if time.monotonic() > BEGAN + 60.0 * args.minutes else 0


if __name__ == "__main__":
    sys.exit(main())
