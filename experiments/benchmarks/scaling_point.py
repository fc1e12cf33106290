"""Cost of a training step of one configuration: one point of experiments.benchmarks.scaling.

    python -m experiments.benchmarks.scaling_point --config=FILE.py:task,preset \
        [--config.any.field=value ...] [--size=SIZE] [--seconds=20]

prints a JSON object. The process is the measurement's own: its compiler finds no cache, and its
peak memory is that of this configuration. Replay is full of random rows, so that sampling reads
all of it. Times are medians of alternating calls of a compiled program with several steps or
updates each.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import settings, xla
from experiments.benchmarks import footprint
from experiments.benchmarks.rows import Row
from experiments.benchmarks.timing import exclusive
from pomcp_jax import replay, train, validation
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.running import process
from pomcp_jax.train import Program, TrainState, Work

CALL = 0.3
"""Seconds that a timed call takes at least, unless one step takes longer."""
CALLS = (3, 9)
"""Least and most timed calls of steps, and of updates."""


def filled(program: Program, config: Config) -> TrainState:
    """A state in the middle of training: replay full of one long episode, networks of noise.

    Made on the host: compiling the program that initialises a run takes as long as compiling a
    step of training.
    """
    shapes = jax.eval_shape(program.init, config)
    noise, seeds = np.random.default_rng(3), config.train.num_seeds

    def random(x: Any) -> jax.Array:
        floats = jnp.issubdtype(x.dtype, jnp.floating)
        values = 0.1 * noise.standard_normal(x.shape, np.float32) if floats else np.zeros(x.shape)
        return jnp.asarray(values.astype(x.dtype))

    def full(tree: Any, value: float) -> Any:
        return jax.tree.map(lambda x: jnp.asarray(np.full(x.shape, value, x.dtype)), tree)

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds, dtype=jnp.int32))
    places = jax.random.split(jax.random.key(1), seeds * config.env.num_envs)
    env, timestep = jax.jit(program.env.reset)(places)
    rows = jax.tree.map(random, shapes.replay.rows)
    prior = rows.prior._replace(std=full(rows.prior.std, 1.0))
    agents = shapes.agent
    return full(shapes._replace(env=(), timestep=(), keys=()), 0.0)._replace(
        agent=full(agents, 0.0)._replace(
            params=jax.tree.map(random, agents.params)._replace(
                moments=full(agents.params.moments, 1.0)
            ),
            target_value=jax.tree.map(random, agents.target_value),
            scales=full(agents.scales, 1.0),
        ),
        replay=replay.Replay(
            rows._replace(prior=prior), full(shapes.replay.inserted, rows.reward.shape[1])
        ),
        env=env,
        timestep=timestep,
        keys=keys,
    )


def works(count: int) -> dict[str, Work]:
    """Chunks of ``count`` steps of the environments, and of ``count`` updates."""
    # Re-planning included, where the preset has it.
    return {
        "step": Work(1, count, 0, False, True, True),
        "update": Work(1, 0, count, False, True, True),
    }


def compiled(program: Program, state: TrainState, config: Config) -> dict[str, float]:
    """Compile a chunk; seconds, and XLA's temporary memory in MB."""
    begin = time.perf_counter()
    lowered = program.chunk.lower(state, config, works(1)["step"])
    traced = time.perf_counter()
    analysis = lowered.compile().memory_analysis()
    temporary = getattr(analysis, "temp_size_in_bytes", 0)
    return {
        "trace, s": traced - begin,
        "compile, s": time.perf_counter() - traced,
        "temporary, MB": temporary / footprint.MB,
    }


def timed(
    program: Program, state: TrainState, config: Config, seconds: float
) -> dict[str, tuple[float, float]]:
    """Median and least milliseconds of a step of all environments, and of an update, of all seeds.

    Calls alternate, so that slow phases of the machine hit both.
    """

    def call(work: Work) -> float:
        nonlocal state
        begin = time.perf_counter()
        # Only the newest state may be used: a chunk donates the buffers of its argument.
        state = jax.block_until_ready(program.chunk(state, config, work)[0])
        return time.perf_counter() - begin

    counts = {}
    for name, work in works(1).items():
        call(work)  # the first call loads the program
        counts[name] = max(1, min(200, round(CALL / call(work))))
    found: dict[str, list[float]] = {name: [] for name in counts}
    with exclusive():
        end = time.perf_counter() + seconds
        for i in range(CALLS[1]):
            if i >= CALLS[0] and time.perf_counter() > end:
                break
            for name, count in counts.items():
                found[name].append(1e3 * call(works(count)[name]) / count)
    return {name: (statistics.median(ms), min(ms)) for name, ms in found.items()}


def device_peak() -> float | None:
    """Peak memory of the first accelerator in GB; None on a CPU."""
    stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else peak / 1e9


def measure(config: Config, seconds: float = 20.0) -> Row:
    """Compile and time a training step of ``config``; the row is flat and has no paths.

    Args:
      config: a whole run; its schedule is not used.
      seconds: for the timed calls, at least :data:`CALLS` of each kind.

    Raises:
      ConfigError: the configuration cannot work.
    """
    env = footprint.environment(config)
    program = train.build(config, env)
    state = filled(program, config)
    row = compiled(program, state, config)
    seeds, decisions = config.train.num_seeds, config.train.num_seeds * config.env.num_envs
    for name, (median, least) in timed(program, state, config, seconds).items():
        each, of = ("decision", decisions) if name == "step" else ("update of a seed", seeds)
        row |= {f"{name}, ms": median, f"{name}, least ms": least, f"{each}, ms": median / of}
    row["peak, GB"] = process.peak_memory_gb()
    on_device = device_peak()
    return row if on_device is None else row | {"device peak, GB": on_device}


def configuration(arguments: Sequence[str]) -> Config:
    """The configuration that arguments of ``experiments.run`` describe, checked.

    Raises:
      ConfigError: one line.
    """
    config = settings.parse(["experiments.run", *arguments]).config
    validation.validate_config(config)
    validation.validate_run(config)
    return config


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & {*arguments}:
        print(__doc__)
        return 0
    seconds = [text.partition("=")[2] for text in arguments if text.startswith("--seconds=")]
    others = [text for text in arguments if not text.startswith("--seconds=")]
    xla.save_memory()
    try:
        limit = float(seconds[-1]) if seconds else 20.0
        config = configuration(others)
        xla.use_cache(None)
        row = measure(config, limit)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: --seconds: {error}", file=sys.stderr)
        return 2
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
