"""Speed of planning and learning; both parts of a ratio share a process.

    taskset -c 0,1 python -m experiments.benchmarks.speed efficiency [--size=5M --size=small]
    taskset -c 0,1 python -m experiments.benchmarks.speed seeds [--seeds 1 4]
    taskset -c 0,1 python -m experiments.benchmarks.speed cores [--seeds 2]
    taskset -c 0,1 python -m experiments.benchmarks.speed capacity
    taskset -c 0 python -m experiments.benchmarks.speed methods --suite=replanning
    taskset -c 0,1 python -m experiments.benchmarks.speed startup

Each prints a markdown table, and with ``--json=FILE`` writes its rows, complete after each row.
``--set FIELD=VALUE ...`` changes the agents of ``efficiency`` and the runs of ``seeds`` and
``capacity``: ``--set agent.world_model.arranged_for=gpu env.num_envs=1 env.task=walker-run``.

Efficiency is the arithmetic that the method needs (:func:`plan_flops`, :func:`update_flops`),
divided by the time and by the float32 rate of a 1024^3 matrix product in the same process.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments import arguments, devices, suites
from experiments.benchmarks import rows
from experiments.benchmarks.rows import Row
from experiments.benchmarks.timing import exclusive
from experiments.launchers import plans
from experiments.launchers.study import Study
from pomcp_jax import (
    acting,
    agent,
    calibration,
    envs,
    files,
    packing,
    presets,
    replay,
    train,
    validation,
)
from pomcp_jax import config as config_lib
from pomcp_jax.config import AgentConfig, Config
from pomcp_jax.errors import ConfigError
from pomcp_jax.running import cost, process
from pomcp_jax.train import Program, Work

OBS, ACTIONS = 24, 6
CHANGEABLE = ("efficiency", "seeds", "capacity")
"""What ``--set`` is for."""
SMALL_PLAN = {
    "mppi.num_samples": 128,
    "mppi.iterations": 4,
    "mppi.num_elites": 16,
    "optimizer.batch_size": 128,
}


def agent_config(size: str, preset: str = "po_mpc") -> AgentConfig:
    """Preset of a size; sizes below 1M get a smaller plan and batch."""
    config = presets.with_size(presets.get(preset), size)
    return config_lib.replace(config, SMALL_PLAN) if size in ("tiny", "small") else config


def plan_flops(config: AgentConfig) -> float:
    """Operations of a plan (:func:`pomcp_jax.running.cost.plan`)."""
    return cost.plan(config, OBS, ACTIONS).products


def update_flops(config: AgentConfig) -> float:
    """Operations of an update (:func:`pomcp_jax.running.cost.update`)."""
    return cost.update(config, OBS, ACTIONS).products


def median_ms(function: Callable[[], Any], runs: int) -> float:
    """Median milliseconds of a call, after a call that compiles."""
    jax.block_until_ready(function())
    times = []
    with exclusive():
        for _ in range(runs):
            start = time.perf_counter()
            jax.block_until_ready(function())
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def repeated(function: Callable, times: int, *args: Any) -> Callable[[], Any]:
    """Loop of ``function(i, *carry)`` in one jitted call, so that dispatch is not measured."""
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
    """Call of ``times`` decisions of a batch, each with the plan of the last as its warm start."""
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
    """Call of ``times`` updates on batches sampled from a ring of random rows."""
    spec = acting.build(config, OBS, ACTIONS)
    state = agent.init(jax.random.key(0), config, spec)
    if config.world_model.arranged_for == "gpu":  # as a chunk of training does, once
        state = packing.pack(state)
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
        batch = replay.sample(ring, keys[0], config.optimizer.batch_size, config.window + 1)
        seen = None
        if config.policy.kl_tuning == "calibrated":
            seen = calibration.draw(ring, keys[0], config)
        return (agent.update(state, batch, keys[1], spec=spec, config=config, outcomes=seen)[0],)

    return repeated(improve, times, state)


def efficiency(sizes: list[str], changes: dict[str, Any]) -> Iterator[Row]:
    """Plans and updates of each size: their arithmetic, time, and share of the machine's rate."""
    for size in sizes:
        config = config_lib.replace(Config(agent=agent_config(size)), changes).agent
        times = 4 if size not in ("tiny", "small") else 40
        calls = {
            "plan": (plan_flops(config), plan_call(config, 1, times)),
            "plan, batch 8": (8 * plan_flops(config), plan_call(config, 8, times)),
            "update": (update_flops(config), update_call(config, times)),
        }
        for what, (flops, call) in calls.items():
            # Before and after: the speed of a shared machine drifts.
            rate = matmul_rate()
            ms = median_ms(call, 7) / times
            rate = 0.5 * (rate + matmul_rate())
            done = flops / (1e-3 * ms)
            yield {
                "size": size,
                "what": what,
                "GFLOP": flops / 1e9,
                "ms": ms,
                "GFLOP/s": done / 1e9,
                "matmul GFLOP/s": rate / 1e9,
                "efficiency": done / rate,
            }


