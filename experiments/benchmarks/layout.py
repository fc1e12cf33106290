"""How a study of many trainings would be laid out on N GPUs: hours, files, disk, the bottleneck.

    python -m experiments.benchmarks.layout --tasks=100 --methods=10 --seeds=10 --gpus=8,64,512
        [--pace=DIR_OR_FILE] [--seeds_per_program=K] [--config=FILE.py:task] [--size=SIZE]
        [--disk_gb_s=2] [--operations_s=2000] [--gpu_gb=80] [--share=0.9] [--json=FILE]

Nothing is trained or timed: everything follows from one measured pace, from shapes and from counted
files. --pace is a stored run on a GPU (default experiments/results/gpu/walker-run/po_mpc: five
seeds of 5M on an H100), or a scaling.json of experiments.benchmarks.scaling. A program of more
seeds than were measured is assumed to take time in proportion, one of fewer as long as the measured
one. Both are more than it takes while a GPU has room, so hours are upper bounds.

What a cluster's disk can do is not known here: --disk_gb_s and --operations_s (names per second)
say it, and are printed as assumptions. Results of experiments.benchmarks.metadata say how many
operations a checkpoint needs.
"""

import argparse
import csv
import json
import math
import pathlib
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import arguments, config_files
from experiments.benchmarks import rows
from experiments.benchmarks.rows import Row
from pomcp_jax import config as config_lib
from pomcp_jax import presets
from pomcp_jax.config import Config, ConfigError

RESULTS = pathlib.Path(__file__).parents[1] / "results"
PACE = RESULTS / "gpu/walker-run/po_mpc"
METADATA = RESULTS / "scaling/metadata.json"
TABLES = 3
"""Tables to which a run appends a row: metrics.csv and .jsonl, evaluations.csv."""
FILES_OF_A_RUN = 8
"""Its files besides checkpoints: configuration, record, tables, picture, log, lock of the cell."""
FILES_OF_A_RESULT = 4
"""Its files in a result set (:func:`pomcp_jax.reporting.results.keep`)."""
BOTTLENECK = 0.1
"""Share of the time from which anything but training is called a bottleneck."""


class Pace(NamedTuple):
    """How fast programs train, as measured."""

    seeds: int
    """Of the program that was timed."""
    decision: float
    """Seconds of a decision of all its seeds, with updates and environments."""
    start: float
    """Seconds from the start to the first decision of training, compiling included."""
    first_evaluation: float
    """Seconds that the first evaluation takes longer: it compiles."""
    evaluation: float
    """Seconds of an episode of an evaluation of all seeds."""
    size: str
    """Of its world model."""
    device: str
    source: str


class Study(NamedTuple):
    """Trainings to lay out."""

    tasks: int
    methods: int
    seeds: int
    decisions: int
    """Per seed."""
    evaluations: int
    episodes: int
    """Per evaluation."""
    checkpoints: int
    """That a run writes."""
    kept: int
    """That a run keeps at its end."""
    seed_bytes: int
    """Training state of a seed: in memory, and in a checkpoint once its replay is full."""
    replay_bytes: int
    """Those of its replay."""
    filled: float
    """Mean share of replay that is in use when a checkpoint is written."""


class Cluster(NamedTuple):
    """What a cluster can do."""

    gpus: int
    gpu_gb: float
    disk_gb_s: float
    """Rate of the shared file system for everybody together, in GB/s."""
    operations_s: float
    """Operations on names that it does, per second."""
    share: float
    """Part of a GPU's memory that a program may take."""


class Files(NamedTuple):
    """What a checkpoint asks of a file system (experiments.benchmarks.metadata)."""

    files: int
    operations: float


