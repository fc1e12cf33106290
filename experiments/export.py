"""Export a trained agent: ``python -m experiments.export RUN --out=agent.stablehlo``.

The suffix of --out is the format. A .stablehlo file is one program that a process without this
package runs:

    from jax import export  # and flatbuffers
    agent = export.deserialize(open("agent.stablehlo", "rb").read())
    action = agent.call(obs)  # --actor=policy or prior: obs [N, O] float32, action [N, A]
    action, key, plan = agent.call(key, obs, plan, is_first)  # --actor=planner

``key`` is uint32 [2], ``plan`` [N, H, A] the last call's (any at first), ``is_first`` bool [N] True
at an episode's first decision. A .mlir file is the text of that program, for other runtimes.

An .onnx file is the bare policy, or the prior, without noise: ``observation`` [N, O] float32 to
``action`` [N, A] for any N. Its metadata name the task, the observations and the action bounds.

A name without a suffix is a new folder that evaluate, render, export and load_controller accept as
a RUN: one seed's parameters, without replay and optimiser, so it cannot be trained further.

Actions are in [-1, 1]. Exit codes: 0 done, 2 bad input.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import usage  # isort: skip  # noqa: F401
from experiments import clock  # isort: skip

import argparse
import json
import sys
import time

import jax
import numpy as np

from experiments import arguments, parsers, streams, trained, xla
from experiments.benchmarks.dm_control import original
from pomcp_jax import (
    checkpoint,
    controller,
    envs,
    exporting,
    exporting_onnx,
    exporting_run,
    files,
    normalising,
)
from pomcp_jax.checkpoint import Restored
from pomcp_jax.config import ConfigError
from pomcp_jax.normalising import Moments
from pomcp_jax.running.progress import duration

FORMATS = {
    ".stablehlo": ("actor", "select", "num", "platforms"),
    ".mlir": ("actor", "select", "num", "platforms"),
    ".onnx": ("actor",),
    "": (),
}
"""Formats by suffix, none for a folder, with the flags that have an effect on them."""


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
    """Check the arguments, load the agent and write it; returns lines for the user.

    Raises:
      ValueError: one line; nothing is written.
    """
    _check(args)
    agents, _ = trained.load(args)
    index = trained.seed_index(args.train_seed, agents)
    if args.out.suffix == ".onnx":
        lines = _onnx(args, agents, index)
    elif args.out.suffix:
        lines = _program(args, agents, index)
    else:
        size = exporting_run.write(args.out, args.run.expanduser(), agents, index)
        seed = agents.config.train.seed + index
        lines = [f"parameters of seed {seed}", _written(f"{args.out}/", size)]
    return "\n".join([trained.heading(agents), *lines])


def _written(place: str, size: int) -> str:
    return f"written: {place} ({size / 1e6:.2f} MB)"


def _check(args: argparse.Namespace) -> None:
    """Check everything that needs no agent, and fill in the defaults.

    Raises:
      ValueError: one line.
    """
    suffix = args.out.suffix
    if suffix not in FORMATS:
        known = ", ".join(name for name in FORMATS if name)
        raise ValueError(f"--out = {str(args.out)!r}: must end in {known}, or name a new folder")
    for name in FORMATS[".stablehlo"]:
        if getattr(args, name) is not None and name not in FORMATS[suffix]:
            kind = f"a {suffix} file" if suffix else "a folder"
            raise ValueError(f"--{name}: has no effect on {kind}; leave it out")
    if suffix:
        files.check_writable(args.out, "--out")
    else:
        exporting_run.check(args.out)
    if suffix == ".onnx":
        args.actor = args.actor or "policy"
        exporting_onnx.check_actor(args.actor)
        exporting_onnx.check_available()
    if suffix == ".stablehlo":
        exporting.check_serialisable()
    args.actor, args.select = args.actor or "planner", args.select or "argmax"
    args.num = 1 if args.num is None else args.num
    if args.num < 1:
        raise ValueError(f"--num = {args.num}: must be >= 1")
    given = "cpu" if args.platforms is None else args.platforms
    platforms = tuple(name.strip() for name in given.split(","))
    for name in platforms:
        if name not in exporting.PLATFORMS:
            choices = ", ".join(exporting.PLATFORMS)
            raise ValueError(f"--platforms = {args.platforms!r}: must be of {choices}")
    args.platforms = platforms


def _observations(num: int, size: int, moments: Moments | None) -> np.ndarray:
    """Random observations ``[num, size]``, for a comparison, of the size that the agent expects."""
    normal = np.random.default_rng(0).normal(size=(num, size)).astype(np.float32)
    return normalising.undo(moments, normal)


def _compared(gap: float) -> str:
    return f"largest difference of an action from the agent's own: {gap:.1e}"


def _program(args: argparse.Namespace, agents: Restored, index: int) -> list[str]:
    """Export as StableHLO; compared with the agent where the platform is this machine's."""
    params = jax.tree.map(lambda x: x[index], agents.state.params)
    config, spec = agents.config.agent, agents.spec
    choices = {"actor": args.actor, "select": args.select}
    exported = exporting.export(
        params, config, spec, num=args.num, platforms=args.platforms, **choices
    )
    lines = []
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if here in args.platforms:
        fns = controller.make_fns(config, spec, **choices)
        obs = _observations(args.num, spec.obs_size, params.moments)
        lines.append(_compared(exporting.deviation(exported, fns, params, obs)))
    data = exporting.serialised(exported, args.out.suffix)
    files.write_bytes(args.out, data)
    inputs = ", ".join(f"{x.dtype}{list(x.shape)}" for x in exported.in_avals)
    outputs = ", ".join(f"{x.dtype}{list(x.shape)}" for x in exported.out_avals)
    lines.append(f"{args.actor} on {', '.join(args.platforms)}: ({inputs}) -> ({outputs})")
    return [*lines, _written(str(args.out), len(data))]


