"""Policy for diverged seeds: stop the run, drop the seed, or reset it.

The decision is made on the host between chunks, from counters that are part of checkpoints, so an
interrupted run decides the same when it resumes.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from pomcp_jax.running.metrics import Fault, Results


class Diverged(NamedTuple):
    """When and why a seed was dropped."""

    decisions: int
    term: str


class Verdict(NamedTuple):
    """Consequences of the faults of a chunk."""

    stop: str
    """Reason for the run to end; empty if it continues."""
    left: dict[int, Diverged]
    """All dropped seeds, including earlier ones."""
    reset: tuple[int, ...]
    """Seeds whose agents are reset."""
    lines: tuple[str, ...]
    """Messages for the user, one for each seed that is dropped or reset."""


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
    """Decide about seeds that diverged in a chunk.

    Args:
      faults: from :func:`pomcp_jax.running.metrics.faults`; seeds are indices into the seed axis.
      left: seeds dropped earlier.
      resets: ``[S]``, number of resets of each seed.
      decisions: done so far by every seed.
      name: label of a seed, for messages.
      on_broken: as ``train.on_broken_seed``.
      most_resets: number of resets of a seed after which ``reset`` means ``leave``.
    """
    left, reset, lines = dict(left), [], []
    for i, fault in faults.items():
        # A dropped seed stays in the batch, so its updates keep failing.
        if i in left:
            continue
        if on_broken == "stop":
            return Verdict(f"training broke: {name(i)}, {fault.text}", left, (), ())
        text = f"warning: {name(i)} broke: {fault.text}"
        if on_broken == "reset" and resets[i] < most_resets:
            reset.append(i)
            lines.append(
                f"{text}; its agent is reset ({resets[i] + 1} of {most_resets}), others continue"
            )
            continue
        left[i] = Diverged(decisions, fault.term)
        lines.append(f"{text}; it is dropped, others continue")
    # Without this the run would train NaNs until its last decision.
    stop = "training broke: no seed is left" if len(left) == len(resets) else ""
    return Verdict(stop, left, tuple(reset), tuple(lines))


def describe(left: Mapping[str, Diverged]) -> str:
    """``seed 3: policy_gradient at 300 decisions; ...`` from dropped seeds by label."""
    return "; ".join(
        f"{label}: {what.term} at {what.decisions} decisions" for label, what in left.items()
    )


def without(values: Results, left: Mapping[int, Diverged]) -> Results:
    """``values`` with NaN for dropped seeds."""
    # Unchanged dtypes without dropped seeds: converted counters would print as floats in tables.
    out = {name: np.array(value, np.float64) for name, value in values.items()} if left else values
    for value in out.values() if left else ():
        value[list(left)] = np.nan
    return out
