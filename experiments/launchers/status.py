"""``reproduce --status``, answered before JAX is imported: it reads folders only."""

import argparse
import sys
from collections.abc import Sequence

from experiments import arguments, parsers, streams
from experiments.launchers import study, table
from pomcp_jax.errors import ConfigError

PROGRAM = "experiments.reproduce"


def show(args: argparse.Namespace) -> int:
    """Print the table of a suite's cells once; returns the exit code."""
    try:
        which = study.of(args)
        places = study.places(which, args.methods, args.tasks)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        about = study.submitted(which)
    except ConfigError as error:  # cells have folders of their own
        print(f"warning: {error}", file=sys.stderr)
        about = {"jobs": {}}
    cells = table.rows(places, about["jobs"])
    gpus = about.get("gpus_per_cell")
    gpus = float(gpus) if isinstance(gpus, int | float) and 0 <= gpus < 1e6 else 0.0
    print("\n".join([table.summary(args.suite, cells, gpus), *table.lines(cells)]))
    return 0


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    # Overrides do not move folders.
    args, _ = arguments.parse(parsers.reproduce(), argv, others=True)
    return show(args)


_SPEC = getattr(sys.modules.get("__main__"), "__spec__", None)
if _SPEC is not None and _SPEC.name == PROGRAM and "--status" in sys.argv[1:]:
    sys.exit(streams.guarded(lambda: main(sys.argv[1:])))
