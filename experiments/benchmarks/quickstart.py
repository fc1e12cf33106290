"""Quick start of several seeds, each in a new process with an empty compilation cache.

    taskset -c 0,1 python -m experiments.benchmarks.quickstart --seeds 0 1 2 3 4

Prints a markdown table and writes a workdir ``<out>/seed<k>`` for each seed.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from experiments.benchmarks import rows
from pomcp_jax.running import process

CONFIG = "experiments/configs/quickstart.py"


def first_time(workdir: Path, level: float) -> float | None:
    """Seconds until the mean return of the latest 8 training episodes is at least ``level``."""
    with (workdir / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["train/return"] and float(row["train/return"]) >= level:
                return float(row["seconds"])
    return None


def summary(workdir: Path, level: float) -> dict[str, float | None]:
    """Numbers of one run for the table."""
    about = json.loads((workdir / "run.json").read_text())
    with (workdir / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    with (workdir / "evaluations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    planner = [row for row in rows if row["actor"] == "planner"][-1]
    policy = [row for row in rows if row["actor"] == "policy"]
    return {
        "time": first_time(workdir, level),
        "training": float(last["train/return"]),
        "planner": float(planner["eval/return"]),
        "policy": float(policy[-1]["eval/policy_return"]) if policy else None,
        "seconds": about["seconds"],
        "memory": about["peak_memory_gb"],
    }


def measured(args: argparse.Namespace) -> Iterator[rows.Row]:
    """A row for each seed, trained now or before."""
    for seed in args.seeds:
        workdir = args.out / f"seed{seed}"
        if not args.table:
            # A new cache: the numbers must include compilation, as for a new user.
            with tempfile.TemporaryDirectory() as cache:
                command = [sys.executable, "-m", "experiments.run", f"--config={CONFIG}"]
                command += [f"--config.train.seed={seed}", f"--workdir={workdir}"]
                subprocess.run(
                    [*command, f"--cache_dir={cache}"], check=True, stdout=subprocess.DEVNULL
                )
        found = summary(workdir, args.level)
        yield {
            "seed": seed,
            f"seconds to {args.level:g}": _or_dash(found["time"]),
            "training return": _or_dash(found["training"]),
            "planner, 10 episodes": _or_dash(found["planner"]),
            "bare policy": _or_dash(found["policy"]),
            "whole run, s": _or_dash(found["seconds"]),
            "peak memory, GB": found["memory"],
        }


def _or_dash(value: float | None) -> str | int:
    return "-" if value is None else round(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart-benchmark"))
    parser.add_argument("--level", type=float, default=700.0)
    parser.add_argument("--table", action="store_true", help="print earlier results and stop")
    parser.add_argument("--json", type=Path, help="file of the rows")
    args = parser.parse_args()
    command = process.command("experiments.benchmarks.quickstart", sys.argv)
    rows.show(measured(args), args.json, command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
