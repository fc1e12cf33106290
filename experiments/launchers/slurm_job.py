"""What a job of SLURM runs: one cell, by submitit; the standard library and submitit only."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import experiments
from experiments.launchers import cell
from experiments.launchers.cell import Ending, Job, Training


class SlurmCell:
    """A cell that submitit calls on a node, and asks for a checkpoint before the job's time is up.

    submitit requeues the job then (``scontrol requeue``), under the same number: it resumes.
    """

    def __init__(self, job: Job):
        self.job = job
        self._training: Training | None = None

    def __call__(self) -> tuple[Any, ...]:
        import submitit

        # SLURM sends SIGTERM to a job that is pre-empted, before its grace time.
        signal.signal(signal.SIGTERM, self._stop)
        root = str(Path(experiments.__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        job = self.job._replace(command=(sys.executable, *self.job.command[1:]))
        number = submitit.JobEnvironment().job_id
        ending: Ending = cell.train(
            job, {**os.environ, "PYTHONPATH": path}, number, on_start=self._started
        )
        return tuple(ending)

    def _started(self, training: Training) -> None:
        self._training = training

    def _stop(self, _number: int, _frame: Any) -> None:
        if self._training is not None:
            self._training.stop()

    def checkpoint(self) -> Any:
        """Let the run save and exit; called by submitit in a signal handler."""
        import submitit

        if self._training is not None:
            self._training.stop()
            self._training.join()
        return submitit.helpers.DelayedSubmission(SlurmCell(self.job))
