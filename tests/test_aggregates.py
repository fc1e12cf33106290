"""Aggregates over tasks and seeds against independent formulas and exact enumeration; tables."""

import csv
import io
import itertools
import json

import numpy as np
import pytest
from scipy import stats
from synthetic import make_run

from experiments import aggregate, plot, reproduce
from pomcp_jax.reporting import aggregates, comparison, runs, scores, summary

MATRIX = np.random.default_rng(0).uniform(0, 1.4, size=(5, 4))
"""Scores as rliable has them: [runs, tasks]."""
TASKS = list(MATRIX.T)


def rliable(name, scores):
    """The definitions of google-research/rliable's metrics.py for a matrix [runs, tasks]."""
    return {
        "iqm": lambda: stats.trim_mean(scores, proportiontocut=0.25, axis=None),
        "mean": lambda: np.mean(np.mean(scores, axis=0)),
        "median": lambda: np.median(np.mean(scores, axis=0)),
        "optimality_gap": lambda: 1.0 - np.mean(np.minimum(scores, 1.0)),
    }[name]()


@pytest.mark.parametrize("name", aggregates.STATISTICS)
def test_statistics_are_those_of_rliable(name):
    assert aggregates.STATISTICS[name](TASKS) == pytest.approx(rliable(name, MATRIX), rel=1e-12)


def test_the_gap_counts_what_is_missing_only():
    assert aggregates.optimality_gap([np.array([0.5, 2.0]), np.array([1.0])]) == 0.125


@pytest.mark.parametrize("name", aggregates.STATISTICS)
def test_intervals_are_those_of_all_resamples(name):
    """Two tasks of three runs: 27 x 27 equally likely resamples."""
    tasks = [np.array([0.1, 0.45, 0.8]), np.array([0.3, 0.9, 1.2])]
    exact = [
        rliable(name, np.stack([t[list(index)] for t, index in zip(tasks, pick, strict=True)]).T)
        for pick in itertools.product(itertools.product(range(3), repeat=3), repeat=2)
    ]  # fmt: skip
    found = aggregates.bootstrap(tasks, aggregates.STATISTICS[name], resamples=20_000)
    for got, percent in ((found.low, 2.5), (found.high, 97.5)):
        below, above = np.percentile(exact, [percent - 0.5, percent + 0.5])
        assert below - 1e-9 <= got <= above + 1e-9


def test_improvement_is_mann_whitneys_u_averaged_over_tasks():
    random = np.random.default_rng(1)
    ours = [random.integers(0, 5, size=n).astype(float) for n in (4, 6)]  # with ties
    base = [random.integers(0, 5, size=n).astype(float) for n in (5, 3)]
    by_task = [
        stats.mannwhitneyu(x, y, alternative="greater").statistic / (len(x) * len(y))
        for x, y in zip(ours, base, strict=True)
    ]
    found = aggregates.probability_of_improvement(ours, base)
    assert found.value == pytest.approx(np.mean(by_task))
    back = aggregates.probability_of_improvement(base, ours)
    assert found.value + back.value == pytest.approx(1.0)


def test_intervals_of_improvement_are_those_of_all_resamples():
    x, y = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0])
    exact = [
        np.mean([0.5 if a == b else float(a > b) for a in x[list(i)] for b in y[list(j)]])
        for i in itertools.product(range(3), repeat=3)
        for j in itertools.product(range(2), repeat=2)
    ]
    found = aggregates.probability_of_improvement([x], [y], resamples=20_000)
    for got, percent in ((found.low, 2.5), (found.high, 97.5)):
        below, above = np.percentile(exact, [percent - 0.5, percent + 0.5])
        assert below - 1e-9 <= got <= above + 1e-9


@pytest.mark.parametrize("name", ["iqm", "mean"])
def test_intervals_of_differences_are_those_of_all_resamples(name):
    ours, base = np.array([0.2, 0.5, 0.9]), np.array([0.1, 0.4])
    of = lambda side, pick: rliable(name, side[list(pick)][:, None])  # noqa: E731
    exact = [
        of(ours, i) - of(base, j)
        for i in itertools.product(range(3), repeat=3)
        for j in itertools.product(range(2), repeat=2)
    ]
    found = aggregates.difference([ours], [base], aggregates.STATISTICS[name], resamples=20_000)
    assert found.value == pytest.approx(of(ours, range(3)) - of(base, range(2)))
    for got, percent in ((found.low, 2.5), (found.high, 97.5)):
        below, above = np.percentile(exact, [percent - 0.5, percent + 0.5])
        assert below - 1e-9 <= got <= above + 1e-9


