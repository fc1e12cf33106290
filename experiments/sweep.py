"""Train a grid of settings x seeds as one program: ``python -m experiments.sweep --help``.

Any traced float of ``config.agent`` can be swept; every cell uses the same
seeds. A row that keeps failing is marked and left behind, the others go on.

A sweep keeps no checkpoints: the same command line again starts anew.

Exit codes: 0 done, 1 an unexpected exception, 2 bad input, 3 every row broke, 4 the disk is full
or cannot be written, 129/130/143 stopped by SIGHUP/SIGINT/SIGTERM.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import clock  # isort: skip

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import config_files, grid, settings, signals, streams, sweep_report, usage, xla
from experiments.grid import Axis, Cell
from experiments.settings import Settings
from experiments.sweep_report import Outcome
from pomcp_jax import config as config_lib
from pomcp_jax import diagnostics, effects, files, seed_axis, train, validation
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.evaluate import Episodes
from pomcp_jax.reporting import canvas
from pomcp_jax.running import crash, health, metrics, process, tables, workdirs
from pomcp_jax.running import run as run_lib
from pomcp_jax.running.background import Control, Stop, Worker
from pomcp_jax.running.metrics import Results
from pomcp_jax.running.progress import Progress, duration, number
from pomcp_jax.running.run import Functions
from pomcp_jax.train import TrainState, Work

USAGE = """\
usage: python -m experiments.sweep --config=experiments/configs/NAME.py[:task,preset,size]
           --grid="policy.kl_coef=0,0.1,1,9" [--grid="optimizer.learning_rate=3e-4,1e-3"]
           [--seeds=K] [--config.any.field=value ...] [--size=SIZE] [--workdir=DIR]
           [--tensorboard] [--cache_dir=DIR|none] [--print_config] [--help[=TOPIC]]

  --grid         a field of the agent and its values; several, or `;` in one, span a product
  --seeds        seeds of every cell (default config.train.num_seeds)
  --config       configuration file; behind a colon task, preset and size
  --config.F     override of a field that is the same in all cells
  --workdir      one folder per cell, summary.csv, sweep.png (default runs/sweep/NAME/task-preset)
  --tensorboard  write TensorBoard events too (needs pomcp_jax[tensorboard])
  --cache_dir    persistent compilation cache (default ~/.cache/pomcp_jax/xla)
  --print_config print the resolved configuration and stop
  --help=TOPIC   a section of fields, or a field; also configs, tasks, presets, sizes, all

Only floats of `agent` can be swept: they are traced numbers. Sizes, names and switches are part
of the compiled program; run those value by value with experiments.run.

A sweep cannot be resumed: it keeps no checkpoints. The same command line again moves the earlier
sweep to previous-N and starts anew; what was written of an interrupted one stays readable.

