"""Print the replay that a device has room for: ``python -m experiments.capacity --config=FILE.py``.

Takes the arguments of ``experiments.run``. The capacity of a run is a number in its configuration,
so that it is the same run on every machine; this command says which number fits on this one.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import usage  # isort: skip

import math
import sys

from experiments import settings, streams, xla
from pomcp_jax import seed_axis, train, validation
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.envs.protocol import Env
from pomcp_jax.running import functions, process

SHARE = 0.5
"""Of the device's memory; the rest is for networks, plans, physics and XLA's own."""


def lines(config: Config, env: Env, memory: int) -> list[str]:
    """What replay takes, and what would fit into its share of ``memory`` bytes."""
    seeds = config.train.num_seeds
    mesh = seed_axis.mesh(config)
    of_device = seeds if mesh is None else seeds // mesh.shape[seed_axis.AXIS]
    taken = train.replay_bytes(config, env)
    fits = train.largest_capacity(config, env, SHARE * memory, of_device)
    flags = f"--config.train.capacity={fits}"
    total = taken / config.train.capacity * fits / 1e9
    if total > config.train.memory_limit_gb:
        flags += f" --config.train.memory_limit_gb={math.ceil(total)}"
    return [
        f"{config.env.task}: {config.train.capacity:,} rows a seed take"
        f" {taken / seeds * of_device / 1e9:.3g} GB on a device, with {of_device} seed(s)",
        f"half of its {memory / 1e9:.3g} GB has room for {fits:,} rows: {flags}",
    ]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(sys.argv if argv is None else argv))


def _main(argv: list[str]) -> int:
    try:
        config = settings.parse(argv).config
        xla.check_environment()
        validation.validate_config(config)
        shown = lines(config, functions.environment(config), process.device_memory())
    except settings.HelpWanted as wanted:
        print(wanted.answer or usage.short_help(usage.CAPACITY))
        return 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