def test_a_single_run_has_no_interval():
    found = aggregates.bootstrap([np.array([0.5]), np.array([0.1, 0.2])], aggregates.iqm)
    assert found.value > 0 and np.isnan(found.low) and np.isnan(found.high)


@pytest.mark.parametrize("scores", [[], [np.array([])], [np.array([np.nan])]])
def test_scores_that_are_none(scores):
    with pytest.raises(ValueError, match="scores: must"):
        aggregates.bootstrap(scores, aggregates.mean)
    with pytest.raises(ValueError, match="scores: must"):
        aggregates.probability_of_improvement([np.array([1.0])], scores)


RETURNS = {
    ("reacher-easy", "tdmpc2"): [100, 200, 300],
    ("reacher-easy", "po_mpc"): [150, 260, 370],
    ("walker-walk", "tdmpc2"): [500, 510, 520],
    ("walker-walk", "po_mpc"): [400, 600, 800],
}


@pytest.fixture
def folder(tmp_path):
    for (task, method), finals in RETURNS.items():
        returns = [[0, final] for final in finals]
        make_run(tmp_path / "runs" / f"{task}-{method}", method, returns, task=task)
    return tmp_path / "runs"


def table(*argv, capsys):
    assert aggregate.main([*map(str, argv)]) == 0
    return capsys.readouterr().out


def csv_rows(text):
    return {(r["task"], r["method"], r["statistic"]): r for r in csv.DictReader(io.StringIO(text))}


def test_numbers_of_plain_runs(folder, capsys):
    before = sorted(folder.rglob("*"))
    found = csv_rows(table(folder, "--csv", "--baseline=tdmpc2", capsys=capsys))
    assert sorted(folder.rglob("*")) == before  # nothing is written without --out
    value = {key: float(row["value"]) for key, row in found.items()}
    assert value["reacher-easy", "po_mpc", "return"] == 260
    assert value["all", "po_mpc", "mean"] == pytest.approx((0.26 + 0.6) / 2)
    assert value["all", "po_mpc", "optimality_gap"] == pytest.approx(1 - 0.43)
    # On reacher 150 beats one run, 260 two, 370 three; on walker 400 none, 600 and 800 three.
    assert value["all", "po_mpc", "probability_of_improvement"] == pytest.approx(
        (6 / 9 + 6 / 9) / 2
    )
    assert value["all", "po_mpc", "paired_difference"] == pytest.approx((0.06 + 0.09) / 2)
    row = found["all", "po_mpc", "paired_difference"]
    assert float(row["low"]) < 0.075 < float(row["high"]) and row["runs"] == "6"
    assert ("all", "tdmpc2", "paired_difference") not in found
    assert found["reacher-easy", "po_mpc", "return"]["frames"] == "4000"


def test_pairs_are_of_equal_seeds(tmp_path, capsys):
    make_run(tmp_path / "a", "x", [[100], [200]], seeds=[0, 1])
    make_run(tmp_path / "b", "y", [[150], [999]], seeds=[1, 2])
    row = csv_rows(table(tmp_path / "a", tmp_path / "b", "--csv", "--baseline=x", capsys=capsys))[
        "all", "y", "paired_difference"
    ]
    assert float(row["value"]) == pytest.approx(-0.05) and row["runs"] == "1" and row["low"] == ""


def test_markdown_puts_the_best_method_first(folder, capsys):
    lines = table(folder, "--baseline=tdmpc2", capsys=capsys).splitlines()
    assert lines[0] == "| task | method | return (95 % interval) | seeds | frames |"
    first = [line.split(" | ")[0] for line in lines if line.startswith(("| po_mpc", "| tdmpc2"))]
    assert first == ["| po_mpc", "| tdmpc2", "| po_mpc"]
    words = "P(better than tdmpc2) | IQM less that of tdmpc2 | difference to tdmpc2 by seed"
    assert any(words in line for line in lines)
    # Rows of a table have as many cells as its head.
    for part in "\n".join(lines).split("\n\n"):
        assert len({line.count(" | ") for line in part.splitlines()}) == 1


