"""The run loop, from the first chunk or a checkpoint to the last checkpoint.

Everything that runs often is compiled (:mod:`pomcp_jax.train`); this file does what happens
between chunks: tables, evaluations, checkpoints, requests to stop. The seed axis is divided into
cells (:mod:`pomcp_jax.cells`): one in a run, one for each setting in a sweep.
"""

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomcp_jax import cells as cells_lib
from pomcp_jax import diagnostics, seed_axis, state_edits, train
from pomcp_jax.config import Config
from pomcp_jax.evaluate import Episodes
from pomcp_jax.reporting import canvas
from pomcp_jax.running import (
    bookkeeping,
    cost,
    crash,
    health,
    loggers,
    metrics,
    process,
    sweeps,
    tables,
)
from pomcp_jax.running.background import Ahead, Control, Stop, Worker
from pomcp_jax.running.bookkeeping import Pending
from pomcp_jax.running.functions import Functions
from pomcp_jax.running.metrics import Fault, Results
from pomcp_jax.running.options import Options
from pomcp_jax.running.progress import duration, number
from pomcp_jax.running.saving import Checkpoints
from pomcp_jax.running.starting import Start
from pomcp_jax.train import TrainState, Work

MOST_NOTES = 5
"""Most lines about environments on the host after a chunk."""


