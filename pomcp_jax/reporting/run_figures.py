"""The picture of one run: training returns as lines, evaluations as dots, over decisions."""

import json
from pathlib import Path

from pomcp_jax.reporting import canvas
from pomcp_jax.reporting.curves import mean_curve, read_curves

COLOR = "C0"


def draw(run: Path, out: Path) -> None:
    """Write the picture of ``run``: seeds as thin lines, and their mean.

    Raises:
      ImportError: without matplotlib (``pip install pomcp_jax[run]``).
      ValueError: for an unsupported suffix.
    """
    canvas.check_format(out)
    figure = canvas.figure(6.4, 4.0)
    axes = figure.subplots()
    env = json.loads((run / "config.json").read_text())["env"]
    training = read_curves(run / "metrics.csv", "train/return")
    evaluated = read_curves(run / "evaluations.csv", "eval/return")
    if len(training) > 1:
        for curve in training.values():
            axes.plot(*curve, color=COLOR, alpha=0.3, linewidth=1)
        for curve in evaluated.values():
            axes.plot(*curve, "o", color=COLOR, markersize=3, alpha=0.4)
    if training:
        axes.plot(*mean_curve(training), color=COLOR, linewidth=2, label="training")
    if evaluated:
        mean = mean_curve(evaluated)
        axes.plot(*mean, "o--", color=COLOR, markersize=5, label="evaluation")
    axes.set(xlabel="decisions per seed", ylabel="episode return")
    axes.set_title(env["task"])
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    if (repeat := env["action_repeat"]) > 1:
        top = axes.secondary_xaxis("top", functions=(lambda x: x * repeat, lambda x: x / repeat))
        top.set_xlabel("environment frames per seed")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", frameon=False)
    canvas.save(figure, out)
