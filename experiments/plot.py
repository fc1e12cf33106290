"""Figures of learning curves.

    python -m experiments.plot RUN [RUN ...] --out=curve.pdf
    python -m experiments.plot RUN [RUN ...] --x=frames --band=std --published --size=3.3x2.6
    python -m experiments.plot RUN [RUN ...] --metric=loss/value,plan/std --out=losses.svg
    python -m experiments.plot --diagnostics RUN [RUN ...] --out=diagnostics.png
    python -m experiments.plot --results=experiments/results/NAME --out=curves.png

A RUN is a workdir of experiments.run, a sweep (its cells are methods) or a folder of several.
There is one panel per task; runs of the same method and task are pooled as seeds. Methods are
named by run.json, else by their folders; runs of one method whose settings differ say in which.

``--diagnostics`` draws the diagnostics of runs (docs/method.md). ``--results`` draws a result set
of experiments.reproduce over environment frames: one panel per task, with published curves for
comparison, and the aggregate over tasks.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import usage  # isort: skip  # noqa: F401
from experiments import clock  # isort: skip  # noqa: F401

import argparse
import csv
import re
import sys

from experiments import arguments, parsers, streams
from experiments import published as own
from pomcp_jax.config import ConfigError
from pomcp_jax.reporting import (
    canvas,
    comparison,
    comparison_figures,
    diagnostic_figures,
    figures,
    published,
)
from pomcp_jax.reporting import runs as runs_lib
from pomcp_jax.running import crash

WRONG = (ImportError, OSError, ValueError, LookupError, TypeError, csv.Error)
"""Exceptions that a missing library, a full disk or a table edited by hand leads to."""
SIZES = 0.5, 50.0
"""Least and largest side of a picture in inches."""


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(argv))


def _main(argv: list[str] | None) -> int:
    args, _ = arguments.parse(parsers.plot(__doc__), argv)
    try:
        _check(args)
        _draw(args)
        print(f"written: {args.out}")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WRONG as error:
        about = "" if args.results else f"{', '.join(map(str, args.runs)):.200}: cannot be drawn: "
        print(f"error: {about}{crash.one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse contradictory flags and what no picture could be written for.

    Raises:
      ConfigError: one line.
    """
    if bool(args.runs) == bool(args.results):
        raise ConfigError("must name either workdirs or --results=FOLDER")
    if args.results and args.diagnostics:
        raise ConfigError("--diagnostics: for workdirs only, not for --results")
    if args.results and args.labels is not None:
        raise ConfigError("--labels: for workdirs only; --results names its methods")
    mode = "--results" if args.results else "--diagnostics" if args.diagnostics else ""
    for name, default in parsers.PICTURE.items():
        if mode and getattr(args, name) != default:
            raise ConfigError(f"--{name}: has no effect with {mode}; leave one of them out")
    if args.returns == "training" and (args.metric or args.diagnostics):
        raise ConfigError("--returns: has no effect with --metric or --diagnostics; leave it out")
    try:
        canvas.check_format(args.out)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not canvas.available():
        raise ConfigError("matplotlib: is not installed; `pip install matplotlib` installs it")
    _size(args.size)


def _size(text: str | None) -> tuple[float, float] | None:
    """Width and height in inches.

    Raises:
      ConfigError: for anything but two numbers within :data:`SIZES`.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)[xX,](\d+\.?\d*|\.\d+)", text.strip())
    low, high = SIZES
    sides = [float(side) for side in match.groups()] if match else []
    if not sides or not all(low <= side <= high for side in sides):
        raise ConfigError(f"--size = {text:.50}: must be WIDTHxHEIGHT, {low:g} to {high:g} inches")
    return sides[0], sides[1]


def _draw(args: argparse.Namespace) -> None:
    """Draw the requested figure.

    Raises:
      ConfigError: one line about runs, columns or results.
    """
    if args.results:
        curves = published.load(own.FOLDER)
        figures.draw(args.results, args.out, args.returns, curves, own.BANDS, own.COLORED)
        return
    if args.diagnostics:
        runs = runs_lib.find(args.runs, args.labels)
        labels = [run.label for run in runs] if args.labels else None
        diagnostic_figures.draw([run.folder for run in runs], args.out, labels)
        return
    if args.metric is not None and not args.metric.strip(" ,"):
        raise ConfigError("--metric: names nothing")
    default = comparison.TRAINING if args.returns == "training" else comparison.RETURN
    metrics = [name.strip() for name in (args.metric or default).split(",") if name.strip()]
    loaded = comparison.load(runs_lib.find(args.runs, args.labels))
    if args.metric:
        comparison.check_metrics(metrics, loaded)
    panels, notes = comparison.panels(loaded, list(dict.fromkeys(metrics)), args.x, args.band)
    beside = _published(panels, args.x) if args.published else []
    look = comparison_figures.Look(args.x, args.band, _size(args.size), own.COLORED)
    try:
        comparison_figures.draw(panels, args.out, look, beside)
    except OSError as error:
        raise ConfigError(f"--out = {args.out}: cannot be written: {error.strerror}") from None
    if any(comparison_figures.crowded(panel) for panel in panels) and not args.metric:
        most = comparison_figures.MANY
        notes.append(f"more than {most} methods: no training returns; --returns=training has them")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _published(panels: list[comparison.Panel], x: str) -> list[published.Published]:
    """Published curves of the panels' tasks.

    Raises:
      ConfigError: there is none, or it cannot be drawn over this axis.
    """
    if x == "hours":
        raise ConfigError(
            "--published: publications give no hours; must be --x=frames or decisions"
        )
    if x == "decisions" and not all(panel.repeat for panel in panels):
        raise ConfigError("--published: the runs differ in action repeat; must be --x=frames")
    tasks = dict.fromkeys(panel.task for panel in panels if panel.metric == comparison.RETURN)
    if not tasks:
        raise ConfigError(f"--published: are returns; --metric must have {comparison.RETURN}")
    curves = published.load(own.FOLDER)
    found = [curve for task in tasks for curve in published.of_task(curves, task)]
    if not found:
        known = ", ".join(sorted({curve.task for curve in curves}))
        raise ConfigError(f"--published: none for {', '.join(tasks)}; there are {known}")
    return found


if __name__ == "__main__":
    sys.exit(main())
