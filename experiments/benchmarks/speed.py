"""Speed of planning and learning, as markdown tables; every ratio comes from one process.

    taskset -c 0,1 python -m experiments.benchmarks.speed efficiency [--size=5M --size=small]
    taskset -c 0,1 python -m experiments.benchmarks.speed seeds [--seeds 1 4]
    taskset -c 0,1 python -m experiments.benchmarks.speed capacity
    taskset -c 0 python -m experiments.benchmarks.speed methods --suite=replanning
    taskset -c 0,1 python -m experiments.benchmarks.speed startup

Efficiency is the arithmetic that the method needs (:func:`plan_flops`, :func:`update_flops`), over
time, over the float32 rate of a 1024^3 matrix product in the same process.
"""

import argparse
import functools
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments import reproduce, suites
from experiments.benchmarks.timing import exclusive
from pomcp_jax import acting, agent, envs, presets, replay, train
from pomcp_jax import config as config_lib
from pomcp_jax.config import AgentConfig, Config
from pomcp_jax.train import Program, Work

OBS, ACTIONS = 24, 6
SMALL_PLAN = {
    "mppi.num_samples": 128,
    "mppi.iterations": 4,
    "mppi.num_elites": 16,
    "optimizer.batch_size": 128,
}


def agent_config(size: str, preset: str = "po_mpc") -> AgentConfig:
    """The preset at a size; sizes below 1M with a plan to match."""
    config = presets.with_size(presets.get(preset), size)
    return config_lib.replace(config, SMALL_PLAN) if size in ("tiny", "small") else config


def mlp(*sizes: int) -> int:
    """Floating point operations of one row through linear layers of these sizes."""
    return sum(2 * a * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))


def layers(config: AgentConfig) -> dict[str, int]:
    """Operations of one row through each network (Q critic)."""
    model = config.world_model
    z, m = model.latent_size, model.mlp_width
    hidden = (model.encoder_width,) * max(model.encoder_layers - 1, 1)
    return {
        "encoder": mlp(OBS, *hidden, z),
        "dynamics": mlp(z + ACTIONS, m, m, z),
        "reward": mlp(z + ACTIONS, m, m, model.num_bins),
        "head": mlp(z + ACTIONS, m, m, model.num_bins),
        "policy": mlp(z, m, m, 2 * ACTIONS),
    }


def plan_flops(config: AgentConfig) -> float:
    """One plan: samples scored in every iteration, proposals once, two value heads at the tail."""
    n, plan = layers(config), config.mppi
    sequence = plan.horizon * (n["dynamics"] + n["reward"]) + n["policy"] + 2 * n["head"]
    free = plan.num_samples - plan.num_proposals
    proposals = plan.num_proposals * (sequence + plan.horizon * n["policy"])
    return float(plan.iterations * free * sequence + proposals)


def update_flops(config: AgentConfig) -> float:
    """One update; a backward pass costs twice its forward pass, half of that to the input only."""
    n, horizon, batch = layers(config), config.mppi.horizon, config.optimizer.batch_size
    heads, learned = config.world_model.num_heads, config.policy.prior == "learned"
    encoded = (horizon + 1 + 2) * n["encoder"]
    target = horizon * (n["policy"] + 2 * n["head"])
    model = 3 * horizon * (n["dynamics"] + n["reward"] + heads * n["head"])
    states = horizon + 1
    policy = states * (3 * n["policy"] + 2 * 2 * n["head"])
    prior = states * (3 + 1) * n["policy"] if learned else 0
    return float(batch * (encoded + target + model + policy + prior))


def median_ms(function: Callable[[], Any], runs: int) -> float:
    """Median milliseconds of a call, after one that is not counted."""
    jax.block_until_ready(function())
    times = []
    with exclusive():
        for _ in range(runs):
            start = time.perf_counter()
            jax.block_until_ready(function())
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def repeated(function: Callable, times: int, *args: Any) -> Callable[[], Any]:
    """``function(i, *carry)`` looped ``times`` in one jitted call: dispatch does not count."""
    looped = jax.jit(
        lambda *carry: jax.lax.fori_loop(0, times, lambda i, c: function(i, *c), carry)
    )
    return lambda: looped(*args)


