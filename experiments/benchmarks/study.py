"""A study of 10,000 simulated cells: its status, its aggregation, a launcher's bookkeeping.

    python -m experiments.benchmarks.study [--cells=10000] [--out=FILE]

Nothing trains. The study has 100 tasks, 10 methods and 10 cells of each, with one seed. Folders are
made as cells leave them (a tenth of them stopped in the middle), then the commands are timed as
processes of their own: ``reproduce --status``, ``aggregate`` with and without writing its files.
``launch`` is --launcher=slurm with jobs that end at once: preparing folders, launch.json, records,
the table. Prints seconds of wall-clock and of CPU, and the peak memory of each.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments import parsers, streams, suites
from experiments.benchmarks import rows
from experiments.benchmarks.rows import Row
from experiments.launchers import cell, plans, slurm
from experiments.launchers.plans import Plan
from experiments.launchers.study import Study
from pomcp_jax import config as config_lib
from pomcp_jax.config import Config
from pomcp_jax.running import process, workdirs

METHODS, SEEDS = 10, 10
"""Methods of the simulated study, and cells of each, with a seed each; the rest are tasks."""
EVALUATIONS = 20
"""Of each cell."""
TIMED = """
import json, os, resource, subprocess, sys, time
begin = time.monotonic()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds, used = time.monotonic() - begin, usage.ru_utime + usage.ru_stime
print(json.dumps([code, seconds, used, usage.ru_maxrss]))
"""
"""Starts a command from a small process: a child's peak memory begins with that of its parent."""


def made(folder: pathlib.Path, cells: int) -> tuple[Study, pathlib.Path]:
    """A suite with folders as if nine tenths of its cells were finished, and its file."""
    tasks = [f"probe/t{i}" for i in range(max(1, cells // (METHODS * SEEDS)))]
    names = [f"m{i}-seed{seed}" for i in range(METHODS) for seed in range(SEEDS)]
    values = {"config": "experiments/configs/debug.py", "tasks": tasks, "num_seeds": 1}
    values |= {"methods": {name: {"preset": "po_mpc"} for name in names}}
    path = folder / "big.json"
    path.write_text(json.dumps(values))
    study = Study("big", suites.get(str(path)), folder / "out", folder / "work")
    draw = np.random.default_rng(0)
    config = config_lib.to_dict(Config())
    for i, (task, method) in enumerate((t, m) for t in tasks for m in names):
        config["env"]["task"] = task
        label, _, seed = method.partition("-seed")
        about = {"method": label, "preset": "po_mpc", "seconds": 3600.0, "versions": {"jax": "0"}}
        name = pathlib.Path(task.replace("/", "_"), method)
        if i % 10:
            about |= {"exit_code": 0, "status": "done", "decisions_per_seed": 1000}
            _write(study.out / name, config, about, _table(draw, int(seed)))
        else:
            about |= {"exit_code": 143, "status": "stopped by SIGTERM", "last_checkpoint": 500}
            _write(study.work / name, config, about, "")
            record = {"host": "node", "attempt": 1, "ending": "stopped", "by": "1"}
            cell.beside(study.work / name, ".job.json").write_text(json.dumps(record))
    return study, path


def _table(draw: np.random.Generator, seed: int) -> str:
    """Rows of evaluations.csv."""
    lines = ["seed,decisions,frames,seconds,eval/return,eval/policy_return"]
    for i, value in enumerate(draw.uniform(0, 1000, EVALUATIONS)):
        at = 1000 * (i + 1) // EVALUATIONS
        lines.append(f"{seed},{at},{at},{3.6 * at:.1f},{value:.4f},{value / 2:.4f}")
    return "\n".join(lines) + "\n"


def _write(folder: pathlib.Path, config: Any, about: Any, table: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "run.json").write_text(json.dumps(about, indent=1))
    if table:
        (folder / "evaluations.csv").write_text(table)


def timed(name: str, module: str, *arguments: str) -> Row:
    """Seconds and memory of a command line."""
    command = [sys.executable, "-m", module, *arguments]
    out = subprocess.run(
        [sys.executable, "-I", "-S", "-c", TIMED, *command], capture_output=True, text=True
    )
    code, seconds, used, peak = json.loads(out.stdout)
    if code:
        raise RuntimeError(f"{shlex.join(command)}: exit code {code}: {out.stderr[-500:]}")
    return {
        "what": name,
        "seconds": seconds,
        "CPU seconds": used,
        "memory, MB": peak / 1e3,
    }


def launched(folder: pathlib.Path, cells: int) -> Row:
    """Submit ``cells`` cells as jobs that are over when they are asked for, and follow them."""
    study = Study("big", suites.SUITES["debug"], folder / "out", folder / "work")
    (plan,) = plans.make_plans(study, methods=["po_mpc"], tasks=["probe/lqr"])
    todo = [_named(plan, i) for i in range(cells)]
    config = workdirs.config_text(plan.config)

    def submit(some: list[Plan]) -> list[str]:
        numbers = [f"1_{i}" for i in range(len(some))]
        for number, plan in zip(numbers, some, strict=True):
            plan.workdir.mkdir(parents=True)
            about = {"exit_code": 0, "status": "done", "last_checkpoint": 600, "seconds": 60.0}
            (plan.workdir / "run.json").write_text(json.dumps(about))
            (plan.workdir / "config.json").write_text(config)
            record = {"by": number, "ending": "finished", "host": "node", "attempt": 1}
            plan.job.record.write_text(json.dumps(record))
        return numbers

    args = parsers.reproduce().parse_args(["--suite=debug", "--launcher=slurm"])
    slurm.POLL["slurm"] = 0.1
    begin, used = time.monotonic(), time.process_time()
    outcome = slurm.Launch(
        args, study, todo, slurm.Jobs(submit, dict, cells, lambda: cells, lambda _: [])
    ).follow()
    assert len(outcome.ended["finished"]) == cells
    return {
        "what": f"launch of {cells:,} cells",
        "seconds": time.monotonic() - begin,
        "CPU seconds": time.process_time() - used,
        "memory, MB": 1e3 * process.peak_memory_gb(),
    }


def _named(plan: Plan, i: int) -> Plan:
    """The cell under another name."""
    method = f"m{i:05}"
    workdir = plan.workdir.with_name(method)
    return plan._replace(
        method=method,
        workdir=workdir,
        folder=plan.folder.with_name(method),
        command=[*plan.command[:-1], f"--workdir={workdir}"],
    )


def measured(cells: int) -> Iterator[Row]:
    """A row for every command."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        study, path = made(folder, cells)
        places = [f"--suite={path}", f"--out={study.out}", f"--work={study.work}"]
        yield timed(f"status of {cells:,} cells", "experiments.reproduce", "--status", *places)
        yield timed(f"aggregate of {cells:,} cells", "experiments.aggregate", str(study.out))
        yield timed(
            "aggregate, files written", "experiments.aggregate", str(study.out),
            f"--out={folder / 'tables'}",
        )  # fmt: skip
        yield launched(folder / "launch", cells)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args(argv)
    rows.show(
        measured(args.cells),
        args.out,
        process.command("experiments.benchmarks.study", sys.argv),
    )
    return 0


if __name__ == "__main__":
    sys.exit(streams.guarded(main))
