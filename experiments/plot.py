"""Figures of learning curves.

    python -m experiments.plot RUN [RUN ...] --out=curve.png
    python -m experiments.plot --diagnostics RUN [RUN ...] --out=diagnostics.png
    python -m experiments.plot --results=experiments/results/NAME --out=curves.png

The first draws workdirs of :mod:`experiments.run` over decisions, the second their diagnostics
(docs/method.md). The third draws a result set of :mod:`experiments.reproduce` over environment
frames: one panel per task, with published curves for comparison, and the aggregate over tasks.
"""

from experiments import early  # isort: skip  # noqa: F401

import argparse
import csv
import sys
from pathlib import Path

from experiments import arguments, streams
from experiments import published as own
from pomcp_jax.reporting import diagnostic_figures, figures, published, run_figures
from pomcp_jax.running import crash

WRONG = (ImportError, OSError, ValueError, LookupError, TypeError, csv.Error)
"""Exceptions that a missing library, a full disk or a table edited by hand leads to."""


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(argv))


def _main(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, help="workdirs of experiments.run")
    parser.add_argument("--results", type=Path, help="a result set, instead of runs")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("learning_curve.png"),
        help="file of the figure: .png, .pdf or .svg (default learning_curve.png)",
    )
    parser.add_argument(
        "--diagnostics", action="store_true", help="draw diagnostics of the runs, not returns"
    )
    parser.add_argument(
        "--labels", nargs="*", help="one per run; runs of equal labels are seeds of one method"
    )
    parser.add_argument(
        "--returns",
        choices=("evaluation", "training"),
        default="evaluation",
        help="returns of a result set: the planner's evaluations, or training episodes",
    )
    args, _ = arguments.parse(parser, argv)
    if bool(args.runs) == bool(args.results):
        print("error: must name either workdirs or --results=FOLDER", file=sys.stderr)
        return 2
    if args.results and args.diagnostics:
        print("error: --diagnostics: for workdirs only, not for --results", file=sys.stderr)
        return 2
    if args.results and args.labels:
        print("error: --labels: for workdirs only; --results names its methods", file=sys.stderr)
        return 2
    for run in args.runs:
        # Checked for all first: a missing folder would surface as a file that cannot be read.
        if not (run / "config.json").is_file():
            print(f"error: {run}: holds no config.json; must be a workdir", file=sys.stderr)
            return 2
    if args.labels and len(args.labels) != len(args.runs):
        print(f"error: --labels: {len(args.labels)} for {len(args.runs)} runs", file=sys.stderr)
        return 2
    return _report(args)


def _report(args: argparse.Namespace) -> int:
    """Draw the requested figure; returns the exit code, 2 after a one-line error."""
    try:
        if args.results:
            curves = published.load(own.FOLDER)
            figures.draw(args.results, args.out, args.returns, curves, own.BANDS)
        elif args.diagnostics:
            diagnostic_figures.draw(args.runs, args.out, args.labels)
        else:
            run_figures.draw(args.runs, args.out, args.labels)
    except WRONG as error:
        about = "" if args.results else f"{', '.join(map(str, args.runs)):.200}: cannot be drawn: "
        print(f"error: {about}{crash.one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