def run_program(config: Config) -> tuple[Program, Callable[[Work], float]]:
    """Program of a run after seeding, and a function that times one of its chunks, in ms."""
    program = train.build(
        config, envs.make(config.env.task, config.env.action_repeat, config.env.backend)
    )
    # Only the newest state may be used: a chunk donates the buffers of its argument.
    state = program.init(config)
    for work in program.seeding:
        state = program.chunk(state, config, work)[0]

    def chunk(work: Work) -> float:
        nonlocal state
        start = time.perf_counter()
        state = jax.block_until_ready(program.chunk(state, config, work)[0])
        return 1e3 * (time.perf_counter() - start)

    return program, chunk


def small_run(size: str, changes: dict[str, Any]) -> Config:
    """Configuration of a run on cartpole-swingup, with ``changes`` of fields."""
    base = {"env.num_envs": 4, "train.seed_decisions": 1000, "train.capacity": 10_000}
    return config_lib.replace(Config(agent=agent_config(size)), base | changes)


def compare(
    size: str, variants: dict[str, dict[str, Any]], runs: int = 7, steps: int = 25
) -> Iterator[Row]:
    """Times of steps of all environments, and of updates, of variants of a small run.

    Decisions per second are of all seeds and environments, with an update of each seed per
    decision. Variants alternate, so that slow phases of the machine hit all of them.
    """
    runs_of = {name: small_run(size, changes) for name, changes in variants.items()}
    chunks = {name: run_program(config)[1] for name, config in runs_of.items()}
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
    median = {of: statistics.median(milliseconds) for of, milliseconds in times.items()}
    first = next(iter(variants))
    for name in variants:
        step, update = median[name, "decision"], median[name, "update"]
        num_envs, num_seeds = runs_of[name].env.num_envs, runs_of[name].train.num_seeds
        row = {
            "variant": name,
            f"step of {num_envs} environment{'s' * (num_envs > 1)}, ms": step,
            "step's ratio": step / median[first, "decision"],
            "update, ms": update,
            "update's ratio": update / median[first, "update"],
            "decisions/s": 1e3 * num_seeds / (step / num_envs + update),
        }
        # One variant alone, as in each part of benchmarks.all, has nothing to be compared with.
        yield {key: x for key, x in row.items() if len(variants) > 1 or "ratio" not in key}


def cores(size: str, num_seeds: int) -> Iterator[Row]:
    """Times of one seed, and of several on one device of the CPU and on a device each."""
    devices.use(num_seeds)
    several = f"{num_seeds} seeds"
    yield from compare(
        size,
        {
            "1 seed": {"train.num_seeds": 1},
            f"{several} on one device": {"train.num_seeds": num_seeds, "train.num_devices": 1},
            f"{several} on a device each": {
                "train.num_seeds": num_seeds,
                "train.num_devices": num_seeds,
            },
        },
    )


