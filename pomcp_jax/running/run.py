"""One training from its first chunk to its last checkpoint, at whatever point it starts.

Everything that runs often is compiled (:mod:`pomcp_jax.train`); this file is what happens
between chunks: records, evaluations, checkpoints, requests to stop.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pomcp_jax import compiled, diagnostics, envs, evaluate, seed_axis, state_edits, train
from pomcp_jax.compiled import Compiled
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.envs.protocol import Env
from pomcp_jax.evaluate import Episodes
from pomcp_jax.reporting import canvas, run_figures
from pomcp_jax.running import crash, health, metrics, process, tables
from pomcp_jax.running.background import Control, Stop, Worker
from pomcp_jax.running.bookkeeping import Host, Pending, array, listed
from pomcp_jax.running.metrics import Fault, Results
from pomcp_jax.running.options import Options
from pomcp_jax.running.progress import duration, number
from pomcp_jax.running.saving import Checkpoints
from pomcp_jax.running.starting import Start
from pomcp_jax.train import Program, TrainState, Work


class Functions(NamedTuple):
    """Compiled functions of a run, evaluation included."""

    program: Program
    evaluate_planner: Callable[[TrainState, Config], tuple[Episodes, Results]]
    """With diagnostics."""
    evaluate_policy: Callable[[TrainState, Config], Episodes]
    reset_agents: Callable[[TrainState, Config, jax.Array], TrainState]
    """Donates its state."""


def build(config: Config, env: Env | None = None) -> Functions:
    """Prepare everything; compiles nothing. Without ``env`` the configuration names it.

    Raises:
      ConfigError: a package, a file or an ability of the physics is missing.
    """
    env = environment(config) if env is None else env
    with warnings.catch_warnings():  # a run says them in its own way
        warnings.simplefilter("ignore", UserWarning)
        program = train.build(config, env)

    def planner(state: TrainState, config: Config) -> tuple[Episodes, Any]:
        played = diagnostics.evaluate_run(state, config, env=env, spec=program.spec)
        return played[0], compiled.hide_nans(played[1])

    def with_nans(out: tuple[Episodes, Any], *_: Any) -> tuple[Episodes, Results]:
        return out[0], compiled.show_nans(*out[1])

    def policy(state: TrainState, config: Config) -> Episodes:
        return evaluate.rollout(
            state.agent.params,
            train.fold_keys(state, train.EVALUATION, state.iteration),
            env=env,
            spec=program.spec,
            config=config.agent,
            episodes=config.train.eval_episodes,
            planner=False,
        )

    def renew(state: TrainState, config: Config, which: jax.Array) -> TrainState:
        return state_edits.reset_agents(state, config, program.spec, which)

    def spread(function: Callable, in_specs: tuple, out_specs: Any) -> Callable:
        return seed_axis.spread(function, program.mesh, in_specs, out_specs)

    only_state, reads = (train.SPECS, None), diagnostics.READS
    renewed = spread(renew, (*only_state, seed_axis.SPLIT), train.SPECS)
    return Functions(
        program,
        Compiled(jax.jit(spread(planner, only_state, seed_axis.SPLIT)), reads, finish=with_nans),
        Compiled(jax.jit(spread(policy, only_state, seed_axis.SPLIT)), reads),
        Compiled(jax.jit(renewed, donate_argnums=0), train.CHUNK_READS),
    )


def environment(config: Config) -> Env:
    """The environments that a configuration names; ConfigError for what is missing for them."""
    try:
        return envs.make(config.env.task, config.env.action_repeat, config.env.backend)
    except (ImportError, NotImplementedError, OSError, RuntimeError) as error:
        chosen = f"env.task = {config.env.task!r}, env.backend = {config.env.backend!r}"
        raise ConfigError(f"{chosen}: {' '.join(str(error).split())}") from None


class Run:
    """One training from first chunk to summary."""

    def __init__(
        self,
        options: Options,
        functions: Functions,
        start: Start,
        control: Control,
        began: float | None = None,
        on_row: Sequence[Callable[[dict[str, Any]], None]] = (),
    ):
        """``began``: when this sitting did, by ``time.monotonic``; now by default.

        ``on_row``: called with every row of metrics.csv.
        """
        self.on_row = on_row
        self.began = time.monotonic() if began is None else began
        self.options, self.functions, self.config = options, functions, options.config
        self.control, self.progress = control, control.progress
        self.work = Worker(control)
        self.checkpoints = Checkpoints(
            options.workdir,
            options.config,
            functions.program.spec,
            self.progress.say,
            start.decisions if start.host is not None else None,
        )
        self.start = start
        self.ended = False
        """Nothing is left to do but to save."""
        self.undrawn = False
        """Somebody was told that the picture cannot be drawn."""
        self.state, self.done = start.state, start.decisions
        """Decisions that were due so far, per seed."""
        self.updates = 0
        self.record: tables.Record | None = None
        self.written: tables.Written | None = None
        self.pending: Pending | None = None
        self.commit = process.commit()
        self.compiled = self.finished = self.clipping_told = False
        num_seeds = self.config.train.num_seeds
        self.returns = np.full(num_seeds, np.nan)
        self.invalid = np.zeros(num_seeds, np.int64)
        self.left: dict[int, health.Diverged] = {}
        """Seeds that are left behind, by index."""
        self.resets = np.zeros(num_seeds, np.int64)
        self.evaluated: Results = {}
        self.evaluated_at, self.last_evaluation, self.last_checkpoint = -1, 0, 0
        self.seconds_before = 0.0
        if start.host is not None:
            self.take(start.host)

    def take(self, host: Host) -> None:
        """Go on where ``host`` was."""
        self.returns, self.invalid = array(host.returns), np.array(host.invalid, np.int64)
        self.evaluated = {name: array(values) for name, values in host.evaluated.items()}
        self.evaluated_at, self.seconds_before = host.evaluated_at, host.seconds
        self.last_evaluation, self.last_checkpoint = host.last_evaluation, host.last_checkpoint
        self.pending, self.written, self.updates = host.pending, host.written, host.updates
        self.finished = host.finished
        self.left = {i: health.Diverged(*what) for i, *what in host.left}
        self.resets = np.array(host.resets or self.resets, np.int64)
        if self.state is not None:
            self.open_record(host.written.columns)

    def open_record(self, columns: list[str]) -> None:
        """Begin the files, or go on with them."""
        options, before = self.options, self.written
        self.record = self._on_disk(
            tables.Record,
            options.workdir,
            columns,
            options.tensorboard,
            before,
            self.progress.say,
        )
        self.written = self.record.written()

    def host(self, finished: bool) -> Host:
        """What :meth:`take` needs."""
        return Host(
            finished=finished,
            updates=self.updates,
            seconds=self.seconds(),
            last_evaluation=self.last_evaluation,
            last_checkpoint=self.last_checkpoint,
            evaluated_at=self.evaluated_at,
            evaluated={name: listed(values) for name, values in self.evaluated.items()},
            returns=listed(self.returns),
            invalid=self.invalid.tolist(),
            pending=self.pending,
            written=self.written,
            commit=self.commit,
            left=[(i, *what) for i, what in self.left.items()],
            resets=self.resets.tolist(),
        )

    def lost(self) -> dict[int, health.Diverged]:
        """Seeds that are left behind, by number."""
        return {self.config.train.seed + i: what for i, what in sorted(self.left.items())}

    def seconds(self) -> float:
        """Wall-clock of all sittings."""
        return round(self.seconds_before + time.monotonic() - self.began, 3)

    def go(self) -> None:
        """What is left of all phases, the final evaluation and the final checkpoint."""
        program, train_config = self.functions.program, self.config.train
        for text in train.doubts(self.config, program.env):
            self.progress.say(f"warning: {text}")
        self.progress.say("compiling (about a minute the first time, cached afterwards)")
        if self.state is None:
            self.state = self.work(program.init, self.config, busy="compiling: initial state")
        done = int(self.state.iteration), int(self.state.updates)
        if self.pending is not None:
            self.finish_chunk()
        left = state_edits.remaining(program, *done)
        over = self.finished and not left  # with seeds that are new or dropped
        for phase, work in left:
            self.control.check()
            self.checkpoints.warn()
            self.chunk(phase, work)
            self.finish_chunk()
            interval = train_config.checkpoint_decisions
            due = interval and self.done - self.last_checkpoint >= interval
            if due and not self.checkpoints.busy:  # or after the next chunk: training does not wait
                self.last_checkpoint = self.done
                self.save()
        self.control.check()
        if not over:
            self.evaluate_at_the_end()
        self.ended = True
        self.save()
        failed = self.collect_save()
        if failed:
            raise Stop(4, failed)

    def evaluate_at_the_end(self) -> None:
        """Both actors, once."""
        if self.evaluated_at != self.done:
            self.evaluate()
            self.evaluated_at, self.written = self.done, self.record.written()
        self.evaluate_policy()
        self.written = self.record.written()

    def chunk(self, phase: str, work: Work) -> None:
        """One chunk; its metrics and the seconds it took are pending afterwards."""
        begin, start = time.monotonic(), self.done
        busy = "" if self.compiled else "compiling: the training step"
        # Donated: if this is cut short, or what follows fails, there is no state to save.
        state, self.state = self.state, None
        state, means = self.work(self.functions.program.chunk, state, self.config, work, busy=busy)
        self.compiled = True
        values: Results = dict(jax.device_get(means))
        self.warn_of_clipping(values)
        stats, faults = jax.device_get((state.stats, state.agent.faults))
        seconds = time.monotonic() - begin
        self.done = int(state.iteration) * self.config.env.num_envs
        self.updates = int(state.updates)
        rate, repeat = (self.done - start) / seconds, self.config.env.action_repeat
        values |= metrics.chunk_values(
            self.config,
            stats,
            faults,
            self.updates,
            rate,
            seed_axis.mesh_size(self.functions.program.mesh),
        )
        before, self.invalid = self.invalid, stats.invalid
        done = self.done - start
        found = metrics.faults(self.config, faults, stats, before, done, phase)
        state, stop = self.judge(found, state)
        values |= health.without({"train/return": values["train/return"]}, self.left)
        values["broken"] = np.isin(np.arange(len(self.resets)), list(self.left)).astype(int)
        values["resets"] = self.resets
        self.returns = values["train/return"]
        if self.record is None:
            extra = ["eval/return", "eval/policy_return", "eval/length", "eval/broken"]
            extra += diagnostics.NAMES
            self.open_record([*values, *extra])
        left = (self.config.train.total_decisions - self.done) / max(rate, 1e-9)
        evaluated = self.evaluated.get("eval/return", np.array([np.nan]))
        self.progress.line(
            f"{phase} {self.done:,}/{self.config.train.total_decisions:,} decisions"
            f" | {number(rate)} decisions/s, {number(rate * repeat)} frames/s"
            f" | return {number(metrics.mean(self.returns), 1)}"
            f" | eval {number(metrics.mean(evaluated), 1)}"
            f" | {duration(left) if self.done > start else '?'} left",
            force=self.done >= self.config.train.total_decisions,
        )
        named = {name: listed(value) for name, value in values.items()}
        self.state, self.pending = state, Pending(phase, named, seconds, done, stop)

    def warn_of_clipping(self, values: Results) -> None:
        """One line a run when targets lie beyond the bins."""
        text = "" if self.clipping_told else metrics.clipping(self.config, values)
        if text:
            self.clipping_told = True
            self.progress.say(f"warning: {text}")

    def judge(self, faults: dict[int, Fault], state: TrainState) -> tuple[TrainState, str]:
        """Leave seeds that broke behind or reset them; why the run has to stop, or nothing."""
        train_config = self.config.train
        verdict = health.judge(
            faults,
            self.left,
            self.resets,
            self.done,
            lambda i: f"seed {train_config.seed + i}",
            on_broken=train_config.on_broken_seed,
            most_resets=train_config.max_seed_resets,
        )
        self.left = verdict.left
        for line in verdict.lines:
            self.progress.say(line)
        if verdict.reset and not verdict.stop:
            which = np.isin(np.arange(len(self.resets)), verdict.reset)
            self.resets = self.resets + which
            state = self.functions.reset_agents(state, self.config, which)
        return state, verdict.stop

    def finish_chunk(self) -> None:
        """Evaluate if it is due, write the chunk's rows, stop if that was decided.

        A signal during the evaluation leaves the chunk pending, in the checkpoint too.
        """
        chunk, interval = self.pending, self.config.train.eval_decisions
        values = {name: array(value) for name, value in chunk.values.items()}
        due = interval and self.done - self.last_evaluation >= interval
        if due and chunk.phase == "training":
            values |= self.evaluate()
        self.write(values)
        if due and chunk.phase == "training":  # a row that was not written is evaluated again
            self.last_evaluation = self.evaluated_at = self.done
        self.pending, self.written = None, self.record.written()
        if chunk.stop:
            raise Stop(3, chunk.stop)

    def write(self, values: Results) -> None:
        """One row for every seed."""
        for i in range(self.config.train.num_seeds):
            row = {name: value[i].item() for name, value in values.items()}
            row |= {"seconds": self.seconds(), "seed": self.config.train.seed + i}
            self._on_disk(self.record.row, row)
            for told in self.on_row:
                told(dict(row))

    def _on_disk(self, function: Callable, *args: Any) -> Any:
        try:
            return function(*args)
        except OSError as error:
            reason = error.strerror or error
            text = f"{self.options.workdir}: {reason}; the last row is not written"
            raise Stop(4, text) from None

    def evaluate(self) -> Results:
        """Play evaluation episodes with the planner and refresh the picture."""
        function = self.functions.evaluate_planner
        episodes, diagnosis = self._played(function, "evaluating the planner")
        values = metrics.episode_values(episodes) | diagnosis
        self.evaluated = health.without(values, self.left)
        self._write_episodes("planner", episodes)
        self.draw()
        return self.evaluated

    def evaluate_policy(self) -> None:
        """Play the same number of episodes without planning."""
        episodes = self._played(self.functions.evaluate_policy, "evaluating the bare policy")
        means = metrics.valid_mean(episodes.returns, episodes.valid)
        returns = {"eval/policy_return": means}
        self.evaluated |= health.without(returns, self.left)
        self._write_episodes("policy", episodes)

    def _played(self, function: Callable, busy: str) -> Any:
        return jax.device_get(self.work(function, self.state, self.config, busy=busy))

    def _write_episodes(self, actor: str, episodes: Episodes) -> None:
        decisions = np.asarray(self.state.stats.decisions)
        rows = metrics.episode_rows(self.config, decisions, actor, episodes, self.seconds())
        for i, row in enumerate(rows):
            if i not in self.left:
                self._on_disk(self.record.evaluation, row)

    def draw(self) -> None:
        """Refresh the picture, if there is something to draw with; one warning if it fails."""
        if not canvas.available():
            return
        try:
            run_figures.draw([self.options.workdir], self.options.workdir / "learning_curve.png")
        except Exception as error:  # whatever: the rows it shows are what counts
            if not self.undrawn:
                self.progress.say(f"warning: no picture: {crash.one_line(error)}; training goes on")
            self.undrawn = True

    def save(self) -> None:
        """Begin a checkpoint, if there is anything to save; of a whole run once it has ended."""
        if self.state is None or self.record is None:
            return
        score = metrics.score(self.evaluated) if self.evaluated_at == self.done else None
        self.checkpoints.save(self.state, self.host(self.ended), score, self.record.sync)

    def collect_save(self) -> str:
        """Wait for a save under way; why it failed, or nothing."""
        return self.checkpoints.collect()
