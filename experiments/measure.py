"""What a chunk or an evaluation says, as columns of the record; for runs and sweeps."""

from typing import Any, NamedTuple

import numpy as np

from pomcp_jax import agent
from pomcp_jax.agent import Faults
from pomcp_jax.config import Config
from pomcp_jax.counters import Stats
from pomcp_jax.evaluate import Episodes

Results = dict[str, np.ndarray]
"""Named arrays with the leading axis S."""


class Fault(NamedTuple):
    """Why a row cannot go on."""

    term: str
    """One of ``agent.FAULT_TERMS``, or ``environment``."""
    text: str


def mean(values: np.ndarray) -> float:
    """Mean of the finite ones, NaN if there is none."""
    finite = values[np.isfinite(values)]
    return float(np.mean(finite)) if finite.size else float("nan")


def recent_returns(stats: Stats) -> np.ndarray:
    """``[S]`` means over the latest finished training episodes."""
    finished = np.sum(np.isfinite(stats.returns), axis=1)
    total = np.nansum(stats.returns, axis=1)
    return np.where(finished > 0, total / np.maximum(finished, 1), np.nan)


def chunk_values(
    config: Config, stats: Stats, faults: Faults, updates: int, rate: float, num_devices: int
) -> Results:
    """Columns of a chunk beside the metrics of training; ``rate`` in decisions/s of one row."""
    repeat, rates = config.env.action_repeat, np.full(stats.decisions.shape, rate)
    return {
        "decisions": stats.decisions,
        "frames": stats.decisions * repeat,
        "train/return": recent_returns(stats),
        "train/episodes": stats.episodes,
        "env/invalid": stats.invalid,
        "decisions_per_second": rates,
        "frames_per_second": rates * repeat,
        "updates": np.full_like(stats.decisions, updates),
        "refused_updates": faults.total,
        "num_devices": np.full_like(stats.decisions, num_devices),
    }


def faults(
    config: Config, found: Faults, stats: Stats, invalid: np.ndarray, decisions: int, phase: str
) -> dict[int, Fault]:
    """Rows whose updates keep failing, or whose environments broke in this chunk.

    Args:
      config: of the run.
      found: of the agents after the chunk, on the host.
      stats: counters after the chunk, on the host.
      invalid: ``[S]``, ``stats.invalid`` before the chunk.
      decisions: of one row in the chunk.
      phase: for the text.
    """
    out, most = {}, config.train.max_bad_updates
    broken = stats.invalid - invalid
    for i in np.flatnonzero(broken > max(decisions / 4, most)):
        text = f"{broken[i]} of {decisions} environment steps were not finite in one {phase} chunk"
        out[int(i)] = Fault("environment", text)
    for i in np.flatnonzero(found.consecutive >= most):
        term = agent.FAULT_TERMS[int(found.term[i])]
        text = (
            f"{found.consecutive[i]} updates in a row were not finite, first in: {term};"
            " parameters are as before"
        )
        out[int(i)] = Fault(term, text)
    return dict(sorted(out.items()))


def episode_rows(
    config: Config, decisions: np.ndarray, actor: str, episodes: Episodes, seconds: float
) -> list[dict[str, Any]]:
    """Rows of evaluations.csv, one for each seed; ``actor`` is ``planner`` or ``policy``."""
    column = "eval/return" if actor == "planner" else "eval/policy_return"
    rows = []
    for i, returns in enumerate(episodes.returns):
        row: dict[str, Any] = {
            "seconds": round(seconds, 3),
            "decisions": int(decisions[i]),
            "frames": int(decisions[i]) * config.env.action_repeat,
            "seed": config.train.seed + i,
            "actor": actor,
            "eval/return": None,
            "eval/policy_return": None,
            "std": float(np.std(returns)),
            "valid": int(np.sum(episodes.valid[i])),
        }
        row[column] = float(np.mean(returns))
        rows.append(row | {f"episode_{j}": float(value) for j, value in enumerate(returns)})
    return rows
