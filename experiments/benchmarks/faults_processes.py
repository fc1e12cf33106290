"""Fault injection for one run over two processes: one is killed, the other must end by itself."""

import random
import shutil
import signal
import socket
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks import faults
from experiments.clock import TIME_IS_UP
from pomcp_jax import checkpoint, parts

KINDS = ("training", "save", "start", "training")
"""Instants of the kills, in turn."""
PARTS = parts.shares(0, 2, 2)


def start(workdir: Path, port: int) -> list[subprocess.Popen]:
    """Start or resume both processes."""
    return [
        subprocess.Popen(
            [
                *faults.command(workdir), f"--coordinator=127.0.0.1:{port}", "--num_processes=2",
                f"--process_id={i}", "--join_timeout=300",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]  # fmt: skip


def free_port() -> int:
    """A TCP port that no program uses at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _await(when: str, folders: list[Path], running: list[subprocess.Popen], draw: Any) -> None:
    """Return at the instant of a kill, or when a process has ended."""

    def ended() -> bool:
        return any(process.poll() is not None for process in running)

    before = [checkpoint.steps(folder) for folder in folders]
    record = folders[0].parents[1] / parts.RECORD
    old = record.stat().st_mtime_ns if record.exists() else None
    if when == "start":  # a process that is killed before it joins is missing, which is another end
        while not ended() and old == (record.stat().st_mtime_ns if record.exists() else None):
            time.sleep(0.002)
        until = time.monotonic() + draw.uniform(0.0, 5.0)
    else:
        while not ended() and [checkpoint.steps(folder) for folder in folders] == before:
            time.sleep(0.002)
        until = time.monotonic() + draw.uniform(0.0, 3.0)
    while not ended() and time.monotonic() < until:
        time.sleep(0.002)
    while when == "save" and not ended() and not any(map(_saving, folders)):
        time.sleep(0.0005)


def _saving(folder: Path) -> bool:
    return any(folder.glob(".*.partial"))


def kill_once(workdir: Path, draw: random.Random, when: str) -> dict[str, Any]:
    """Start or resume the run and kill one of its processes at a random instant.

    Returns:
      ``ended``: a process had ended before; ``codes`` of both; ``victim``; ``seconds`` until the
      other one ended; ``said``: its last line.
    """
    folders = [workdir / part.folder / "checkpoints" for part in PARTS]
    running = start(workdir, free_port())
    _await(when, folders, running, draw)
    ended = any(process.poll() is not None for process in running)
    victim = draw.randrange(2)
    begin = time.monotonic()
    if not ended:
        running[victim].kill()
    said = [process.communicate()[1].splitlines()[-1:] for process in running]
    seconds = time.monotonic() - begin
    codes = [process.returncode for process in running]
    return {
        "ended": ended, "codes": codes, "victim": victim, "seconds": seconds,
        "said": said[1 - victim],
    }  # fmt: skip


def whole_run(workdir: Path) -> list[int]:
    """Run both processes to their end; their exit codes."""
    running = start(workdir, free_port())
    for process in running:
        process.communicate()
    return [process.returncode for process in running]


def kills(count: int, draw: random.Random, folder: Path) -> dict[str, Any]:
    """Kill a process of a run ``count`` times; each completed run is compared with another one."""
    wanted = folder / "two-undisturbed"
    refused = int(whole_run(wanted) != [0, 0])
    done = runs = different = others = 0
    seconds: list[float] = []
    begin = time.monotonic()
    while done < count or runs == 0:
        workdir = folder / f"two-killed-{runs}"
        while done < count:
            result = kill_once(workdir, draw, KINDS[done % len(KINDS)])
            if result["ended"]:
                break
            survivor = result["codes"][1 - result["victim"]]
            others += survivor != TIME_IS_UP or result["codes"][result["victim"]] != -signal.SIGKILL
            seconds.append(result["seconds"])
            done += 1
            print(result, flush=True)
        refused += whole_run(workdir) != [0, 0]
        names = [part.folder for part in PARTS]
        different += any(faults.differences(workdir / name, wanted / name) for name in names)
        runs += 1
        shutil.rmtree(workdir)
    return {
        "kills": done, "survivors_with_another_code": others, "restarts_refused": refused,
        "seconds_until_the_other_ended": {
            "median": round(statistics.median(seconds), 2), "max": round(max(seconds), 2),
        },
        "runs_completed": runs, "runs_that_differ": different,
        "seconds": round(time.monotonic() - begin, 1),
    }  # fmt: skip
