"""One HTML page of a run, a sweep, a suite's results, or several of them.

    python -m experiments.report DIR [DIR ...] [--out=report.html] [--video=film.mp4]

A DIR is a workdir of experiments.run or experiments.sweep, a result set of
experiments.reproduce, or a folder of such. The page has the results in tables that sort, curves of
returns with published ones, losses, statistics of planner and policy, diagnostics, differences
between configurations, and where all of it comes from. It is one file that needs no network.

Films of experiments.render in the folders are embedded (.mp4, .gif, .png); --video names others.
Runs of equal names are told apart as in experiments.plot, or named by --labels.

Exit codes: 0 done, 2 bad input.
"""

from experiments import early  # isort: skip  # noqa: F401

import argparse
import csv
import os
import sys
from pathlib import Path

from experiments import arguments, streams

SUFFIXES = (".html", ".htm")


def parser() -> argparse.ArgumentParser:
    """Flags of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=arguments.plain(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("folders", nargs="+", type=Path, metavar="DIR", help="runs, sweeps, result sets")
    add(
        "--out", type=Path, default=Path("report.html"),
        help="file of the page (default report.html)",
    )  # fmt: skip
    add(
        "--video", type=Path, action="append", default=[],
        help="film to embed instead of those in the folders; may be repeated",
    )  # fmt: skip
    add("--labels", nargs="*", help="names of the runs, one each; equal ones are one method")
    add("--max_return", type=float, help="what returns are divided by in aggregates (default 1000)")
    return made


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(argv))


def _main(argv: list[str] | None) -> int:
    args, _ = arguments.parse(parser(), argv)
    args.argv = sys.argv[1:] if argv is None else argv
    print(f"reading {', '.join(map(str, args.folders)):.200}", file=sys.stderr, flush=True)
    # Here, not above: help and the first line come before the seconds that JAX takes to import.
    from experiments import clock, report_inputs  # noqa: F401
    from pomcp_jax import files
    from pomcp_jax.reporting import page

    try:
        _check_out(args.out)
        report = report_inputs.gather(args)
        # Names of folders may be bytes that are no text.
        data = page.render(report).encode("utf-8", "replace")
        files.write_bytes(args.out, data)
    except (ValueError, csv.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        place = error.filename or args.out
        print(f"error: {place}: {error.strerror or error}", file=sys.stderr)
        return 2
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"written: {args.out} ({len(data) / 1e6:.1f} MB)")
    return 0


def _check_out(out: Path) -> None:
    """Refuse a page that could not be written.

    Raises:
      ValueError: one line.
    """
    name = f"--out = {str(out)!r}"
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{name}: must end in {' or '.join(SUFFIXES)}")
    if not out.parent.is_dir():
        raise ValueError(f"{name}: {out.parent} is no folder; `mkdir -p {out.parent}` makes it")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"{name}: cannot be written; another name or folder can")


if __name__ == "__main__":
    sys.exit(main())
