"""Train a set of tasks x methods x seeds: ``python -m experiments.reproduce --suite=debug``.

Each cell (one task, one method, all seeds as one program) is a run of :mod:`experiments.run` in its
own process. The same command resumes an interrupted suite: finished cells are skipped, and an
interrupted cell continues from its newest checkpoint. A cell that failed or had another
configuration is moved to ``previous-N`` and starts over; nothing is deleted. Ctrl-C stops after the
current chunks. With --minutes the suite ends after that time: the cells still to train share what
is left of it, and the results of those that do not reach their end are kept as well.

Results are in runs/results/SUITE, checkpoints and logs in runs/reproduce/SUITE. The published
results in experiments/results are only read, unless --out names them. A suite of your own is a JSON
file:

EXAMPLE
Exit codes: 0 all done, 1 an unexpected exception, 2 bad input, 3 some cell failed, 75 --minutes are
over, 129/130/143 stopped by SIGHUP/SIGINT/SIGTERM.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import usage  # isort: skip  # noqa: F401
from experiments import clock  # isort: skip

import argparse
import fcntl
import math
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from experiments import arguments, parsers, settings, streams, suites
from experiments import gpus as gpus_lib
from experiments.suites import Suite
from pomcp_jax import config as config_lib
from pomcp_jax import validation
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.reporting import results
from pomcp_jax.running import loggers, workdirs
from pomcp_jax.running.options import Options
from pomcp_jax.running.progress import Progress, duration

PUBLISHED = Path(__file__).parent / "results"
"""Folder of the published results of each suite."""
STATUS_SECONDS = 60.0
"""Seconds between status lines when stderr is not a terminal."""


class Plan(NamedTuple):
    """A cell to train."""

    task: str
    method: str
    command: list[str]
    config: Config
    workdir: Path
    """Folder in which it trains, with checkpoints."""
    folder: Path
    """Folder of its results."""
    facts: dict[str, Any]
    """Entries added to run.json."""

    @property
    def name(self) -> str:
        return f"{self.task} {self.method}"

    @property
    def log(self) -> Path:
        return self.workdir.with_name(f"{self.workdir.name}.log")


class Event(NamedTuple):
    """Message of a worker to the main thread."""

    kind: str
    """``started``, ``finished``, ``broke``, ``stopped``, ``paused`` (its time is up), ``busy``
    (another process trains the cell) or ``left`` (the worker has exited)."""
    plan: Plan | None = None
    text: str = ""


ENDINGS = ("finished", "broke", "stopped", "paused", "busy")
"""Kinds of events that end a cell."""


def make_plans(
    name: str,
    suite: Suite,
    out: Path,
    work: Path,
    methods: Sequence[str] = (),
    tasks: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> list[Plan]:
    """Cells of a suite, task after task; every configuration is checked, nothing is run.

    Args:
      name: of the suite.
      suite: its contents.
      out: folder of results.
      work: folder in which cells train.
      methods: a selection, in this order; all by default.
      tasks: a selection, likewise.
      overrides: arguments ``--config.FIELD=VALUE``, applied to every cell; they override
        everything else.

    Raises:
      ConfigError: one line for the user.
    """
    for wrong in (text for text in overrides if not text.startswith("--config.")):
        raise ConfigError(f"{wrong!r}: unexpected argument; overrides look like --config.F=VALUE")
    chosen_tasks = [suites.known("--tasks", task, suite.tasks) for task in tasks or suite.tasks]
    chosen = [suites.known("--methods", m, suite.methods) for m in methods or suite.methods]
    plans = []
    for task in chosen_tasks:
        for label in chosen:
            method = suite.methods[label]
            fields = {"train.num_seeds": suite.num_seeds, **suite.overrides, **method.overrides}
            workdir = work / results.folder_name(task) / label
            arguments = [f"--config={suite.config}:{task},{method.preset}"]
            arguments += [f"--config.{field}={value}" for field, value in fields.items()]
            arguments += [*overrides, f"--workdir={workdir}"]
            # Parsed as the cell's own process will: mistakes are found before the first cell
            # trains for hours, and the configuration can be compared with finished results.
            options = settings.parse(["experiments.run", *arguments])
            validation.validate_config(options.config)
            plans.append(
                Plan(
                    task=task,
                    method=label,
                    command=[sys.executable, "-m", "experiments.run", *arguments],
                    config=options.config,
                    workdir=workdir,
                    folder=out / results.folder_name(task) / label,
                    facts={"suite": name, "method": label, "preset": method.preset},
                )
            )
    return plans


def core_sets(jobs: int, cores: Sequence[int]) -> list[set[int]]:
    """Disjoint sets of ``cores``, as even as possible, one for each of ``jobs`` workers.

    Raises:
      ConfigError: for more workers than cores, or none.
    """
    if not 1 <= jobs <= len(cores):
        raise ConfigError(f"--jobs = {jobs}: must be 1 to {len(cores)}, the number of cores")
    return [set(cores[i::jobs]) for i in range(jobs)]


class Runner:
    """Trains cells in parallel, each worker on its own cores and its own GPU."""

    def __init__(
        self,
        plans: list[Plan],
        jobs: int,
        deadline: float | None = None,
        gpus: Sequence[str] = (),
    ):
        """Check ``jobs`` and prepare workers; starts nothing.

        Args:
          plans: cells to train.
          jobs: number of workers.
          deadline: by ``time.monotonic``, when the last cell is to stop; None for never.
          gpus: names of GPUs, which workers take in turn.

        Raises:
          ConfigError: as :func:`core_sets`.
        """
        self._deadline = deadline
        self._todo: queue.SimpleQueue[Plan] = queue.SimpleQueue()
        for plan in plans:
            self._todo.put(plan)
        # Threads of XLA would otherwise use all cores in every process and slow each other down.
        if hasattr(os, "sched_setaffinity"):
            sets = core_sets(jobs, sorted(os.sched_getaffinity(0)))
        else:
            core_sets(jobs, range(os.cpu_count() or 1))  # checks --jobs; macOS cannot pin
            sets = [set()] * jobs
        environments = gpus_lib.environments(jobs, gpus, os.environ)
        self._live: dict[str, subprocess.Popen] = {}
        # Reentrant: another signal may interrupt the handler while it holds the lock.
        self._lock = threading.RLock()
        self.received = 0
        """Number of the latest signal, 0 before the first."""
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.workers = [
            threading.Thread(target=self._work, args=own, daemon=True)
            for own in zip(sets, environments, strict=True)
        ]

    def start(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)
        for worker in self.workers:
            worker.start()

    def _handle(self, number: int, _frame: Any) -> None:
        """Forward a signal to the runs: the first stops them after a chunk, the second at once."""
        with self._lock:
            self.received = number
            for process in self._live.values():
                process.send_signal(number)

    def _work(self, cores: set[int], environment: dict[str, str]) -> None:
        if cores:
            os.sched_setaffinity(0, cores)  # of this thread only; child processes inherit it
        try:
            while not self.received and not self.late():
                try:
                    plan = self._todo.get_nowait()
                except queue.Empty:
                    break
                self.events.put(self._cell(plan, environment))
        finally:
            self.events.put(Event("left"))

    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _limit(self) -> list[str]:
        """The flag that limits the next cell to its share of the time that is left."""
        if self._deadline is None:
            return []
        # Those in the queue follow in as many rounds as the workers need for them.
        rounds = 1 + math.ceil(self._todo.qsize() / len(self.workers))
        left = max(1.0, self._deadline - time.monotonic())
        return [f"--minutes={left / rounds / 60.0:.3f}"]

    def _cell(self, plan: Plan, environment: dict[str, str]) -> Event:
        try:
            plan.log.parent.mkdir(parents=True, exist_ok=True)
            with plan.log.open("a") as log:
                try:
                    # The run inherits the lock, which lasts until both processes have ended: if
                    # this one is killed, its orphaned run still keeps others out of the cell.
                    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return Event("busy", plan, f"another process trains it, see {plan.log}")
                except OSError:  # a file system without locks
                    pass
                return self._locked(plan, log, environment)
        except OSError as error:
            return Event("broke", plan, str(error))

    def _locked(self, plan: Plan, log: TextIO, environment: dict[str, str]) -> Event:
        log.truncate(0)  # only now: before the lock it may be the log of a run in progress
        moved = None
        if plan.workdir.is_dir() and not can_resume(plan):
            moved = workdirs.set_aside(plan.workdir.parent, [plan.workdir.name])
        self.events.put(
            Event("started", plan, f"an earlier attempt moved to {moved}/" * bool(moved))
        )
        process = subprocess.Popen(
            [*plan.command, *self._limit()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"WANDB_RUN_GROUP": f"{plan.task}/{plan.method}"} | environment,
            pass_fds=(log.fileno(),),
            # A terminal sends Ctrl-C to its whole process group; together with `_handle` a run
            # would receive it twice and end at once.
            start_new_session=True,
        )
        with self._lock:
            self._live[plan.name] = process
            if self.received:  # it arrived before the process was listed
                process.send_signal(self.received)
        code = process.wait()
        with self._lock:
            del self._live[plan.name]
        if code in (0, 3, clock.TIME_IS_UP):
            # A diverged training is a result too, and so is the part of one that its time allowed;
            # they do not count as finished.
            if (plan.workdir / "run.json").is_file():
                results.keep(plan.workdir, plan.folder, plan.facts)
            if code == clock.TIME_IS_UP:
                return Event("paused", plan, _attempt(plan, ended=True))
            return Event("finished" if code == 0 else "broke", plan, last_line(plan.log))
        if self.received:
            return Event("stopped", plan)
        return Event("broke", plan, f"exit code {code}; see {plan.log}")


def can_resume(plan: Plan) -> bool:
    """Whether an earlier attempt in the workdir has the same configuration and did not diverge.

    Raises:
      OSError: its files cannot be read at present, so nothing may be moved.
    """
    try:
        before = config_lib.from_dict(Config, workdirs.read_json(plan.workdir / "config.json"))
        if workdirs.differences(before, plan.config):
            return False
        return workdirs.read_json(plan.workdir / "run.json")["exit_code"] != 3
    except FileNotFoundError:  # killed early; the run itself decides about what is left
        return True
    except (ValueError, KeyError, TypeError, AttributeError):  # ConfigError is a ValueError
        return False


def last_line(path: Path) -> str:
    """The last line of a log, ``""`` without one."""
    try:
        with path.open("rb") as file:
            # The end only: called twice a second for every running cell.
            file.seek(max(0, path.stat().st_size - 1000))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def follow(runner: Runner, total: int, progress: Progress) -> dict[str, list[Plan]]:
    """Report progress until all workers have exited; returns the cells by how they ended."""
    ended: dict[str, list[Plan]] = {k: [] for k in ENDINGS}
    running: dict[str, tuple[Plan, float]] = {}
    begin, workers, announced = time.monotonic(), len(runner.workers), False
    while workers:
        # Announced here and not in the signal handler, which may interrupt a print.
        if runner.received and not announced:
            announced = True
            progress.say("stopping after the current chunks; signal again to stop at once")
        try:
            event = runner.events.get(timeout=0.5)
        except queue.Empty:
            shown = [f"{name}: {last_line(plan.log)}" for name, (plan, _) in running.items()]
            if shown:
                progress.line(" || ".join(shown))
            continue
        if event.kind == "left":
            workers -= 1
        elif event.kind == "started":
            running[event.plan.name] = (event.plan, time.monotonic())
            text = f"start    {event.plan.name}  (log: {event.plan.log})"
            progress.say(text + (f"; {event.text}" if event.text else ""))
        else:
            now = time.monotonic()
            _, since = running.pop(event.plan.name, (None, now))
            ended[event.kind].append(event.plan)
            done = len(ended["finished"])
            left = total - sum(map(len, ended.values()))
            text = f"{event.kind:<9}{event.plan.name}  {duration(now - since)}"
            if event.kind == "finished":
                text += f", {left} left"
                text += f" (about {duration((now - begin) / done * left)})" if left else ""
            progress.say(text + (f": {event.text}" if event.kind != "finished" else ""))
    progress.close()
    return ended


def split(plans: list[Plan]) -> tuple[list[Plan], list[Plan]]:
    """Finished cells, then cells to train.

    Raises:
      ConfigError: if finished results have another configuration.
    """
    done = [results.finished(plan.folder, plan.config) for plan in plans]
    return (
        [plan for plan, d in zip(plans, done, strict=True) if d],
        [plan for plan, d in zip(plans, done, strict=True) if not d],
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; arguments ``--config.FIELD=VALUE`` are passed to every cell."""
    return streams.guarded(lambda: _main(argv))