def paced_run(folder: pathlib.Path) -> Pace:
    """Pace of a stored run with several evaluations."""
    config = json.loads((folder / "config.json").read_text())
    about = json.loads((folder / "run.json").read_text())
    seed = str(config["train"]["seed"])
    with (folder / "metrics.csv").open(newline="") as file:
        table = [row for row in csv.DictReader(file) if row["seed"] == seed]
    trained = [row for row in table if row["plan/std"]]
    before = [row for row in table if not row["plan/std"]]
    # Of all seeds at once: decisions_per_second counts those of each seed.
    decision = statistics.median(1.0 / float(row["decisions_per_second"]) for row in trained)
    gaps = list(_evaluations(trained, decision, float(before[-1]["seconds"])))
    episodes, inside = config["train"]["eval_episodes"], folder.resolve()
    is_ours = inside.is_relative_to(RESULTS.resolve())
    return Pace(
        seeds=config["train"]["num_seeds"],
        decision=decision,
        start=float(before[-1]["seconds"]),
        first_evaluation=gaps[0] - gaps[-1],
        evaluation=gaps[-1] / episodes,
        size=size_of(config["agent"]["world_model"]),
        device=about["device"],
        # No path of this machine in results.
        source=str(inside.relative_to(RESULTS.resolve().parents[1])) if is_ours else folder.name,
    )


def size_of(model: Mapping[str, Any]) -> str:
    """Name of a world model's size by its fields; empty for one of one's own."""
    for name, fields in presets.SIZES.items():
        # A V critic has its own number of heads.
        if all(model[field] == value for field, value in fields.items() if field != "num_heads"):
            return name
    return ""


def _evaluations(table: list[dict[str, str]], decision: float, begin: float) -> Iterator[float]:
    """Seconds of each evaluation: what its row's time has beyond that of its decisions."""
    last_time, last_done = begin, None
    for row in table:
        time, done = float(row["seconds"]), int(row["decisions"])
        if row["eval/return"] and last_done is not None:
            yield time - last_time - decision * (done - last_done)
        last_time, last_done = time, done


def paced_scaling(path: pathlib.Path, config: Config, start: float = 120.0) -> Pace:
    """Pace of a result of experiments.benchmarks.scaling: its most seeds at the base's settings.

    Evaluations are counted as as many decisions, without updates, as an episode has; ``start`` is
    assumed.
    """
    stored = json.loads(path.read_text())
    base = stored["base"]
    fits = [
        row
        for row in stored["rows"]
        if row["kind"] == "measured"
        and all(row[name] == base[name] for name in base if name != "seeds")
    ]
    most = max(fits, key=lambda row: row["seeds"])
    updates = config.train.updates_per_decision
    step = most["step, ms"] / base["envs"]
    return Pace(
        seeds=most["seeds"],
        decision=1e-3 * (step + updates * most["update, ms"]),
        start=start,
        first_evaluation=0.0,
        evaluation=1e-3 * step * 1000 / config.env.action_repeat,
        size=base["size"],
        device=stored["device"],
        source=path.name,
    )


