"""Add seeds to a run: train them separately until they catch up, then merge.

Until then they are an ordinary run of their own, with chunks, evaluations and rows in the tables.
If that is interrupted, the checkpoint is unchanged, and the same command line restarts them.
"""

import jax

from pomcp_jax import config as config_lib
from pomcp_jax import seed_axis, state_edits, train
from pomcp_jax.config import Config
from pomcp_jax.running import bookkeeping
from pomcp_jax.running.functions import Functions, build
from pomcp_jax.running.run import Run
from pomcp_jax.running.starting import Start
from pomcp_jax.train import TrainState


def catch_up(run: Run) -> None:
    """Train the seeds that ``run`` lacks, append them to its own, and save.

    Raises:
      Stop: as training does; apart from rows after the checkpoint, nothing has changed.
    """
    missing, old = run.start.missing_seeds, run.state
    if not missing or old is None:
        return
    # Without a state nothing is saved: a checkpoint with only some of the seeds must never exist.
    run.state = None
    seed = run.config.train.seed + run.config.train.num_seeds - missing
    own = {"train.num_seeds": missing, "train.seed": seed, "train.num_devices": 0}
    config = config_lib.replace(run.config, own)
    functions = build(config, run.functions.program.env)
    try:
        _train(run, config, functions, old)
    finally:
        if not run.work.abandoned:
            functions.close()


def _train(run: Run, config: Config, functions: Functions, old: TrainState) -> None:
    """Train the seeds of ``config``, append them to ``old``, those of ``run``, and save."""
    missing, seed = config.train.num_seeds, config.train.seed
    start = Start(None, None, 0, ())
    options = run.options._replace(config=config)
    new = Run(options, functions, start, run.control, run.began, run.on_row)
    # One set of files and one worker thread: two would write and compile side by side.
    new.tables, new.work, new.loggers = run.tables, run.work, run.loggers
    new.note(seconds=run.books.seconds)
    run.progress.say(f"seeds {seed} to {seed + missing - 1} catch up to {run.done:,} decisions")
    new.state = new.work(new.functions.program.init, new.config, busy="compiling: initial state")
    counters = int(old.iteration), int(old.updates)
    works = state_edits.leading_to(new.functions.program, *counters)
    for i, (phase, work) in enumerate(works, start=1):
        run.control.check()
        new.chunk(phase, work)
        # If the run was interrupted during the evaluation after its last chunk, the evaluation is
        # still due, and all seeds make it together after the merge.
        if i < len(works) or run.books.pending is None:
            new.finish_chunk()
    if run.books.finished:
        new.evaluate_at_the_end()
    run.books = bookkeeping.join(run.books, new.books)._replace(tables=run.written())
    # Both parts on one device before they are joined; enter() then spreads them over the mesh.
    moved = jax.device_put(new.state, jax.devices()[0])
    moved = seed_axis.cut(moved, missing, new.functions.program.mesh)
    run.state = seed_axis.enter(
        state_edits.join(old, moved),
        run.config.train.num_seeds,
        run.functions.program.mesh,
        train.SPECS,
    )
    # A finished run stays finished in this checkpoint; resumed from it, it has nothing to do.
    run.ended = run.books.finished
    run.save()
    run.ended = False