def test_latex_is_escaped_and_written_where_told(folder, capsys):
    out = folder.parent / "new" / "table.tex"
    assert table(*folder.iterdir(), f"--out={out}", capsys=capsys) == f"written: {out}\n"
    text = out.read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert r"po\_mpc & 260.0 (" in text and r"95 \% interval" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in body} == {4, 6}


def test_seeds_are_compared_where_the_shortest_run_ends(tmp_path, capsys):
    make_run(tmp_path / "a", "x", [[100, 200, 900]])
    make_run(tmp_path / "b", "y", [[50, 60]])
    assert aggregate.main([str(tmp_path / "a"), str(tmp_path / "b"), "--csv"]) == 0
    out, err = capsys.readouterr()
    assert float(csv_rows(out)["reacher-easy", "x", "return"]["value"]) == 200
    assert "compared at 4,000 frames" in err and "one seed only" in err


def test_seeds_are_compared_at_the_frames_that_are_asked_for(tmp_path, capsys):
    make_run(tmp_path / "a", "x", [[100, 200, 900], [300, 400, 900]])
    make_run(tmp_path / "b", "y", [[50, 60], [50, 60]])
    for frames, expected in ((2000, (200, 50)), (3500, (200, 50)), (4000, (300, 60))):
        assert aggregate.main([str(tmp_path), "--csv", f"--frames={frames}"]) == 0
        out, err = capsys.readouterr()
        rows = csv_rows(out)
        value = [float(rows["reacher-easy", method, "return"]["value"]) for method in "xy"]
        assert value == list(expected)
        assert rows["reacher-easy", "x", "return"]["frames"] == str(frames)
        assert ("the latest value before 3,500 frames is at 2,000" in err) == (frames == 3500)


def test_policies_alone_are_compared_by_their_column(tmp_path, capsys):
    folder = make_run(tmp_path / "a", "x", [[0, 100], [0, 300]])  # policies have half of it
    text = table(folder, "--metric=eval/policy_return", capsys=capsys)
    assert "| eval/policy_return (95 % interval) |" in text
    assert "score = eval/policy_return / 1000" in text and "| 100.0 (50.0 to 150.0) |" in text
    assert "| 200.0 (100.0 to 300.0) |" in table(folder, "--max-return=1000", capsys=capsys)


def test_methods_without_a_task_are_marked(folder, capsys):
    make_run(folder / "boom", "boom", [[0, 990]])
    assert "1 of 2, not comparable |" in table(folder, "--max-return=500", capsys=capsys)


def test_max_return_scales_and_is_asked_for(folder, capsys):
    for flags, mean in ((["--max-return=500"], 0.86), (["--max-return=2000"], 0.215)):
        assert aggregate.main([str(folder), "--csv", *flags]) == 0
        out, err = capsys.readouterr()
        assert float(csv_rows(out)["all", "po_mpc", "mean"]["value"]) == pytest.approx(mean)
        assert ("walker-walk: returns above 500" in err) == (mean > 0.5)


def test_a_result_set_keeps_its_command_and_takes_flags(folder, capsys):
    before = sorted(folder.rglob("*"))
    assert "IQM of return / 1000" in table(folder, capsys=capsys)
    assert sorted(folder.rglob("*")) == before  # nothing is written without --out
    assert "P(better than po_mpc)" in table(folder, "--baseline=po_mpc", capsys=capsys)


def test_runs_that_share_a_seed_are_named_by_their_folders(tmp_path, capsys):
    """A folder of plain runs is no result set, whatever is in it."""
    for place, task in (("a/default", "reacher-easy"), ("b/default", "reacher-easy"), ("c", "x")):
        make_run(tmp_path / place, None, [[1, 2]], task=task, about={"preset": "po_mpc"})
    text = table(tmp_path, capsys=capsys)
    for name in ("po_mpc (a/default)", "po_mpc (b/default)", "| x | po_mpc |"):
        assert name in text
    assert table(tmp_path, "--csv", capsys=capsys).count("return") == 3


