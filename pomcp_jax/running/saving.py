"""Checkpoints of a run, written by a thread while training continues."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pomcp_jax import checkpoint, files
from pomcp_jax.acting import AgentSpec
from pomcp_jax.checkpoint import CheckpointError
from pomcp_jax.config import Config
from pomcp_jax.running import bookkeeping, crash, process
from pomcp_jax.running.background import Saver
from pomcp_jax.running.bookkeeping import Books
from pomcp_jax.running.options import Together
from pomcp_jax.train import TrainState


class Checkpoints:
    """Saves a run's states one at a time; run.json names the newest complete checkpoint."""

    def __init__(
        self,
        workdir: Path,
        config: Config,
        spec: AgentSpec,
        say: Callable[[str], None],
        committed: int | None,
        record: str = "run.json",
        together: Together | None = None,
    ):
        """Prepare to save.

        Args:
          workdir: folder of the run.
          config: configuration of the run.
          spec: static part of the agent.
          say: prints a line for the user.
          committed: decisions of the newest existing checkpoint.
          record: name of the JSON file with the run's status.
          together: of a run over several processes.
        """
        self._workdir, self._config, self._spec, self._say = workdir, config, spec, say
        self._saver, self._together = Saver(), together
        self._saved: tuple[int, int, bool] | None = None
        self.committed, self._record = committed, record
        self.best_score = self._best_on_disk()
        """Highest score of the checkpoints, the one in progress included."""
        self.seconds: list[float] = []
        """Seconds that each save blocked training."""
        self.about: dict[str, Any] = {}
        """Contents of the record (run.json), if there is one."""

    def _best_on_disk(self) -> float:
        known = checkpoint.scores(self._workdir / "checkpoints")
        return max(known.values(), default=-math.inf)

    @property
    def busy(self) -> bool:
        """Whether a save is in progress."""
        return self._saver.busy

    def save(
        self, state: TrainState, books: Books, score: float | None, sync: Callable[[], None]
    ) -> None:
        """Begin a checkpoint unless this state is saved; returns once it is copied to the host.

        Args:
          state: state of the run; may be donated afterwards.
          books: books of the run.
          score: mean evaluation return of exactly this state, if it was evaluated.
          sync: forces the rows that ``books`` refers to onto the disk.
        """
        decisions = int(state.iteration) * self._config.env.num_envs
        # Pre-training changes updates without decisions, and the last save only sets ``finished``.
        key = decisions, books.updates, books.finished
        if self._saved == key:
            return
        self.warn(wait=True)
        begin = time.monotonic()
        try:
            shot = checkpoint.snapshot(state, len(books.returns))
        except Exception as error:  # out of memory, for example; training can continue without
            self._saver.failed(CheckpointError(self._text(decisions, error)))
            return
        self.seconds.append(time.monotonic() - begin)
        self._saver.start(self._write, decisions, shot, books, score, sync)
        self._saved = key
        self.best_score = max(self.best_score, -math.inf if score is None else score)

    def _text(self, decisions: int, error: Exception) -> str:
        place = self._workdir / "checkpoints" / str(decisions)
        return f"{place}: not saved ({crash.one_line(error)})"

    def _write(
        self,
        decisions: int,
        shot: checkpoint.Snapshot,
        books: Books,
        score: float | None,
        sync: Callable[[], None],
    ) -> None:
        folder, together = self._workdir / "checkpoints", self._together
        try:
            # Rows before the checkpoint: after a power cut a checkpoint must never refer to bytes
            # of tables that did not reach the disk.
            sync()
            checkpoint.save(
                folder,
                decisions,
                shot,
                self._config,
                self._spec,
                keep=self._config.train.checkpoint_keep,
                since=together and together.common(checkpoint.steps(folder)),
                score=score,
                host=bookkeeping.to_json(books),
            )
        except (CheckpointError, OSError):
            raise
        except Exception as error:
            raise CheckpointError(self._text(decisions, error)) from error
        # Only now is the checkpoint complete under its name, so only now may run.json name it.
        self.committed = decisions
        self._note(decisions)
        process.return_memory()
        if together is not None:
            together.saved(checkpoint.steps(folder))

    def _note(self, decisions: int) -> None:
        if not self.about:
            return
        self.about |= {"last_checkpoint": decisions, "decisions_per_seed": decisions}
        try:
            files.write_json(self._workdir / self._record, self.about)
        except OSError:  # the checkpoint itself is what counts, and it is complete
            pass

    def collect(self) -> str:
        """Wait for a save in progress; returns why it failed, or an empty text."""
        try:
            self._saver.collect(wait=True)
        except Exception as error:  # CheckpointError or OSError, or no thread could be started
            self._saved = None  # the same state may be saved again
            self.best_score = self._best_on_disk()
            return str(error) if isinstance(error, CheckpointError) else crash.one_line(error)
        return ""

    def warn(self, *, wait: bool = False) -> None:
        """Print one line if the latest save failed, which leaves earlier checkpoints intact."""
        if wait or not self.busy:
            failed = self.collect()
            if failed:
                self._say(f"warning: {failed}; training continues")