def matmul_rate(runs: int = 9) -> float:
    """Float32 operations per second of a 1024^3 matrix product."""
    a = jax.random.normal(jax.random.key(0), (1024, 1024))
    product = jax.jit(lambda a: a @ a)
    return 2 * 1024**3 / (1e-3 * median_ms(lambda: product(a), runs))


def plan_call(config: AgentConfig, num_envs: int, times: int) -> Callable[[], Any]:
    """``times`` decisions of a batch, each from the plan before it."""
    spec = acting.build(config, OBS, ACTIONS)
    params = agent.init(jax.random.key(0), config, spec).params
    obs = jax.random.normal(jax.random.key(1), (num_envs, OBS))
    first = jnp.zeros((num_envs,), bool)

    def decide(i, state, action):
        key = jax.random.fold_in(jax.random.key(2), i)
        out = acting.act(params, key, obs, state, first, spec=spec, config=config)
        return out.next_state, out.action

    action = jnp.zeros((num_envs, ACTIONS))
    return repeated(decide, times, acting.init_plan(config, spec, num_envs), action)


def update_call(config: AgentConfig, times: int) -> Callable[[], Any]:
    """``times`` updates on batches sampled from a ring of random rows."""
    spec = acting.build(config, OBS, ACTIONS)
    state = agent.init(jax.random.key(0), config, spec)
    ring = replay.init(2000, 1, OBS, ACTIONS)
    noise = lambda x: 0.3 * jax.random.normal(jax.random.key(3), x.shape)  # noqa: E731
    rows = ring.rows._replace(
        obs=noise(ring.rows.obs),
        action=noise(ring.rows.action),
        reward=noise(ring.rows.reward),
        last=jnp.zeros_like(ring.rows.last),
    )
    ring = replay.Replay(rows, jnp.int32(2000))

    def improve(i, state):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(4), i))
        length = config.mppi.horizon + 1
        batch = replay.sample(ring, keys[0], config.optimizer.batch_size, length)
        return (agent.update(state, batch, keys[1], spec=spec, config=config)[0],)

    return repeated(improve, times, state)


def efficiency(sizes: list[str]) -> None:
    print("| size | what | GFLOP | ms | GFLOP/s | matmul GFLOP/s | efficiency |")
    print("|---|---|---|---|---|---|---|")
    for size in sizes:
        config = agent_config(size)
        times = 4 if size not in ("tiny", "small") else 40
        calls = {
            "plan": (plan_flops(config), plan_call(config, 1, times)),
            "plan, batch 8": (8 * plan_flops(config), plan_call(config, 8, times)),
            "update": (update_flops(config), update_call(config, times)),
        }
        milliseconds = {}
        for what, (flops, call) in calls.items():
            rate = matmul_rate()
            ms = milliseconds[what] = median_ms(call, 7) / times
            rate = 0.5 * (rate + matmul_rate())
            done = flops / (1e-3 * ms)
            cells = (f"{flops / 1e9:.2f}", f"{ms:.2f}", f"{done / 1e9:.0f}", f"{rate / 1e9:.0f}")
            print(f"| {size} | {what} | " + " | ".join(cells) + f" | {done / rate:.2f} |")
        ratio = milliseconds["plan, batch 8"] / milliseconds["plan"]
        print(f"\n{size}: a batch of 8 plans costs {ratio:.2f} single ones\n", flush=True)


def run_program(config: Config) -> tuple[Program, Callable[[Work], float]]:
    """A seeded run, and a function that times one chunk of it, in ms."""
    program = train.build(
        config, envs.make(config.env.task, config.env.action_repeat, config.env.backend)
    )
    held = [program.init(config)]
    for work in program.seeding:
        held[0] = program.chunk(held[0], config, work)[0]

    def chunk(work: Work) -> float:
        start = time.perf_counter()
        held[0] = jax.block_until_ready(program.chunk(held[0], config, work)[0])
        return 1e3 * (time.perf_counter() - start)

    return program, chunk


