"""Copies of a run's rows for TensorBoard and Weights & Biases; each seed is a run of its own there.

The tables are the record. A logger that fails is dropped with one warning, and training continues.
"""

import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pomcp_jax import files, presets
from pomcp_jax.cells import Cell
from pomcp_jax.config import ConfigError
from pomcp_jax.config import to_dict as config_dict
from pomcp_jax.running import crash, workdirs
from pomcp_jax.running.options import Options

Values = Mapping[str, Any]
Key = tuple[str, int]
"""Name of a cell, empty in a plain run, and number of a seed."""
KEYS = ("seed", "decisions")
"""Columns that say where a value belongs; they are no curves."""
FORBIDDEN = "/\\#?%:"
"""Characters that Weights & Biases refuses in the name of a project."""
PLACES = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases"}


class Logger(NamedTuple):
    """Receiver of the rows of one seed."""

    row: Callable[[Values, int], None]
    """Called with finite values by column, and the decisions so far."""
    result: Callable[[Values, int], None]
    """The same for the evaluation at the end of the run."""
    close: Callable[[int], None]
    """Called once with the exit code of the run."""


Opened = dict[Key, Logger]
"""Loggers of all seeds."""


class Seed(NamedTuple):
    """A seed of a run, or of a sweep's cell, to log."""

    cell: Cell
    seed: int
    resumed: int | None
    """Decisions of its latest row in the tables when the run resumes; None in a new run."""

    @property
    def key(self) -> Key:
        """Key of its logger."""
        return self.cell.name, self.seed


