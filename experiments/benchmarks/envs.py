"""Speed of the environments as a markdown table.

    python -m experiments.benchmarks.envs [task ...] [--backend=mjx|host|warp]
        [--batches 1 8 16 64 512] [--out=DIR]
    python -m experiments.benchmarks.envs --table [--out=DIR]

One compiled loop of control steps with random actions, resets included, gives the seconds to
compile, the milliseconds of a control step of the whole batch, and the peak memory of a process
that measures one task with all its batches. Every task has its own process.

Times are given twice: wall-clock, and CPU time of all threads. On a shared machine the second is
the cost of the work. Results are one JSON file per task and backend, in which the faster of old and
new times is kept.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax

from experiments import xla
from experiments.benchmarks.timing import exclusive
from pomcp_jax import envs, files
from pomcp_jax.running import process

OUT = pathlib.Path("experiments/results/env_speed")
ONE_EACH = (
    "pendulum-swingup",
    "cartpole-swingup",
    "acrobot-swingup",
    "reacher-easy",
    "cheetah-run",
    "ball_in_cup-catch",
    "fish-swim",
    "finger-spin",
    "walker-walk",
    "hopper-hop",
    "quadruped-walk",
    "humanoid-walk",
    "dog-walk",
)
"""One task of each domain, the fast ones first."""


class Timed(NamedTuple):
    """Seconds of wall-clock, and CPU seconds of all threads."""

    wall: float
    threads: float


def clock() -> Timed:
    """The present time."""
    return Timed(time.perf_counter(), time.process_time())


def since(start: Timed, parts: int = 1) -> Timed:
    """Time since ``start``, divided by ``parts``."""
    return Timed(*((b - a) / parts for a, b in zip(start, clock(), strict=True)))


class Speed(NamedTuple):
    """One measurement, in seconds."""

    compiling: Timed
    step: Timed
    """The median over runs of one control step of the batch."""


def speed(name: str, batch: int, backend: str, seconds: float = 2.0, runs: int = 9) -> Speed:
    """Compile a loop of control steps and time it, in runs of about ``seconds / runs``."""
    env = envs.make(name, backend=backend)

    @jax.jit
    def run(state: envs.EnvState, key: jax.Array, steps: jax.Array) -> envs.EnvState:
        def body(i: jax.Array, now: envs.EnvState) -> envs.EnvState:
            shape = (batch, env.action_size)
            noise = jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-1, maxval=1)
            return env.step(now, noise)[0]

        return jax.lax.fori_loop(0, steps, body, state)

    state, _ = jax.jit(env.reset)(jax.random.split(jax.random.key(0), batch))
    start = clock()
    # Compiled ahead of time, so that the first timed call does nothing but run.
    compiled = run.lower(state, jax.random.key(0), 1).compile()
    compiling = since(start)

    def timed(state: envs.EnvState, seed: int, steps: int) -> tuple[envs.EnvState, Timed]:
        start = clock()
        state = jax.block_until_ready(compiled(state, jax.random.key(seed), steps))
        return state, since(start, steps)

    times = []
    with exclusive():
        # Skip the first steps: while bodies fall there are few contacts, and steps are cheap.
        state, _ = timed(state, 0, 5)
        state, first = timed(state, 1, 5)
        steps = max(1, min(1000, int(seconds / runs / max(first.wall, 1e-6))))
        for i in range(runs):
            state, took = timed(state, 2 + i, steps)
            times.append(took)
    return Speed(compiling, Timed(*(statistics.median(t) for t in zip(*times, strict=True))))


def measure(name: str, backend: str, batches: list[int]) -> dict[str, Any]:
    """Times of all batches of a task, as JSON."""
    measured: dict[str, Any] = {
        "task": name,
        "backend": backend,
        **process.describe(process.command("experiments.benchmarks.envs", sys.argv)),
    }
    speeds = {str(batch): speed(name, batch, backend) for batch in batches}
    measured["step_ms"] = {b: [1e3 * x for x in timing.step] for b, timing in speeds.items()}
    measured["compile_s"] = {b: list(timing.compiling) for b, timing in speeds.items()}
    return measured | {"peak_memory_gb": process.peak_memory_gb()}


def keep_faster(new: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """``new`` with the minimum of its times and those in ``path``.

    Interference by other processes only ever adds time: the minimum is the better estimate.
    """
    if not path.exists():
        return new
    old = json.loads(path.read_text())
    for kind in ("step_ms", "compile_s"):
        new[kind] = dict(old[kind]) | {
            batch: [min(x) for x in zip(values, old[kind].get(batch, values), strict=True)]
            for batch, values in new[kind].items()
        }
    new["peak_memory_gb"] = max(new["peak_memory_gb"], old["peak_memory_gb"])
    return new


def write(path: pathlib.Path, results: list[dict[str, Any]]) -> None:
    """Write a row for each task and batch, as other benchmarks do."""
    found = [
        {
            "task": result["task"],
            "backend": result["backend"],
            "batch": batch,
            "step, ms": step[0],
            "compile, s": result["compile_s"][batch][0],
        }
        for result in results
        for batch, step in result["step_ms"].items()
    ]
    about = process.describe(process.command("experiments.benchmarks.envs", sys.argv))
    files.write_json(path, {"rows": found, **about})


def table(results: list[dict[str, Any]]) -> str:
    """Markdown table of wall-clock / CPU times; a dash for what was not measured."""
    batches = sorted({int(b) for result in results for b in result["step_ms"]})
    heads = "".join(f" B={batch}, ms |" for batch in batches)
    lines = [f"| task | backend | compile, s |{heads} peak GB |"]
    lines.append("|---|---|---|" + "---|" * (len(batches) + 1))
    for result in results:
        compiling = zip(*result["compile_s"].values(), strict=True)
        cells = [" / ".join(f"{statistics.median(x):.0f}" for x in compiling)]
        for batch in batches:
            values = result["step_ms"].get(str(batch))
            cells.append("-" if values is None else " / ".join(f"{x:.2g}" for x in values))
        cells.append(f"{result['peak_memory_gb']:.1f}")
        lines.append(f"| {result['task']} | {result['backend']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _file(out: pathlib.Path, name: str, backend: str) -> pathlib.Path:
    return out / f"{name.replace('/', '_')}.{backend}.json"


def main() -> None:
    xla.save_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--backend", default="mjx")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 16, 64, 512])
    parser.add_argument("--table", action="store_true", help="print earlier results and stop")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    parser.add_argument("--json", type=pathlib.Path, help="file of the wall-clock times, as rows")
    args = parser.parse_args()
    names = args.tasks or list(ONE_EACH)
    if args.table:
        order = {name: i for i, name in enumerate(ONE_EACH)}
        results = [json.loads(path.read_text()) for path in args.out.glob("*.json")]
        print(table(sorted(results, key=lambda x: (x["backend"], order.get(x["task"], 99)))))
        return
    if len(names) > 1:  # a process each: peak memory is that of a process, and never falls
        options = ["--backend", args.backend, "--out", str(args.out)]
        options += ["--batches", *map(str, args.batches)]
        measured: list[dict[str, Any]] = []
        for name in names:
            command = [sys.executable, "-m", "experiments.benchmarks.envs", name, *options]
            subprocess.run(command, check=True)
            measured.append(json.loads(_file(args.out, name, args.backend).read_text()))
            if args.json:
                write(args.json, measured)
        return
    for name in names:
        envs.check_name(name)
        path = _file(args.out, name, args.backend)
        result = keep_faster(measure(name, args.backend, args.batches), path)
        args.out.mkdir(parents=True, exist_ok=True)
        files.write_json(path, result)
        print(table([result]), flush=True)
        if args.json:
            write(args.json, [result])


if __name__ == "__main__":
    main()
