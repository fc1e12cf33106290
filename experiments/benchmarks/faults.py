"""Fault injection: killed processes, full disks and damaged files.

    python -m experiments.benchmarks.faults [--kills=200] [--processes=20] [--flips=1000]
        [--mutations=10000] [--saves=20] [--task=probe/lqr] [--seed=0]
        [--out=experiments/results/faults.json]

Uses real processes with the debug configuration and two seeds. Prints one line per measurement;
docs/reliability.md has the table. ``0`` skips a part. Parts:

kills      A run is killed by SIGKILL repeatedly (of four kills two during a save, one during
           training, one during start-up) and restarted by the same command line until it is
           complete; further runs follow until the number of kills is reached. Each completed run
           is compared with an undisturbed one: all arrays, and all rows of the tables without
           wall-clock columns.
processes  One process of a run over two is killed repeatedly; the other must end with code 75, the
           same commands resume, and completed runs are compared as above.
signals    SIGTERM, SIGINT, SIGHUP: seconds until the process ends, and whether its last chunk is
           saved.
flips      Random single bits of a whole checkpoint; each file truncated, emptied, deleted.
mutations  Random changes of manifests with a correct digest.
disk       A full file system and a read-only one (mounts a tmpfs, which needs privileges).
saves      Cost of saving: seconds, and the longest time that a save blocks training.
"""

import argparse
import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import streams, xla
from experiments.benchmarks import checkpoint_damage as damage
from pomcp_jax import arrays, checkpoint, digests, files
from pomcp_jax.checkpoint import CheckpointError
from pomcp_jax.running import process

CONFIG = "experiments/configs/debug.py"
CLOCKS = {"seconds", "decisions_per_second", "frames_per_second"}
"""Columns that depend on wall-clock time."""
OPTIONS = (
    "--config.train.num_seeds=2",
    "--config.train.chunk_decisions=20",
    "--config.train.checkpoint_decisions=20",
)

KINDS = ("save", "training", "save", "start")
"""Instants of the kills, in turn; half of them during saves, which write what must not be lost."""


def command(workdir: Path, task: str = "") -> list[str]:
    """Command line of a run with many chunks and a checkpoint after each."""
    return [
        sys.executable, "-m", "experiments.run", f"--config={CONFIG}:{task}", *OPTIONS,
        f"--workdir={workdir}",
    ]  # fmt: skip


def whole_run(workdir: Path, task: str = "") -> None:
    """Run to the end without a kill."""
    subprocess.run(command(workdir, task), check=True, capture_output=True)


def rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table without wall-clock columns."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)]


def saved(place: Path) -> dict[str, tuple[Any, ...]]:
    """Type, shape and bytes of all arrays of a checkpoint."""
    # Bytes and not values: NaN differs from itself, and -0.0 equals 0.0.
    return {
        f"{item} {name}": (x.dtype, x.shape, x.tobytes())
        for item in ("agent", "run")
        for name, x in arrays.read(place / item, arrays.stored(place / item)).items()
    }