class Loggers:
    """Loggers of a run's seeds by kind; a kind that fails is dropped with one warning."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._kinds: dict[str, dict[Key, Logger]] = {}
        self._failed: set[str] = set()

    def open(self, options: Options, seeds: Sequence[Seed]) -> None:
        """Begin to log ``seeds`` where ``options`` request it."""
        begin = {"tensorboard": _tensorboard, "wandb": _wandb}
        for kind, function in begin.items():
            if getattr(options, kind):
                made = self._guarded(kind, function, options, seeds, self._say)
                self._kinds |= {kind: made} if made else {}

    def row(self, key: Key, values: Values) -> None:
        """Log a row of metrics.csv of one seed; cells without a finite number are left out."""
        self._each(key, values, "row")

    def result(self, key: Key, values: Values) -> None:
        """Log the evaluation at the end of the run, which is no row of metrics.csv."""
        self._each(key, values, "result")

    def close(self, code: int) -> None:
        """Close all loggers; safe to call twice."""
        for kind, loggers in list(self._kinds.items()):
            for logger in loggers.values():
                self._guarded(kind, logger.close, code)
        self._kinds.clear()

    def _each(self, key: Key, values: Values, method: str) -> None:
        decisions, finite = int(values["decisions"]), _finite(values)
        for kind, loggers in list(self._kinds.items()):
            self._guarded(kind, getattr(loggers[key], method), finite, decisions)

    def _guarded(self, kind: str, function: Callable, *args: Any) -> Any:
        """``function(*args)``; None if it failed, and ``kind`` is dropped."""
        try:
            return function(*args)
        except Exception as error:  # these libraries document few of their exceptions
            self._kinds.pop(kind, None)
            if kind not in self._failed:
                self._say(f"warning: no more {PLACES[kind]}: {crash.one_line(error)}")
            self._failed.add(kind)


def _finite(values: Values) -> dict[str, float]:
    return {
        name: value
        for name, value in values.items()
        if name not in KEYS and value is not None and math.isfinite(value)
    }


def seeds(cells: Sequence[Cell], resumed: Sequence[int | None]) -> list[Seed]:
    """All seeds of ``cells``; ``resumed`` is an entry of :class:`Seed` for each cell."""
    return [
        Seed(cell, seed, at) for cell, at in zip(cells, resumed, strict=True) for seed in cell.seeds
    ]


def check(options: Options) -> None:
    """Check that what ``options`` request is installed and usable; contacts no server.

    Raises:
      ConfigError: one line that names the package and the command that installs it.
    """
    if options.tensorboard:
        try:
            import tensorboardX  # noqa: F401
        except ImportError:
            raise ConfigError("--tensorboard: needs `pip install tensorboardX`") from None
    if options.wandb:
        _check_wandb(f"--wandb = {options.wandb!r:.200}", options.wandb)


def _check_wandb(name: str, project: str) -> None:
    if len(project) > 128 or not project.strip() or any(c in FORBIDDEN for c in project):
        raise ConfigError(
            f"{name}: must be the name of a project, 1 to 128 characters without {FORBIDDEN}"
        )
    try:
        import wandb
    except ImportError:
        raise ConfigError("--wandb: needs `pip install wandb`") from None
    try:
        settings = wandb.setup(wandb.Settings(silent=True, console="off")).settings
        offline = settings.mode in ("offline", "disabled", "dryrun")
        ready = offline or wandb.api.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    except Exception as error:  # a variable WANDB_... that its own checks refuse
        raise ConfigError(f"{name}: wandb cannot start: {crash.one_line(error)}") from None
    if not ready:
        raise ConfigError(
            f"{name}: not logged in; `wandb login` does, or set WANDB_MODE=offline and upload later"
        )


def _tensorboard(options: Options, all_seeds: Sequence[Seed], say: Callable[[str], None]) -> Opened:
    """Events of every seed in a folder of its own.

    Tags are the columns, the same for every seed, so that TensorBoard overlays seeds, cells and
    runs below its ``--logdir``.
    """
    from tensorboardX import SummaryWriter

    def logger(seed: Seed) -> Logger:
        folder = seed.cell.folder(options.workdir) / "tensorboard" / f"seed_{seed.seed}"
        # Event files cannot be cut; purge_step makes TensorBoard hide events after the checkpoint.
        resumed = {} if seed.resumed is None else {"purge_step": seed.resumed + 1}
        writer = SummaryWriter(str(folder), **resumed)

        def add(values: Values, decisions: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, decisions)
            writer.flush()

        return Logger(add, add, lambda code: writer.close())

    return {seed.key: logger(seed) for seed in all_seeds}


def _wandb(options: Options, all_seeds: Sequence[Seed], say: Callable[[str], None]) -> Opened:
    """A run of Weights & Biases for every seed, in the group ``task/method``.

    ``wandb.json`` in the workdir has their ids: a run that resumes continues the same ones.
    """
    import wandb

    ids = _ids(options, all_seeds, say)
    quiet: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "init_timeout": 30.0,
        "finish_timeout": 120.0,
    }
    # Older versions lack some of these settings, and refuse what they do not know.
    known = {k: v for k, v in quiet.items() if k in wandb.Settings.model_fields}
    runs = {}
    for seed in all_seeds:
        config, group = seed.cell.config, _group(seed.cell)
        runs[seed.key] = wandb.init(
            project=options.wandb,
            group=group,
            job_type="train",
            name=f"{group} seed {seed.seed}",
            id=ids[_label(seed)],
            resume="allow",
            reinit="create_new",  # several at a time in one process
            dir=os.environ.get("WANDB_DIR") or str(options.workdir),
            config=config_dict(config) | {"seed": seed.seed},
            settings=wandb.Settings(**known),
        )
    first = next(iter(runs.values()))
    if first.settings.mode == "online":
        say(f"Weights & Biases: {first.project_url}")
    elif first.settings.mode == "offline":
        place = Path(os.environ.get("WANDB_DIR") or options.workdir) / "wandb"
        say(f"Weights & Biases: offline; `wandb sync {place}/offline-run-*` uploads")
    return {key: _wandb_logger(run) for key, run in runs.items()}


def _wandb_logger(run: Any) -> Logger:
    def row(values: Values, decisions: int) -> None:
        # Resumed from a checkpoint: the server has these rows already, and refuses earlier steps.
        if decisions >= run.step:
            run.log({**values, "decisions": decisions}, step=decisions, commit=True)

    def result(values: Values, decisions: int) -> None:
        run.summary.update({**values, "decisions": decisions})

    return Logger(row, result, lambda code: run.finish(exit_code=code))


def _group(cell: Cell) -> str:
    """``task/method``, with the swept values of a cell; WANDB_RUN_GROUP overrides it."""
    method = presets.origin(cell.config).preset
    own = f"{cell.config.env.task}/{method}" + (f" {cell.name}" if cell.name else "")
    return os.environ.get("WANDB_RUN_GROUP") or own


def _label(seed: Seed) -> str:
    return f"{seed.cell.name} seed {seed.seed}".strip()


def _ids(options: Options, all_seeds: Sequence[Seed], say: Callable[[str], None]) -> dict[str, str]:
    """Ids by label, from the workdir or new; written before the first run begins."""
    path, ids = options.workdir / "wandb.json", {}
    try:
        stored = workdirs.read_json(path)
        if stored["project"] == options.wandb:
            ids = {str(label): str(value) for label, value in stored["ids"].items()}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        say(f"warning: {path}: is unreadable; new runs begin at Weights & Biases")
    ids |= {_label(s): secrets.token_hex(4) for s in all_seeds if _label(s) not in ids}
    files.write_json(path, {"project": options.wandb, "ids": ids})
    return ids
