"""A long run that is killed every minute or two, and what its memory does.

    python -m experiments.benchmarks.soak [--minutes=60] [--work=0.25] [--seed=0]
        [--out=experiments/results/soak.json]

A run of the debug configuration (two seeds) with a checkpoint every few seconds is killed by
SIGKILL after 60 to 120 s, again and again, and started again by the same command line. Between
kills it is paused (SIGSTOP, SIGCONT) so that it has the share ``work`` of its time. After the
last minute it is stopped by SIGTERM and told to end at the decision it has reached. A second run
goes straight to that decision. Compared are all arrays, and all rows of the tables without
wall-clock columns. Memory is the resident set of the second run's process, sampled every second:
the median of the last tenth against that of the second one (the first has the compilation).
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments import streams
from experiments.benchmarks import faults
from pomcp_jax import checkpoint
from pomcp_jax.running import process

PERIOD = 1.0
"""Seconds from one pause to the next."""
FOREVER = 100_000_000


def command(workdir: Path, total: int) -> list[str]:
    """Of a run that ends after ``total`` decisions of a seed."""
    return [
        sys.executable, "-m", "experiments.run", f"--config={faults.CONFIG}",
        "--config.train.num_seeds=2", "--config.train.chunk_decisions=100",
        "--config.train.checkpoint_decisions=500", f"--config.train.total_decisions={total}",
        f"--workdir={workdir}",
    ]  # fmt: skip


def start(workdir: Path, total: int) -> subprocess.Popen:
    """Its process; what it says goes to a file beside the workdir."""
    with workdir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command(workdir, total), stdout=log, stderr=log)


def newest(workdir: Path) -> int:
    """Decisions of the newest checkpoint, 0 without one."""
    return max(checkpoint.steps(workdir / "checkpoints"), default=0)


def resident(pid: int) -> int:
    """Bytes in memory of a process, 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def sit(workdir: Path, seconds: float, work: float) -> dict[str, Any]:
    """One process for so long, paused once it has made a checkpoint, then killed."""
    process, begin, before = start(workdir, FOREVER), time.monotonic(), newest(workdir)
    progressed = False
    while process.poll() is None and time.monotonic() < begin + seconds:
        time.sleep(PERIOD * work)
        progressed = progressed or newest(workdir) > before
        if progressed:
            process.send_signal(signal.SIGSTOP)
            time.sleep(PERIOD * (1 - work))
            process.send_signal(signal.SIGCONT)
    ended = process.poll()
    acknowledged = newest(workdir)
    process.kill()
    process.wait()
    checkpoint.recover(workdir / "checkpoints")
    return {
        "ended": ended,
        "progressed": progressed,
        "lost": newest(workdir) < acknowledged,
        "decisions": newest(workdir) - before,
    }


def stop(workdir: Path) -> int:
    """Go on, stop by SIGTERM; the decision at which the run stands."""
    before, process = newest(workdir), start(workdir, FOREVER)
    while process.poll() is None and newest(workdir) == before:
        time.sleep(0.05)
    process.terminate()
    process.wait()
    return newest(workdir)


def undisturbed(workdir: Path, total: int) -> list[int]:
    """Bytes of a run that is left alone, every second."""
    process, sizes = start(workdir, total), []
    while process.poll() is None:
        sizes.append(resident(process.pid))
        time.sleep(1.0)
    return [size for size in sizes if size]


def growth(sizes: list[int]) -> float:
    """From the second tenth to the last, relative."""
    tenth = max(1, len(sizes) // 10)
    early, late = statistics.median(sizes[tenth : 2 * tenth]), statistics.median(sizes[-tenth:])
    return late / early - 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--work", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    draw, begin = random.Random(args.seed), time.monotonic()
    found: dict[str, Any] = {"seed": args.seed, "minutes": args.minutes, "work": args.work}
    with tempfile.TemporaryDirectory() as name:
        killed, straight = Path(name) / "killed", Path(name) / "straight"
        sittings = []
        while time.monotonic() < begin + 60 * args.minutes:
            sittings.append(sit(killed, draw.uniform(60.0, 120.0), args.work))
            print(json.dumps(sittings[-1]), flush=True)
        found["kills"] = len(sittings)
        found["restarts_refused"] = sum(s["ended"] is not None for s in sittings)
        found["sittings_without_progress"] = sum(not s["progressed"] for s in sittings)
        found["acknowledged_steps_lost"] = sum(s["lost"] for s in sittings)
        found["soak_minutes"] = round((time.monotonic() - begin) / 60, 1)
        total = stop(killed)
        found["decisions"] = total
        subprocess.run(command(killed, total), check=True, capture_output=True)
        sizes = undisturbed(straight, total)
        found["undisturbed_seconds"] = len(sizes)
        found["resident_mb"] = [round(size / 1e6, 1) for size in sizes[:: max(1, len(sizes) // 20)]]
        found["memory_growth"] = round(growth(sizes), 4)
        found["differences"] = faults.differences(killed, straight)
    found |= process.describe(process.command("experiments.benchmarks.soak", sys.argv))
    print(json.dumps(found), flush=True)
    faults.keep(found, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(streams.guarded(main))