class Run:
    """One sitting of a run, with what it knows and its open files."""

    def __init__(
        self,
        options: Options,
        functions: Functions,
        start: Start,
        control: Control,
        began: float | None = None,
        on_row: Sequence[Callable[[dict[str, Any]], None]] = (),
    ):
        """Prepare a run; opens its tables if it resumes.

        Args:
          options: configuration, workdir and grid.
          functions: compiled functions, from :func:`pomcp_jax.running.functions.build`.
          start: where the run starts.
          control: progress output and requests to stop.
          began: start of this sitting by ``time.monotonic``; now by default.
          on_row: functions called with every row of metrics.csv.
        """
        self.on_row = on_row
        self.began = time.monotonic() if began is None else began
        self.options, self.functions = options, functions
        self.cells = cells_lib.cells(options.config, options.grid)
        self.config = cells_lib.joined(self.cells)
        self.control, self.progress = control, control.progress
        self.work, self.ahead = Worker(control), Ahead()
        self.checkpoints = Checkpoints(
            options.workdir,
            options.config,
            functions.program.spec,
            self.progress.say,
            start.decisions if start.books is not None else None,
            options.record,
            options.together,
        )
        self.start = start
        self.ended = False
        """Nothing is left to do but the last save."""
        self.warned_of_picture = False
        """The user has seen that the picture cannot be drawn."""
        self.state, self.done = start.state, start.decisions
        """Training state, and decisions done so far per seed."""
        self.compiled = self.warned_of_clipping = False
        self.estimate: cost.Estimate | None = None
        self.pace = self.evaluation_seconds = 0.0
        """Measured seconds of a decision and of an evaluation; 0 before the first."""
        self.tables: list[tables.Record] = []
        self.loggers = loggers.Loggers(self.progress.say)
        commit, num_rows = process.commit(), self.config.train.num_seeds
        books = start.books or bookkeeping.fresh(num_rows, commit, options.grid)
        self.books = books._replace(commit=commit)
        if self.state is not None and books.tables:
            self.open_tables([written.columns for written in books.tables])

    def note(self, **values: Any) -> None:
        """Change the books."""
        self.books = self.books._replace(**values)

    def open_tables(self, columns: list[list[str]]) -> None:
        """Create every cell's tables, or continue them."""
        before = self.books.tables or [None] * len(self.cells)
        for cell, names, written in zip(self.cells, columns, before, strict=True):
            folder = cell.folder(self.options.workdir)
            arguments = folder, names, written, self.progress.say
            self.tables.append(self._on_disk(tables.Record, *arguments))
        self.note(tables=self.written())

    def open_loggers(self) -> None:
        """Begin to copy rows to the programs that the options name."""
        none = [None] * len(self.cells)
        resumed = [written.decisions for written in self.books.tables] if self.tables else none
        self.loggers.open(self.options, loggers.seeds(self.cells, resumed))

    def written(self) -> tuple[tables.Written, ...]:
        """What has been written to each cell's tables."""
        return tuple(table.written() for table in self.tables)

    def lost(self) -> dict[str, health.Diverged]:
        """Dropped seeds by label."""
        labels = cells_lib.labels(self.cells)
        return {labels[i]: what for i, what in sorted(self.books.left.items())}

    def seconds(self) -> float:
        """Wall-clock time of all sittings."""
        return round(self.books.seconds + time.monotonic() - self.began, 3)

    def go(self) -> None:
        """Train to the end, evaluate and save.

        Raises:
          Stop: a stop was requested, training broke, or rows or the last checkpoint could not be
            written.
        """
        program, train_config = self.functions.program, self.config.train
        for text in train.doubts(self.config, program.env):
            self.progress.say(f"warning: {text}")
        what = "rows" if self.options.grid else "seeds"
        if spread := seed_axis.describe(train_config.num_seeds, program.mesh, what):
            self.progress.say(spread)
        self.say_cost()
        self.progress.say("compiling (about a minute the first time, cached afterwards)")
        if self.state is None:
            seeds = jnp.array(cells_lib.seeds(self.cells), jnp.int32)
            self.compile_ahead(seeds)
            busy = "compiling: initial state"
            self.state = self.work(program.init, self.config, seeds, busy=busy)
            for line in self.functions.buffer().notes if self.functions.buffer else ():
                self.progress.say(line)
        done = int(self.state.iteration), int(self.state.updates)
        # A checkpoint made during an evaluation has trained the chunk but not written its rows.
        if self.books.pending is not None:
            self.finish_chunk()
            self.save_if_due()
        remaining = state_edits.remaining(program, *done)
        # True only after seeds were added to or dropped from a finished run: it was evaluated.
        over = self.books.finished and not remaining
        for phase, work in remaining:
            self.control.check()
            self.checkpoints.warn()
            self.chunk(phase, work)
            self.finish_chunk()
            self.save_if_due()
        self.control.check()
        if not over:
            self.evaluate_at_the_end()
        self.ended = True
        self.save()
        failed = self.collect_save()
        if failed:
            raise Stop(4, failed)

    def say_cost(self) -> None:
        """Estimate the time of what is left, before anything is compiled."""
        left, env = self.todo(), self.functions.program.env
        if left.decisions:
            machine = cost.measure()
            devices = seed_axis.mesh_size(self.functions.program.mesh)
            self.estimate = machine and cost.estimate(self.config, env, machine, devices)
            self.progress.say(cost.line(self.config, env, left, self.estimate))

    def todo(self) -> cost.Todo:
        """Decisions and evaluations that are left."""
        books = self.books
        return cost.todo(self.config, self.done, books.last_evaluation, books.evaluated_at)

    def decision_seconds(self) -> float:
        """Measured or estimated time of a decision of all seeds; NaN while nothing is known."""
        return self.pace or (self.estimate.decision if self.estimate else float("nan"))

    def expected_evaluation(self) -> float:
        """Time of an evaluation, from that of a decision."""
        decision = self.decision_seconds()
        if self.estimate:  # whatever it is wrong by for a decision, it is for an evaluation
            return self.estimate.evaluation * decision / self.estimate.decision
        # On an accelerator a larger batch of plans takes about as long.
        steps = self.functions.program.env.episode_length + 1
        return decision * self.config.env.num_envs * steps

    def seconds_left(self) -> float:
        """Time until the end, evaluations included; NaN while nothing is known."""
        evaluation = self.evaluation_seconds or self.expected_evaluation()
        return self.todo().seconds(self.decision_seconds(), evaluation)

    def evaluate_at_the_end(self) -> None:
        """Evaluate planner and policy, unless the planner's evaluation was made already."""
        if self.books.evaluated_at != self.done:
            self.evaluate()
            self.note(evaluated_at=self.done, tables=self.written())
        self.evaluate_policy()
        self.note(tables=self.written())
        decisions = {"decisions": self.done, "frames": self.done * self.config.env.action_repeat}
        for cell in self.cells:
            for i, seed in cell.row_seeds():
                values = {name: value[i].item() for name, value in self.books.evaluated.items()}
                self.loggers.result((cell.name, seed), values | decisions)

    def compile_ahead(self, seeds: Any) -> None:
        """Begin to compile the training step, which needs only the shapes of the initial state."""
        program = self.functions.program
        chunks = itertools.chain(program.seeding, program.pretraining, program.training)
        first = next(chunks, None)
        if first is not None:
            # Not ``program.init``, which may read files.
            fresh = functools.partial(train.init, self.config, program.env, program.spec)
            state = jax.eval_shape(fresh, seeds)
            rows, specs = self.config.train.num_seeds, train.SPECS
            state = seed_axis.shapes(state, rows, program.mesh, specs)
            self.ahead.start(program.chunk, args=(state, self.config, first))

    def chunk(self, phase: str, work: Work) -> None:
        """Train one chunk; its metrics and its duration are pending afterwards."""
        begin, start = time.monotonic(), self.done
        busy = "" if self.compiled else "compiling: the training step"
        # The chunk donates the state, so its buffers are gone once it starts. If it is abandoned,
        # or anything before the last line fails, there is no consistent state to save.
        state, self.state = self.state, None
        step = self.functions.program.chunk

        def train(*args: Any) -> Any:
            self.ahead.wait(step)
            return step(*args)

        state, means = self.work(train, state, self.config, work, busy=busy)
        if not self.compiled:
            evaluations = self.functions.evaluate_planner, self.functions.evaluate_policy
            self.ahead.start(*evaluations, args=(state, self.config))
        compiled, self.compiled = self.compiled, True
        self.say_notes()
        values: Results = dict(jax.device_get(means))
        self.warn_of_clipping(values)
        counts = state.stats, state.agent.faults
        stats, faults = seed_axis.cut(
            jax.device_get(counts), self.config.train.num_seeds, self.functions.program.mesh
        )
        seconds = time.monotonic() - begin
        self.done, updates = int(state.iteration) * self.config.env.num_envs, int(state.updates)
        done = self.done - start
        devices = seed_axis.mesh_size(self.functions.program.mesh)
        counted = metrics.chunk_values(self.config, stats, faults, updates, done / seconds, devices)
        before = self.books.invalid
        self.note(updates=updates, invalid=np.asarray(stats.invalid, np.int64))
        broken = metrics.faults(self.config, faults, stats, before, done, phase)
        state, stop = self.judge(broken, state)
        values |= self.chunk_columns(counted)
        self.note(returns=values["train/return"])
        # Only the first chunk knows all columns. Those of evaluations are reserved: a header
        # cannot grow later.
        if not self.tables:
            extra = ["eval/return", "eval/policy_return", "eval/length", "eval/broken"]
            self.open_tables([[*values, *extra, *diagnostics.NAMES]] * len(self.cells))
        # Compilation and random actions say nothing about the time of later chunks.
        if phase == "training" and done and compiled:
            self.pace = seconds / done
        self.show(phase, done / seconds)
        self.note(pending=Pending(phase, values, seconds, done, stop))
        self.state = state

    def chunk_columns(self, counted: Results) -> Results:
        """Columns of a chunk besides training's metrics, with NaN and marks for dropped seeds."""
        left = self.books.left
        returns = health.without({"train/return": counted["train/return"]}, left)
        broken = np.isin(np.arange(len(self.books.resets)), list(left)).astype(int)
        return counted | returns | {"broken": broken, "resets": self.books.resets}

    def show(self, phase: str, rate: float) -> None:
        """The progress line after a chunk with ``rate`` decisions per second."""
        total, repeat = self.config.train.total_decisions, self.config.env.action_repeat
        said = [f"{phase} {self.done:,}/{total:,} decisions"]
        if self.options.grid:
            rows, lost = self.config.train.num_seeds, len(self.books.left)
            said[0] += f" x {rows} rows"
            said.append(f"{number(rate)} decisions/s each, {number(rate * rows)} in all")
            said += sweeps.best(self.cells, self.books)
            said += [f"{lost} diverged"] if lost else []
        else:
            evaluated = self.books.evaluated.get("eval/return", np.array([np.nan]))
            said.append(f"{number(rate)} decisions/s, {number(rate * repeat)} frames/s")
            said.append(f"return {number(metrics.mean(self.books.returns), 1)}")
            said.append(f"eval {number(metrics.mean(evaluated), 1)}")
        said.append(f"{duration(self.seconds_left())} left")
        self.progress.line(" | ".join(said), share=self.done / total, force=self.done >= total)

    def warn_of_clipping(self, values: Results) -> None:
        """Warn once per run if targets lie beyond the bins."""
        text = "" if self.warned_of_clipping else metrics.clipping(self.config, values)
        if text:
            self.warned_of_clipping = True
            self.progress.say(f"warning: {text}")

    def judge(self, faults: dict[int, Fault], state: TrainState) -> tuple[TrainState, str]:
        """Drop or reset diverged seeds; returns the new state and the reason to stop, if any."""
        train_config, labels = self.config.train, cells_lib.labels(self.cells)
        verdict = health.judge(
            faults,
            self.books.left,
            self.books.resets,
            self.done,
            lambda i: labels[i],
            on_broken=train_config.on_broken_seed,
            most_resets=train_config.max_seed_resets,
        )
        self.note(left=verdict.left)
        for line in verdict.lines:
            self.progress.say(line)
        if verdict.reset and not verdict.stop:
            which = np.isin(np.arange(len(self.books.resets)), verdict.reset)
            self.note(resets=self.books.resets + which)
            state = self.functions.reset_agents(state, self.config, which)
        return state, verdict.stop

    def finish_chunk(self) -> None:
        """Evaluate if it is due, write the chunk's rows, and stop if that was decided.

        A signal during the evaluation leaves the chunk pending, also in the checkpoint.
        """
        chunk, interval = self.books.pending, self.config.train.eval_decisions
        assert chunk is not None
        due = interval and self.done - self.books.last_evaluation >= interval
        evaluate = due and chunk.phase == "training"
        values = chunk.values | (self.evaluate() if evaluate else {})
        self.write(values)
        # After the rows: if they cannot be written, the next sitting evaluates and writes again.
        if evaluate:
            self.note(last_evaluation=self.done, evaluated_at=self.done)
        self.note(pending=None, tables=self.written())
        if chunk.stop:
            raise Stop(3, chunk.stop)

    def write(self, values: Results) -> None:
        """Write one row for every seed of every cell."""
        for cell, table in zip(self.cells, self.tables, strict=True):
            for i, seed in cell.row_seeds():
                row = {name: value[i].item() for name, value in values.items()}
                row |= {"seconds": self.seconds(), "seed": seed}
                # The disk first: callbacks must not see a row that could not be written.
                self._on_disk(table.row, row)
                self.loggers.row((cell.name, seed), row)
                for callback in self.on_row:
                    callback(row | ({"cell": cell.name} | cell.values if cell.name else {}))

    def _on_disk(self, function: Callable, *args: Any) -> Any:
        try:
            return function(*args)
        except OSError as error:
            reason = error.strerror or error
            text = f"{self.options.workdir}: {reason}; the last row is not written"
            raise Stop(4, text) from None

    def evaluate(self) -> Results:
        """Evaluate the planner and update the picture."""
        function, begin = self.functions.evaluate_planner, time.monotonic()
        episodes, diagnosis = self._played(function, "evaluating the planner")
        took = time.monotonic() - begin
        if not self.evaluation_seconds:  # the first of a sitting compiles
            took = float(np.fmin(took, self.expected_evaluation()))
        self.evaluation_seconds = took
        values = metrics.episode_values(episodes) | diagnosis
        self.note(evaluated=health.without(values, self.books.left))
        self._write_episodes("planner", episodes)
        self.draw()
        return self.books.evaluated

    def evaluate_policy(self) -> None:
        """Evaluate the policy network, without planning, on the same number of episodes."""
        episodes = self._played(self.functions.evaluate_policy, "evaluating the bare policy")
        means = metrics.valid_mean(episodes.returns, episodes.valid)
        returns = health.without({"eval/policy_return": means}, self.books.left)
        self.note(evaluated=self.books.evaluated | returns)
        self._write_episodes("policy", episodes)

    def _played(self, function: Callable, busy: str) -> Any:
        def play(state: TrainState, config: Config) -> Any:
            self.ahead.wait(function)
            return function(state, config)

        played = jax.device_get(self.work(play, self.state, self.config, busy=busy))
        self.say_notes()
        return played

    def say_notes(self) -> None:
        """Print what environments on the host have to say, at most a few lines at a time."""
        lines = self.functions.notes()
        for line in lines[:MOST_NOTES]:
            self.progress.say(f"warning: {line}")
        if len(lines) > MOST_NOTES:
            self.progress.say(f"warning: {len(lines) - MOST_NOTES} more of that kind")

    def _write_episodes(self, actor: str, episodes: Episodes) -> None:
        assert self.state is not None
        decisions = np.asarray(self.state.stats.decisions)
        for cell, table in zip(self.cells, self.tables, strict=True):
            own = jax.tree.map(lambda x, rows=cell.rows: x[rows], episodes)
            arguments = cell.config, decisions[cell.rows], actor, own, self.seconds()
            for i, row in enumerate(metrics.episode_rows(*arguments), start=cell.rows.start):
                if i not in self.books.left:
                    self._on_disk(table.evaluation, row)

    def draw(self) -> None:
        """Update the picture if matplotlib is installed; warn once if it cannot be drawn."""
        if not canvas.available():
            return
        try:
            sweeps.draw(self.options, self.cells, self.books)
        # Any error: a picture can be drawn again from the tables, lost training cannot.
        except Exception as error:
            if not self.warned_of_picture:
                text = f"warning: no picture: {crash.one_line(error)}; training continues"
                self.progress.say(text)
            self.warned_of_picture = True

    def save_if_due(self) -> None:
        """Begin a checkpoint if one is due, or if the agent was evaluated now and is the best."""
        if self.should_save():
            self.note(last_checkpoint=self.done)
            self.save()

    def should_save(self) -> bool:
        """Whether :meth:`save_if_due` saves."""
        interval = self.config.train.checkpoint_decisions
        if not interval:
            return False
        due = self.done - self.books.last_checkpoint >= interval
        # Several processes save at the same decisions, so that they have checkpoints in common;
        # each knows the returns of its own seeds only.
        if self.options.together:
            return due
        # While a save is in progress the next one is left to a later chunk, so that a slow disk
        # does not block training.
        if due and not self.checkpoints.busy:
            return True
        score, last = self.score(), self.done >= self.config.train.total_decisions
        # There will be no later chunk with the best agent; the last one is saved at the end anyway.
        return score is not None and not last and score > self.checkpoints.best_score

    def score(self) -> float | None:
        """Mean evaluation return of exactly this state, if it was evaluated."""
        # An older evaluation says nothing about this state and must not rank its checkpoint.
        fresh = self.books.evaluated_at == self.done
        return metrics.score(self.books.evaluated) if fresh else None

    def save(self) -> None:
        """Begin a checkpoint if there is anything to save; ``finished`` once the run has ended."""
        if self.state is None or not self.tables:
            return
        score = self.score()
        books = self.books._replace(finished=self.ended, seconds=self.seconds())
        outside = self.functions.program.env.outside
        if outside is not None:
            self.state = self.state._replace(env=outside.snapshot(self.state.env))
        self.checkpoints.save(self.state, books, score, self.sync)

    def sync(self) -> None:
        """Force all rows to the disk."""
        for table in self.tables:
            table.sync()

    def close(self) -> None:
        """Close all tables."""
        for table in self.tables:
            try:
                table.close()
            except OSError:  # a full disk, which writing the rows has already reported
                pass

    def collect_save(self) -> str:
        """Wait for a save in progress; returns why it failed, or an empty text."""
        return self.checkpoints.collect()
