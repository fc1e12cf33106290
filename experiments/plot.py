"""Learning curves as pictures.

    python -m experiments.plot RUN [RUN ...] --out=curve.png
    python -m experiments.plot --diagnostics RUN [RUN ...] --out=diagnostics.png
    python -m experiments.plot --results=experiments/results/NAME --out=curves.png

The first draws workdirs of :mod:`experiments.run`, over decisions, the second their diagnostics
(docs/method.md). The third draws a result set of :mod:`experiments.reproduce`, over environment
frames: a panel for every task with the published curves beside ours, and the aggregate over tasks.
"""

from experiments import early  # isort: skip  # noqa: F401

import argparse
import csv
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import crash, streams


class Curve(NamedTuple):
    """One quantity of one seed over decisions; NaNs are left out."""

    decisions: np.ndarray
    values: np.ndarray


def read_curves(path: Path, column: str) -> dict[int, Curve]:
    """``{seed: curve}`` of a column of ``metrics.csv`` or ``evaluations.csv``."""
    points: dict[int, list[tuple[float, float]]] = {}
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row.get(column):
                pair = (float(row["decisions"]), float(row[column]))
                points.setdefault(int(row["seed"]), []).append(pair)
    return {seed: Curve(*np.array(pairs).T) for seed, pairs in points.items()}


def mean_curve(curves: dict[Any, Curve]) -> Curve:
    """Mean over seeds, on the decisions that the shortest seed has reached too."""
    longest = max(curves.values(), key=lambda curve: len(curve.decisions))
    low = max(curve.decisions[0] for curve in curves.values())
    high = min(curve.decisions[-1] for curve in curves.values())
    grid = longest.decisions[(longest.decisions >= low) & (longest.decisions <= high)]
    values = [np.interp(grid, curve.decisions, curve.values) for curve in curves.values()]
    return Curve(grid, np.mean(values, axis=0))


def _gather(runs: list[Path], file: str, column: str) -> dict[tuple[int, int], Curve]:
    """The curves of all seeds of several runs."""
    return {
        (i, seed): curve
        for i, run in enumerate(runs)
        for seed, curve in read_curves(run / file, column).items()
    }


def available() -> bool:
    """Whether there is something to draw with."""
    return importlib.util.find_spec("matplotlib") is not None


def pyplot() -> Any:
    """matplotlib's pyplot, without a screen.

    Raises:
      ImportError: without matplotlib (``pip install pomcp_jax[run]``).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, out: Path) -> None:
    """Write the picture in one step and close it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}")
    try:
        figure.savefig(partial, dpi=120, format="png")
        partial.replace(out)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    finally:
        pyplot().close(figure)


def draw(runs: list[Path], out: Path, labels: list[str] | None = None) -> None:
    """Write one picture of training returns (lines) and evaluations (dots) of ``runs``.

    Runs with the same label count as seeds of one method: thin lines, and their mean.

    Raises:
      ImportError: without matplotlib (``pip install pomcp_jax[run]``).
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    try:
        _draw_returns(axes, runs, labels)
        save(figure, out)
    finally:
        plt.close(figure)


def _draw_returns(axes: Any, runs: list[Path], labels: list[str] | None) -> None:
    titles, repeats = [], set()
    groups: dict[str, list[Path]] = {}
    for i, run in enumerate(runs):
        config = json.loads((run / "config.json").read_text())
        titles.append(config["env"]["task"])
        repeats.add(config["env"]["action_repeat"])
        label = labels[i] if labels else (run.name if len(runs) > 1 else "")
        groups.setdefault(label, []).append(run)
    for i, (label, members) in enumerate(groups.items()):
        color = f"C{i}"
        training = _gather(members, "metrics.csv", "train/return")
        evaluated = _gather(members, "evaluations.csv", "eval/return")
        if len(training) > 1:
            for curve in training.values():
                axes.plot(*curve, color=color, alpha=0.3, linewidth=1)
            for curve in evaluated.values():
                axes.plot(*curve, "o", color=color, markersize=3, alpha=0.4)
        if training:
            name = f"{label} training".strip()
            axes.plot(*mean_curve(training), color=color, linewidth=2, label=name)
        if evaluated:
            name = f"{label} evaluation".strip()
            axes.plot(*mean_curve(evaluated), "o--", color=color, markersize=5, label=name)
    axes.set_xlabel("decisions per seed")
    axes.set_ylabel("episode return")
    axes.set_title(", ".join(dict.fromkeys(titles)))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    if len(repeats) == 1 and (repeat := repeats.pop()) > 1:
        top = axes.secondary_xaxis("top", functions=(lambda x: x * repeat, lambda x: x / repeat))
        top.set_xlabel("environment frames per seed")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", frameon=False)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(argv))


def _main(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, help="workdirs of experiments.run")
    parser.add_argument("--results", type=Path, help="a result set, instead of runs")
    parser.add_argument("--out", type=Path, default=Path("learning_curve.png"))
    parser.add_argument("--diagnostics", action="store_true", help="of the runs, not their returns")
    parser.add_argument("--labels", nargs="*", help="one per run; equal ones are seeds of a method")
    parser.add_argument(
        "--returns",
        choices=("evaluation", "training"),
        default="evaluation",
        help="what a result set's curves show: the planner's evaluations, or training episodes",
    )
    args = parser.parse_args(argv)
    if bool(args.runs) == bool(args.results):
        print("error: must name either workdirs or --results=FOLDER", file=sys.stderr)
        return 2
    if args.results and args.diagnostics:
        print("error: --diagnostics: for workdirs only, not for --results", file=sys.stderr)
        return 2
    if args.results:
        return _draw_results(args)
    for run in args.runs:
        if not (run / "config.json").is_file():
            print(f"error: {run}: holds no config.json; must be a workdir", file=sys.stderr)
            return 2
    if args.labels and len(args.labels) != len(args.runs):
        print(f"error: --labels: {len(args.labels)} for {len(args.runs)} runs", file=sys.stderr)
        return 2
    return _draw_runs(args)


def _draw_runs(args: argparse.Namespace) -> int:
    from experiments import diagnostic_panels  # it imports this file

    picture = diagnostic_panels.draw if args.diagnostics else draw
    try:
        picture(args.runs, args.out, args.labels)
    except (ImportError, OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        # Whatever a table that was edited by hand leads to.
        names = ", ".join(str(run) for run in args.runs)
        print(f"error: {names:.200}: cannot be drawn: {crash.one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _draw_results(args: argparse.Namespace) -> int:
    from experiments import panels  # needs the agent's packages, one run's picture does not
    from pomcp_jax.config import ConfigError

    if args.labels:
        print("error: --labels: for workdirs only; --results names its methods", file=sys.stderr)
        return 2
    try:
        panels.draw(args.results, args.out, args.returns)
    except (ConfigError, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