def _onnx(args: argparse.Namespace, agents: Restored, index: int) -> list[str]:
    """Export as ONNX, compared with the agent on this machine."""
    params = jax.tree.map(lambda x: x[index], agents.state.params)
    config, spec = agents.config.agent, agents.spec
    made = exporting_onnx.export(params, config, spec, actor=args.actor, facts=facts(agents))
    fns = controller.make_fns(config, spec, actor=args.actor)
    obs = _observations(8, spec.obs_size, params.moments)
    _, expected = jax.jit(fns.act)(params, fns.init(jax.random.key(0), len(obs)), obs)
    gap = exporting_onnx.deviation(made, expected, obs)
    data = made.SerializeToString()
    files.write_bytes(args.out, data)
    shape = f"{exporting_onnx.INPUT} [N, {spec.obs_size}] -> {exporting_onnx.OUTPUT}"
    about = f"{args.actor} without noise: {shape} [N, {spec.action_size}] in [-1, 1]"
    return [_compared(gap), about, _written(str(args.out), len(data))]


def facts(agents: Restored) -> dict[str, str]:
    """Metadata of an ONNX file: what its user needs to know of task and actions, as text or JSON.

    Names of observations and bounds of actions are known for dm_control's tasks only.
    """
    config, spec = agents.config, agents.spec
    known = {
        "task": config.env.task,
        "action_repeat": config.env.action_repeat,
        "decisions": agents.decisions,
        "observation_size": spec.obs_size,
        "action_size": spec.action_size,
        "history": config.env.history,
        "versions": checkpoint.versions(),
    }
    try:
        low, high = envs.action_bounds(config.env.task)
        known |= {"action_low": low.tolist(), "action_high": high.tolist()}
        entries = original(config.env.task, seed=0).observation_spec()
        known["observations"] = {name: int(np.prod(x.shape)) for name, x in entries.items()}
    except (ValueError, AttributeError, ImportError):  # a task of another package, or TD-MPC2's own
        pass
    return {name: x if isinstance(x, str) else json.dumps(x) for name, x in known.items()}


if __name__ == "__main__":
    sys.exit(main())
