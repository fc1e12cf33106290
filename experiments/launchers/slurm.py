"""Cells as jobs of SLURM, by submitit: ``reproduce --launcher=slurm``.

All cells are one array job, or several if SLURM's limit is lower. The number of each cell's job is
in launch.json in the study's folder: the same command attaches to jobs that wait or train, and
submits only what is neither finished nor submitted. Ctrl-C leaves the jobs alone.
"""

import argparse
import copy
import functools
import getpass
import math
import re
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from experiments.launchers import cell, checks, plans, table
from experiments.launchers import study as study_lib
from experiments.launchers.plans import Outcome, Plan, Ready
from experiments.launchers.slurm_job import SlurmCell
from experiments.launchers.study import Study
from pomcp_jax.config import ConfigError

RETRIES = 10
"""Default of ``--retries``."""
TIME = "4:00:00"
"""Default of ``--time``."""
SAVING = 180
"""Seconds before the end of a job's time at which its cell saves and exits."""
POLL = {"slurm": 30.0, "local": 0.2}
"""Seconds between questions for the states of jobs."""
LONGEST_ARRAY = 1000
"""Jobs of an array if SLURM does not say its limit."""
OVER = ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
"""States of jobs that will not run any more, apart from cancelled ones."""
FOREVER = 1_000_000
"""Times that a job may reach its limit: a long training needs many."""


class Jobs(NamedTuple):
    """Access to jobs."""

    submit: Callable[[list[Plan]], list[str]]
    """Numbers of the jobs of these cells, in their order; raises ConfigError."""
    states: Callable[[], Mapping[str, str] | None]
    """States of jobs by number; None if they are unknown now. A job that is missing is over."""
    limit: int
    """Jobs that may exist at the same time."""
    array: Callable[[], int]
    """Jobs that may be submitted at once."""
    described: Callable[[int], list[str]]
    """What would be submitted for so many cells."""


def prepare(args: argparse.Namespace, study: Study, todo: list[Plan]) -> Ready:
    """Check the flags, and that there is SLURM.

    Raises:
      ConfigError: one line for the user.
    """
    submitit = _imported()
    engine = args.cluster or "slurm"
    if engine == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError(
            "--launcher = 'slurm': there is no sbatch on PATH; run it on a login node of the"
            " cluster, or try it on this machine with --cluster=local"
        )
    options = parameters(args)
    if args.memory_per_cell is not None:
        what = f"--memory_per_cell = {args.memory_per_cell:g}"
        checks.check_memory(todo, args.memory_per_cell, what)
    make = _local_jobs if engine == "local" else _slurm_jobs
    where = "as jobs of SLURM" if engine == "slurm" else "as jobs of this machine"
    logs = study.work / "slurm"

    def launch() -> Launch:
        return Launch(args, study, todo, make(submitit, args, logs, options))

    return Ready(
        f"{where} (logs: {logs})",
        lambda begin: launch().follow(begin),
        lambda: launch().preview(),
    )


def _imported() -> ModuleType:
    """submitit.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own imports
            import submitit
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--launcher = 'slurm': {error.name} is not installed; `pip install 'pomcp_jax[slurm]'`"
        ) from None
    return submitit


def minutes(text: str) -> int:
    """Minutes of a time as SLURM writes it: ``90``, ``4:00:00``, ``1-12:00:00``.

    Raises:
      ConfigError: it is none.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match:
        days, first, second, third = (int(part or 0) for part in match.groups())
        parts = 1 + sum(part is not None for part in match.groups()[2:])
        if match[1] is not None:  # D-HH[:MM[:SS]]
            seconds = ((24 * days + first) * 60 + second) * 60 + third
        elif parts == 3:
            seconds = (first * 60 + second) * 60 + third
        else:  # MM or MM:SS
            seconds = 60 * first + second
        if seconds > 2 * SAVING:
            return math.ceil(seconds / 60)
    raise ConfigError(
        f"--time = {text!r}: must be D-HH:MM:SS, HH:MM:SS or minutes, above"
        f" {2 * SAVING // 60} minutes"
    )


