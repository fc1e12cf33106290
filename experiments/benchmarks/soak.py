"""Soak test: a long run that is killed every minute or two, and its memory.

    python -m experiments.benchmarks.soak [--minutes=60] [--work=0.25] [--seed=0]
        [--out=experiments/results/soak.json]

A run of the debug configuration (two seeds) with a checkpoint every few seconds is repeatedly
killed by SIGKILL after 60 to 120 s and restarted by the same command line. Between kills it is
paused (SIGSTOP, SIGCONT) so that it runs for the share ``work`` of the time. At the end it is
stopped by SIGTERM, and its total is set to the decisions it has reached. A second run trains to
that total without a kill. All arrays are compared, and all rows of the tables without wall-clock
columns. Memory is the resident set of the second run, sampled every second: the median of the last
tenth of the samples over that of the second tenth (the first tenth contains compilation).
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
    """Command line of a run that ends after ``total`` decisions per seed."""
    return [
        sys.executable, "-m", "experiments.run", f"--config={faults.CONFIG}",
        "--config.train.num_seeds=2", "--config.train.chunk_decisions=100",
        "--config.train.checkpoint_decisions=500", f"--config.train.total_decisions={total}",
        f"--workdir={workdir}",
    ]  # fmt: skip


def start(workdir: Path, total: int) -> subprocess.Popen:
    """Process of such a run; its output goes to ``<workdir>.log``."""
    with workdir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command(workdir, total), stdout=log, stderr=log)


def newest(workdir: Path) -> int:
    """Decisions of the newest checkpoint, 0 without one."""
    return max(checkpoint.steps(workdir / "checkpoints"), default=0)


def resident(pid: int) -> int:
    """Resident bytes of a process, 0 after its end."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def sit(workdir: Path, seconds: float, work: float) -> dict[str, Any]:
    """Run a process for ``seconds``, with pauses after its first checkpoint, then kill it."""
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
    # What the run has announced as saved must survive the kill.
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
    """Resume, stop by SIGTERM after a checkpoint; returns the decisions reached."""
    before, process = newest(workdir), start(workdir, FOREVER)
    while process.poll() is None and newest(workdir) == before:
        time.sleep(0.05)
    process.terminate()
    process.wait()
    return newest(workdir)


def undisturbed(workdir: Path, total: int) -> list[int]:
    """Resident bytes of an undisturbed run, sampled every second."""
    process, sizes = start(workdir, total), []
    while process.poll() is None:
        sizes.append(resident(process.pid))
        time.sleep(1.0)
    return [size for size in sizes if size]


def growth(sizes: list[int]) -> float:
    """Relative growth from the second tenth of the samples to the last."""
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
    results: dict[str, Any] = {"seed": args.seed, "minutes": args.minutes, "work": args.work}
    with tempfile.TemporaryDirectory() as name:
        killed, straight = Path(name) / "killed", Path(name) / "straight"
        sittings = []
        while time.monotonic() < begin + 60 * args.minutes:
            sittings.append(sit(killed, draw.uniform(60.0, 120.0), args.work))
            print(json.dumps(sittings[-1]), flush=True)
        results["kills"] = len(sittings)
        results["restarts_refused"] = sum(s["ended"] is not None for s in sittings)
        results["sittings_without_progress"] = sum(not s["progressed"] for s in sittings)
        results["acknowledged_steps_lost"] = sum(s["lost"] for s in sittings)
        results["soak_minutes"] = round((time.monotonic() - begin) / 60, 1)
        total = stop(killed)
        results["decisions"] = total
        subprocess.run(command(killed, total), check=True, capture_output=True)
        sizes = undisturbed(straight, total)
        results["undisturbed_seconds"] = len(sizes)
        every = max(1, len(sizes) // 20)
        results["resident_mb"] = [round(size / 1e6, 1) for size in sizes[::every]]
        results["memory_growth"] = round(growth(sizes), 4)
        results["differences"] = faults.differences(killed, straight)
    results |= process.describe(process.command("experiments.benchmarks.soak", sys.argv))
    print(json.dumps(results), flush=True)
    faults.keep(results, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(streams.guarded(main))
