"""Speed of the environments, as a markdown table.

    python -m experiments.benchmarks.envs [task ...] [--backend=mjx|host] [--batches 1 16 128]

Measured inside one ``lax.scan`` under random actions, resets included: the
seconds to compile it, milliseconds of one control step of the whole batch, and
what a process with the largest batch adds to its memory.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import jax

from experiments import record, xla
from pomcp_jax import envs


class Speed(NamedTuple):
    """One measurement."""

    compile_s: float
    step_ms: float


def speed(name: str, batch: int, backend: str, seconds: float = 2.0, runs: int = 5) -> Speed:
    """Seconds to compile a scan of control steps, and milliseconds of one of them.

    The scan's length is traced, and chosen so that a run takes about ``seconds / runs``.
    """
    env = envs.make(name, backend=backend)

    @jax.jit
    def run(state: envs.EnvState, key: jax.Array, steps: jax.Array) -> envs.EnvState:
        def body(i: jax.Array, now: envs.EnvState) -> envs.EnvState:
            shape = (batch, env.action_size)
            noise = jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-1, maxval=1)
            return env.step(now, noise)[0]

        return jax.lax.fori_loop(0, steps, body, state)

    state, _ = jax.jit(env.reset)(jax.random.split(jax.random.key(0), batch))
    start = time.perf_counter()
    compiled = run.lower(state, jax.random.key(0), 1).compile()
    compile_s = time.perf_counter() - start

    def timed(state: envs.EnvState, seed: int, steps: int) -> tuple[envs.EnvState, float]:
        start = time.perf_counter()
        state = jax.block_until_ready(compiled(state, jax.random.key(seed), steps))
        return state, time.perf_counter() - start

    state, _ = timed(state, 0, 5)
    state, first = timed(state, 1, 5)
    steps = max(5, min(1000, int(seconds / runs / (first / 5))))
    times = []
    for i in range(runs):
        state, took = timed(state, 2 + i, steps)
        times.append(took / steps)
    return Speed(compile_s, 1e3 * statistics.median(times))


def main() -> None:
    xla.save_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--backend", default="mjx")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16, 128])
    args = parser.parse_args()
    names = args.tasks or envs.dm_control_tasks(extra=False)
    print("| task | compile s |" + "".join(f" B={b}, ms |" for b in args.batches) + " peak GB |")
    print("|---|---|" + "---|" * (len(args.batches) + 1), flush=True)
    for name in names:
        rows = [speed(name, batch, args.backend) for batch in args.batches]
        compile_s = statistics.median(row.compile_s for row in rows)
        cells = "".join(f" {row.step_ms:.3g} |" for row in rows)
        peak = record.peak_memory_gb()
        print(f"| {name} | {compile_s:.0f} |{cells} {peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
