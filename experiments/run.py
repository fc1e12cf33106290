"""Train an agent: ``python -m experiments.run --config=experiments/configs/quickstart.py``.

Everything that runs often is compiled (:mod:`pomcp_jax.train`); this file is
what happens between chunks: records, evaluations, checkpoints, signals.
``--help`` lists flags, tasks, presets and fields.

Exit codes: 0 done, 2 bad input, 3 training broke, 130/143 stopped by SIGINT/SIGTERM.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

STARTED = time.monotonic()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from experiments import measure, plot, record, settings, xla  # noqa: E402
from experiments.jobs import Signals, Stop, Worker  # noqa: E402
from experiments.measure import Results  # noqa: E402
from experiments.progress import Progress, duration, number  # noqa: E402
from experiments.settings import Settings  # noqa: E402
from pomcp_jax import checkpoint, diagnostics, envs, evaluate, train, validation  # noqa: E402
from pomcp_jax import config as config_lib  # noqa: E402
from pomcp_jax.config import Config, ConfigError  # noqa: E402
from pomcp_jax.evaluate import Episodes  # noqa: E402
from pomcp_jax.train import Program, TrainState, Work  # noqa: E402


class Functions(NamedTuple):
    """Compiled functions of a run, evaluation included."""

    program: Program
    evaluate_planner: Callable[[TrainState, Config], tuple[Episodes, Results]]
    """With diagnostics."""
    evaluate_policy: Callable[[TrainState, Config], Episodes]


def build(config: Config) -> Functions:
    """Prepare everything; compiles nothing."""
    env = envs.make(config.env.task, config.env.action_repeat, config.env.backend)
    program = train.build(config, env)

    def planner(state: TrainState, config: Config) -> tuple[Episodes, Results]:
        return diagnostics.evaluate_run(state, config, env=env, agent=program.static)

    def policy(state: TrainState, config: Config) -> Episodes:
        return evaluate.rollout(
            state.agent.params,
            train.fold_keys(state, train.EVALUATION, state.iteration),
            env=env,
            agent=program.static,
            config=config.agent,
            episodes=config.train.eval_episodes,
            planner=False,
        )

    return Functions(program, jax.jit(planner), jax.jit(policy))


class Run:
    """One training from first chunk to summary."""

    def __init__(self, config: Config, options: Settings, functions: Functions):
        self.config, self.options, self.functions = config, options, functions
        self.progress = Progress()
        self.signals = Signals(self.progress)
        self.work = Worker(self.progress)
        self.returns = np.full(config.train.num_seeds, np.nan)
        self.evaluated: Results = {}
        self.evaluated_at = -1
        self.saved_at = -1
        self.record: record.Record | None = None
        self.state: TrainState | None = None
        self.done = 0
        """Decisions that were due so far, per seed."""

    def go(self) -> None:
        """All phases, the final evaluation and the final checkpoint."""
        program, config = self.functions.program, self.config
        self.progress.say("compiling (about a minute the first time, cached afterwards)")
        self.state = self.work(program.init, config, busy="compiling: initial state")
        phases = (
            ("seeding", program.seeding),
            ("pretraining", program.pretraining),
            ("training", program.training),
        )
        next_evaluation, next_checkpoint = (
            config.train.eval_decisions,
            config.train.checkpoint_decisions,
        )
        for phase, works in phases:
            for work in works:
                self.signals.check()
                values, seconds = self.chunk(phase, work)
                due = config.train.eval_decisions and self.done >= next_evaluation
                if due and phase == "training":
                    next_evaluation = self.done + config.train.eval_decisions
                    values |= self.evaluate()
                self.write(phase, values, seconds)
                if config.train.checkpoint_decisions and self.done >= next_checkpoint:
                    next_checkpoint = self.done + config.train.checkpoint_decisions
                    self.save()
        if self.evaluated_at != self.done:
            self.evaluate()
        self.evaluate_policy()
        self.save()

    def chunk(self, phase: str, work: Work) -> tuple[Results, float]:
        """One chunk; its metrics and the seconds it took."""
        begin, before = time.monotonic(), self.done
        busy = "compiling: the training step" if self.record is None else ""
        self.state, metrics = self.work(
            self.functions.program.chunk, self.state, self.config, work, busy=busy
        )
        values: Results = dict(jax.device_get(metrics))
        stats = jax.device_get(self.state.stats)
        seconds = time.monotonic() - begin
        self.done = int(self.state.iteration) * self.config.env.num_envs
        rate = (self.done - before) / seconds
        repeat = self.config.env.action_repeat
        values |= measure.chunk_values(self.config, stats, int(self.state.updates), rate)
        self.returns = values["train/return"]
        if self.record is None:
            extra = ["eval/return", "eval/policy_return", "eval/length", *diagnostics.NAMES]
            names = [*values, *extra]
            self.record = record.Record(self.options.workdir, names, self.options.tensorboard)
        self.check_faults(phase, stats, self.done - before)
        left = (self.config.train.total_decisions - self.done) / max(rate, 1e-9)
        evaluated = self.evaluated.get("eval/return", np.array([np.nan]))
        self.progress.line(
            f"{phase} {self.done:,}/{self.config.train.total_decisions:,} decisions"
            f" | {number(rate)} decisions/s, {number(rate * repeat)} frames/s"
            f" | return {number(measure.mean(self.returns), 1)}"
            f" | eval {number(measure.mean(evaluated), 1)}"
            f" | {duration(left) if self.done > before else '?'} left",
            force=self.done >= self.config.train.total_decisions,
        )
        return values, seconds

    def check_faults(self, phase: str, stats: train.Stats, decisions: int) -> None:
        """Stop when updates keep failing or environments keep breaking."""
        before = getattr(self, "_invalid", np.zeros_like(stats.invalid))
        self._invalid = stats.invalid
        faults = measure.faults(self.config, self.state, stats, before, decisions, phase)
        for i, fault in faults.items():
            raise Stop(3, f"training broke: seed {self.config.train.seed + i}, {fault.text}")

    def write(self, phase: str, values: Results, seconds: float) -> None:
        """One row for every seed."""
        for i in range(self.config.train.num_seeds):
            row = {name: value[i].item() for name, value in values.items()}
            now = time.monotonic() - STARTED
            self.record.row(row | {"seconds": round(now, 3), "seed": self.config.train.seed + i})

    def evaluate(self) -> Results:
        """Play evaluation episodes with the planner and refresh the picture."""
        function = self.functions.evaluate_planner
        episodes, diagnosis = self._played(function, "evaluating the planner")
        self.evaluated = {
            "eval/return": np.mean(episodes.returns, axis=1),
            "eval/length": np.mean(episodes.lengths, axis=1),
            **diagnosis,
        }
        self.evaluated_at = self.done
        self._write_episodes("planner", episodes)
        self.draw()
        return self.evaluated

    def evaluate_policy(self) -> None:
        """Play the same number of episodes without planning."""
        episodes = self._played(self.functions.evaluate_policy, "evaluating the bare policy")
        self.evaluated["eval/policy_return"] = np.mean(episodes.returns, axis=1)
        self._write_episodes("policy", episodes)

    def _played(self, function: Callable, busy: str) -> Any:
        return jax.device_get(self.work(function, self.state, self.config, busy=busy))

    def _write_episodes(self, actor: str, episodes: Episodes) -> None:
        decisions = np.asarray(self.state.stats.decisions)
        seconds = time.monotonic() - STARTED
        for row in measure.episode_rows(self.config, decisions, actor, episodes, seconds):
            self.record.evaluation(row)

    def draw(self) -> None:
        """Refresh the picture, if there is something to draw with."""
        try:
            plot.draw([self.options.workdir], self.options.workdir / "learning_curve.png")
        except ImportError:
            pass

    def save(self) -> None:
        """Checkpoint the agent, once for any number of decisions."""
        if self.state is None or self.saved_at == self.done:
            return
        folder = self.options.workdir / "checkpoints"
        static = self.functions.program.static
        checkpoint.save(folder, self.done, self.state.agent, self.config, static)
        self.saved_at = self.done


def summary(run: Run, text: str) -> str:
    """What happened and where everything is."""
    workdir, config = run.options.workdir, run.config
    seeds = [str(config.train.seed + i) for i in range(config.train.num_seeds)]

    def each(values: np.ndarray | None) -> str:
        if values is None or not np.isfinite(values).any():
            return "-"
        mean = f"{measure.mean(values):.1f}"
        shown = " ".join(number(v, 1) for v in values)
        return mean if len(values) == 1 else f"{mean}  (seeds {', '.join(seeds)}: {shown})"

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
            f"{duration(time.monotonic() - STARTED)}, peak memory {record.peak_memory_gb():.2f} GB",
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
    record.check_workdir(options.workdir, options.config)
    if options.tensorboard:
        try:
            import tensorboardX  # noqa: F401
        except ImportError:
            raise ConfigError("--tensorboard: needs `pip install pomcp_jax[tensorboard]`") from None
    functions = build(options.config)
    needed = train.replay_bytes(options.config, functions.program.env)
    validation.validate_memory(options.config, needed)
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
    if options.cache_dir is not None:
        jax.config.update("jax_compilation_cache_dir", options.cache_dir)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    moved = record.open_workdir(options.workdir, config)
    if moved:
        print(f"the earlier run of this configuration moved to {moved}/")
    about = record.describe(argv)
    needed = train.replay_bytes(config, functions.program.env)
    print(
        f"{about['device']}; replay {needed / 1e6:,.1f} MB; writing to {options.workdir}/",
        flush=True,
    )
    run = Run(config, options, functions)
    code, text = 0, "done"
    try:
        run.go()
    except Stop as stop:
        code, text = stop.code, str(stop)
        run.save()
    finally:
        run.progress.close()
        if run.record is not None:
            run.record.close()
            run.draw()
        about |= {
            "status": text if code or run.evaluated_at == run.done else "failed",
            "exit_code": code,
            "seconds": round(time.monotonic() - STARTED, 1),
            "peak_memory_gb": round(record.peak_memory_gb(), 3),
            "decisions_per_seed": run.done,
            "updates_per_seed": 0 if run.state is None else int(run.state.updates),
        }
        record.write_text(options.workdir / "run.json", json.dumps(about, indent=1) + "\n")
    if code == 3:
        print(f"error: {text}", file=sys.stderr)
    print(summary(run, text))
    return code


if __name__ == "__main__":
    sys.exit(main())
