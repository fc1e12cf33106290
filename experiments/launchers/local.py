"""Cells as processes of this machine, each on its own cores and its own GPU."""

import math
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO

from experiments import gpus as gpus_lib
from experiments.launchers import cell, plans
from experiments.launchers.cell import Job, Training, last_line
from experiments.launchers.plans import Plan
from pomcp_jax.config import ConfigError
from pomcp_jax.running.progress import Progress, duration

BY = "local"
"""This launcher, in the records of cells."""


class Event(NamedTuple):
    """Message of a worker to the main thread."""

    kind: str
    """``started``, ``finished``, ``broke``, ``stopped``, ``paused`` (its time is up), ``busy``
    (another process trains the cell) or ``left`` (the worker has exited)."""
    plan: Plan | None = None
    text: str = ""


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
        self._live: dict[str, Training] = {}
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
            for training in self._live.values():
                training.send(number)

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
        def on_lock(log: TextIO) -> Job:
            log.truncate(0)  # only now: before the lock it may be the log of a run in progress
            moved = plans.set_aside(plan)
            text = f"an earlier attempt moved to {moved}/" if moved else ""
            self.events.put(Event("started", plan, text))
            return plan.job._replace(command=(*plan.command, *self._limit()))

        def on_start(training: Training) -> None:
            with self._lock:
                self._live[plan.name] = training
                if self.received:  # it arrived before the run was listed
                    training.send(self.received)

        # A run whose launcher was killed saves and exits; that of another program may take days.
        patience = cell.PATIENCE if cell.is_orphan(plan.job, BY) else 0.0
        ending = cell.train(
            plan.job, environment, BY, patience=patience, on_lock=on_lock, on_start=on_start
        )
        with self._lock:
            self._live.pop(plan.name, None)
        if ending.kind == "paused":
            return Event("paused", plan, plans.attempt(plan, ended=True))
        if self.received and ending.code not in (None, 0, cell.DIVERGED):
            return Event("stopped", plan)
        if ending.kind == "lost":
            return Event("broke", plan, f"exit code {ending.code}; see {plan.log}")
        return Event(ending.kind, plan, ending.text)


def follow(runner: Runner, total: int, progress: Progress) -> dict[str, list[Plan]]:
    """Report progress until all workers have exited; returns the cells by how they ended."""
    ended: dict[str, list[Plan]] = {k: [] for k in cell.ENDINGS}
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