def test_runs_that_name_nothing_are_seeds_of_one_method(tmp_path, capsys):
    for seed in range(2):
        make_run(tmp_path / f"seed{seed}", None, [[1, 2]], seeds=[seed])
    assert f"| reacher-easy | {tmp_path.name} | 2.0 ± 0.0 | 2 |" in table(tmp_path, capsys=capsys)


def test_a_hint_does_not_start_over(tmp_path):
    command = "python -m experiments.run --config=x --resume=never --workdir=y"
    run = make_run(tmp_path / "a", "x", [[1]], about={"command": command})
    (found,) = runs.find([run])
    assert found.mend == ("`python -m experiments.run --config=x --workdir=y` continues the run")


def test_help_is_plain_text(capsys):
    for module in (aggregate, plot, reproduce):
        with pytest.raises(SystemExit):
            module.main(["--help"])
        assert ":mod:" not in capsys.readouterr().out


def no_evaluation(folder):
    (folder / "reacher-easy-po_mpc" / "evaluations.csv").unlink()


def all_diverged(folder):
    lost = {str(seed): {} for seed in range(3)}
    path = folder / "reacher-easy-po_mpc" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"diverged": lost}))


def unwritable(folder):
    (folder / "x.md").mkdir()


def twice(folder):
    make_run(folder / "again", "po_mpc", [[1, 2]])


@pytest.mark.parametrize(
    ("break_it", "flags", "words"),
    [
        (None, ["--baseline=tdmpc"], "--baseline = tdmpc: no method of these runs; did you mean"),
        (None, ["--baseline="], "--baseline: is empty"),
        (None, ["--baseline=zzz"], "must be one of po_mpc, tdmpc2"),
        (None, ["--labels="], "--labels: names nothing"),
        (None, ["--max-return=0"], "--max-return = 0: must be > 0"),
        (None, ["--frames=nan"], "--frames = nan: must be > 0 and finite"),
        (None, ["--frames=9e3"], "--frames = 9,000: must be from 2,000 to 4,000, where po_mpc on"),
        (None, ["--frames=1000"], "where po_mpc on reacher-easy has values of seed 0"),
        (None, ["--metric=eval/policy_retrun"], "did you mean"),
        (None, ["--metric="], "--metric = : no column"),
        (None, ["--out=FOLDER/x.doc"], "x.doc: must end in one of .md, .txt, .csv, .tex"),
        (None, ["--csv", "--out=FOLDER/x.tex"], "is latex by its suffix, not csv"),
        (no_evaluation, ["--out=FOLDER/x.md"], "holds no eval/return of a healthy seed; `python"),
        (all_diverged, ["--csv"], "po_mpc: holds no eval/return of a healthy seed"),
        (unwritable, ["--out=FOLDER/x.md"], "x.md: cannot be written: Is a directory"),
        (twice, ["--out=FOLDER/x.md", "--labels=x,x,y,x,y"], "seed 0 of x is in"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, break_it, flags, words):
    if break_it:
        break_it(folder)
    before = sorted(folder.rglob("*"))
    flags = [flag.replace("FOLDER", str(folder)) for flag in flags]
    assert aggregate.main([str(folder), *flags]) == 2
    out, err = capsys.readouterr()
    assert not out and words in err and err.startswith("error: ") and err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_rows_name_every_number_once(folder):
    found = summary.summarise(comparison.load(runs.find([folder])), "tdmpc2", 1000.0)
    keys = [(row.task, row.method, row.statistic) for row in found.rows]
    assert len(keys) == len(set(keys)) == 4 + 2 * 4 + 3


def test_tasks_of_humanoid_bench_are_divided_by_their_success_bars():
    def loaded(task, value):
        return {task: {0: value, 1: value}}

    of = loaded("humanoid/h1-stand", 400.0) | loaded("walker-walk", 700.0)
    scales = {task: scores.scale(task) for task in of}
    mean = next(r for r in summary._aggregate_rows("a", of, scales) if r.statistic == "mean")
    assert mean.value == pytest.approx(0.6)  # 400 / 800 and 700 / 1000
    assert scores.formula(["humanoid/h1-stand"]) == "return / success bar"
    assert scores.formula(of) == "return / 1000 or success bar"
    assert scores.formula(["walker-walk"]) == "return / 1000"