def small_run(size: str, **changes: Any) -> Config:
    """A run on cartpole-swingup with some changes."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    base = {"env.num_envs": 4, "train.seed_decisions": 1000, "train.capacity": 10_000}
    return config_lib.replace(Config(agent=agent_config(size)), base | changes)


def compare(size: str, variants: dict[str, dict[str, Any]], runs: int = 7, steps: int = 25) -> None:
    """Decisions and updates of variants, run in turn."""
    chunks = {name: run_program(small_run(size, **v))[1] for name, v in variants.items()}
    works = {"decision": Work(1, steps, 0, False, True, False),
             "update": Work(1, 0, steps, False, True, False)}  # fmt: skip
    times: dict[tuple[str, str], list[float]] = {}
    for chunk in chunks.values():  # compiles
        for work in works.values():
            chunk(work)
    with exclusive():
        for _ in range(runs):
            for name, chunk in chunks.items():
                for what, work in works.items():
                    times.setdefault((name, what), []).append(chunk(work) / steps)
    first = next(iter(variants))
    print("| variant | step of 4 environments, ms | ratio | update, ms | ratio |")
    print("|---|---|---|---|---|")
    for name in variants:
        cells = []
        for what in works:
            ms = statistics.median(times[name, what])
            cells += [f"{ms:.2f}", f"{ms / statistics.median(times[first, what]):.2f}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def methods(name: str, runs: int = 5, decisions: int = 240) -> None:
    """Whole training steps of a suite's methods on its first task, run in turn.

    At half an update a decision ``decisions`` are 120 updates, a multiple of every interval there.
    """
    suite, nowhere = suites.get(name), pathlib.Path()
    plans = reproduce.make_plans(name, suite, nowhere, nowhere, tasks=suite.tasks[:1])
    programs = {plan.method: run_program(plan.config) for plan in plans}
    times: dict[str, list[float]] = {method: [] for method in programs}
    steps: dict[str, tuple[Work, int]] = {}
    for plan in plans:
        program, chunk = programs[plan.method]
        work, num_envs = program.training[0], plan.config.env.num_envs
        work = work._replace(groups=max(1, decisions // (work.iterations * num_envs)))
        steps[plan.method] = work, work.groups * work.iterations * num_envs
        chunk(work)  # compiles
    with exclusive():
        for _ in range(runs):
            for method, (work, done) in steps.items():
                times[method].append(programs[method][1](work) / done)
    median = {method: statistics.median(found) for method, found in times.items()}
    first = next(iter(median.values()))
    print("| method | a decision of every seed, ms | ratio |\n|---|---|---|")
    for method, ms in median.items():
        print(f"| {method} | {ms:.2f} | {ms / first:.2f} |", flush=True)


FIRST = """
import time; start = time.perf_counter()
import sys, jax
from experiments import xla
xla.save_memory()
xla.use_cache(sys.argv[1])
from experiments.benchmarks import speed
config = speed.agent_config("5M")
jax.block_until_ready(speed.plan_call(config, 1, 1)())
print(time.perf_counter() - start)
jax.block_until_ready(speed.update_call(config, 1)())
print(time.perf_counter() - start)
"""


def startup() -> None:
    """Seconds from the start of the process to the first action, then to the first update, 5M."""
    print("| cache | first action, s | first update, s |")
    print("|---|---|---|")
    with tempfile.TemporaryDirectory() as cache:
        for kind in ("cold", "warm"):
            command = [sys.executable, "-c", FIRST, cache]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            print(f"| {kind} | " + " | ".join(f"{float(x):.1f}" for x in out) + " |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("efficiency", "seeds", "capacity", "methods", "startup"))
    parser.add_argument("--size", action="append", help="of the world model; may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--suite", default="replanning")
    args = parser.parse_args()
    size = (args.size or ["small"])[0]
    parts = {
        "efficiency": functools.partial(efficiency, args.size or ["5M", "small"]),
        "seeds": lambda: compare(size, {f"{n} seeds": {"train__num_seeds": n} for n in args.seeds}),
        "capacity": lambda: compare(
            size, {f"{rows:,} rows": {"train__capacity": rows} for rows in (10_000, 1_000_000)}
        ),
        "methods": functools.partial(methods, args.suite),
        "startup": startup,
    }
    parts[args.what]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
