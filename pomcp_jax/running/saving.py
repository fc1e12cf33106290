"""Checkpoints of a run, written in a thread of their own while training goes on."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pomcp_jax import checkpoint, files
from pomcp_jax.acting import AgentSpec
from pomcp_jax.checkpoint import CheckpointError
from pomcp_jax.config import Config
from pomcp_jax.running import crash, process
from pomcp_jax.running.background import Saver
from pomcp_jax.running.bookkeeping import Host
from pomcp_jax.train import TrainState


class Checkpoints:
    """Saves a run's states one after the other; run.json names the newest that is complete."""

    def __init__(
        self,
        workdir: Path,
        config: Config,
        spec: AgentSpec,
        say: Callable[[str], None],
        committed: int | None,
    ):
        """``committed``: decisions of the newest checkpoint there is."""
        self._workdir, self._config, self._spec, self._say = workdir, config, spec, say
        self._saver = Saver()
        self._saved: tuple[int, int, bool] | None = None
        self.committed = committed
        self.seconds: list[float] = []
        """For which each save blocked training."""
        self.about: dict[str, Any] = {}
        """Contents of run.json, where that is kept."""

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._saver.busy

    def save(
        self, state: TrainState, host: Host, score: float | None, sync: Callable[[], None]
    ) -> None:
        """Begin a checkpoint, once for any state; returns when that is copied to the host.

        Args:
          state: of the run; may be donated afterwards.
          host: of the run.
          score: mean evaluation return of this very state, if it was evaluated.
          sync: forces the rows that ``host`` counts to the disk.
        """
        decisions = int(state.iteration) * self._config.env.num_envs
        key = decisions, host.updates, host.finished
        if self._saved == key:
            return
        self.warn(wait=True)
        begin = time.monotonic()
        try:
            shot = checkpoint.snapshot(state)
        except Exception as error:  # no memory, say: training may go on without this copy
            self._saver.failed(CheckpointError(self._text(decisions, error)))
            return
        self.seconds.append(time.monotonic() - begin)
        self._saver.start(self._write, decisions, shot, host, score, sync)
        self._saved = key

    def _text(self, decisions: int, error: Exception) -> str:
        place = self._workdir / "checkpoints" / str(decisions)
        return f"{place}: not saved ({crash.one_line(error)})"

    def _write(
        self,
        decisions: int,
        shot: checkpoint.Snapshot,
        host: Host,
        score: float | None,
        sync: Callable[[], None],
    ) -> None:
        try:
            sync()
            checkpoint.save(
                self._workdir / "checkpoints",
                decisions,
                shot,
                self._config,
                self._spec,
                keep=self._config.train.checkpoint_keep,
                score=score,
                host=host._asdict(),
            )
        except (CheckpointError, OSError):
            raise
        except Exception as error:
            raise CheckpointError(self._text(decisions, error)) from error
        self.committed = decisions
        self._note(decisions)
        process.return_memory()

    def _note(self, decisions: int) -> None:
        if not self.about:
            return
        self.about |= {"last_checkpoint": decisions, "decisions_per_seed": decisions}
        try:
            files.write_json(self._workdir / "run.json", self.about)
        except OSError:  # the checkpoint says it too
            pass

    def collect(self) -> str:
        """Wait for a save under way; why it failed, or nothing."""
        try:
            self._saver.collect(wait=True)
        except Exception as error:  # CheckpointError and OSError; or no thread could be started
            self._saved = None
            return str(error) if isinstance(error, CheckpointError) else crash.one_line(error)
        return ""

    def warn(self, *, wait: bool = False) -> None:
        """One line if the latest save failed; earlier checkpoints are intact then."""
        if wait or not self.busy:
            failed = self.collect()
            if failed:
                self._say(f"warning: {failed}; training goes on")