def parameters(args: argparse.Namespace) -> dict[str, Any]:
    """Parameters of submitit's SlurmExecutor.

    Raises:
      ConfigError: a value that cannot be right.
    """
    others = {}
    for text in args.sbatch or ():
        name, equals, value = text.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if not (name and equals and value):
            raise ConfigError(f"--sbatch = {text!r}: must be KEY=VALUE, as in qos=high")
        if name in ("array", "output", "error", "signal", "open_mode", "job_name", "requeue"):
            raise ConfigError(f"--sbatch = {text!r}: {name} is set by the launcher")
        others[name] = value
    memory = args.memory_per_cell
    wanted = {
        "time": minutes(args.time or TIME),
        "cpus_per_task": args.cpus_per_cell or 1,
        "gpus_per_node": int(args.gpus_per_cell or 0) or None,
        "mem": f"{math.ceil(1024 * memory)}MB" if memory else None,
        "partition": args.partition,
        "account": args.account,
        "array_parallelism": args.jobs,
        "signal_delay_s": SAVING,
        "stderr_to_stdout": True,
        "additional_parameters": others | {"requeue": True},
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _slurm_jobs(
    submitit: ModuleType, args: argparse.Namespace, logs: Path, options: Mapping[str, Any]
) -> Jobs:
    """Jobs of SLURM."""
    executor = submitit.SlurmExecutor(folder=str(logs), max_num_timeout=FOREVER)
    executor.update_parameters(**options, job_name=args.suite and Path(args.suite).stem)

    def submit(some: list[Plan]) -> list[str]:
        try:
            made = executor.submit_array([SlurmCell(plan.job) for plan in some])
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            said = _last(error).removeprefix("sbatch: error: ")
            raise ConfigError(f"sbatch: {said}") from None
        return [job.job_id for job in made]

    def described(cells: int) -> list[str]:
        most = _longest_array()
        sizes = [min(most, cells - begin) for begin in range(0, cells, most)]
        return [_sbatch(executor, size) for size in sizes]

    return Jobs(submit, _squeue, FOREVER, _longest_array, described)


def _sbatch(executor: Any, cells: int) -> str:
    """The command that would submit so many cells."""
    # submitit's own text, which has its defaults; one cell is no array.
    made = copy.copy(executor)
    made.parameters = executor.parameters | ({"map_count": cells} if cells > 1 else {})
    text = made._make_submission_file_text("", "")
    flags = re.findall(r"^#SBATCH (--.*)$", text, re.MULTILINE)
    what = f"an array job of {cells:,} cells" if cells > 1 else "a job of 1 cell"
    return f"{what}: sbatch {' '.join(flags)}"


def _last(error: Exception) -> str:
    """The line of an error that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if "error:" in line]
    return " ".join((said or lines or [type(error).__name__])[-1].split())[:300]


@functools.cache
def _longest_array() -> int:
    """Jobs that an array may have."""
    try:
        asked = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=30
        )
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", asked.stdout)
    except (OSError, subprocess.TimeoutExpired):
        found = None
    # The limit is that of indices, which begin at 0: arrays may be one longer than the last one.
    return max(1, int(found[1])) if found else LONGEST_ARRAY


def _squeue() -> dict[str, str] | None:
    """States of this user's jobs, elements of arrays one by one."""
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T"]
    try:
        asked = subprocess.run(
            [*command, f"--user={getpass.getuser()}"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode != 0:  # the controller is busy or restarts
        return None
    return {
        words[0]: words[1] for line in asked.stdout.splitlines() if len(words := line.split()) > 1
    }


def _local_jobs(
    submitit: ModuleType, args: argparse.Namespace, logs: Path, options: Mapping[str, Any]
) -> Jobs:
    """Processes of this machine under submitit, which tries out everything but SLURM."""
    executor = submitit.LocalExecutor(folder=str(logs), max_num_timeout=FOREVER)
    executor.update_parameters(
        timeout_min=options["time"], signal_delay_s=SAVING, stderr_to_stdout=True,
        gpus_per_node=options.get("gpus_per_node", 0),
    )  # fmt: skip
    mine: dict[str, Any] = {}

    def submit(some: list[Plan]) -> list[str]:
        jobs = [executor.submit(SlurmCell(plan.job)) for plan in some]
        mine.update({job.job_id: job for job in jobs})
        return [job.job_id for job in jobs]

    def states() -> dict[str, str]:
        for job in mine.values():
            job.get_info()  # reaps its process
        return {path.name: "RUNNING" for path in Path("/proc").glob("[0-9]*") if _is_job(path)}

    limit = args.jobs or 1

    def described(cells: int) -> list[str]:
        minutes = options["time"]
        return [f"{cells} jobs of this machine, {limit} at once, each up to {minutes} minutes"]

    return Jobs(submit, states, limit, lambda: 1, described)


def _is_job(process: Path) -> bool:
    """Whether a process is a controller of submitit."""
    try:
        return b"submitit.local._local" in (process / "cmdline").read_bytes()
    except OSError:
        return False


class Launch:
    """Jobs of a study, and how they end."""

    def __init__(self, args: argparse.Namespace, study: Study, todo: Sequence[Plan], jobs: Jobs):
        """Find the cells that were submitted earlier; submit nothing."""
        self._args, self._study, self._jobs = args, study, jobs
        self._poll = POLL[args.cluster or "slurm"]
        self._places = [plan.place for plan in todo]
        self._ended: dict[str, list[Plan]] = {kind: [] for kind in cell.ENDINGS}
        self._left = dict.fromkeys(
            (plan.name for plan in todo), RETRIES if args.retries is None else args.retries
        )
        self._received = 0
        self._screen = table.Screen()
        before = study_lib.submitted(study)["jobs"]
        states = jobs.states()
        if before and states is None:
            raise ConfigError("squeue: does not answer; try again later")
        self._live: dict[str, Plan] = {}
        """Cells by the number of their job."""
        self._todo: list[Plan] = []
        for plan in todo:
            number = str(before.get(plan.name, ""))
            if number and _is_live((states or {}).get(number, "")):
                self._live[number] = plan
            else:
                self._todo.append(plan)
        self._over = {n for n in before.values() if not _is_live((states or {}).get(n, ""))}
        """Jobs of earlier commands that have ended."""

    def preview(self) -> list[str]:
        """What would be submitted, and the jobs to which it would attach."""
        jobs = [f"{plan.name}: has job {number} already" for number, plan in self._live.items()]
        return jobs + (self._jobs.described(len(self._todo)) if self._todo else [])

    def follow(self, begin: Callable[[], None] = lambda: None) -> Outcome:
        """Submit the cells and wait for them, or for a signal; calls ``begin`` once SLURM took
        the first of them."""
        attached = len(self._live)
        self._submit()
        begin()
        if attached:
            self._screen.say(f"attached to {attached} jobs of an earlier command")
        if self._args.detach:
            return Outcome(self._ended, detached=True, text=self._how())
        self._catch_signals()
        shown, asked, rows = 0.0, time.monotonic() + self._poll, []
        while (self._live or self._todo) and not self._received:
            if time.monotonic() >= asked:
                asked = time.monotonic() + self._poll
                self._look()
                self._submit()
            if time.monotonic() >= shown:
                begin = time.monotonic()
                rows = self._show(rows)
                shown = time.monotonic() + max(2.0, 20 * (time.monotonic() - begin))
            time.sleep(min(0.5, self._poll))
        text = self._how() if self._live else ""
        return Outcome(self._ended, self._received, text=text)

    def _catch_signals(self) -> None:
        def handle(number: int, _frame: Any) -> None:
            self._received = number

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handle)

    def _how(self) -> str:
        """What to do about jobs that are left alone."""
        arrays = sorted({number.partition("_")[0] for number in self._live})
        cancel = "kill" if self._args.cluster == "local" else "scancel"
        shown = " ".join(arrays[:20]) + (" ..." if len(arrays) > 20 else "")
        return (
            f"{len(self._live)} jobs stay: the same command attaches to them, --status shows them,"
            f" `{cancel} {shown}` ends them"
        )

    def _submit(self) -> None:
        while self._todo and len(self._live) < self._jobs.limit:
            room = min(self._jobs.limit - len(self._live), self._jobs.array())
            some = self._todo[:room]
            for plan in some:
                moved = plans.make_ready(plan)
                if moved:
                    self._screen.say(f"{plan.name}: an earlier attempt moved to {moved}/")
            numbers = self._jobs.submit(some)
            self._live |= dict(zip(numbers, some, strict=True))
            self._todo = self._todo[room:]
            about = {
                "launcher": "slurm",
                "cluster": self._args.cluster or "slurm",
                "gpus_per_cell": self._args.gpus_per_cell or 0,
                "jobs": {plan.name: number for number, plan in self._live.items()},
            }
            # After every array: whoever is killed now has lost no job.
            study_lib.remember(self._study, about, self._over)

    def _look(self) -> None:
        """Ask for the states of jobs, and take those away that are over."""
        states = self._jobs.states()
        if states is None:
            return
        for number, plan in list(self._live.items()):
            if not _is_live(states.get(number, "")):
                del self._live[number]
                self._end(number, plan, states.get(number, ""))

    def _end(self, number: str, plan: Plan, state: str) -> None:
        record = cell.read(plan.job.record)
        mine = record.get("by") == number
        kind = str((record.get("ending") if mine else "") or "lost")
        kind = kind if kind in self._ended else "lost"
        if kind == "lost" and state.startswith("CANCELLED"):
            kind = "stopped"
        text = str(record.get("text") or "") if mine else state.lower()
        if kind == "lost" and self._left[plan.name] > 0:
            self._left[plan.name] -= 1
            self._todo.append(plan)
            self._screen.say(f"again    {plan.name}: job {number} was lost {text}".rstrip())
            return
        self._ended[kind].append(plan)
        shown = f": {text}" if text and kind != "finished" else ""
        self._screen.say(f"{kind:<9}{plan.name} (job {number}){shown}")

    def _show(self, known: Sequence[table.Row]) -> list[table.Row]:
        live = {plan.name: number for number, plan in self._live.items()}
        rows = table.rows(self._places, live, known)
        head = table.summary(self._args.suite, rows, self._args.gpus_per_cell or 0.0)
        self._screen.show(head, table.lines(rows))
        return rows


def _is_live(state: str) -> bool:
    """Whether a job will still do something, by its state; "" if SLURM knows no such job."""
    return bool(state) and not state.startswith((*OVER, "CANCELLED"))
