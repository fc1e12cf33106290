"""Speed of the environments, as a markdown table.

    python -m experiments.benchmarks.envs [task ...] [--backend=mjx|host|warp]
        [--batches 1 8 16 64 512] [--out=DIR]
    python -m experiments.benchmarks.envs --table [--out=DIR]

Measured inside one loop under random actions, resets included: the seconds to compile
it, milliseconds of one control step of the whole batch, and the peak memory of a process
that did this for one task and all its batches. Every task has a process of its own.

Seconds are given twice, on the wall and of all the process' threads together: on a
machine that others use, the second is what the work takes. One JSON file a task and
backend; what was measured before stays where it was faster.
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
"""A task of each domain, the quick ones first."""


class Timed(NamedTuple):
    """Seconds on the wall, and of the process' threads together."""

    wall: float
    threads: float


def clock() -> Timed:
    """Now."""
    return Timed(time.perf_counter(), time.process_time())


def since(start: Timed, parts: int = 1) -> Timed:
    """What has passed, per part."""
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
    compiled = run.lower(state, jax.random.key(0), 1).compile()
    compiling = since(start)

    def timed(state: envs.EnvState, seed: int, steps: int) -> tuple[envs.EnvState, Timed]:
        start = clock()
        state = jax.block_until_ready(compiled(state, jax.random.key(seed), steps))
        return state, since(start, steps)

    times = []
    with exclusive():
        # Past the first steps, in which many bodies still fall.
        state, _ = timed(state, 0, 5)
        state, first = timed(state, 1, 5)
        steps = max(1, min(1000, int(seconds / runs / max(first.wall, 1e-6))))
        for i in range(runs):
            state, took = timed(state, 2 + i, steps)
            times.append(took)
    return Speed(compiling, Timed(*(statistics.median(t) for t in zip(*times, strict=True))))


def measure(name: str, backend: str, batches: list[int]) -> dict[str, Any]:
    """All batches of a task, as JSON."""
    found: dict[str, Any] = {
        "task": name,
        "backend": backend,
        **process.describe(process.command("experiments.benchmarks.envs", sys.argv)),
    }
    speeds = {str(batch): speed(name, batch, backend) for batch in batches}
    found["step_ms"] = {b: [1e3 * x for x in one.step] for b, one in speeds.items()}
    found["compile_s"] = {b: list(one.compiling) for b, one in speeds.items()}
    return found | {"peak_memory_gb": process.peak_memory_gb()}


def keep_faster(new: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """``new`` with the smaller of its times and those in ``path``."""
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


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: wall / threads; a dash for what was not measured."""
    batches = sorted({int(b) for one in found for b in one["step_ms"]})
    heads = "".join(f" B={batch}, ms |" for batch in batches)
    lines = [f"| task | backend | compile, s |{heads} peak GB |"]
    lines.append("|---|---|---|" + "---|" * (len(batches) + 1))
    for one in found:
        compiling = zip(*one["compile_s"].values(), strict=True)
        cells = [" / ".join(f"{statistics.median(x):.0f}" for x in compiling)]
        for batch in batches:
            values = one["step_ms"].get(str(batch))
            cells.append("-" if values is None else " / ".join(f"{x:.2g}" for x in values))
        cells.append(f"{one['peak_memory_gb']:.1f}")
        lines.append(f"| {one['task']} | {one['backend']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    xla.save_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--backend", default="mjx")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 16, 64, 512])
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    names = args.tasks or list(ONE_EACH)
    if args.table:
        order = {name: i for i, name in enumerate(ONE_EACH)}
        found = [json.loads(path.read_text()) for path in args.out.glob("*.json")]
        print(table(sorted(found, key=lambda x: (x["backend"], order.get(x["task"], 99)))))
        return
    if len(names) > 1:
        options = ["--backend", args.backend, "--out", str(args.out)]
        options += ["--batches", *map(str, args.batches)]
        for name in names:
            command = [sys.executable, "-m", "experiments.benchmarks.envs", name, *options]
            subprocess.run(command, check=True)
        return
    for name in names:
        envs.check_name(name)
        path = args.out / f"{name.replace('/', '_')}.{args.backend}.json"
        found = keep_faster(measure(name, args.backend, args.batches), path)
        args.out.mkdir(parents=True, exist_ok=True)
        files.write_json(path, found)
        print(table([found]), flush=True)


if __name__ == "__main__":
    main()
