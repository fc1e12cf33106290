"""HumanoidBench's tasks under random actions: time of a control step, ends, non-finite numbers.

    python -m experiments.benchmarks.humanoid humanoid/h1hand-walk --steps=100000

Times of a control step are for one environment and for a batch: CPU time of all threads, and wall
clock, each the minimum over many compiled loops. The model files: docs/environments.md.
"""

import argparse
import statistics
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pomcp_jax import envs
from pomcp_jax.envs.protocol import Env
from pomcp_jax.types import PyTree

CHUNK, LOOP = 250, 10
"""Control steps per call of the compiled loops: of the soak, and of what is timed."""


class Soak(NamedTuple):
    """Counts over all control steps of all rows."""

    steps: int
    episodes: int
    terminated: int
    nonfinite: int
    """Steps that were masked as invalid, and non-finite numbers that were not."""
    returns: list[float]
    """Of finished episodes."""


def soak(env: Env, steps: int, batch: int, seed: int = 0) -> Soak:
    """Play ``steps`` control steps of uniform random actions, in ``batch`` environments."""

    def one(carry: tuple, key: jax.Array) -> tuple:
        actions = jax.random.uniform(key, (batch, env.action_size), minval=-1.0, maxval=1.0)
        state, out = env.step(carry, actions)
        bad = jnp.sum(~jnp.isfinite(out.obs)) + jnp.sum(~jnp.isfinite(out.reward))
        bad += jnp.sum(out.invalid)
        return state, (out.terminated, out.terminated | out.truncated, bad, out.episode_return)

    play = jax.jit(lambda state, keys: jax.lax.scan(one, state, keys))
    key = jax.random.key(seed)
    state, _ = jax.jit(env.reset)(jax.random.split(jax.random.fold_in(key, 0), batch))
    done = ended = over = bad = 0
    returns: list[float] = []
    while done < steps:
        keys = jax.random.split(jax.random.fold_in(key, 1 + done), CHUNK)
        state, (terminated, last, broken, total) = play(state, keys)
        done += CHUNK * batch
        ended, over = ended + int(terminated.sum()), over + int(last.sum())
        bad += int(broken.sum())
        returns += np.asarray(total)[np.asarray(last)].tolist()
    return Soak(done, over, ended, bad, returns)


def seconds(env: Env, batch: int, repeats: int = 60) -> tuple[float, float]:
    """CPU and wall-clock seconds of one control step of a batch, the minimum over ``repeats``.

    Each is the average of a compiled loop of ten, which starts at a fresh episode.
    """
    keys = jax.random.split(jax.random.key(0), (repeats, batch))
    reset = jax.jit(env.reset)

    def one(state: PyTree, key: jax.Array) -> tuple:
        return env.step(state, jax.random.uniform(key, (batch, env.action_size), minval=-1.0))

    play = jax.jit(lambda state, keys: jax.lax.scan(one, state, keys))
    cpu, wall = [], []
    for own in keys:
        state, _ = jax.block_until_ready(reset(own))
        begin = time.process_time(), time.perf_counter()
        jax.block_until_ready(play(state, jax.random.split(own[0], LOOP)))
        cpu.append((time.process_time() - begin[0]) / LOOP)
        wall.append((time.perf_counter() - begin[1]) / LOOP)
    return min(cpu), min(wall)


def _mean(returns: list[float]) -> str:
    """Mean and half of its 95 % interval, from the standard error."""
    if len(returns) < 2:
        return "unknown"
    half = 1.96 * statistics.stdev(returns) / len(returns) ** 0.5
    return f"{statistics.fmean(returns):.2f} +- {half:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--steps", type=int, default=0, help="random control steps (default 0)")
    parser.add_argument("--batch", type=int, default=16, help="environments (default 16)")
    args = parser.parse_args()
    for name in args.tasks:
        try:
            env = envs.make(name, backend=envs.about(name).backend or "host")
        except (OSError, ValueError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 2
        for batch in (1, args.batch):
            cpu, wall = (1e3 * x for x in seconds(env, batch))
            print(f"{name} B={batch}: {cpu:.2f} ms of CPU, {wall:.2f} ms", flush=True)
        if args.steps:
            done = soak(env, args.steps, args.batch)
            print(
                f"{name} {done.steps:,} random steps: {done.nonfinite} non-finite,"
                f" {done.episodes} episodes, {done.terminated} terminated,"
                f" return {_mean(done.returns)}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
