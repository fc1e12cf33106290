"""Cells of a suite: their command lines, their state, and which of them are still to train."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import settings
from experiments.launchers import cell
from experiments.launchers import study as study_lib
from experiments.launchers.cell import Job
from experiments.launchers.study import Place, Study
from pomcp_jax import config as config_lib
from pomcp_jax import validation
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.reporting import results
from pomcp_jax.running import workdirs


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
    def place(self) -> Place:
        return Place(self.task, self.method, self.workdir, self.folder)

    @property
    def log(self) -> Path:
        return cell.beside(self.workdir, ".log")

    @property
    def job(self) -> Job:
        """What a worker has to know, with paths relative to the current folder."""
        where = str(Path.cwd())
        return Job(self.name, tuple(self.command), self.workdir, self.folder, self.facts, where)


class Outcome(NamedTuple):
    """How a launcher left the cells."""

    ended: dict[str, list[Plan]]
    """Cells by how they ended: a key for each of ``cell.ENDINGS``."""
    received: int = 0
    """Number of the signal that stopped it, 0 for none."""
    is_late: bool = False
    detached: bool = False
    """Whether cells are still training."""
    text: str = ""
    """For the user."""


class Ready(NamedTuple):
    """A launcher that has passed all checks."""

    text: str
    """How and where it trains."""
    run: Callable[[Callable[[], None]], Outcome]
    """Trains the cells; calls its argument once nothing is left to check."""
    preview: Callable[[], list[str]] = list
    """Lines on what it would start, besides the cells' commands; starts nothing."""


def make_plans(
    study: Study,
    methods: Sequence[str] = (),
    tasks: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> list[Plan]:
    """Cells of a suite, task after task; every configuration is checked, nothing is run.

    Args:
      study: the suite and its folders.
      methods: a selection, in this order; all by default.
      tasks: a selection, likewise.
      overrides: arguments ``--config.FIELD=VALUE``, applied to every cell; they override
        everything else.

    Raises:
      ConfigError: one line for the user.
    """
    for wrong in (text for text in overrides if not text.startswith("--config.")):
        raise ConfigError(f"{wrong!r}: unexpected argument; overrides look like --config.F=VALUE")
    suite, plans = study.suite, []
    for place in study_lib.places(study, methods, tasks):
        method = suite.methods[place.method]
        fields = {"train.num_seeds": suite.num_seeds, **suite.overrides, **method.overrides}
        arguments = [f"--config={suite.config}:{place.task},{method.preset}"]
        arguments += [f"--config.{field}={value}" for field, value in fields.items()]
        arguments += [*overrides, f"--workdir={place.workdir}"]
        # Parsed as the cell's own process will: mistakes are found before the first cell trains for
        # hours, and the configuration can be compared with finished results.
        options = settings.parse(["experiments.run", *arguments])
        validation.validate_config(options.config)
        plans.append(
            Plan(
                task=place.task,
                method=place.method,
                command=[sys.executable, "-m", "experiments.run", *arguments],
                config=options.config,
                workdir=place.workdir,
                folder=place.folder,
                facts={"suite": study.name, "method": place.method, "preset": method.preset},
            )
        )
    return plans


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
    return (_has_results(plan.folder, plan) or attempt(plan)) + also


def _has_results(folder: Path, plan: Plan) -> str:
    try:
        return "finished" if results.finished(folder, plan.config) else ""
    except ConfigError:
        return "other configuration"


def attempt(plan: Plan, *, ended: bool = False) -> str:
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
    if not ended and cell.is_locked(plan.log):
        return f"training, {done:,} decisions saved"
    return f"stopped, {done:,} of {plan.config.train.total_decisions:,} decisions saved"


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


def set_aside(plan: Plan) -> Path | None:
    """Move an attempt that cannot be resumed to ``previous-N``; returns the folder, if any.

    The caller has the cell's lock.

    Raises:
      OSError: its files cannot be read or moved at present.
    """
    if not plan.workdir.is_dir() or can_resume(plan):
        return None
    return workdirs.set_aside(plan.workdir.parent, [plan.workdir.name])


def make_ready(plan: Plan) -> Path | None:
    """As :func:`set_aside`, before a cell is submitted; leaves a cell alone that is training.

    Raises:
      ConfigError: its files cannot be read or moved at present.
    """
    try:
        with cell.locked(plan.log) as log:
            return None if log is None else set_aside(plan)
    except OSError as error:
        raise ConfigError(f"{plan.name}: {error}") from None
