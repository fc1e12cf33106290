"""Columns of the tables, computed from the results of a chunk or an evaluation."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pomcp_jax import agent, counters
from pomcp_jax.agent import Faults
from pomcp_jax.config import Config
from pomcp_jax.counters import Stats
from pomcp_jax.evaluate import Episodes

Results = dict[str, np.ndarray]
"""Named arrays with the leading axis S."""


class Fault(NamedTuple):
    """Reason why a seed cannot continue."""

    term: str
    """One of ``agent.FAULT_TERMS``, or ``environment``."""
    text: str


def mean(values: np.ndarray) -> float:
    """Mean of the finite values, NaN if there are none (``np.nanmean`` would warn)."""
    finite = values[np.isfinite(values)]
    return float(np.mean(finite)) if finite.size else float("nan")


def recent_returns(stats: Stats) -> np.ndarray:
    """Mean of each seed's latest finished training episodes ``[S]``, NaN if there are none."""
    in_use = counters.filled(stats) & np.isfinite(stats.returns)
    finished = np.sum(in_use, axis=1)
    total = np.sum(np.where(in_use, stats.returns, 0), axis=1)
    return np.where(finished > 0, total / np.maximum(finished, 1), np.nan)


def chunk_values(
    config: Config, stats: Stats, faults: Faults, updates: int, rate: float, num_devices: int
) -> Results:
    """Columns of a chunk besides training's metrics; ``rate`` is in decisions/s of one seed."""
    repeat, rates = config.env.action_repeat, np.full(stats.decisions.shape, rate)
    # Device counters are int32; frames are larger by the action repeat and may exceed it.
    decisions = np.asarray(stats.decisions, np.int64)
    return {
        "decisions": decisions,
        "frames": decisions * repeat,
        "train/return": recent_returns(stats),
        "train/episodes": np.asarray(stats.episodes),
        "env/invalid": np.asarray(stats.invalid),
        "decisions_per_second": rates,
        "frames_per_second": rates * repeat,
        "updates": np.full_like(decisions, updates),
        "refused_updates": np.asarray(faults.total),
        "num_devices": np.full_like(decisions, num_devices),
    }


def faults(
    config: Config, agents: Faults, stats: Stats, invalid: np.ndarray, decisions: int, phase: str
) -> dict[int, Fault]:
    """Seeds whose updates keep failing, or whose environments diverged in this chunk.

    Args:
      config: configuration of the run.
      agents: faults of the agents after the chunk, on the host.
      stats: counters after the chunk, on the host.
      invalid: ``[S]``, ``stats.invalid`` before the chunk.
      decisions: decisions of one seed in the chunk.
      phase: for the message.
    """
    out, most = {}, config.train.max_bad_updates
    broken = stats.invalid - invalid
    # A quarter: single divergences are normal and handled by a fresh episode. The second bound
    # keeps one of them from stopping a run whose chunks are tiny.
    for i in np.flatnonzero(broken > max(decisions / 4, most)):
        text = f"{broken[i]} of {decisions} environment steps were not finite in one {phase} chunk"
        out[int(i)] = Fault("environment", text)
    # Failing updates name the term to look at, so they take precedence for the same seed.
    for i in np.flatnonzero(agents.consecutive >= most):
        term = agent.FAULT_TERMS[int(agents.term[i])]
        text = (
            f"{agents.consecutive[i]} updates in a row were not finite, first in: {term};"
            " parameters are as before"
        )
        out[int(i)] = Fault(term, text)
    return dict(sorted(out.items()))


CLIPPED = 0.01
"""Share of targets beyond the bins above which to warn."""


def clipping(config: Config, values: Results) -> str:
    """Warning about targets that lie beyond the bins; empty if they are few."""
    columns = {kind: values[f"{kind}/clipped"] for kind in ("value", "reward")}
    shares = {kind: np.max(x[np.isfinite(x)], initial=0.0) for kind, x in columns.items()}
    kind = max(shares, key=lambda kind: shares[kind])
    if shares[kind] <= CLIPPED:
        return ""
    model = config.agent.world_model
    low, high = (np.sign(x) * np.expm1(np.abs(x)) for x in (model.bin_low, model.bin_high))
    return (
        f"{shares[kind]:.0%} of the {kind} targets lie beyond the bins, {np.min(low):.4g} to"
        f" {np.max(high):.4g}, and are cut off there; agent.world_model.bin_low and bin_high"
        " (in symlog space) widen them"
    )


def episode_values(episodes: Episodes) -> Results:
    """Columns of a planner's evaluation; diverged episodes are counted apart and not averaged."""
    # A float because dropped seeds have NaN in this column.
    broken = np.asarray(np.sum(~episodes.valid, axis=1, dtype=np.float64))
    return {
        "eval/return": valid_mean(episodes.returns, episodes.valid),
        "eval/length": valid_mean(episodes.lengths, episodes.valid),
        "eval/broken": broken,
    }


def valid_mean(values: ArrayLike, valid: ArrayLike) -> np.ndarray:
    """Means ``[S]`` over the valid episodes of ``[S, E]``, NaN for seeds without any."""
    rows = zip(np.asarray(values), np.asarray(valid), strict=True)
    return np.array([np.mean(row[ok]) if ok.any() else np.nan for row, ok in rows])


def score(evaluated: Results) -> float | None:
    """Score that selects the best checkpoint: the mean return, None if any episode diverged.

    Otherwise a policy that breaks the simulator instead of losing would look best.
    """
    broken = evaluated.get("eval/broken", np.zeros(1))
    average = mean(evaluated["eval/return"])
    return None if np.any(broken > 0) or not np.isfinite(average) else average


def episode_rows(
    config: Config, decisions: np.ndarray, actor: str, episodes: Episodes, seconds: float
) -> list[dict[str, Any]]:
    """Rows of evaluations.csv, one per seed; ``actor`` is ``planner`` or ``policy``."""
    column = "eval/return" if actor == "planner" else "eval/policy_return"
    rows = []
    means = valid_mean(episodes.returns, episodes.valid)
    for i, returns in enumerate(episodes.returns):
        valid = returns[episodes.valid[i]]
        row: dict[str, Any] = {
            "seconds": round(seconds, 3),
            "decisions": int(decisions[i]),
            "frames": int(decisions[i]) * config.env.action_repeat,
            "seed": config.train.seed + i,
            "actor": actor,
            "eval/return": None,
            "eval/policy_return": None,
            "std": float(np.std(valid)) if valid.size else None,
            "valid": int(valid.size),
        }
        row[column] = float(means[i]) if valid.size else None
        rows.append(row | {f"episode_{j}": float(value) for j, value in enumerate(returns)})
    return rows
