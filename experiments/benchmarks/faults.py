"""What happens to runs when processes are killed, disks fill up and files damage.

    python -m experiments.benchmarks.faults [--kills=200] [--flips=1000] [--mutations=10000]
        [--saves=20] [--seed=0] [--out=experiments/results/faults.json]

Runs and processes are real ones, of the debug configuration (two seeds). Prints a line for
every measurement; docs/reliability.md has the table. ``0`` leaves a part out. Parts:

kills      a run is killed by SIGKILL again and again (of four times twice inside a save, once
           while it trains, once while it starts) and started again by the same command line
           until it is complete; then again from nothing until the number is reached. Every
           completed run is compared with one that was left alone: all arrays, and all rows of
           the tables without wall-clock columns.
signals    SIGTERM, SIGINT, SIGHUP: how soon the process ends, and whether it saved its last chunk.
flips      random single bits of a whole checkpoint; every file truncated, emptied, deleted.
mutations  random changes of manifests whose own digest is right.
disk       a file system that is too small, one that is read-only (needs to mount a tmpfs).
saves      what saving costs: seconds, and the longest time for which training stood still.
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
"""Columns of the tables that are wall-clock."""
OPTIONS = (
    "--config.train.num_seeds=2",
    "--config.train.chunk_decisions=20",
    "--config.train.checkpoint_decisions=20",
)

KINDS = ("save", "training", "save", "start")


def command(workdir: Path) -> list[str]:
    """Of a run with many chunks and a checkpoint after each."""
    return [
        sys.executable, "-m", "experiments.run", f"--config={CONFIG}", *OPTIONS,
        f"--workdir={workdir}",
    ]  # fmt: skip


def whole_run(workdir: Path) -> None:
    """Train without disturbance."""
    subprocess.run(command(workdir), check=True, capture_output=True)


def rows(path: Path) -> list[dict[str, str]]:
    """A table without its clocks."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)]


def saved(place: Path) -> dict[str, tuple[Any, ...]]:
    """All arrays of a checkpoint: type, shape and bytes."""
    return {
        f"{item} {name}": (x.dtype, x.shape, x.tobytes())
        for item in ("agent", "run")
        for name, x in arrays.read(place / item, arrays.stored(place / item)).items()
    }


def differences(workdir: Path, wanted: Path) -> list[str]:
    """Names of arrays and tables in which two completed runs differ."""
    step = checkpoint.steps(wanted / "checkpoints")[-1]
    ours, theirs = (saved(w / "checkpoints" / str(step)) for w in (workdir, wanted))
    found = [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]
    tables = ("metrics.csv", "evaluations.csv")
    return found + [name for name in tables if rows(workdir / name) != rows(wanted / name)]


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written right now."""
    return any((workdir / "checkpoints").glob(".*.partial"))


def kill_once(workdir: Path, draw: random.Random, when: str) -> dict[str, Any]:
    """Start or resume, kill at some instant, and look at what is left.

    ``when`` is ``save``, ``training`` or ``start``.

    Returns:
      ``ended``: the run was complete before it could be killed; ``code``; ``in_save``;
      ``lost``: the newest checkpoint before the kill cannot be read; ``unreadable``: what cannot.
    """
    process = subprocess.Popen(command(workdir), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    folder = workdir / "checkpoints"
    held = set(checkpoint.steps(folder))
    while when != "start" and process.poll() is None and set(checkpoint.steps(folder)) <= held:
        time.sleep(0.002)
    until = time.monotonic() + draw.uniform(0.0, 20.0 if when == "start" else 1.0)
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    while when == "save" and process.poll() is None and not saving(workdir):
        time.sleep(0.0005)
    if when == "save":
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
            found = checkpoint.read(folder, step)
            digests.verify(folder / str(step), found.files, ("agent", "run"))
        except CheckpointError as error:
            unreadable.append(str(error))
    kept = checkpoint.steps(folder)
    lost = bool(acknowledged) and (not kept or kept[-1] < acknowledged[-1])
    return {
        "ended": ended, "code": process.returncode, "in_save": in_save, "lost": lost,
        "unreadable": unreadable, "errors": errors if ended and process.returncode else "",
    }  # fmt: skip


def kills(count: int, draw: random.Random, folder: Path) -> dict[str, Any]:
    """``count`` kills; see the module."""
    wanted = folder / "undisturbed"
    whole_run(wanted)
    done = in_save = unreadable = lost = refused = runs = different = 0
    begin = time.monotonic()
    while done < count or runs == 0:
        workdir = folder / f"killed-{runs}"
        while True:
            if done >= count:
                whole_run(workdir)
                break
            result = kill_once(workdir, draw, KINDS[done % len(KINDS)])
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
    """Runs on a file system that fills up, and on one that turns read-only."""
    place = folder / "tmpfs"
    place.mkdir()
    workdir, found = place / "run", {}

    def newest() -> list[int]:
        steps = checkpoint.steps(workdir / "checkpoints")
        for step in steps:
            held = checkpoint.read(workdir / "checkpoints", step)
            digests.verify(workdir / "checkpoints" / str(step), held.files, ("agent", "run"))
        return steps

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], check=True)
    try:
        more = ["--config.train.total_decisions=400"]
        subprocess.run([*command(workdir), *more], check=True, capture_output=True)
        before = newest()
        free = shutil.disk_usage(place).free
        (place / "ballast").write_bytes(bytes(max(0, free - 300_000)))
        full = subprocess.run(command(workdir), capture_output=True, text=True)
        said = [x for x in full.stderr.splitlines() if x.startswith(("error", "warning"))]
        found["full"] = {"exit_code": full.returncode, "said": said[-3:], "before": before}
        found["full"] |= {"whole_after": newest(), "traceback": "Traceback" in full.stderr}
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        only = subprocess.run(command(workdir), capture_output=True, text=True)
        said = only.stderr.splitlines()
        found["read_only"] = {"exit_code": only.returncode, "said": said[-3:]}
        found["read_only"] |= {"whole_after": newest(), "traceback": "Traceback" in only.stderr}
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        (place / "ballast").unlink()
        after = subprocess.run(command(workdir), capture_output=True, text=True)
        found["space_again"] = {"exit_code": after.returncode, "whole_after": newest()}
    finally:
        subprocess.run(["umount", place], check=True)
    return found


def stopped(folder: Path, draw: random.Random) -> dict[str, Any]:
    """Seconds from a signal to the end of the process, and its exit code."""
    found = {}
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
        found[number.name] = {
            "exit_code": process.returncode, "seconds": round(time.monotonic() - begin, 2),
            "saved_all": steps[-1] == about["decisions_per_seed"],
        }  # fmt: skip
    return found


def keep(found: dict[str, Any], out: Path | None) -> None:
    """Write what was found, if somebody wants it."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(out, found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--flips", type=int, default=1_000)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--disk", type=int, default=1)
    parser.add_argument("--signals", type=int, default=1)
    parser.add_argument("--saves", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    xla.save_memory()
    xla.use_cache(str(Path.home() / ".cache/pomcp_jax/xla"))
    draw, found = random.Random(args.seed), {"seed": args.seed}

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, tuple[int, Callable[[], Any]]] = {
            "kills": (args.kills, lambda: kills(args.kills, draw, folder)),
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
                found[part] = measure()
                print(json.dumps({part: found[part]}), flush=True)
    keep(
        found | process.describe(process.command("experiments.benchmarks.faults", sys.argv)),
        args.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(streams.guarded(main))