def methods(name: str, runs: int = 5, decisions: int = 240) -> Iterator[Row]:
    """Times of training steps of a suite's methods on its first task, run alternately.

    With half an update per decision, ``decisions`` contain 120 updates, a multiple of every
    re-planning interval in the suite.
    """
    suite, nowhere = suites.get(name), pathlib.Path()
    cells = plans.make_plans(Study(name, suite, nowhere, nowhere), tasks=suite.tasks[:1])
    programs = {plan.method: run_program(plan.config) for plan in cells}
    times: dict[str, list[float]] = {method: [] for method in programs}
    steps: dict[str, tuple[Work, int]] = {}
    for plan in cells:
        program, chunk = programs[plan.method]
        work, num_envs = program.training[0], plan.config.env.num_envs
        work = work._replace(groups=max(1, decisions // (work.iterations * num_envs)))
        steps[plan.method] = work, work.groups * work.iterations * num_envs
        chunk(work)  # compiles
    with exclusive():
        for _ in range(runs):
            for method, (work, done) in steps.items():
                times[method].append(programs[method][1](work) / done)
    median = {method: statistics.median(milliseconds) for method, milliseconds in times.items()}
    first = next(iter(median.values()))
    for method, ms in median.items():
        yield {"method": method, "a decision of every seed, ms": ms, "ratio": ms / first}


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


def startup() -> Iterator[Row]:
    """Seconds from process start to the first action and to the first update, size 5M."""
    with tempfile.TemporaryDirectory() as cache:
        for kind in ("cold", "warm"):
            command = [sys.executable, "-c", FIRST, cache]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            action, update = map(float, out)
            yield {"cache": kind, "first action, s": action, "first update, s": update}


UNCHANGEABLE = {
    "agent.policy.interval": "an update here trains everything",
    "agent.replan": "an update here plans nothing again",
}
"""What ``--set`` cannot change in ``efficiency``, and why."""


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", choices=("efficiency", "seeds", "cores", "capacity", "methods", "startup")
    )
    parser.add_argument("--size", action="append", help="of the world model; may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", help="numbers of seeds to compare")
    parser.add_argument("--suite", default="replanning")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--json", type=pathlib.Path, help="file of the rows")
    return arguments.parse(parser, argv)[0]


def _settings(what: str, texts: Sequence[str]) -> dict[str, Any]:
    """The fields of ``--set``.

    Raises:
      ConfigError: one line; a field that this measurement does not read is refused too.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        try:
            changes |= [arguments.setting(text)]
        except ConfigError as error:
            raise ConfigError(f"--set: {error}") from None
    if changes and what not in CHANGEABLE:
        raise ConfigError(f"--set: {what} has none; it is for {', '.join(CHANGEABLE)}")
    varied = {"seeds": "train.num_seeds", "capacity": "train.capacity"}
    for name in changes:
        if name == varied.get(what):
            raise ConfigError(f"--set {name}: {what} varies it itself")
        if what != "efficiency":
            continue
        if not name.startswith("agent."):
            raise ConfigError(f"--set {name}: efficiency measures agents; must be a field of agent")
        for field, why in UNCHANGEABLE.items():
            if name.startswith(field):
                raise ConfigError(f"--set {name}: {why}; must stay as it is")
    return changes


def _prepare(args: argparse.Namespace) -> Iterator[Row]:
    """The measurement; everything that can be refused is refused before it begins.

    Raises:
      ConfigError: one line for the user.
    """
    changes = _settings(args.what, args.set)
    sizes = args.size or (["5M", "small"] if args.what == "efficiency" else ["small"])
    if args.json is not None:
        files.check_folder(args.json.parent, "--json")
    numbers = args.seeds or ([2] if args.what == "cores" else [1, 4])
    seeds = {f"{n} seed{'s' * (n > 1)}": {"train.num_seeds": n} for n in numbers}
    rings = {f"{n:,} rows": {"train.capacity": n} for n in (10_000, 1_000_000)}
    varied = rings if args.what == "capacity" else seeds
    variants = {name: changes | of for name, of in varied.items()}
    for size in sizes:
        for of in variants.values():
            validation.validate_config(small_run(size, of))
    suites.get(args.suite)
    parts = {
        "efficiency": lambda: efficiency(sizes, changes),
        "seeds": lambda: compare(sizes[0], variants),
        "cores": lambda: cores(sizes[0], numbers[0]),
        "capacity": lambda: compare(sizes[0], variants),
        "methods": lambda: methods(args.suite),
        "startup": startup,
    }
    return parts[args.what]()


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    try:
        measured = _prepare(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = process.command("experiments.benchmarks.speed", list(argv or sys.argv))
    rows.show(measured, args.json, command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
