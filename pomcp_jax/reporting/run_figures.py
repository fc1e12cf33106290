"""Picture of single runs: training returns as lines, evaluations as dots, over decisions."""

import json
from pathlib import Path

from pomcp_jax.reporting import canvas
from pomcp_jax.reporting.curves import gather, mean_curve


def draw(runs: list[Path], out: Path, labels: list[str] | None = None) -> None:
    """Write one picture of ``runs``.

    Runs with the same label count as seeds of one method: thin lines for seeds, a bold mean.

    Raises:
      ImportError: without matplotlib (``pip install pomcp_jax[run]``).
      ValueError: for an unsupported suffix.
    """
    canvas.check_format(out)
    figure = canvas.figure(6.4, 4.0)
    axes = figure.subplots()
    titles, repeats = [], set()
    groups: dict[str, list[Path]] = {}
    for i, run in enumerate(runs):
        config = json.loads((run / "config.json").read_text())
        titles.append(config["env"]["task"])
        repeats.add(config["env"]["action_repeat"])
        label = labels[i] if labels else (run.name if len(runs) > 1 else "")
        groups.setdefault(label, []).append(run)
    for i, (label, members) in enumerate(groups.items()):
        color = f"C{i}"
        training = gather(members, "metrics.csv", "train/return")
        evaluated = gather(members, "evaluations.csv", "eval/return")
        # With one seed the thin lines would only repeat the mean.
        if len(training) > 1:
            for curve in training.values():
                axes.plot(*curve, color=color, alpha=0.3, linewidth=1)
            for curve in evaluated.values():
                axes.plot(*curve, "o", color=color, markersize=3, alpha=0.4)
        if training:
            name = f"{label} training".strip()
            axes.plot(*mean_curve(training), color=color, linewidth=2, label=name)
        if evaluated:
            name = f"{label} evaluation".strip()
            axes.plot(*mean_curve(evaluated), "o--", color=color, markersize=5, label=name)
    axes.set(xlabel="decisions per seed", ylabel="episode return")
    axes.set_title(", ".join(dict.fromkeys(titles)))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    # Runs with different action repeats have no common axis of frames.
    if len(repeats) == 1 and (repeat := repeats.pop()) > 1:
        top = axes.secondary_xaxis("top", functions=(lambda x: x * repeat, lambda x: x / repeat))
        top.set_xlabel("environment frames per seed")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", frameon=False)
    canvas.save(figure, out)
