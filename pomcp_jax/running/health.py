"""Policy for diverged seeds: stop the run, drop the seed, or reset it.

Decided on the host, between chunks, from counters that checkpoints hold.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from pomcp_jax.running.metrics import Fault, Results


class Diverged(NamedTuple):
    """A row that was dropped."""

    decisions: int
    term: str


class Verdict(NamedTuple):
    """What follows from the faults of a chunk."""

    stop: str
    """Why the run ends; empty if it continues."""
    left: dict[int, Diverged]
    """All rows that are dropped, earlier ones included."""
    reset: tuple[int, ...]
    """Rows whose agents are reset."""
    lines: tuple[str, ...]
    """For the user, one for every row that was dropped or reset."""


def judge(
    faults: Mapping[int, Fault],
    left: Mapping[int, Diverged],
    resets: np.ndarray,
    decisions: int,
    name: Callable[[int], str],
    *,
    on_broken: str,
    most_resets: int = 0,
) -> Verdict:
    """What becomes of rows that broke in a chunk.

    Args:
      faults: by row, from :func:`pomcp_jax.running.metrics.faults`.
      left: rows that were dropped before; their faults mean nothing.
      resets: ``[rows]``, how often each was reset.
      decisions: done so far, of every row.
      name: of a row, for the user.
      on_broken: as ``train.on_broken_seed``.
      most_resets: of a row, after which ``reset`` is ``leave``.
    """
    left, reset, lines = dict(left), [], []
    for i, fault in faults.items():
        if i in left:
            continue
        if on_broken == "stop":
            return Verdict(f"training broke: {name(i)}, {fault.text}", left, (), ())
        text = f"warning: {name(i)} broke: {fault.text}"
        if on_broken == "reset" and resets[i] < most_resets:
            reset.append(i)
            lines.append(
                f"{text}; its agent starts anew ({resets[i] + 1} of {most_resets}), others go on"
            )
            continue
        left[i] = Diverged(decisions, fault.term)
        lines.append(f"{text}; it is left behind, others go on")
    stop = "training broke: no seed is left" if len(left) == len(resets) else ""
    return Verdict(stop, left, tuple(reset), tuple(lines))


def describe(left: Mapping[str, Diverged]) -> str:
    """``seed 3: policy_gradient at 300 decisions; ...``, by label."""
    return "; ".join(
        f"{label}: {what.term} at {what.decisions} decisions" for label, what in left.items()
    )


def without(values: Results, left: Mapping[int, Diverged]) -> Results:
    """``values`` with NaN for rows that are left behind."""
    out = {name: np.array(value, np.float64) for name, value in values.items()} if left else values
    for value in out.values() if left else ():
        value[list(left)] = np.nan
    return out
