"""Folders of runs written by hand, as experiments.run and experiments.sweep leave them."""

import csv
import json


def make_run(
    folder, method, returns, *, task="reacher-easy", seeds=None, repeat=2, training=True, kl=1.0,
    about=(),
):  # fmt: skip
    """A run evaluated every 1000 decisions, an hour each; ``returns`` [S, T]."""
    folder.mkdir(parents=True)
    seeds = range(len(returns)) if seeds is None else seeds
    config = {
        "env": {"task": task, "action_repeat": repeat},
        "agent": {"policy": {"kl_coef": kl}},
        "train": {"seed": seeds[0], "num_seeds": len(seeds)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    facts = {"exit_code": 0, "status": "done", "command": "python -m experiments.run --config=x"}
    facts |= ({"method": method} if method else {}) | dict(about)
    (folder / "run.json").write_text(json.dumps(facts))
    evaluations, metrics = [], []
    for seed, curve in zip(seeds, returns, strict=True):
        for t, value in enumerate(curve, 1):
            place = [3600 * t, 1000 * t, repeat * 1000 * t, seed]
            evaluations.append([*place, "planner", value, "", 3])
            metrics.append([*place, value - 10 if training else "", 1 / t, ""])
        evaluations.append([*place, "policy", "", value / 2, 99])
    first = ["seconds", "decisions", "frames", "seed"]
    write(folder / "evaluations.csv", [*first, "actor", "eval/return", "eval/policy_return", "std"])
    write(folder / "metrics.csv", [*first, "train/return", "loss/value", "loss/none"])
    write(folder / "evaluations.csv", *evaluations, mode="a")
    write(folder / "metrics.csv", *metrics, mode="a")
    return folder


def write(path, *rows, mode="w"):
    """Write or append rows of a csv file."""
    with path.open(mode, newline="") as file:
        csv.writer(file).writerows(rows)