def state(plan: Plan, published: Path) -> str:
    """State of a cell, for ``--list``.

    Args:
      plan: the cell.
      published: folder of published results; what it has is mentioned.
    """
    own = published / results.folder_name(plan.task) / plan.method
    also = (
        "; published"
        if own.resolve() != plan.folder.resolve() and _has_results(own, plan) == "finished"
        else ""
    )
    return (_has_results(plan.folder, plan) or _attempt(plan)) + also


def _has_results(folder: Path, plan: Plan) -> str:
    try:
        return "finished" if results.finished(folder, plan.config) else ""
    except ConfigError:
        return "other configuration"


def _attempt(plan: Plan, *, ended: bool = False) -> str:
    """State of a cell without results; ``ended``: nobody trains it, whoever has its lock."""
    try:
        about = workdirs.read_json(plan.workdir / "run.json")
        code, done = about["exit_code"], about.get("last_checkpoint") or 0
    except FileNotFoundError:
        return "to train"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "unreadable, starts over"
    if code == 3:
        return "diverged, starts over"
    if not ended and _locked(plan.log):
        return f"training, {done:,} decisions saved"
    return f"stopped, {done:,} of {plan.config.train.total_decisions:,} decisions saved"


def _locked(log: Path) -> bool:
    """Whether another process trains the cell of ``log``."""
    try:
        with log.open() as file:  # not "a", which would create it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def chosen(plans: list[Plan], numbers: Sequence[int] | None) -> list[Plan]:
    """The plans of ``--cell``, all without it.

    Raises:
      ConfigError: a number that is none of a cell.
    """
    if numbers is None:
        return plans
    for number in numbers:
        if not 0 <= number < len(plans):
            raise ConfigError(
                f"--cell = {number}: must be 0 to {len(plans) - 1}; --list shows the cells"
            )
    return [plans[number] for number in dict.fromkeys(numbers)]


