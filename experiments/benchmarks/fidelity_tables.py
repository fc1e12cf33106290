"""The tables of docs/environments.md from what ``experiments.benchmarks.fidelity`` measured.

    python -m experiments.benchmarks.fidelity_tables [DIR ...]

For every folder one table of single and free-running control steps and, where they
were measured, one of resets and returns.
"""

import argparse
import json
import pathlib

from experiments.benchmarks.fidelity import OUT, POLICIES

FOLDERS = (OUT, OUT.with_name("fidelity_x64"), OUT.with_name("fidelity_host"))


def load(folder: pathlib.Path) -> list[dict]:
    """What was measured of each task, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def steps_table(found: list[dict]) -> str:
    """One control step from equal states, and 10 and 100 from one."""
    lines = [
        "| task | one step: obs | median | reward | 10 steps: obs | reward |"
        " 100 steps: obs | reward | itself, rounded: 100 steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        d = one["deviation"]
        values = [d["step_obs"], d["step_obs_median"], d["step_reward"]]
        values += [d[kind][at] for at in ("10", "100") for kind in ("obs", "reward")]
        values.append(d["rounded"]["100"])
        lines.append(f"| {one['task']} | " + " | ".join(f"{v:.0e}" for v in values) + " |")
        if d.get("edited_steps"):
            share, most = 100 * d["edited_steps"], d["edited_obs"]
            text = f"{one['task']}, contacts dropped in both (changes {share:.0f} % of steps)"
            lines.append(f"| {text} | {most:.0e} |" + " |" * 7)
    return "\n".join(lines)


def overlap(one: dict) -> bool:
    """Whether the two intervals have a point in common."""
    (mean, half), (other, other_half) = one["ours"], one["dm_control"]
    return abs(mean - other) <= half + other_half + 1e-6


def returns_table(found: list[dict]) -> str:
    """Resets, returns of fixed policies (bold where intervals are disjoint), broken steps."""
    heads = "".join(f" {policy}: ours | dm_control |" for policy in POLICIES)
    lines = [f"| task | resets: mean | spread | range |{heads} non-finite |"]
    lines.append("|---|---|---|---|" + "---|---|" * len(POLICIES) + "---|")
    for one in found:
        r = one["resets"]
        cells = [f"{r['mean']:.1f}", f"{r['spread']:.2f}", f"{r['outside']:.2f}"]
        for policy in POLICIES:
            pair = one["returns"][policy]
            text = [f"{mean:.1f} ± {half:.1f}" for mean, half in pair.values()]
            cells += text if overlap(pair) else [f"**{cell}**" for cell in text]
        cells.append(f"{one['invalid']} of {one['random_control_steps']:,}")
        lines.append(f"| {one['task']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=pathlib.Path, default=FOLDERS)
    for folder in parser.parse_args().folders:
        found = load(folder)
        if not found:
            continue
        first = found[0]
        print(f"{folder}: {first['backend']}, {'float64' if first['x64'] else 'float32'}\n")
        print(steps_table(found), end="\n\n")
        if with_returns := [one for one in found if "returns" in one]:
            print(returns_table(with_returns), end="\n\n")


if __name__ == "__main__":
    main()