def pace_of(path: pathlib.Path, config: Config) -> Pace:
    """Pace of ``--pace``.

    Raises:
      ConfigError: it is no run with evaluations, and no result of the scaling benchmark.
    """
    try:
        pace = paced_run(path) if path.is_dir() else paced_scaling(path, config)
    except (OSError, ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
        raise ConfigError(
            f"--pace = {str(path)!r}: must be the folder of a run with two evaluations, or a"
            f" scaling.json ({' '.join(str(error).split())})"
        ) from None
    size = size_of(config_lib.to_dict(config.agent.world_model))
    if size != pace.size:
        raise ConfigError(
            f"--pace = {str(path)!r}: was measured with {pace.size or 'a size of its own'}, the"
            f" study has {size or 'another'}; must be the same (python -m"
            " experiments.benchmarks.scaling measures)"
        )
    return pace


def files_of(path: pathlib.Path = METADATA) -> Files:
    """Files and operations of a checkpoint, as counted."""
    table = {row["what"]: row["per checkpoint"] for row in json.loads(path.read_text())["rows"]}
    files = table.pop("files")
    return Files(round(files), sum(table.values()))


def program_seconds(study: Study, pace: Pace, seeds: int) -> float:
    """Seconds of one program of ``seeds`` seeds, from start to end; an upper bound."""
    # One GPU: bytes bind from about eight seeds on, so time grows in proportion; below, a program
    # of fewer seeds than were measured is not assumed to be faster.
    factor = max(1.0, seeds / pace.seeds)
    evaluation = study.evaluations * study.episodes * pace.evaluation
    return (
        pace.start + pace.first_evaluation + factor * (study.decisions * pace.decision + evaluation)
    )


def fitting(study: Study, cluster: Cluster) -> int:
    """Most seeds whose training state, with as much again for temporary memory, fits a GPU."""
    return int(cluster.share * cluster.gpu_gb * 1e9 / (2 * study.seed_bytes))


def lay_out(
    study: Study, pace: Pace, cluster: Cluster, files: Files, seeds: int | None = None
) -> Row:
    """The layout of ``study``: a program of ``seeds`` seeds (default: all of a cell) on each GPU.

    Raises:
      ConfigError: so many seeds do not fit into a GPU.
    """
    seeds = min(study.seeds, fitting(study, cluster)) if seeds is None else seeds
    if not 1 <= seeds <= min(study.seeds, max(1, fitting(study, cluster))):
        most = min(study.seeds, max(1, fitting(study, cluster)))
        raise ConfigError(f"--seeds_per_program = {seeds}: must be 1 to {most}")
    programs = study.tasks * study.methods * math.ceil(study.seeds / seeds)
    each = program_seconds(study, pace, seeds)
    rounds = math.ceil(programs / cluster.gpus)
    at_once = min(programs, cluster.gpus)
    hours = rounds * each / 3600
    used = programs * each / (3600 * hours * cluster.gpus)
    saved = seeds * study.seed_bytes
    empty = (1.0 - study.filled) * study.replay_bytes
    written = programs * study.checkpoints * seeds * (study.seed_bytes - empty)
    named = programs * study.checkpoints * files.operations
    # All programs start together, and therefore save together.
    names = at_once * files.operations / cluster.operations_s
    compiling = (pace.start + pace.first_evaluation) / each
    row = {
        "GPUs": cluster.gpus,
        "seeds on a GPU": seeds,
        "programs": programs,
        "rounds": rounds,
        "hours": hours,
        "GPU hours": programs * each / 3600,
        "GPUs in use, share of the time": used,
        "starting and compiling, share of a program": compiling,
        "files at the end": programs * (_files(study, files) + FILES_OF_A_RESULT),
        "checkpoints at the end, TB": programs * study.kept * saved / 1e12,
        "written on average, GB/s": written / (3600 * hours) / 1e9,
        "operations on names on average, /s": named / (3600 * hours),
        "writing if all save at once, s": at_once * saved / 1e9 / cluster.disk_gb_s,
        "operations on names if all save at once, s": names,
    }
    return row | {"bottleneck": bottleneck(row, study, each)}


def _files(study: Study, files: Files) -> int:
    return FILES_OF_A_RUN + study.kept * files.files


def bottleneck(row: Row, study: Study, each: float) -> str:
    """What costs most besides training itself, or that it is training.

    Saving happens beside training: the disk's share is that of the time between two checkpoints,
    and training waits only from 100 % on.
    """
    between = each / max(1, study.checkpoints)
    shares = {
        "idle GPUs in the last round": 1.0 - row["GPUs in use, share of the time"],
        "starting and compiling": row["starting and compiling, share of a program"],
        "disk, writing checkpoints": row["writing if all save at once, s"] / between,
        "disk, names of files": row["operations on names if all save at once, s"] / between,
    }
    worst = max(shares, key=lambda name: shares[name])
    if shares[worst] < BOTTLENECK:
        return f"training; next: {worst} ({100 * shares[worst]:.1f} %)"
    return f"{worst} ({100 * shares[worst]:.0f} %)"


def study_of(args: argparse.Namespace, config: Config) -> Study:
    """The study of a command line; schedule and sizes are the configuration's."""
    from experiments.benchmarks import footprint  # loads JAX

    train, sizes = config.train, footprint.of(config, footprint.environment(config))
    total = args.decisions or train.total_decisions
    evaluations = total // train.eval_decisions if train.eval_decisions else 1
    regular = total // train.checkpoint_decisions if train.checkpoint_decisions else 0
    checkpoints = max(1, regular)
    used = (min(1.0, k * total / checkpoints / train.capacity) for k in range(1, checkpoints + 1))
    return Study(
        tasks=args.tasks,
        methods=args.methods,
        seeds=args.seeds,
        decisions=total,
        evaluations=max(1, evaluations),
        episodes=train.eval_episodes,
        checkpoints=checkpoints,
        # The newest ones, and the best one by evaluation.
        kept=min(checkpoints, train.checkpoint_keep + 1),
        seed_bytes=sizes.total,
        replay_bytes=sizes.replay,
        filled=statistics.mean(used),
    )


def numbers(text: str, name: str) -> list[int]:
    """Positive whole numbers, separated by commas.

    Raises:
      ConfigError: it has something else.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--{name} = {text!r}: must be numbers >= 1, separated by commas")
    return [int(part) for part in parts]


def checked(args: argparse.Namespace) -> list[int]:
    """Numbers of GPUs; refuses what is not positive.

    Raises:
      ConfigError: one line.
    """
    counted = "tasks", "methods", "seeds", "decisions", "seeds_per_program"
    for name in (*counted, "disk_gb_s", "operations_s", "gpu_gb", "share"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name} = {value:g}: must be above 0")
    return numbers(args.gpus, "gpus")


def configured(args: argparse.Namespace) -> Config:
    """The configuration whose schedule and sizes the study has.

    Raises:
      ConfigError: one line.
    """
    from experiments.benchmarks import footprint

    path, colon, argument = args.config.partition(":")
    config = config_files.load(path, argument if colon else None)
    return footprint.with_size(config, args.size) if args.size else config


def parser() -> argparse.ArgumentParser:
    """Flags of this program."""
    made = argparse.ArgumentParser(
        description=arguments.plain(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--tasks", type=int, default=100)
    add("--methods", type=int, default=10)
    add("--seeds", type=int, default=10, help="of a cell (one task, one method)")
    add("--gpus", default="8,64,512", help="numbers of GPUs, separated by commas")
    add("--decisions", type=int, help="per seed (default: the configuration's)")
    add("--config", default="experiments/configs/dm_control.py:walker-walk")
    add(
        "--size", help="of the world model (default: the configuration's); only for memory and disk"
    )
    add("--pace", type=pathlib.Path, default=PACE, help="stored run, or scaling.json")
    add("--seeds_per_program", type=int, help="default: all of a cell")
    add("--gpu_gb", type=float, default=80.0, help="memory of a GPU in GB")
    add("--share", type=float, default=0.9, help="part of it that a program may take")
    add("--disk_gb_s", type=float, default=2.0, help="assumed: rate of the shared disk, GB/s")
    add("--operations_s", type=float, default=2000.0, help="assumed: operations on names a second")
    add("--json", type=pathlib.Path, help="file of the rows")
    return made


def described(study: Study, pace: Pace, files: Files, args: argparse.Namespace) -> str:
    """The inputs of a layout as lines of text."""
    ms = 1e3 * pace.decision
    return "\n".join(
        (
            f"pace: {ms:.2f} ms a decision of {pace.seeds} seeds, {pace.device} ({pace.source});"
            f" {pace.start + pace.first_evaluation:.0f} s to start and compile",
            f"study: {study.tasks} tasks x {study.methods} methods x {study.seeds} seeds,"
            f" {study.decisions:,} decisions, {study.seed_bytes / 1e6:.0f} MB a seed",
            f"checkpoint: {files.files} files, {files.operations:.0f} operations on names",
            f"assumed: {args.disk_gb_s:g} GB/s and {args.operations_s:g} operations/s of the shared"
            f" disk, {args.gpu_gb:g} GB a GPU",
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    args, _ = arguments.parse(parser(), argv)
    try:
        gpus = checked(args)
        config = configured(args)
        study, pace = study_of(args, config), pace_of(args.pace, config)
        files = files_of()

        def cluster(count: int) -> Cluster:
            return Cluster(count, args.gpu_gb, args.disk_gb_s, args.operations_s, args.share)

        found = [
            lay_out(study, pace, cluster(count), files, args.seeds_per_program) for count in gpus
        ]
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(described(study, pace, files, args) + "\n")
    show(found)
    if args.json:
        from pomcp_jax import files as files_lib
        from pomcp_jax.running import process

        about: dict[str, Any] = {"study": study._asdict(), "pace": pace._asdict()}
        words = [text for text in sys.argv if not text.startswith("--json")]
        command = process.command("experiments.benchmarks.layout", words)
        files_lib.write_json(args.json, {"rows": found, **about, **process.describe(command)})
    return 0


def show(found: Sequence[Row]) -> None:
    """Print layouts side by side, a line for each quantity."""
    for i, name in enumerate(found[0]):
        print(f"| {name} | {' | '.join(rows.text(row[name]) for row in found)} |")
        if i == 0:
            print("|" + "---|" * (1 + len(found)))


if __name__ == "__main__":
    sys.exit(main())
