"""Tables of docs/environments.md from the results of ``experiments.benchmarks.fidelity``.

    python -m experiments.benchmarks.fidelity_tables [DIR ...]

Prints, for each folder, a table of single and free-running control steps and, if measured, a table
of resets and returns.
"""

import argparse
import json
import pathlib

from experiments.benchmarks.fidelity import OUT, POLICIES

FOLDERS = (OUT, OUT.with_name("fidelity_x64"), OUT.with_name("fidelity_host"))


def load(folder: pathlib.Path) -> list[dict]:
    """Results of all tasks, ordered by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def steps_table(results: list[dict]) -> str:
    """Markdown table of deviations after one step from equal states, and after 10 and 100."""
    lines = [
        "| task | one step: obs | median | reward | 10 steps: obs | reward |"
        " 100 steps: obs | reward | itself, rounded: 100 steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        d = result["deviation"]
        values = [d["step_obs"], d["step_obs_median"], d["step_reward"]]
        values += [d[kind][at] for at in ("10", "100") for kind in ("obs", "reward")]
        values.append(d["rounded"]["100"])
        lines.append(f"| {result['task']} | " + " | ".join(f"{v:.0e}" for v in values) + " |")
        if d.get("edited_steps"):
            share, most = 100 * d["edited_steps"], d["edited_obs"]
            text = f"{result['task']}, contacts dropped in both (changes {share:.0f} % of steps)"
            lines.append(f"| {text} | {most:.0e} |" + " |" * 7)
    return "\n".join(lines)


def overlap(pair: dict) -> bool:
    """Whether two intervals have a point in common."""
    # With a margin: a policy with equal returns in all episodes has intervals of width 0.
    (mean, half), (other, other_half) = pair["ours"], pair["dm_control"]
    return abs(mean - other) <= half + other_half + 1e-6


def returns_table(results: list[dict]) -> str:
    """Markdown table of resets, returns (bold if intervals are disjoint) and non-finite steps."""
    heads = "".join(f" {policy}: ours | dm_control |" for policy in POLICIES)
    lines = [f"| task | resets: mean | spread | range |{heads} non-finite |"]
    lines.append("|---|---|---|---|" + "---|---|" * len(POLICIES) + "---|")
    for result in results:
        r = result["resets"]
        cells = [f"{r['mean']:.1f}", f"{r['spread']:.2f}", f"{r['outside']:.2f}"]
        for policy in POLICIES:
            pair = result["returns"][policy]
            text = [f"{mean:.1f} ± {half:.1f}" for mean, half in pair.values()]
            cells += text if overlap(pair) else [f"**{cell}**" for cell in text]
        cells.append(f"{result['invalid']} of {result['random_control_steps']:,}")
        lines.append(f"| {result['task']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=pathlib.Path, default=FOLDERS)
    for folder in parser.parse_args().folders:
        results = load(folder)
        if not results:
            continue
        first = results[0]
        print(f"{folder}: {first['backend']}, {'float64' if first['x64'] else 'float32'}\n")
        print(steps_table(results), end="\n\n")
        if with_returns := [result for result in results if "returns" in result]:
            print(returns_table(with_returns), end="\n\n")


if __name__ == "__main__":
    main()
