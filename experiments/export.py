"""Export a trained agent: ``python -m experiments.export RUN --out=agent.stablehlo``.

Writes one program that a process without this package runs:

    from jax import export  # and flatbuffers
    agent = export.deserialize(open("agent.stablehlo", "rb").read())
    action = agent.call(obs)  # --actor=policy or prior: obs [N, O] float32, action [N, A]
    action, key, plan = agent.call(key, obs, plan, is_first)  # --actor=planner

``key`` is uint32 [2], ``plan`` [N, H, A] the last call's (any at first), ``is_first`` bool [N] True
at an episode's first decision. Actions are in [-1, 1]. A name that ends in .mlir is written as the
text of the StableHLO module, for other runtimes. Exit codes: 0 done, 2 bad input.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import usage  # isort: skip  # noqa: F401
from experiments import clock  # isort: skip

import argparse
import sys
import time

import jax
import numpy as np

from experiments import arguments, parsers, streams, trained, xla
from pomcp_jax import controller, exporting, files
from pomcp_jax.config import ConfigError
from pomcp_jax.running.progress import duration

SUFFIXES = (".stablehlo", ".mlir")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(argv))


def _main(argv: list[str] | None) -> int:
    xla.save_memory()
    args, _ = arguments.parse(parsers.export(__doc__), argv)
    print(f"reading {args.run}", file=sys.stderr, flush=True)
    try:
        text = write(args)
    except (ConfigError, ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(text)
    print(f"total time {duration(time.monotonic() - clock.STARTED)}")
    return 0


def write(args: argparse.Namespace) -> str:
    """Export, compare with the agent where the platform is this machine's, and write the file.

    Raises:
      ValueError: one line; nothing is written.
    """
    if args.out.suffix not in SUFFIXES:
        raise ValueError(f"--out = {str(args.out)!r}: must end in {' or '.join(SUFFIXES)}")
    files.check_writable(args.out, "--out")
    if args.out.suffix == ".stablehlo":
        exporting.check_serialisable()
    if args.num < 1:
        raise ValueError(f"--num = {args.num}: must be >= 1")
    platforms = tuple(name.strip() for name in args.platforms.split(","))
    for name in platforms:
        if name not in exporting.PLATFORMS:
            choices = ", ".join(exporting.PLATFORMS)
            raise ValueError(f"--platforms = {args.platforms!r}: must be of {choices}")
    agents, select = trained.load(args)
    index = trained.seed_index(args.train_seed, agents)
    params = jax.tree.map(lambda x: x[index], agents.state.params)
    config, spec = agents.config.agent, agents.spec
    exported = exporting.export(
        params,
        config,
        spec,
        actor=args.actor,
        select=select,
        num=args.num,
        platforms=platforms,
    )
    lines = [trained.heading(agents)]
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if here in platforms:
        fns = controller.make_fns(config, spec, actor=args.actor, select=select)  # type: ignore[arg-type]
        obs = np.random.default_rng(0).normal(size=(args.num, spec.obs_size)).astype(np.float32)
        gap = exporting.deviation(exported, fns, params, obs)
        lines.append(f"largest difference of an action from the agent's own: {gap:.1e}")
    data = exporting.serialised(exported, args.out.suffix)
    files.write_bytes(args.out, data)
    inputs = ", ".join(f"{x.dtype}{list(x.shape)}" for x in exported.in_avals)
    outputs = ", ".join(f"{x.dtype}{list(x.shape)}" for x in exported.out_avals)
    lines.append(f"{args.actor} on {', '.join(platforms)}: ({inputs}) -> ({outputs})")
    lines.append(f"written: {args.out} ({len(data) / 1e6:.2f} MB)")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