def differences(workdir: Path, wanted: Path) -> list[str]:
    """Names of arrays and tables that differ between two completed runs."""
    step = checkpoint.steps(wanted / "checkpoints")[-1]
    ours, theirs = (saved(w / "checkpoints" / str(step)) for w in (workdir, wanted))
    differing = [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]
    tables = ("metrics.csv", "evaluations.csv")
    return differing + [name for name in tables if rows(workdir / name) != rows(wanted / name)]


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written right now."""
    return any((workdir / "checkpoints").glob(".*.partial"))


def kill_once(workdir: Path, draw: random.Random, when: str, task: str = "") -> dict[str, Any]:
    """Start or resume a run, kill it at a random instant and inspect its checkpoints.

    ``when`` is ``save``, ``training`` or ``start``.

    Returns:
      ``ended``: the run was complete before the kill; ``code``; ``in_save``; ``lost``: the newest
      checkpoint before the kill is gone; ``unreadable``: errors of checkpoints that fail to load.
    """
    process = subprocess.Popen(
        command(workdir, task), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    folder = workdir / "checkpoints"
    before = set(checkpoint.steps(folder))
    while when != "start" and process.poll() is None and set(checkpoint.steps(folder)) <= before:
        time.sleep(0.002)
    until = time.monotonic() + draw.uniform(0.0, 20.0 if when == "start" else 1.0)
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    while when == "save" and process.poll() is None and not saving(workdir):
        time.sleep(0.0005)
    if when == "save":  # up to 50 ms into it: each of its steps should be hit
        time.sleep(draw.uniform(0.0, 0.05))
    acknowledged = checkpoint.steps(folder)
    ended = process.poll() is not None
    process.kill()
    errors = process.communicate()[1].decode()
    in_save = saving(workdir)
    checkpoint.recover(folder)
    unreadable = []
    for step in checkpoint.steps(folder):
        try:
            stored = checkpoint.read(folder, step)
            digests.verify(folder / str(step), stored.files, ("agent", "run"))
        except CheckpointError as error:
            unreadable.append(str(error))
    kept = checkpoint.steps(folder)
    lost = bool(acknowledged) and (not kept or kept[-1] < acknowledged[-1])
    return {
        "ended": ended, "code": process.returncode, "in_save": in_save, "lost": lost,
        "unreadable": unreadable, "errors": errors if ended and process.returncode else "",
    }  # fmt: skip


def kills(count: int, draw: random.Random, folder: Path, task: str = "") -> dict[str, Any]:
    """Kill runs ``count`` times, as the module describes."""
    wanted = folder / "undisturbed"
    whole_run(wanted, task)
    done = in_save = unreadable = lost = refused = runs = different = 0
    begin = time.monotonic()
    while done < count or runs == 0:
        workdir = folder / f"killed-{runs}"
        while True:
            if done >= count:
                whole_run(workdir, task)
                break
            result = kill_once(workdir, draw, KINDS[done % len(KINDS)], task)
            unreadable += len(result["unreadable"])
            lost += result["lost"]
            if result["ended"]:
                refused += result["code"] != 0
                break
            done += 1
            in_save += result["in_save"]
        different += bool(differences(workdir, wanted))
        runs += 1
        shutil.rmtree(workdir)
    return {
        "kills": done, "inside_a_save": in_save, "unreadable_checkpoints": unreadable,
        "acknowledged_steps_lost": lost, "restarts_refused": refused, "runs_completed": runs,
        "runs_that_differ": different, "seconds": round(time.monotonic() - begin, 1),
    }  # fmt: skip


def disk(folder: Path) -> dict[str, Any]:
    """Run on a file system that fills up and then becomes read-only."""
    place = folder / "tmpfs"
    place.mkdir()
    workdir, results = place / "run", {}

    def newest() -> list[int]:
        steps = checkpoint.steps(workdir / "checkpoints")
        for step in steps:
            stored = checkpoint.read(workdir / "checkpoints", step)
            digests.verify(workdir / "checkpoints" / str(step), stored.files, ("agent", "run"))
        return steps

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], check=True)
    try:
        more = ["--config.train.total_decisions=400"]
        subprocess.run([*command(workdir), *more], check=True, capture_output=True)
        before = newest()
        free = shutil.disk_usage(place).free
        # Room for rows of tables, but not for another checkpoint.
        (place / "ballast").write_bytes(bytes(max(0, free - 300_000)))
        full = subprocess.run(command(workdir), capture_output=True, text=True)
        said = [x for x in full.stderr.splitlines() if x.startswith(("error", "warning"))]
        results["full"] = {"exit_code": full.returncode, "said": said[-3:], "before": before}
        results["full"] |= {"whole_after": newest(), "traceback": "Traceback" in full.stderr}
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        only = subprocess.run(command(workdir), capture_output=True, text=True)
        said = only.stderr.splitlines()
        results["read_only"] = {"exit_code": only.returncode, "said": said[-3:]}
        results["read_only"] |= {"whole_after": newest(), "traceback": "Traceback" in only.stderr}
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        (place / "ballast").unlink()
        after = subprocess.run(command(workdir), capture_output=True, text=True)
        results["space_again"] = {"exit_code": after.returncode, "whole_after": newest()}
    finally:
        subprocess.run(["umount", place], check=True)
    return results


def stopped(folder: Path, draw: random.Random) -> dict[str, Any]:
    """Seconds from each signal to the end of the process, and its exit code."""
    results = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        workdir = folder / f"signal-{number}"
        process = subprocess.Popen(
            command(workdir), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not checkpoint.steps(workdir / "checkpoints"):
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.5))
        begin = time.monotonic()
        process.send_signal(number)
        process.wait(timeout=60)
        about = json.loads((workdir / "run.json").read_text())
        steps = checkpoint.steps(workdir / "checkpoints")
        results[number.name] = {
            "exit_code": process.returncode, "seconds": round(time.monotonic() - begin, 2),
            "saved_all": steps[-1] == about["decisions_per_seed"],
        }  # fmt: skip
    return results


def keep(results: dict[str, Any], out: Path | None) -> None:
    """Write ``results`` as JSON if ``out`` is given."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(out, results)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--task", default="", help="of the runs that are killed")
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--flips", type=int, default=1_000)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--disk", type=int, default=1)
    parser.add_argument("--signals", type=int, default=1)
    parser.add_argument("--saves", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    # Not at the top: that module uses this one.
    from experiments.benchmarks import faults_processes

    xla.save_memory()
    xla.use_cache(str(Path.home() / ".cache/pomcp_jax/xla"))
    draw, results = random.Random(args.seed), {"seed": args.seed}

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, tuple[int, Callable[[], Any]]] = {
            "kills": (args.kills, lambda: kills(args.kills, draw, folder, args.task)),
            "processes": (
                args.processes,
                lambda: faults_processes.kills(args.processes, draw, folder),
            ),
            "signals": (args.signals, lambda: stopped(folder, draw)),
            "disk": (args.disk, lambda: disk(folder)),
            "flips": (args.flips, lambda: damage.flips(args.flips, draw, folder)),
            "mutations": (
                args.mutations,
                lambda: damage.mutations(args.mutations, draw, folder),
            ),
            "saves": (args.saves, lambda: damage.saves(args.saves, folder)),
        }
        for part, (wanted, measure) in parts.items():
            if wanted:
                results[part] = measure()
                print(json.dumps({part: results[part]}), flush=True)
    keep(
        results | process.describe(process.command("experiments.benchmarks.faults", sys.argv)),
        args.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(streams.guarded(main))
