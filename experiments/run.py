"""Train an agent: ``python -m experiments.run --config=experiments/configs/quickstart.py``.

``--help`` lists flags, tasks, presets and fields.

The same command line again goes on where the run stopped; see docs/reliability.md.

Exit codes: 0 done, 2 bad input, 3 training broke, 4 the disk is full or cannot be written,
130/143 stopped by SIGINT/SIGTERM.
"""

from experiments import clock  # isort: skip  # noqa: F401

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments import broken, measure, record, seeds, settings, xla
from experiments.jobs import Signals, Stop
from experiments.loop import Functions, Run, build
from experiments.progress import Progress, duration, number
from experiments.resume import begin
from experiments.settings import Settings
from pomcp_jax import config as config_lib
from pomcp_jax import devices, effects, train, validation
from pomcp_jax.config import ConfigError


def summary(run: Run, text: str) -> str:
    """What happened and where everything is."""
    workdir, config = run.options.workdir, run.config
    seeds = [str(config.train.seed + i) for i in range(config.train.num_seeds)]

    def each(values: np.ndarray | None) -> str:
        if values is None or not np.isfinite(values).any():
            return "-"
        average = f"{measure.mean(values):.1f}"
        shown = " ".join(number(v, 1) for v in values)
        return average if len(values) == 1 else f"{average}  (seeds {', '.join(seeds)}: {shown})"

    rows = [
        ("result", text),
        (
            "task",
            f"{config.env.task}, {run.done:,} decisions per seed"
            f" ({run.done * config.env.action_repeat:,} frames)",
        ),
        ("training return", each(run.returns) + "  (latest 8 episodes)"),
        ("evaluation", each(run.evaluated.get("eval/return")) + "  (planner)"),
        ("", each(run.evaluated.get("eval/policy_return")) + "  (bare policy)"),
        (
            "time",
            f"{duration(run.seconds())}, peak memory {record.peak_memory_gb():.2f} GB",
        ),
    ]
    kept = [name for name in record.FILES if (workdir / name).exists()]
    rows.append(("files", f"{workdir}/ ({', '.join(kept)})"))
    return "\n".join(f"{name:>16}  {value}" for name, value in rows)


def prepare(argv: list[str]) -> tuple[Settings, Functions]:
    """Everything that can be wrong is found here; nothing is compiled or written.

    Raises:
      ConfigError: one line for the user.
    """
    options = settings.parse(argv)
    validation.validate_config(options.config)
    record.check_workdir(options.workdir, options.config, options.resume)
    if options.tensorboard:
        try:
            import tensorboardX  # noqa: F401
        except ImportError:
            raise ConfigError("--tensorboard: needs `pip install pomcp_jax[tensorboard]`") from None
    xla.begin(options.cache_dir)
    functions = xla.prepared(options.config, build)
    needed = train.replay_bytes(options.config, functions.program.env)
    validation.validate_memory(options.config, needed)
    for line in effects.without_effect(options.config):
        print(f"warning: {line}", file=sys.stderr)
    return options, functions


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv if argv is None else argv
    xla.save_memory()
    try:
        options, functions = prepare(argv)
    except settings.HelpWanted:
        print(settings.help_text())
        return 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    config = options.config
    for name, value in config_lib.flatten(config).items():
        print(f"{name} = {value}")
    if options.print_only:
        return 0
    signals = Signals(Progress())
    held = None
    try:
        held = record.lock(options.workdir)
        start = begin(options, functions.program)
        run = Run(options, functions, start, signals)
        over = start.host is not None and start.state is None
        return idle(run, argv) if over else finish(run, argv)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if held is not None:
            os.close(held)


def idle(run: Run, argv: list[str]) -> int:
    """Say that nothing is left to do; completes what a kill behind the last save left undone."""
    if not _says_done(run.options.workdir / "run.json"):
        status = f"diverged: {broken.describe(run.lost())}" if run.left else "done"
        about = record.describe(argv) | {"status": status, "exit_code": 0}
        write_about(run, about, run.done)
        run.draw()
    total = run.config.train.total_decisions
    print(
        f"this run is complete: {run.done:,} decisions; nothing to do"
        f" (a larger train.total_decisions than {total:,} extends it,"
        " --resume=never starts anew)"
    )
    print(summary(run, "done before"))
    return 0


def _says_done(path: Path) -> bool:
    try:
        return json.loads(path.read_text())["exit_code"] == 0
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_about(run: Run, about: dict[str, Any], resumed_at: int) -> None:
    """Write run.json: ``about`` and what the run knows of itself."""
    about = about | {
        "seconds": run.seconds(),
        "peak_memory_gb": round(record.peak_memory_gb(), 3),
        "decisions_per_seed": run.done,
        "updates_per_seed": run.updates,
        "num_devices": devices.size(run.functions.program.mesh),
        "resumed_at": resumed_at,
        "diverged": {str(seed): what._asdict() for seed, what in run.lost().items()},
        "resets": int(run.resets.sum()),
        "saves": len(run.saving),
        "longest_save_seconds": round(max(run.saving, default=0.0), 4),
    }
    record.write_text(run.options.workdir / "run.json", json.dumps(about, indent=1) + "\n")


def finish(run: Run, argv: list[str]) -> int:
    """Train to the end or to the first reason to stop; returns the exit code."""
    options = run.options
    for line in run.start.notes:
        print(line, file=sys.stderr if line.startswith("warning") else sys.stdout)
    about = record.describe(argv)
    needed = train.replay_bytes(run.config, run.functions.program.env)
    print(
        f"{about['device']}; replay {needed / 1e6:,.1f} MB; writing to {options.workdir}/",
        flush=True,
    )
    code, text, resumed_at = 0, "done", run.done
    try:
        seeds.catch_up(run)
        run.go()
    except Stop as stop:
        code, text = stop.code, str(stop)
        run.save()
        failed = run.collect_save()
        if failed and failed != text:
            print(f"error: {failed}", file=sys.stderr)
    finally:
        run.progress.close()
        if run.record is not None:
            run.record.close()
            run.draw()
        if run.left and not code:
            text = f"diverged: {broken.describe(run.lost())}"
        status = text if code or run.evaluated_at == run.done else "failed"
        about |= {"status": status, "exit_code": code}
        try:
            write_about(run, about, resumed_at)
        except OSError as error:
            print(f"error: {options.workdir}/run.json: {error.strerror}", file=sys.stderr)
            code = code or 4
    if code in (3, 4):
        print(f"error: {text}", file=sys.stderr)
    print(summary(run, text), flush=True)
    sys.stdout.flush()
    if run.work.abandoned:  # a chunk that took too long is still running
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
