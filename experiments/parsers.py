"""Flags of the commands that have a parser; imports neither JAX nor NumPy.

:mod:`experiments.usage` prints ``--help`` from here before anything else is loaded. Lists of
choices repeat those of the modules that use them; a test compares both.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from textwrap import indent

from experiments import arguments, suites

ACTORS = ("planner", "policy", "prior")
AXES = ("frames", "decisions", "hours")
DEVICES = ("cpu", "gpu")
BANDS = ("ci95", "std", "range", "none")
SELECTIONS = ("sample", "argmax")
LAUNCHERS = ("local", "slurm", "ray")
CLUSTERS = ("slurm", "local")
FETCHED = ("results", "all")
EPISODE_SEED = 1000
"""Default seed of episodes and plans; far from the seeds of training."""
PICTURE = {"metric": None, "x": "decisions", "band": "ci95", "size": None, "published": False}
"""Flags of pictures of runs, with their defaults."""


def _made(name: str, doc: str | None, **options: bool) -> argparse.ArgumentParser:
    """A parser for ``experiments.NAME`` that shows its docstring ``doc`` as written."""
    return argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=arguments.plain(doc),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )


def _agent(parser: argparse.ArgumentParser) -> None:
    """Add the run, and what selects its checkpoint."""
    add = parser.add_argument
    add("run", type=Path, help="workdir of a run, a cell of a sweep, or an exported agent")
    add("--checkpoint", default="best", help="best (default), newest, or a number of decisions")


def _episodes(parser: argparse.ArgumentParser) -> None:
    """Add what decides on the episodes that are played."""
    add = parser.add_argument
    add("--actor", choices=ACTORS, default="planner", help="who acts (default planner)")
    add("--select", choices=SELECTIONS, help="default: as in training")
    add("--seed", type=int, default=EPISODE_SEED, help="seed of the episodes")
    add(
        "--task",
        help="MODULE:ATTRIBUTE of a task of your own: a Task, an Env, or a function that returns"
        " one",
    )


def evaluate(doc: str | None = None) -> argparse.ArgumentParser:
    """Flags of ``experiments.evaluate``."""
    made = _made("evaluate", doc)
    _agent(made)
    _episodes(made)
    made.add_argument("--episodes", type=int, default=50, help="number per seed (default 50)")
    made.add_argument(
        "--backend", help="mjx, host, ..., or dm_control itself (default: as in training)"
    )
    made.add_argument("--csv", type=Path, help="write one row per episode to this file")
    return made


def render(doc: str | None = None) -> argparse.ArgumentParser:
    """Flags of ``experiments.render``."""
    made = _made("render", doc)
    _agent(made)
    _episodes(made)
    add = made.add_argument
    add("--out", type=Path, required=True, help="file to write: .mp4, .gif, .png, .html or .npz")
    add("--episodes", type=int, default=1, help="number of episodes (default 1)")
    add("--train_seed", type=int, help="training seed whose agent acts (default: the first)")
    add("--imagine", action="store_true", help="draw the predicted reward of plans")
    add("--size", default="640x480", help="WIDTHxHEIGHT of a frame in pixels (default 640x480)")
    add("--camera", help="name or number of the model's camera; -1 is a free one")
    add("--backend", help="mjx, host, ... (default: as in training)")
    return made


def export(doc: str | None = None) -> argparse.ArgumentParser:
    """Flags of ``experiments.export``."""
    made = _made("export", doc)
    _agent(made)
    add = made.add_argument
    add("--out", type=Path, required=True, help=".stablehlo, .mlir or .onnx file, or a new folder")
    add("--train_seed", type=int, help="training seed whose agent it is (default: the first)")
    add("--actor", choices=ACTORS, help="who acts (default planner; in .onnx the policy)")
    add("--select", choices=SELECTIONS, help="elite that a planner executes (default argmax)")
    add("--num", type=int, help="observations of a call, N (default 1; any number in .onnx)")
    add("--platforms", help="cpu, cuda, tpu, separated by commas (default cpu)")
    return made


def import_tdmpc2(doc: str | None = None) -> argparse.ArgumentParser:
    """Flags of ``experiments.import_tdmpc2``."""
    made = _made("import_tdmpc2", doc)
    add = made.add_argument
    add("file", type=Path, help="checkpoint that nicklashansen/tdmpc2 saved, a .pt file")
    add("--task", required=True, help="task that the agent was trained on, for example walker-walk")
    add("--out", type=Path, required=True, help="new folder to write")
    add("--action_repeat", type=int, help="default: that of the literature for the task, or 1")
    add("--backend", help="mjx, host, ... (default: mjx, or the task's only one)")
    add("--decisions", type=int, default=0, help="how long it was trained (default 0: unknown)")
    add(
        "--episodes", type=int, default=0,
        help="evaluate it on so many episodes, which reports need (default 0: not now)",
    )  # fmt: skip
    add("--arranged_for", choices=DEVICES, default="cpu", help="device that it suits (default cpu)")
    return made


def dataset(doc: str | None = None) -> argparse.ArgumentParser:
    """Flags of ``experiments.dataset``."""
    made = _made("dataset", doc)
    _agent(made)
    add = made.add_argument
    add("--out", type=Path, required=True, help="file to write: .npz")
    add("--train_seed", type=int, help="training seed whose transitions these are (default: all)")
    add("--episodes", type=int, help="play so many per seed, instead of reading replay")
    add("--actor", choices=ACTORS, help="who plays (default planner)")
    add("--select", choices=SELECTIONS, help="elite that a planner executes (default: as trained)")
    add("--seed", type=int, help=f"seed of the episodes (default {EPISODE_SEED})")
    add("--task", help="MODULE:ATTRIBUTE of a task of your own")
    add("--backend", help="mjx, host, ... (default: as in training)")
    return made


def plot(doc: str | None = None) -> argparse.ArgumentParser:
    """Flags of ``experiments.plot``."""
    made = _made("plot", doc)
    add = made.add_argument
    add("runs", nargs="*", type=Path, help="runs, sweeps or folders of such")
    add("--results", type=Path, help="a result set, instead of runs")
    add(
        "--out", type=Path, default=Path("learning_curve.png"),
        help="file of the figure: .png, .pdf or .svg (default learning_curve.png)",
    )  # fmt: skip
    add("--metric", help="columns of evaluations.csv or metrics.csv (default eval/return)")
    add("--x", choices=AXES, default=PICTURE["x"], help="horizontal axis")
    add("--band", choices=BANDS, default=PICTURE["band"], help="band over seeds")
    add("--size", help="inches, WIDTHxHEIGHT; 3.3x2.6 fits a column of a paper")
    add("--published", action="store_true", help="published curves of these tasks as points")
    add("--diagnostics", action="store_true", help="draw diagnostics of the runs, not returns")
    add("--labels", nargs="*", help="one per run; runs of equal labels are seeds of one method")
    add(
        "--returns", choices=("evaluation", "training"), default="evaluation",
        help="the planner's evaluations, or training episodes",
    )  # fmt: skip
    return made


def aggregate(doc: str | None = None) -> argparse.ArgumentParser:
    """Flags of ``experiments.aggregate``."""
    made = _made("aggregate", doc)
    add = made.add_argument
    add("runs", nargs="+", type=Path, help="runs, sweeps, folders of such; or one result set")
    add("--baseline", help="method that the others are compared with, for example tdmpc2")
    add("--labels", nargs="*", help="one per run; runs of equal labels are seeds of one method")
    add(
        "--max_return", type=float,
        help="what returns are divided by in aggregates (default 1000; of HumanoidBench's tasks,"
        " their success bars)",
    )  # fmt: skip
    add(
        "--metric",
        help="column to compare: eval/policy_return, for example, for policies alone (default"
        " eval/return)",
    )
    add(
        "--frames", type=float,
        help="environment frames to compare at, by the latest value up to there (default: where the"
        " shortest run of a task ends)",
    )  # fmt: skip
    form = made.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="csv, a line per number, not markdown")
    form.add_argument("--latex", action="store_true", help="LaTeX with booktabs, not markdown")
    add(
        "--out", type=Path,
        help="file to write instead of printing: .md, .csv or .tex; of a result set, a folder",
    )  # fmt: skip
    return made


def listed_suites() -> str:
    """All suites with what they are about."""
    lines = [f"  {name:<10} {suite.about}" for name, suite in suites.SUITES.items()]
    return "suites:\n" + "\n".join(lines)


def reproduce(doc: str | None = None) -> argparse.ArgumentParser:
    """Flags of ``experiments.reproduce``."""
    doc = (doc or "").replace("EXAMPLE\n", f"{indent(suites.EXAMPLE, '  ')}\n")
    made = _made("reproduce", doc, allow_abbrev=False)
    made.epilog = listed_suites()
    add = made.add_argument
    add("--suite", help="name of a suite, or a JSON file")
    add("--list", action="store_true", help="print suites, or a suite's cells")
    add("--cell", type=int, nargs="+", help="numbers of the cells to train, by --list")
    add("--out", type=Path, help="folder of results (default runs/results/SUITE)")
    add(
        "--work", type=Path,
        help="folder of checkpoints and logs (default runs/reproduce/NAME, named after --out)",
    )  # fmt: skip
    add("--methods", nargs="+", default=[], help="a selection of the suite's methods")
    add("--tasks", nargs="+", default=[], help="a selection of the suite's tasks")
    add("--status", action="store_true", help="print the state of the cells, from their folders")
    add("--jobs", type=int, help="cells in parallel, on separate cores (default 1, or one per GPU)")
    add("--gpus", help="GPUs that cells take in turn, for example 0,1,3 (default: all)")
    add("--minutes", type=float, help="wall-clock time after which all cells stop and are kept")
    add("--wandb", help="log to this project of Weights & Biases too")
    add("--dry_run", action="store_true", help="print what would be started, and stop")
    _clusters(made)
    return made


def _clusters(parser: argparse.ArgumentParser) -> None:
    """Add what cells need on a cluster, and where it is."""
    add = parser.add_argument_group("clusters").add_argument
    add("--launcher", choices=LAUNCHERS, default="local", help="who runs cells (default local)")
    add("--cpus_per_cell", type=int, help="cores of a cell (default 1)")
    add("--gpus_per_cell", type=float, help="GPUs of a cell; with ray also a part (default 0)")
    add("--memory_per_cell", type=float, help="memory of a cell in GB")
    add("--retries", type=int, help="how often a cell is repeated whose worker was lost (10)")
    add = parser.add_argument_group("slurm, by submitit").add_argument
    add("--time", help="limit of a job, D-HH:MM:SS (default 4:00:00); cells resume after it")
    add("--partition", help="partition")
    add("--account", help="account")
    add("--sbatch", nargs="+", help="other options of sbatch: qos=high constraint=h100")
    add("--cluster", choices=CLUSTERS, help="slurm (default), or local: to try it on this machine")
    add("--detach", action="store_true", help="submit and exit; the same command attaches")
    add = parser.add_argument_group("ray").add_argument
    add("--address", help="HOST:PORT, auto, or local (default: a running cluster, else local)")
    add(
        "--fetch", choices=FETCHED,
        help="without a shared folder: cells train in folders of the nodes, and their results, or"
        " all files, are brought back",
    )  # fmt: skip


ALL: dict[str, Callable[[str | None], argparse.ArgumentParser]] = {
    f"experiments.{make.__name__}": make
    for make in (evaluate, render, export, dataset, import_tdmpc2, plot, aggregate, reproduce)
}
"""Parsers by the name of their program; each takes the program's docstring."""
