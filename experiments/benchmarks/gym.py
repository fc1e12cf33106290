"""gymnasium's environments in a compiled loop beside a plain Python loop.

    python -m experiments.benchmarks.gym [name ...] [--episodes=20] [--rounds=15]

Equality: one row plays whole episodes of random actions inside one compiled program, and
gymnasium plays them in a Python loop with the same seeds; every observation, reward and flag is
compared, bit for bit. Overhead: both step the first environment for blocks of 500 steps in turn,
without an agent; the plain loop calls ``env.step`` and stores what it returns. Prints CPU time of
a step (of all threads) and wall-clock, medians over the rounds, and the median of their ratios.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import xla
from experiments.benchmarks.timing import exclusive
from pomcp_jax import envs
from pomcp_jax.envs.adapters.gymnasium_rows import make, seed_of
from pomcp_jax.envs.protocol import Env

NAMES = ("HalfCheetah-v5", "Humanoid-v5", "Pendulum-v1", "InvertedDoublePendulum-v5")
BLOCK = 500
"""Steps of a block that is timed."""
FIELDS = ("obs", "reward", "terminated", "truncated", "is_first")


class Steps(NamedTuple):
    """What a loop has seen, one entry a call; first steps included."""

    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    is_first: np.ndarray


def random_actions(env: Env, steps: int, seed: int = 0) -> np.ndarray:
    """Uniform actions ``[steps, 1, A]``."""
    shape = steps, 1, env.action_size
    return np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)


def scaled(space: Any, actions: np.ndarray) -> np.ndarray:
    """Actions of ``[-1, 1]`` in the units of a box with bounds that are opposite."""
    if not (space.low == -space.high).all():
        raise ValueError(f"{space}: this comparison scales symmetric boxes only")
    return (space.high * actions[:, 0]).astype(space.dtype)


def plain(name: str, key: jax.Array, actions: np.ndarray) -> Steps:
    """The plain loop over the episodes of a row."""
    env, data = make(name, {}), np.asarray(jax.random.key_data(key)).tobytes()
    over, episode, rows = True, 0, []
    for action in scaled(env.action_space, np.concatenate([actions[:1], actions])):
        if over:
            obs, _ = env.reset(seed=seed_of(data, episode))
            reward, terminated, truncated, first = 0.0, False, False, True
            episode += 1
        else:
            obs, reward, terminated, truncated, _ = env.step(action)
            first = False
        over = terminated or truncated
        rows.append((obs, reward, terminated, truncated and not terminated, first))
    obs, reward, *flags = (np.stack(x) for x in zip(*rows, strict=True))
    return Steps(obs.astype(np.float32), reward.astype(np.float32), *flags)


def compiled(env: Env) -> Callable:
    """The same in one program: first time step, then a scan."""

    @jax.jit
    def run(keys: jax.Array, actions: jax.Array) -> Any:
        state, first = env.reset(keys)
        _, others = jax.lax.scan(env.step, state, actions)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b])[:, 0], first, others)

    return run


def compare(name: str, episodes: int) -> tuple[int, int, int]:
    """Episodes and steps that were compared, and steps that differ in any bit."""
    env, keys = envs.make(f"gym/{name}"), jax.random.split(jax.random.key(1), 1)
    run, seed, ended, steps, wrong = compiled(env), 0, 0, 0, 0
    while ended < episodes:
        actions = random_actions(env, min(1000, env.episode_length) + 1, seed)
        ours, theirs = run(keys, actions), plain(name, keys[0], actions)
        same = np.ones(len(theirs.reward), bool)
        for field, value in zip(FIELDS, theirs, strict=True):
            equal = np.asarray(getattr(ours, field)) == value
            same &= equal.reshape(len(same), -1).all(axis=1)
        ended += int(np.sum(theirs.terminated | theirs.truncated))
        steps, wrong, seed = steps + len(same), wrong + int(np.sum(~same)), seed + 1
        keys = jax.random.split(jax.random.key(1 + seed), 1)
    return ended, steps, wrong


def overhead(name: str, rounds: int) -> list[tuple[float, float, float, float]]:
    """CPU and wall-clock seconds of a step of the plain loop, then of ours, for every round."""
    env, own = envs.make(f"gym/{name}"), make(name, {})
    actions = random_actions(env, BLOCK)
    state, _ = env.reset(jax.random.split(jax.random.key(0), 1))
    step = jax.jit(lambda state, actions: jax.lax.scan(env.step, state, actions)).lower(
        state, actions
    ).compile()  # fmt: skip
    moves, obs = scaled(own.action_space, actions), np.empty((BLOCK, env.observation_size))
    reward, ends = np.empty(BLOCK), np.empty((BLOCK, 2), bool)

    def loop() -> None:
        for t, action in enumerate(moves):
            obs[t], reward[t], *ends[t], _ = own.step(action)

    def timed(function: Callable) -> tuple[float, float]:
        begin = time.process_time(), time.perf_counter()
        function()
        return (
            (time.process_time() - begin[0]) / BLOCK,
            (time.perf_counter() - begin[1]) / BLOCK,
        )

    out = []
    for _ in range(rounds):
        own.reset(seed=0)
        theirs = timed(loop)
        state, _ = jax.block_until_ready(env.reset(jax.random.split(jax.random.key(0), 1)))
        ours = timed(lambda state=state: jax.block_until_ready(step(state, actions)))
        out.append((*theirs, *ours))
    return out


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code, 1 if a step differs."""
    xla.save_memory()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=list(NAMES), metavar="name")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args(argv)
    differ = 0
    print("| environment | episodes | steps | steps that differ |\n|---|---|---|---|")
    for name in args.names:
        episodes, steps, wrong = compare(name, args.episodes)
        print(f"| {name} | {episodes} | {steps:,} | {wrong} |", flush=True)
        differ += wrong
    with exclusive():
        rounds = overhead(args.names[0], args.rounds)
    columns = list(zip(*rounds, strict=True))
    print(f"\n{args.names[0]}, one environment, microseconds of a step:")
    for i, kind in enumerate(("CPU time", "wall-clock")):
        ratio = statistics.median(b / a for a, b in zip(columns[i], columns[i + 2], strict=True))
        a, b = (1e6 * statistics.median(columns[k]) for k in (i, i + 2))
        print(f"{kind}: plain loop {a:.1f}, compiled {b:.1f}, ratio {ratio:.2f}")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
