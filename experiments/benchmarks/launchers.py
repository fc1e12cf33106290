"""Kills of workers and of a node while a suite trains on a cluster of this machine.

    python -m experiments.benchmarks.launchers ray|slurm [--cells=24] [--kills=5] [--seed=0]
        [--decisions=200] [--jobs=2] [--out=FILE]

``ray`` starts a Ray cluster of two nodes, ``slurm`` uses submitit's engine for one machine. Cells
are runs of the debug configuration that differ in ``train.seed``. Workers (the processes that wait
for a run) are killed by SIGKILL at random instants while their cells train; with Ray, the second
node is killed as well, half way through. Then an undisturbed launch of the same cells, one after
another on this machine, is compared with the first, file by file: every array of the last
checkpoint, and all rows of the tables without wall-clock columns.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from experiments import parsers, streams, suites
from experiments.benchmarks import faults
from experiments.launchers import cell, local, plans, ray_cluster, slurm
from experiments.launchers.plans import Plan
from experiments.launchers.study import Study
from pomcp_jax.running import process
from pomcp_jax.running.progress import Progress


def suite(cells: int, decisions: int) -> suites.Suite:
    """Cells of the debug configuration with a seed each."""
    return suites.SUITES["debug"]._replace(
        tasks=("probe/lqr",),
        methods={f"seed{i:02}": suites.Method("po_mpc", {"train.seed": i}) for i in range(cells)},
        num_seeds=1,
        overrides={
            "train.total_decisions": decisions,
            "train.chunk_decisions": 20,
            "train.checkpoint_decisions": 20,
            "train.eval_decisions": decisions,
            "train.pretrain_updates": 2,
        },
    )


def planned(folder: pathlib.Path, cells: int, decisions: int) -> tuple[Study, list[Plan]]:
    """The suite in a folder."""
    study = Study("kills", suite(cells, decisions), folder / "out", folder / "work")
    study.work.mkdir(parents=True)
    return study, plans.make_plans(study)


def training(some: list[Plan]) -> list[int]:
    """Processes of the workers whose cells train and have saved."""
    records = [cell.read(plan.job.record) for plan in some if cell.is_locked(plan.log)]
    return [int(record["pid"]) for record in records if record.get("ending", 0) is None]


class Disturbance(threading.Thread):
    """Kills workers at random instants, and calls ``node`` once after half of the kills."""

    def __init__(self, some: list[Plan], kills: int, draw: random.Random, node: Any):
        super().__init__(daemon=True)
        self.done, self.nodes, self.over = 0, 0, False
        self._some, self._kills, self._draw, self._node = some, kills, draw, node

    def run(self) -> None:
        while self.done < self._kills and not self.over:
            time.sleep(self._draw.uniform(2.0, 15.0))
            alive = training(self._some)
            if not alive:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._draw.choice(alive), signal.SIGKILL)
                self.done += 1
                print(f"killed {self.done} of {self._kills}", flush=True)
            if self._node is not None and self.done == (self._kills + 1) // 2:
                self._node()
                self._node, self.nodes = None, 1
                print("killed a node", flush=True)


@contextlib.contextmanager
def ray_nodes(jobs: int) -> Iterator[tuple[list[str], Any]]:
    """Flags of a cluster of two nodes, and what kills the second."""
    ray_cluster._imported()
    from ray.cluster_utils import Cluster

    small = {"num_cpus": jobs, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
    other = cluster.add_node(**small)
    flags = ["--launcher=ray", f"--address={cluster.address}", f"--jobs={jobs}"]
    try:
        yield flags, lambda: cluster.remove_node(other, allow_graceful=False)
    finally:
        cluster.shutdown()


@contextlib.contextmanager
def slurm_engine(jobs: int) -> Iterator[tuple[list[str], Any]]:
    """Flags of submitit's engine for one machine."""
    yield ["--launcher=slurm", "--cluster=local", f"--jobs={jobs}"], None


def measure(engine: str, args: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Launch the cells twice, disturbed and undisturbed, and compare."""
    study, some = planned(folder / "disturbed", args.cells, args.decisions)
    begin = time.monotonic()
    make, prepare = {
        "ray": (ray_nodes, ray_cluster.prepare),
        "slurm": (slurm_engine, slurm.prepare),
    }[engine]
    with make(args.jobs) as (flags, node):
        parsed = parsers.reproduce().parse_args(["--suite=debug", *flags])
        disturbance = Disturbance(some, args.kills, random.Random(args.seed), node)
        disturbance.start()
        outcome = prepare(parsed, study, some).run(lambda: None)
        disturbance.over = True
    seconds = time.monotonic() - begin
    _, wanted = planned(folder / "undisturbed", args.cells, args.decisions)
    runner = local.Runner(wanted, 1)
    runner.start()
    local.follow(runner, len(wanted), Progress(interval=60.0))
    differing = {
        plan.method: names
        for plan, other in zip(some, wanted, strict=True)
        if (names := faults.differences(plan.workdir, other.workdir))
    }
    attempts = [cell.read(plan.job.record).get("attempt", 0) for plan in some]
    return {
        "engine": engine, "cells": len(some), "kills": disturbance.done,
        "nodes_killed": disturbance.nodes, "complete": len(outcome.ended["finished"]),
        "attempts": sum(attempts), "differ": differing, "seconds": round(seconds, 1),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=("ray", "slurm"))
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--decisions", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        results = measure(args.engine, args, pathlib.Path(name))
    results |= process.describe(process.command("experiments.benchmarks.launchers", sys.argv))
    print(json.dumps(results), flush=True)
    faults.keep(results, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(streams.guarded(main))
