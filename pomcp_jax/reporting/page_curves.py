"""The curves of a report: returns, metrics by subject, a sweep's outcome over its values."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pomcp_jax.reporting import aggregates, columns, comparison, plots, report_data
from pomcp_jax.reporting.figures import compact
from pomcp_jax.reporting.page_text import DASH
from pomcp_jax.reporting.plots import Mark, Plot, Scale
from pomcp_jax.reporting.published import SLACK, Published, of_task
from pomcp_jax.reporting.report_data import Across, Found, Group

FRAMES = "environment frames"
FAR = 2.1
"""Frames in units of ours beyond which a published point would leave little room for our curves."""


class Subject(NamedTuple):
    """A part of the page with the metrics of a subject."""

    anchor: str
    title: str
    about: str
    prefixes: tuple[str, ...]


SUBJECTS = (
    Subject(
        "losses", "Losses, values and gradients",
        "Means over a chunk of training. Gradient norms are those before clipping.",
        ("loss/", "value/", "reward/", "grad/"),
    ),
    Subject("planner", "Planner", "Means over the plans of a chunk.", ("plan/",)),
    Subject(
        "policy", "Policy, prior and KL",
        "Divergences are in nats, summed over the dimensions of the action.",
        ("policy/", "prior/"),
    ),
    Subject(
        "diagnostics", "Diagnostics",
        "Measured with each evaluation: errors of values against true returns, the distance of the"
        " policy from fresh and from stored plans, the quality of its gradient.",
        ("diag/",),
    ),
    Subject("other", "Evaluation, speed and faults", "", ("",)),
)  # fmt: skip
"""Subjects in the order of the page; a metric belongs to the first whose prefix it has."""
SHOWN_ELSEWHERE = {
    comparison.RETURN, comparison.TRAINING, report_data.POLICY, "updates", "train/episodes",
    "num_devices", "frames_per_second", "valid", "diag/gradient_total",
}  # fmt: skip
"""Columns without a panel: returns have their own, and others only count up or repeat."""
WORDS = {
    "loss/model": "weighted sum", "loss/consistency": "latent prediction",
    "loss/reward": "nats", "loss/value": "nats", "loss/termination": "nats",
    "loss/policy": "scaled", "loss/prior": "scaled", "value/target": "target of the critic",
    "value/bias": "value less outcome, in std",
    "value/clipped": "share beyond the bins", "reward/clipped": "share beyond the bins",
    "grad/model": "norm", "grad/policy": "norm",
    "plan/effective_elites": "1 / sum of squared weights", "plan/elite_return": "in the model",
    "plan/elite_spread": "best less worst", "plan/proposal_share": "elites of the policy",
    "plan/std": "of the first action", "plan/nonfinite": "candidates per plan",
    "policy/q": "value of its actions", "policy/kl": "to the prior, nats",
    "policy/entropy": "nats", "policy/std": "of its actions", "policy/kl_multiplier": "of kl_coef",
    "prior/kl": "to stored plans, nats", "prior/fitted": "share of stored plans",
    "std": "of the evaluation's episodes", "eval/length": "decisions",
    "eval/broken": "episodes that broke", "env/invalid": "steps that broke",
    "refused_updates": "not finite, not applied", "decisions_per_second": "of one seed",
    "diag/record_age": "of stored plans, updates", "diag/record_age_p95": "95th percentile",
    "diag/snr": "signal / noise of the gradient", "diag/snr_kl": "of its KL term",
    "diag/snr_stored": "records as prior", "diag/snr_kl_stored": "KL term, records as prior",
    "diag/value_planner": "estimate", "diag/value_critic": "estimate",
    "diag/value_error_planner": "estimate less return",
    "diag/value_error_critic": "estimate less return",
    "diag/value_error_relative_planner": "share", "diag/value_error_relative_critic": "share",
    "diag/kl_policy_planner": "nats, fresh plans", "diag/kl_planner_policy": "nats, fresh plans",
    "diag/kl_policy_record": "nats, stored plans", "diag/kl_record_policy": "nats, stored plans",
    "diag/distance_planner": "of modes, fresh plans",
    "diag/distance_record": "of modes, stored plans",
    "diag/cosine_value": "with the policy gradient", "diag/cosine_kl": "with the policy gradient",
    "diag/cosine_entropy": "with the policy gradient",
    "diag/gradient_value": "norm", "diag/gradient_kl": "norm", "diag/gradient_entropy": "norm",
}  # fmt: skip
"""What a column is, in a few words; docs/metrics.md says more."""


def returns(
    found: Sequence[Group], labels: Sequence[str], beside: Sequence[Published]
) -> list[Plot]:
    """A panel for every task that has any return.

    Args:
      found: cells.
      labels: of our methods and of published ones, in the order of the page.
      beside: published curves.
    """
    out = []
    for task in dict.fromkeys(group.task for group in found):
        members = [group for group in found if group.task == task]
        seeds = len(members) <= report_data.FEW
        pairs = [
            report_data.return_marks(group, labels.index(group.label), seeds=seeds)
            for group in members
        ]
        marks = [mark for of, _ in pairs for mark in of]
        if not marks:
            continue
        end = max(float(mark.x[-1]) for mark in marks)
        points = [
            mark for curve in of_task(list(beside), task)
            if np.any((mark := _published(curve, end, labels)).x > 0)
        ]  # fmt: skip
        extent = np.concatenate([values for _, values in pairs] + [mark.y for mark in points])
        end = max([end, *(float(mark.x[-1]) for mark in points)])
        # Bands first, then what is faint, then what matters: later marks cover earlier ones.
        order = ("training", "seed", "published", "planner", "policy")
        marks = sorted(marks + points, key=lambda mark: order.index(mark.kind))
        x, y = plots.upwards(end), _return_scale(extent)
        out.append(Plot(task, "episode return", marks, x, y, FRAMES, task))
    return out


def _return_scale(values: np.ndarray) -> Scale:
    """A linear axis, but for costs: their early extremes would hide everything else."""
    return plots.linear(values, zero=True) if np.min(values) >= 0 else plots.fitting(values)


def _published(curve: Published, end: float, labels: Sequence[str]) -> Mark:
    """Points up to where ours end, and the first evaluation in training if it is not far off."""
    first = float(curve.until(1).frames[-1])
    last = end if first > FAR * end else max(end, first)
    reached = curve.frames <= last * (1 + SLACK)
    x, y, std = (part[reached] for part in (curve.frames, curve.mean, curve.std))
    method = labels.index(curve.method)
    return Mark(method, "published", x, y, (y - 2 * std, y + 2 * std), points=True)


def metric_names(found: Sequence[Group]) -> list[str]:
    """Metrics that have a panel of their own, in alphabetical order."""
    tables = [table for group in found for one in group.members for table in one.tables]
    names = columns.metrics(tables)
    return [
        name for name in names
        if name not in SHOWN_ELSEWHERE and not name.startswith("episode_") and name != "broken"
    ]  # fmt: skip


def subjects(names: Sequence[str]) -> dict[Subject, list[str]]:
    """Metrics by subject, without empty subjects."""
    out: dict[Subject, list[str]] = {subject: [] for subject in SUBJECTS}
    for name in names:
        out[next(s for s in SUBJECTS if name.startswith(s.prefixes))].append(name)
    return {subject: members for subject, members in out.items() if members}


def metric(
    found: Sequence[Group], series: Sequence[Found], name: str, labels: Sequence[str]
) -> Iterator[Plot]:
    """A panel for every task that has values of a metric; titled by tasks if there are several.

    Args:
      found: cells.
      series: the metric's curves of each cell.
      name: of the metric.
      labels: of all methods, in the order of the page.
    """
    tasks = dict.fromkeys(group.task for group in found)
    for task in tasks:
        curves = {
            labels.index(group.label): own
            for group, own in zip(found, series, strict=True) if group.task == task and own
        }  # fmt: skip
        if not curves:
            continue
        marks = [
            report_data.mean_mark(own, method, "mean", "range", report_data.POINTS)
            for method, own in curves.items()
        ]
        every = np.concatenate([curve.y for own in curves.values() for curve in own.values()])
        end = max(float(mark.x[-1]) for mark in marks)
        title, about = (task, "") if len(tasks) > 1 else (name, WORDS.get(name, ""))
        x = plots.upwards(end)
        yield Plot(title, about, marks, x, plots.fitting(every), "", task)


def iqm(found: Across) -> Plot | None:
    """IQM over frames; None where seeds share no range of frames."""
    if not found.curves:
        return None
    values = np.concatenate([mark.y for mark in found.curves])
    end = max(float(mark.x[-1]) for mark in found.curves)
    x = plots.upwards(end)
    title = f"IQM over {len(found.tasks)} tasks"
    y = _return_scale(values)
    return Plot(title, "of return, normalised", found.curves, x, y, FRAMES)


def sweep(
    found: Sequence[Group], grid: Mapping[str, Sequence[float]], labels: Sequence[str]
) -> Plot | None:
    """Final returns over the swept field with most values; None where nothing was evaluated.

    Combinations of other swept fields are points beside each other.

    Args:
      found: cells of the sweep.
      grid: values by full name of the field.
      labels: of all methods, in the order of the page.
    """
    across = max(grid, key=lambda field: len(grid[field]))
    values = sorted(set(grid[across]))
    marks, extent = [], []
    for group in found:
        value = group.members[0].run.settings.get(across)
        finals = np.array([curve.y[-1] for curve in group.series(comparison.RETURN).values()])
        if value not in values or not len(finals):
            continue
        # Equal distances: grids span orders of magnitude, and often hold zero.
        x = np.array([float(values.index(value))])
        interval = aggregates.bootstrap([finals], aggregates.mean)
        band = None if math.isnan(interval.low) else (interval.low[None], interval.high[None])
        method = labels.index(group.label)
        seeds = np.full(len(finals), x[0])
        marks.append(Mark(method, "seed", seeds, finals, None, points=True))
        marks.append(Mark(method, "planner", x, interval.value[None], band, points=True))
        extent.append(finals)
    if not marks:
        return None
    name = across.removeprefix("agent.")
    y = plots.linear(np.concatenate(extent), zero=True)
    return Plot(
        "Final return", f"over {name}", marks, Scale("linear", -0.5, len(values) - 0.5), y, name,
        labels=[(float(i), f"{value:g}") for i, value in enumerate(values)],
    )  # fmt: skip


def sweeps(folders: Sequence[Path]) -> list[tuple[Path, dict[str, list[float]]]]:
    """Folders of sweeps with their grids; sweeps of an earlier version have none."""
    out = []
    for folder in folders:
        if (folder / "sweep.json").is_file():
            # runs.find has read the same file: it is a JSON object.
            grid = json.loads((folder / "sweep.json").read_text()).get("grid")
            if isinstance(grid, dict) and grid and all(map(_numbers, grid.values())):
                out.append((folder, grid))
    return out


def _numbers(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, int | float) for value in values)


def alt(plot: Plot, labels: Sequence[str]) -> str:
    """A plot in words: what it shows, and where each line begins and ends."""
    kinds = {"planner": "", "mean": "", "policy": " bare policy", "published": " published"}
    parts = []
    for mark in plot.marks:
        if mark.kind not in kinds or not len(mark.y):
            continue
        first, last = (_short(float(mark.y[i])) for i in (0, -1))
        way = last if len(mark.y) == 1 or mark.points else f"{first} to {last}"
        parts.append(f"{labels[mark.method]}{kinds[mark.kind]} {way}")
    about = f", {plot.about}" if plot.about else ""
    axis = plot.axis or FRAMES
    end = compact(float(f"{plot.x.high / plots.BEYOND:.3g}"))
    where = "" if plot.labels else f" up to {end}"
    return f"{plot.title}{about}, over {axis}{where}: {'; '.join(parts)}"


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else DASH
