"""Memory of a run for each seed, from shapes alone: nothing is computed or compiled.

    python -m experiments.benchmarks.footprint [--config=FILE.py:task,preset] [--sizes 1M 5M ...]

prints replay, networks, target networks and optimiser of each size in MB per seed, the bytes of a
checkpoint per seed, and the arithmetic of a decision and of an update. Temporary memory of XLA is
not part of it: ``experiments.benchmarks.scaling`` asks the compiler for that.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from experiments import arguments, config_files
from experiments.benchmarks import rows
from experiments.benchmarks.rows import Row
from pomcp_jax import acting, presets, train
from pomcp_jax import config as config_lib
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.envs.protocol import Env
from pomcp_jax.running import cost, functions

MB = 1e6


class Footprint(NamedTuple):
    """Bytes of the training state of one seed, by part."""

    replay: int
    parameters: int
    targets: int
    optimiser: int
    other: int
    """Environments, warm starts of plans, scales, keys and counters."""

    @property
    def total(self) -> int:
        return sum(self)


def num_bytes(tree: Any) -> int:
    """Bytes of the arrays of a pytree, which may be shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def environment(config: Config) -> Env:
    """The environment of a configuration."""
    return functions.environment(config)


def of(config: Config, env: Env) -> Footprint:
    """Footprint of one seed of ``config``, whatever its number of seeds."""
    one = config_lib.replace(config, {"train.num_seeds": 1})
    spec = acting.build(one.agent, env.observation_size, env.action_size)
    state = jax.eval_shape(lambda: train.init(one, env, spec))
    agents = state.agent
    parts = state.replay, agents.params, agents.target_value, agents.opt
    known = tuple(map(num_bytes, parts))
    return Footprint(*known, num_bytes(state) - sum(known))


def with_size(config: Config, size: str) -> Config:
    """``config`` with a world model of another size.

    Raises:
      ConfigError: for an unknown size.
    """
    return config_lib.replace(config, {"agent": presets.with_size(config.agent, size)})


def row(config: Config, env: Env) -> Row:
    """What shapes say of a configuration: memory of a seed, and arithmetic."""
    found = of(config, env)
    sizes = config.agent, env.observation_size, env.action_size
    memory = {f"{name}, MB": part / MB for name, part in found._asdict().items()}
    return {
        **memory,
        "seed, MB": found.total / MB,
        "plan, GFLOP": cost.plan(*sizes).products / 1e9,
        "update, GFLOP": cost.update(*sizes).products / 1e9,
    }


def table(path: str, argument: str | None, sizes: Sequence[str]) -> Iterator[Row]:
    """A row for each size of a configuration file's model."""
    base = config_files.load(path, argument)
    env = environment(base)
    for size in sizes:
        yield {"size": size, **row(with_size(base, size), env)}


def parser() -> argparse.ArgumentParser:
    """Flags of this program."""
    made = argparse.ArgumentParser(
        description=arguments.plain(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--config", default="experiments/configs/dm_control.py:walker-walk")
    made.add_argument("--sizes", nargs="+", default=["1M", "5M", "19M", "48M"])
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args, _ = arguments.parse(parser(), argv)
    path, colon, argument = args.config.partition(":")
    try:
        rows.show(table(path, argument if colon else None, args.sizes))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