sections of fields:
"""


class Plan(NamedTuple):
    """A resolved command line."""

    options: Settings
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    config: Config
    """All rows: floats that are swept have the axis ``cells x seeds``."""
    functions: Functions


class Sweep:
    """All cells from first chunk to summary."""

    def __init__(self, plan: Plan):
        self.plan, self.config = plan, plan.config
        self.progress = Progress()
        self.control = Control(self.progress)
        signals.install(self.control)
        self.work = Worker(self.control)
        rows = self.config.train.num_seeds
        self.planner, self.policy, self.training = (np.full(rows, np.nan) for _ in range(3))
        self.diverged: dict[int, health.Diverged] = {}
        """By row."""
        self.invalid = np.zeros(rows, np.int32)
        self.records: list[tables.Record] = []
        self.state: TrainState | None = None
        self.done, self.evaluated_at, self.clipping_told = 0, -1, False
        self.undrawn = False
        """Somebody was told that the picture cannot be drawn."""

    def go(self) -> None:
        """All phases and the final evaluation."""
        program, config = self.plan.functions.program, self.config
        for text in train.doubts(config, program.env):
            self.progress.say(f"warning: {text}")
        self.progress.say("compiling (about a minute the first time, cached afterwards)")
        seeds = jnp.array([seed for cell in self.plan.cells for seed in cell.seeds], jnp.int32)
        self.state = self.work(program.init, config, seeds, busy="compiling: initial state")
        every = next_evaluation = config.train.eval_decisions
        phases = {
            "seeding": program.seeding,
            "pretraining": program.pretraining,
            "training": program.training,
        }
        for phase, works in phases.items():
            for work in works:
                self.control.check()
                values = self.chunk(phase, work)
                if every and self.done >= next_evaluation and phase == "training":
                    next_evaluation = self.done + every
                    values |= self.evaluate()
                self.write(values)
                self.leave_behind(phase)
        if self.evaluated_at != self.done:
            self.evaluate()
        episodes = self._played(self.plan.functions.evaluate_policy, "evaluating bare policies")
        self.policy = metrics.valid_mean(episodes.returns, episodes.valid)
        self._write_episodes("policy", episodes)

    def chunk(self, phase: str, work: Work) -> Results:
        """One chunk of every row; its metrics."""
        begin, before = time.monotonic(), self.done
        busy = "" if self.records else "compiling: the training step"
        state, self.state = self.state, None  # donated: if this is cut short, there is none
        self.state, means = self.work(
            self.plan.functions.program.chunk, state, self.config, work, busy=busy
        )
        held = means, self.state.stats, self.state.agent.faults
        means, self.stats, self.faults = jax.device_get(held)
        text = "" if self.clipping_told else metrics.clipping(self.config, means)
        if text:
            self.clipping_told = True
            self.progress.say(f"warning: {text}")
        self.done = int(self.state.iteration) * self.config.env.num_envs
        self.chunk_decisions = self.done - before
        rate = self.chunk_decisions / (time.monotonic() - begin)
        updates = int(self.state.updates)
        told = self.config, self.stats, self.faults, updates, rate
        values = means | metrics.chunk_values(
            *told, seed_axis.mesh_size(self.plan.functions.program.mesh)
        )
        self.training = values["train/return"]
        if not self.records:
            names = [*values, "eval/return", "eval/policy_return", "eval/length", "eval/broken"]
            names += diagnostics.NAMES
            self.records = [self._record(cell, names) for cell in self.plan.cells]
        total, rows = self.config.train.total_decisions, self.config.train.num_seeds
        left = (total - self.done) / max(rate, 1e-9)
        lost = f" | {len(self.diverged)} diverged" if self.diverged else ""
        self.progress.line(
            f"{phase} {self.done:,}/{total:,} decisions x {rows} rows"
            f" | {number(rate)} decisions/s each, {number(rate * rows)} in all{self._best()}{lost}"
            f" | {duration(left) if self.done > before else '?'} left",
            force=self.done >= total,
        )
        return values

    def _record(self, cell: Cell, names: list[str]) -> tables.Record:
        options, say = self.plan.options, self.progress.say
        folder = grid.folder(options.workdir, cell)
        return tables.Record(folder, names, options.tensorboard, say=say)

    def _best(self) -> str:
        """The cell that evaluates best so far, for the progress line."""
        means = [metrics.mean(o.planner[o.healthy]) for o in self.outcomes()]
        if not np.isfinite(means).any():
            return ""
        best = int(np.nanargmax(means))
        return f" | best {self.plan.cells[best].name}: {number(means[best], 1)}"

    def leave_behind(self, phase: str) -> None:
        """Mark the rows that keep failing; end when none is left."""
        faults = metrics.faults(
            self.config, self.faults, self.stats, self.invalid, self.chunk_decisions, phase
        )
        self.invalid = self.stats.invalid

        def name(i: int) -> str:
            cell = next(c for c in self.plan.cells if c.rows.start <= i < c.rows.stop)
            return f"{cell.name}, seed {cell.seeds[i - cell.rows.start]}"

        never = np.zeros(self.config.train.num_seeds, int)
        verdict = health.judge(faults, self.diverged, never, self.done, name, on_broken="leave")
        self.diverged = verdict.left
        for line in verdict.lines:
            self.progress.say(line)
        if verdict.stop:
            raise Stop(3, verdict.stop)

    def write(self, values: Results) -> None:
        """One row of metrics for every seed that is still trained."""
        now = round(time.monotonic() - clock.STARTED, 3)
        for cell, file in zip(self.plan.cells, self.records, strict=True):
            for i, seed in zip(range(cell.rows.start, cell.rows.stop), cell.seeds, strict=True):
                if i not in self.diverged:
                    row = {name: value[i].item() for name, value in values.items()}
                    file.row(row | {"seconds": now, "seed": seed})

    def evaluate(self) -> Results:
        """Play evaluation episodes with the planner and refresh the picture."""
        function = self.plan.functions.evaluate_planner
        episodes, diagnosis = self._played(function, "evaluating planners")
        values = metrics.episode_values(episodes)
        self.planner = values["eval/return"]
        self.evaluated_at = self.done
        self._write_episodes("planner", episodes)
        self.draw()
        return values | diagnosis

    def _played(self, function: Callable, busy: str) -> Any:
        return jax.device_get(self.work(function, self.state, self.config, busy=busy))

    def _write_episodes(self, actor: str, episodes: Episodes) -> None:
        seconds = time.monotonic() - clock.STARTED
        for cell, file in zip(self.plan.cells, self.records, strict=True):
            mine = jax.tree.map(lambda x, rows=cell.rows: x[rows], episodes)
            decisions = self.stats.decisions[cell.rows]
            rows = metrics.episode_rows(cell.config, decisions, actor, mine, seconds)
            for i, row in enumerate(rows, start=cell.rows.start):
                if i not in self.diverged:
                    file.evaluation(row)

    def outcomes(self) -> list[Outcome]:
        """What is known of every cell."""
        return [
            Outcome(
                cell,
                self.planner[cell.rows],
                self.policy[cell.rows],
                self.training[cell.rows],
                {
                    cell.config.train.seed + i - cell.rows.start: what
                    for i, what in sorted(self.diverged.items())
                    if cell.rows.start <= i < cell.rows.stop
                },
            )
            for cell in self.plan.cells
        ]

    def draw(self) -> None:
        """Refresh the picture, if there is something to draw with; one warning if it fails."""
        if not canvas.available():
            return
        try:
            sweep_report.draw(self.outcomes(), self.plan.axes, self.plan.options.workdir)
        except Exception as error:  # whatever: the rows it shows are what counts
            if not self.undrawn:
                self.progress.say(f"warning: no picture: {crash.one_line(error)}; training goes on")
            self.undrawn = True

    def finish(self, about: dict[str, Any], code: int, text: str) -> None:
        """Close all files; write what became of every cell, the summary and the picture."""
        self.progress.close()
        for file in self.records:
            file.close()
        workdir, outcomes = self.plan.options.workdir, self.outcomes()
        about |= {
            "num_devices": seed_axis.mesh_size(self.plan.functions.program.mesh),
            "rows_in_program": self.config.train.num_seeds,
            "seconds": round(time.monotonic() - clock.STARTED, 1),
            "peak_memory_gb": round(process.peak_memory_gb(), 3),
            "decisions_per_seed": self.done,
            "updates_per_seed": 0 if self.state is None else int(self.state.updates),
        }
        for outcome in outcomes:
            lost = {str(k): what._asdict() for k, what in outcome.diverged.items()}
            status = f"diverged: {health.describe(outcome.diverged)}" if lost else text
            all_lost = len(lost) == len(outcome.cell.seeds)
            own = {"status": status, "exit_code": 3 if all_lost else code, "diverged": lost}
            file = grid.folder(workdir, outcome.cell) / "run.json"
            files.write_json(file, about | own)
        own = {"status": text, "exit_code": code, "cells": [cell.name for cell in self.plan.cells]}
        own["grid"] = {axis.field: list(axis.values) for axis in self.plan.axes}
        files.write_json(workdir / "sweep.json", about | own)
        sweep_report.write_summary(outcomes, workdir / "summary.csv")
        if self.records:
            self.draw()


def prepare(argv: list[str]) -> Plan:
    """Everything that can be wrong is found here; nothing is compiled or written.

    Raises:
      ConfigError: one line for the user.
    """
    values = flags.FlagValues()
    flags.DEFINE_multi_string("grid", [], "swept field and values", flag_values=values)
    flags.DEFINE_integer("seeds", None, "seeds of every cell", flag_values=values)
    options = settings.parse(argv, values)
    if values["resume"].present:
        raise ConfigError("--resume: a sweep cannot be resumed; it starts anew in any case")
    if values.workdir is None:
        own = Path("runs", "sweep", *options.workdir.parts[1:])
        options = options._replace(workdir=own)
    seeds = options.config.train.num_seeds if values.seeds is None else values.seeds
    if seeds < 1:
        raise ConfigError(f"--seeds = {seeds}: must be >= 1")
    options = options._replace(
        config=config_lib.replace(options.config, {"train.num_seeds": seeds})
    )
    if options.config.train.on_broken_seed == "reset":
        raise ConfigError(
            "train.on_broken_seed = 'reset': a sweep leaves rows that break behind; must be 'leave'"
        )
    axes = grid.parse(values.grid, options.config)
    for axis in axes:
        if axis.field in config_files.overrides(argv)[0]:
            raise ConfigError(f"--config.{axis.field}: is swept by --grid; must be in one of them")
    cells = grid.cells(options.config, axes)
    workdirs.check_workdir(options.workdir, options.config)
    if (options.workdir / "config.json").exists():
        raise ConfigError(f"--workdir = {str(options.workdir)!r}: holds a run; choose another")
    grid.held(options.workdir)
    xla.begin(options.cache_dir)
    config = grid.joined(cells)
    functions = run_lib.build(config)
    try:
        needed = train.replay_bytes(config, functions.program.env)
        validation.validate_memory(config, needed)
    except ConfigError as error:
        raise ConfigError(f"{error} ({len(cells)} cells x {seeds} seeds)") from None
    for line in effects.without_effect(*(cell.config for cell in cells)):
        print(f"warning: {line}", file=sys.stderr)
    return Plan(options, axes, cells, config, functions)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(sys.argv if argv is None else argv))


def _main(argv: list[str]) -> int:
    xla.save_memory()
    try:
        plan = prepare(argv)
    except settings.HelpWanted as wanted:
        print(wanted.answer or usage.short_help(USAGE))
        return 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options, swept = plan.options, {axis.field: axis.values for axis in plan.axes}
    for name, value in config_lib.flatten(options.config).items():
        shown = ", ".join(map(grid.text, swept[name])) + "  (swept)" if name in swept else value
        print(f"{name} = {shown}")
    if options.print_only:
        return 0
    try:
        held = workdirs.lock(options.workdir)
        moved = sweep_report.open_workdir(options.workdir, plan.cells)
    except (ConfigError, OSError) as error:
        workdir = "" if isinstance(error, ConfigError) else f"--workdir = {options.workdir}: "
        print(f"error: {workdir}{error}", file=sys.stderr)
        return 2
    if moved:
        print(f"the earlier sweep moved to {moved}/")
    about = process.describe(process.command("experiments.sweep", argv))
    needed = train.replay_bytes(plan.config, plan.functions.program.env)
    print(
        f"{about['device']}; {len(plan.cells)} cells x {options.config.train.num_seeds} seeds;"
        f" replay {needed / 1e6:,.1f} MB; writing to {options.workdir}/",
        flush=True,
    )
    sweep = Sweep(plan)
    code, text = 1, "failed"
    try:
        sweep.go()
        code, text = 0, "done"
    except Stop as stop:
        code, text = stop.code, str(stop)
    except OSError as error:
        code, text = 4, f"{options.workdir}: {error.strerror or error}; the last row is not written"
    except Exception as error:  # nobody expected it
        code, text = 1, f"failed: {crash.report(error, options.workdir)}"
    try:
        sweep.finish(about, code, text)
    except OSError as error:
        code = code or 4
        print(f"error: {options.workdir}: {error.strerror or error}", file=sys.stderr)
    if code in (1, 3, 4):
        print(f"error: {text}", file=sys.stderr)
    took = f"{duration(time.monotonic() - clock.STARTED)}, peak {process.peak_memory_gb():.2f} GB"
    print(sweep_report.table(sweep.outcomes()))
    print(f"{text}: {sweep.done:,} decisions per seed, {took}; {options.workdir}/summary.csv")
    os.close(held)
    if sweep.work.abandoned:  # a chunk that took too long is still running
        sys.stdout.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
