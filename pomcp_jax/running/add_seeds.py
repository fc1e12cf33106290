"""Seeds that join a run later: trained alone up to where it is, then one batch with the others.

They are an ordinary run of their own until then, with its chunks, evaluations and rows. An
interruption meanwhile leaves the checkpoint as it was: the same command line begins them anew.
"""

import jax
import numpy as np

from pomcp_jax import config as config_lib
from pomcp_jax import seed_axis, state_edits, train
from pomcp_jax.running.bookkeeping import array, listed
from pomcp_jax.running.metrics import Results
from pomcp_jax.running.run import Run, build
from pomcp_jax.running.starting import Start


def catch_up(run: Run) -> None:
    """Train the seeds that ``run`` lacks and put them behind its own; saves it then.

    Raises:
      Stop: as training does; nothing has changed but rows behind those of the checkpoint.
    """
    missing, old = run.start.missing_seeds, run.state
    if not missing:
        return
    run.state = None  # not to be saved before all seeds are there
    held = run.config.train.num_seeds - missing
    seed = run.config.train.seed + held
    own = {"train.num_seeds": missing, "train.seed": seed, "train.num_devices": 0}
    new = Run(
        run.options._replace(config=config_lib.replace(run.config, own)),
        build(config_lib.replace(run.config, own), run.functions.program.env),
        Start(None, None, 0, ()),
        run.control,
        run.began,
        run.on_row,
    )
    new.record, new.work, new.seconds_before = run.record, run.work, run.seconds_before
    run.progress.say(f"seeds {seed} to {seed + missing - 1} catch up to {run.done:,} decisions")
    new.state = new.work(new.functions.program.init, new.config, busy="compiling: initial state")
    counters = int(old.iteration), int(old.updates)
    works = state_edits.leading_to(new.functions.program, *counters)
    for i, (phase, work) in enumerate(works, start=1):
        run.control.check()
        new.chunk(phase, work)
        if i < len(works) or run.pending is None:  # or its row is written with the others'
            new.finish_chunk()
    if run.finished:
        new.evaluate_at_the_end()
    _join(run, new, held)
    moved = jax.device_put(new.state, jax.devices()[0])
    run.state = seed_axis.place(
        state_edits.join(old, moved), run.functions.program.mesh, train.SPECS
    )
    run.ended = run.finished
    run.save()
    run.ended = False


def _join(run: Run, new: Run, held: int) -> None:
    """What the host knows of both, in ``run``."""
    run.returns = np.concatenate([run.returns, new.returns])
    run.invalid = np.concatenate([run.invalid, new.invalid])
    run.resets = np.concatenate([run.resets, new.resets])
    run.left |= {held + i: what for i, what in new.left.items()}
    latest = new.evaluated if new.evaluated_at == run.evaluated_at else {}
    run.evaluated = _side_by_side(run.evaluated, latest, len(new.returns))
    if run.pending is not None:
        both = ({k: array(v) for k, v in one.pending.values.items()} for one in (run, new))
        values = _side_by_side(*both, len(new.returns))
        named = {name: listed(value) for name, value in values.items()}
        run.pending = run.pending._replace(values=named, stop=run.pending.stop or new.pending.stop)
    run.written = run.record.written()


def _side_by_side(values: Results, others: Results, missing: int) -> Results:
    """Columns of both, NaN for what the others do not know."""
    unknown = np.full(missing, np.nan)
    return {k: np.concatenate([v, others.get(k, unknown)]) for k, v in values.items()}