def prepare(args: argparse.Namespace, overrides: Sequence[str]) -> tuple[Path, list[Plan]]:
    """Folder of results, and all cells of the suite.

    Raises:
      ConfigError: one line for the user.
    """
    if not args.suite:
        raise ConfigError("--suite: is missing; must be a name or a JSON file, --list shows names")
    suite, name = suites.get(args.suite), Path(args.suite).stem
    out = args.out or Path("runs/results") / name
    work = args.work or Path("runs/reproduce") / out.resolve().name
    plans = make_plans(name, suite, out, work, args.methods, args.tasks, overrides)
    if args.wandb is not None:
        loggers.check(Options(plans[0].config, plans[0].workdir, wandb=args.wandb or " "))
        plans = [p._replace(command=[*p.command, f"--wandb={args.wandb}"]) for p in plans]
    return out, plans


def print_cells(plans: Sequence[Plan], name: str) -> None:
    """Number, name and state of every cell."""
    width = max(len(plan.name) for plan in plans)
    for i, plan in enumerate(plans):
        print(f"{i:3}  {plan.name:<{width}}  {state(plan, PUBLISHED / name)}")


def _main(argv: list[str] | None) -> int:
    args, overrides = arguments.parse(parsers.reproduce(__doc__), argv, others=True)
    progress = Progress(interval=STATUS_SECONDS)
    if args.list and not args.suite:
        print(parsers.listed_suites())
        return 0
    try:
        out, plans = prepare(args, overrides)
        if args.list:
            print_cells(plans, Path(args.suite).stem)
            return 0
        plans = chosen(plans, args.cell)
        finished, todo = split(plans)
        deadline = _deadline(args.minutes)
        gpus = gpus_lib.chosen(args.gpus)
        jobs = (len(gpus) if args.gpus else 1) if args.jobs is None else args.jobs
        runner = Runner(todo, jobs, deadline, gpus)  # also checks --jobs; starts nothing
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.dry_run:
        for plan in plans:
            done = "finished" if plan in finished else "to train"
            print(f"{done}  {plan.name}: {shlex.join(plan.command)}")
        return 0
    progress.say(
        f"{args.suite}: {len(plans)} cells, {len(finished)} finished, {len(todo)} to train,"
        f" {jobs} at once{_on(jobs, gpus)}; results in {out}/"
    )
    runner.start()
    ended = follow(runner, len(todo), progress)
    for plan in ended["broke"]:
        print(f"error: {plan.name}: broke; see {plan.log}", file=sys.stderr)
    missing = len(todo) - len(ended["finished"])
    print(f"{len(finished) + len(ended['finished'])} of {len(plans)} cells finished in {out}/")
    if runner.received:
        print("stopped; the same command resumes")
        return 128 + runner.received
    if ended["paused"] or (missing and runner.late()):
        print(f"stopped after {args.minutes:g} minutes; the same command resumes")
        return 3 if ended["broke"] else clock.TIME_IS_UP
    return 3 if missing else 0


def _on(jobs: int, gpus: Sequence[str]) -> str:
    """Text on where workers train."""
    if not gpus:
        return ""
    return (
        f" on GPU{'s' * (len(gpus) > 1)} {', '.join(gpus)}"
        if len(gpus) <= 16
        else f" on {len(gpus)} GPUs"
    )


def _deadline(minutes: float | None) -> float | None:
    """End of ``--minutes`` by ``time.monotonic``; they count from the start of the process.

    Raises:
      ConfigError: it is no time.
    """
    if minutes is None:
        return None
    if not 0.0 < minutes < math.inf:
        raise ConfigError(f"--minutes = {minutes:g}: must be above 0")
    return clock.STARTED + 60.0 * minutes


if __name__ == "__main__":
    sys.exit(main())
