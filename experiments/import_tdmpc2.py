"""Read an agent of TD-MPC2: ``python -m experiments.import_tdmpc2 FILE.pt --task=T --out=RUN``.

FILE.pt is a checkpoint of nicklashansen/tdmpc2, of a single task with states as observations: one
of the published ones, or one of your own. No torch is needed, and nothing that the file names is
executed. The new folder RUN is an agent with TD-MPC2's own settings, which evaluate, render, export
and load_controller accept. A run of any member of the family can start from it:

    python -m experiments.run --config=experiments/configs/dm_control.py:T,po_mpc
        --config.train.start_from=RUN --config.train.seed_actions=planner

Exit codes: 0 done, 2 bad input; then nothing is written.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import usage  # isort: skip  # noqa: F401
from experiments import clock  # isort: skip

import argparse
import csv
import hashlib
import io
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import arguments, parsers, streams, xla
from pomcp_jax import (
    acting,
    envs,
    evaluate,
    exporting_run,
    files,
    importing_tdmpc2,
    presets,
    validation,
)
from pomcp_jax import config as config_lib
from pomcp_jax.agent import AgentState
from pomcp_jax.checkpoint import Restored
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.envs.protocol import Env
from pomcp_jax.importing_tdmpc2 import Source
from pomcp_jax.running import functions, metrics, process
from pomcp_jax.running.progress import duration, number


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(argv))


def _main(argv: list[str] | None) -> int:
    xla.save_memory()
    args, _ = arguments.parse(parsers.import_tdmpc2(__doc__), argv)
    args.command = process.command("experiments.import_tdmpc2", ["", *(argv or sys.argv[1:])])
    print(f"reading {args.file}", file=sys.stderr, flush=True)
    try:
        text = write(args)
    except (ConfigError, ImportError, ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(text)
    print(f"total time {duration(time.monotonic() - clock.STARTED)}")
    return 0


def write(args: argparse.Namespace) -> str:
    """Check the arguments, read the file and write the agent; returns lines for the user.

    Raises:
      ValueError: one line; nothing is written.
    """
    args.file, args.out = args.file.expanduser(), args.out.expanduser()
    exporting_run.check(args.out)
    for name in ("decisions", "episodes"):
        if not 0 <= getattr(args, name) < 2**31:
            raise ValueError(f"--{name} = {getattr(args, name)}: must be >= 0 and < 2**31")
    source = importing_tdmpc2.read(args.file)
    config, env = settings(args, source)
    agents = agent(source, config, args.decisions)
    about = described(args, config)
    rows = evaluated(agents, env, args.episodes) if args.episodes else []

    def describe(place: Path) -> None:
        files.write_json(place / exporting_run.RECORD, about)
        if rows:
            files.write_text(place / exporting_run.EVALUATIONS, _table(rows))

    size = exporting_run.save(args.out, agents, describe, rows[0]["eval/return"] if rows else None)
    sizes, model = source.sizes, config.agent.world_model
    task = config.env.task
    returns = [_returned(row, args.episodes) for row in rows]
    return "\n".join([
        f"{task}: {sizes.observation} observations, {sizes.action} actions, episodes of"
        f" {env.episode_length} decisions of {config.env.action_repeat} frames",
        f"latent {sizes.latent}, encoder {sizes.encoder_layers} x {sizes.encoder_width}, width"
        f" {sizes.mlp_width}, {sizes.num_heads} value heads, {sizes.num_bins} bins, log std in"
        f" [{model.log_std_min:g}, {model.log_std_max:g}], discount"
        f" {config.agent.optimizer.discount:g}",
        *returns,
        f"written: {args.out}/ ({size / 1e6:.2f} MB)",
    ])  # fmt: skip


def settings(args: argparse.Namespace, source: Source) -> tuple[Config, Env]:
    """TD-MPC2's settings for the task, and its environments.

    Raises:
      ValueError: the task is unknown, or has other sizes than the agent.
    """
    about = envs.about(args.task)
    repeat = about.action_repeat or 1 if args.action_repeat is None else args.action_repeat
    changes = {
        "env.task": args.task,
        "env.action_repeat": repeat,
        "env.backend": args.backend or about.backend or Config().env.backend,
        "agent.world_model.arranged_for": args.arranged_for,
    }
    tdmpc2 = importing_tdmpc2.settings(source, presets.get("tdmpc2"))
    config = config_lib.replace(Config(agent=tdmpc2), changes)
    validation.validate_config(config)
    env = functions.environment(config)
    theirs = source.sizes.observation, source.sizes.action
    if theirs != (env.observation_size, env.action_size):
        raise ConfigError(
            f"--task = {args.task!r}: has {env.observation_size} observations and"
            f" {env.action_size} actions, the agent in {args.file} {theirs[0]} and {theirs[1]}"
        )
    rule = importing_tdmpc2.discount(env.episode_length)
    return config_lib.replace(config, {"agent.optimizer.discount": rule}), env


def agent(source: Source, config: Config, decisions: int) -> Restored:
    """The agent as if it were one of ours, without optimiser and scales."""
    model = config.agent.world_model
    params, target = importing_tdmpc2.parameters(source, model)
    spec = acting.build(config.agent, source.sizes.observation, source.sizes.action)
    params, target = jax.tree.map(lambda x: jnp.array(x[None]), (params, target))
    nothing: Any = None
    state = AgentState(params, target, nothing, nothing, nothing)
    return Restored(state, spec, config, decisions)


def described(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Contents of run.json."""
    with args.file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return process.describe(args.command) | {
        "preset": presets.origin(config).preset,
        "status": "imported",
        "decisions_per_seed": args.decisions,
        "imported": {"from": "nicklashansen/tdmpc2", "file": args.file.name, "sha256": digest},
    }


def evaluated(agents: Restored, env: Env, episodes: int) -> list[dict[str, Any]]:
    """Rows of evaluations.csv: whole episodes of the planner, then of the bare policy."""
    config, rows = agents.config, []
    for actor in ("planner", "policy"):
        print(f"playing {episodes} episodes: {actor}", file=sys.stderr, flush=True)
        play = jax.jit(
            lambda params, actor=actor: evaluate.rollout(
                params,
                jax.random.split(jax.random.key(parsers.EPISODE_SEED), 1),
                env=env,
                spec=agents.spec,
                config=config.agent,
                episodes=episodes,
                planner=actor == "planner",
            )
        )
        played = jax.device_get(play(agents.state.params))
        seconds = time.monotonic() - clock.STARTED
        done = np.array([agents.decisions])
        rows += metrics.episode_rows(config, done, actor, played, seconds)
    return rows


def _returned(row: dict[str, Any], episodes: int) -> str:
    name = "eval/return" if row["actor"] == "planner" else "eval/policy_return"
    mean = float("nan") if row[name] is None else row[name]
    return f"{row['actor']}: mean return {number(mean, 1)} in {episodes} episodes"


def _table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main())
