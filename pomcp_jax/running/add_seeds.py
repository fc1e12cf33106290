"""Add seeds to a run: train them separately until they catch up, then merge.

They are an ordinary run of their own until then, with its chunks, evaluations and rows. An
interruption meanwhile leaves the checkpoint as it was: the same command line starts them again.
"""

import jax

from pomcp_jax import config as config_lib
from pomcp_jax import seed_axis, state_edits, train
from pomcp_jax.running import bookkeeping
from pomcp_jax.running.functions import build
from pomcp_jax.running.run import Run
from pomcp_jax.running.starting import Start


def catch_up(run: Run) -> None:
    """Train the seeds that ``run`` lacks and put them behind its own; saves it then.

    Raises:
      Stop: as training does; nothing has changed but rows behind those of the checkpoint.
    """
    missing, old = run.start.missing_seeds, run.state
    if not missing or old is None:
        return
    run.state = None  # not to be saved before all seeds are there
    held = run.config.train.num_seeds - missing
    seed = run.config.train.seed + held
    own = {"train.num_seeds": missing, "train.seed": seed, "train.num_devices": 0}
    config = config_lib.replace(run.config, own)
    functions = build(config, run.functions.program.env)
    start = Start(None, None, 0, ())
    options = run.options._replace(config=config)
    new = Run(options, functions, start, run.control, run.began, run.on_row)
    new.tables, new.work = run.tables, run.work
    new.note(seconds=run.books.seconds)
    run.progress.say(f"seeds {seed} to {seed + missing - 1} catch up to {run.done:,} decisions")
    new.state = new.work(new.functions.program.init, new.config, busy="compiling: initial state")
    counters = int(old.iteration), int(old.updates)
    works = state_edits.leading_to(new.functions.program, *counters)
    for i, (phase, work) in enumerate(works, start=1):
        run.control.check()
        new.chunk(phase, work)
        if i < len(works) or run.books.pending is None:  # or its row is written with the others'
            new.finish_chunk()
    if run.books.finished:
        new.evaluate_at_the_end()
    run.books = bookkeeping.join(run.books, new.books)._replace(tables=run.written())
    moved = jax.device_put(new.state, jax.devices()[0])
    run.state = seed_axis.place(
        state_edits.join(old, moved), run.functions.program.mesh, train.SPECS
    )
    run.ended = run.books.finished
    run.save()
    run.ended = False
