"""Result sets written by hand: reading, tables and figures."""

import csv
import json

import numpy as np
import pytest

from experiments import aggregate, plot
from experiments.published import FOLDER as PUBLISHED
from pomcp_jax import envs
from pomcp_jax.config import ConfigError
from pomcp_jax.reporting import canvas, figures, published, result_sets, scores
from pomcp_jax.reporting import results as cells


def make_cell(folder, task, method, returns, *, first_seed=0, repeat=2, **about):
    """A cell whose planner was evaluated every 1000 decisions; ``returns`` [S, T]."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"env": {"task": task, "action_repeat": repeat}})
    )
    facts = {"exit_code": 0, "status": "done", "seconds": 60.0, "device": "cpu: cpu"}
    facts |= {"method": method, "preset": method, "commit": "abc", "versions": {"jax": "1"}} | about
    (folder / "run.json").write_text(json.dumps(facts))
    columns = ["seconds", "decisions", "frames", "seed", "actor", "eval/return"]
    with (folder / "evaluations.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "eval/policy_return"])
        for i, curve in enumerate(returns):
            for t, value in enumerate(curve):
                decisions = 1000 * (t + 1)
                row = [t + 1.5, decisions, repeat * decisions, first_seed + i]
                writer.writerow([*row, "planner", value, ""])
            writer.writerow([*row, "policy", "", 1.0])


RETURNS = {
    ("cartpole-swingup", "tdmpc2"): [[100, 200], [300, 400], [500, 900]],
    ("cartpole-swingup", "po_mpc"): [[100, 840], [200, 840], [300, 840]],
    ("reacher-easy", "tdmpc2"): [[0, 100], [0, 100], [0, 100]],
    ("reacher-easy", "po_mpc"): [[1, 900], [2, 900], [3, 960]],
}


@pytest.fixture
def results(tmp_path):
    """Two tasks, two methods, three seeds."""
    for (task, method), returns in RETURNS.items():
        make_cell(tmp_path / task / method, task, method, returns)
    return tmp_path


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_runs_of_a_result_set(results):
    all_runs, unfinished = result_sets.load(results)
    assert not unfinished
    assert {(r.task, r.method): r.final.tolist() for r in all_runs} == {
        key: [curve[-1] for curve in value] for key, value in RETURNS.items()
    }
    runs = next(r for r in all_runs if r.method == "tdmpc2" and r.task == "cartpole-swingup")
    assert runs.seeds == [0, 1, 2] and runs.frames == 4000 and runs.decisions == 2000
    np.testing.assert_allclose(result_sets.grid([runs]), [2000, 4000])
    np.testing.assert_allclose(runs.on(np.array([3000.0]))[:, 0], [150, 350, 700])


def test_a_grid_ends_where_the_shortest_run_does(tmp_path):
    make_cell(tmp_path / "a", "acrobot-swingup", "x", [[1, 2, 3, 4]])
    make_cell(tmp_path / "b", "reacher-easy", "x", [[10, 20]])
    frames, interval = result_sets.aggregate(result_sets.load(tmp_path)[0])
    np.testing.assert_allclose(frames, [2000, 4000])
    np.testing.assert_allclose(interval.value, [0.0055, 0.011])


def test_tables_and_pictures_of_a_result_set(results, tmp_path_factory, capsys):
    before = sorted(results.rglob("*"))
    out = tmp_path_factory.mktemp("new") / "tables"
    assert aggregate.main([str(results), f"--out={out}"]) == 0
    assert sorted(results.rglob("*")) == before
    text = capsys.readouterr().out
    assert f"written: summary.csv, returns.csv, summary.png in {out}/" in text
    assert "| cartpole-swingup | tdmpc2 | 500.0 ± 360.6 | 3 | 4,000 | 1:00 |" in text
    # All six: 840 and 840 of cartpole, 840, 900, 900, 960; without one at either end.
    assert "| po_mpc | 0.870 |" in text and "| 6 | 2 | 2:00 |" in text
    assert (out / "summary.png").read_bytes()[:4] == b"\x89PNG"
    table = rows(out / "summary.csv")
    assert [(r["task"], r["method"], r["kind"]) for r in table[-2:]] == [
        ("all", "po_mpc", "iqm"),
        ("all", "tdmpc2", "iqm"),
    ]
    assert float(table[-2]["value"]) == pytest.approx(0.87)
    assert float(table[-2]["low"]) <= 0.87 <= float(table[-2]["high"])
    long = rows(out / "returns.csv")
    assert len(long) == 4 * 3 * 2  # the bare policy's rows are left out
    assert long[0]["frames"] == "2000" and long[0]["versions"] == "jax=1"
    assert set(long[0]) >= {"method", "preset", "task", "seed", "decisions", "return", "seconds"}


def test_a_broken_cell_is_named_and_not_counted(results, capsys):
    folder = results / "reacher-easy" / "boom"
    make_cell(folder, "reacher-easy", "boom", [[1, 2]], exit_code=3, status="training broke: x")
    assert aggregate.main([str(results)]) == 0
    text = capsys.readouterr().out
    assert "not counted: reacher-easy boom: training broke: x" in text
    assert "| boom |" not in text


def test_a_method_that_lacks_a_task_is_marked(results, capsys):
    make_cell(results / "reacher-easy" / "boom", "reacher-easy", "boom", [[1, 2]])
    assert aggregate.main([str(results)]) == 0
    assert "| 1 of 2, not comparable |" in capsys.readouterr().out


def test_cells_of_one_training_each_are_seeds_of_one_method(tmp_path):
    out = tmp_path / "mine"
    for seed in range(2):
        folder = out / f"seed{seed}"
        make_cell(folder, "cartpole-swingup", None, [[1, 2 + seed]], first_seed=seed)
    (runs,), _ = result_sets.load(out)
    assert runs.method == "mine" and runs.final.tolist() == [2, 3]


def test_the_quick_start_can_be_drawn(tmp_path):
    """The recorded results of the repository, training curves too."""
    quickstart = PUBLISHED.parent / "quickstart"
    for returns in result_sets.SOURCES:
        out = tmp_path / f"{returns}.png"
        assert plot.main([f"--results={quickstart}", f"--out={out}", f"--returns={returns}"]) == 0
        assert out.read_bytes()[:4] == b"\x89PNG"


def bad_twice(folder):
    make_cell(folder / "a", "reacher-easy", "x", [[1]])
    make_cell(folder / "b", "reacher-easy", "x", [[1]])


def bad_json(folder):
    make_cell(folder / "a", "reacher-easy", "x", [[1]])
    (folder / "a" / "run.json").write_text("{")


def bad_table(folder):
    make_cell(folder / "a", "reacher-easy", "x", [[1]])
    (folder / "a" / "evaluations.csv").write_text("seed,decisions,eval/return\n0,1,x\n")


def no_table(folder):
    make_cell(folder / "a", "reacher-easy", "x", [[1]])
    (folder / "a" / "evaluations.csv").unlink()


def unfinished(folder):
    make_cell(folder / "a", "reacher-easy", "x", [[1]], exit_code=130, status="stopped")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: None, "holds no cell"),
        (bad_twice, "seed 0 of x appears twice"),
        (bad_json, "run.json or config.json is unreadable"),
        (bad_table, "evaluations.csv: is unreadable"),
        (no_table, "holds no eval/return"),
        (unfinished, "holds no finished cell"),
        (lambda folder: folder.rmdir(), "no such folder"),
    ],
)
def test_bad_results_are_one_line(tmp_path, capsys, break_it, words):
    break_it(tmp_path)
    for main in (aggregate.main, lambda a: plot.main([f"--results={a[0]}", "--out=no.png"])):
        assert main([str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert words in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.glob("summary*"))


def test_plot_wants_runs_or_results(tmp_path, capsys):
    assert plot.main([]) == 2 and "must name either" in capsys.readouterr().err
    assert plot.main(["x", "--results=y"]) == 2
    assert plot.main(["--results=y", "--labels", "z"]) == 2
    assert plot.main(["--results=y", "--labels"]) == 2


def test_metrics_are_thinned_evenly(tmp_path):
    source, out = tmp_path / "m.csv", tmp_path / "t.csv"
    lines = [f"{i},{seed},{i / 3!r},," for i in range(101) for seed in (7, 8)]
    source.write_text("decisions,seed,loss,eval,word\n" + "\n".join(lines) + "\n")
    cells.thin(source, out, rows=6)
    table = rows(out)
    for seed in ("7", "8"):
        mine = [row for row in table if row["seed"] == seed]
        assert [row["decisions"] for row in mine] == ["0", "20", "40", "60", "80", "100"]
    assert table[2] == {"decisions": "20", "seed": "7", "loss": "6.66667", "eval": "", "word": ""}
    cells.thin(source, out, rows=1)
    assert [row["decisions"] for row in rows(out)] == ["100", "100"]
    cells.thin(source, out, rows=1000)
    assert len(rows(out)) == 202


def test_a_kept_cell_is_what_its_suite_says(tmp_path):
    """The run's own guess at its preset, the nearest one, does not replace the suite's."""
    make_cell(tmp_path / "run", "reacher-easy", "nearest", [[1]])
    cells.keep(tmp_path / "run", tmp_path / "cell", {"method": "mine", "preset": "bmpc"})
    about = json.loads((tmp_path / "cell" / "run.json").read_text())
    assert (about["method"], about["preset"], about["status"]) == ("mine", "bmpc", "done")


@pytest.mark.parametrize("where", [".", "inside", ".."])
def test_results_are_never_kept_where_a_run_trains(where, tmp_path):
    """What is replaced is removed: checkpoints would go with it."""
    workdir = tmp_path / "runs" / "run"
    make_cell(workdir, "reacher-easy", "mine", [[1]])
    (workdir / "checkpoints").mkdir()
    link = tmp_path / "link"
    link.symlink_to(workdir)
    before = sorted(tmp_path.rglob("*"))
    for folder in (workdir, link):
        with pytest.raises(OSError, match="cannot be kept where the run trains"):
            cells.keep(workdir, folder / where, {"method": "mine"})
    assert sorted(tmp_path.rglob("*")) == before


def test_published_curves_are_of_tasks_of_ours():
    curves_ = published.load(PUBLISHED)
    tasks = {curve.task for curve in curves_}
    ours = tasks & set(envs.dm_control_tasks(extra=False))
    assert len(ours) == 20 and tasks - ours == {t for t in scores.SUCCESS_BARS if "hand" in t}
    for curve in curves_:
        assert np.all(np.diff(curve.frames) > 0) and curve.frames[0] == 0 and np.all(curve.std >= 0)
        assert np.all((curve.mean >= -300) & (curve.mean <= scores.scale(curve.task) * 1.5))
        assert curve.task not in ours or np.all((curve.mean >= 0) & (curve.mean <= 1000))


@pytest.mark.parametrize(
    ("task", "at_100k", "at_500k"),
    [("cartpole-swingup", 839, 876), ("reacher-easy", 937, 919), ("hopper-hop", 14, 303)],
)
def test_published_numbers(task, at_100k, at_500k):
    (curve,) = [
        c for c in published.of_task(published.load(PUBLISHED), task) if c.label == "tdmpc2"
    ]
    assert round(curve.at(100_000)[0]) == at_100k and round(curve.at(500_000)[0]) == at_500k


def test_published_spread_is_the_sample_std_of_the_seeds():
    (curve,) = [
        c
        for c in published.of_task(published.load(PUBLISHED), "cartpole-swingup")
        if c.label == "tdmpc2"
    ]
    seeds = [789.8, 867.9, 860.5]  # at 100k frames in the source's file
    mean, std = curve.at(100_000)
    assert mean == pytest.approx(np.mean(seeds), abs=0.06)
    assert std == pytest.approx(np.std(seeds, ddof=1), abs=0.06)


CURVE = published.Published(
    "bmpc", "tdmpc2", "t", np.array([0, 100, 200]), np.array([0, 50, 70]), np.array([0, 5, 10])
)


def test_a_published_curve_says_nothing_before_its_first_evaluation():
    assert CURVE.at(50) is None and CURVE.at(94) is None and CURVE.at(211) is None
    assert CURVE.at(99.5) == (50, 5) and CURVE.at(150) == (60, 7.5) and CURVE.at(205) == (70, 10)
    assert CURVE.until(150).frames.tolist() == [0, 100, 200]
    assert CURVE.until(100).frames.tolist() == [0, 100]


def test_the_band_of_a_method_spans_all_who_ran_it():
    other = CURVE._replace(source="tdmpc2", mean=np.array([0, 80, 90]))
    assert published.band([CURVE, other], "t", "tdmpc2", 100) == (40, 90)
    assert published.band([CURVE, other], "t", "bmpc", 100) is None
    assert published.band([CURVE, other], "t", "tdmpc2", 10) is None


@pytest.mark.parametrize(("value", "verdict"), [(39, "below"), (41, "inside"), (61, "above")])
def test_a_method_is_judged_by_its_own_band(tmp_path, value, verdict):
    make_cell(tmp_path / "a", "t", "tdmpc2", [[value]], repeat=1)
    (runs,), _ = result_sets.load(tmp_path)
    wide = CURVE._replace(frames=CURVE.frames * 10)
    assert aggregate.judge(runs, [wide]) == verdict
    assert aggregate.judge(runs._replace(method="other"), [wide]) == ""


def test_our_methods_and_published_ones_share_colours():
    found = figures.colors(["po_mpc", "tdmpc2"], [CURVE, CURVE._replace(method="bmpc")])
    assert list(found) == ["po_mpc", "tdmpc2", "bmpc"] and len(set(found.values())) == 3


def test_aggregates_show_methods_with_all_tasks_only(tmp_path):
    for task, method in (("t", "a"), ("u", "a"), ("t", "b")):
        make_cell(tmp_path / task / method, task, method, [[1]], repeat=1)
    found = result_sets.methods(result_sets.load(tmp_path)[0])
    assert list(found) == ["a", "b"] and list(result_sets.complete(found)) == ["a"]


def test_frames_are_written_short():
    assert [figures.compact(v) for v in (0, 500, 2e4, 1.5e6)] == ["0", "500", "20k", "1.5M"]


def test_unequal_action_repeats_are_refused(tmp_path):
    make_cell(tmp_path / "a", "t", "x", [[1]], repeat=1)
    make_cell(tmp_path / "b", "t", "x", [[1]], repeat=2, first_seed=1)
    with pytest.raises(ConfigError, match="differ in action repeat"):
        result_sets.load(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "begin"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")]
)
def test_the_suffix_is_the_format(tmp_path, suffix, begin):
    import matplotlib

    backend = matplotlib.get_backend(auto_select=False)
    figure = canvas.figure(2, 2)
    figure.subplots().plot([0, 1])
    canvas.save(figure, tmp_path / f"x.{suffix}")
    assert (tmp_path / f"x.{suffix}").read_bytes().startswith(begin)
    assert [p.name for p in tmp_path.iterdir()] == [f"x.{suffix}"]
    assert matplotlib.get_backend(auto_select=False) == backend  # the user's own stays


def test_unknown_suffix(tmp_path, capsys):
    quickstart = PUBLISHED.parent / "quickstart"
    assert plot.main([f"--results={quickstart}", f"--out={tmp_path / 'x.bmp'}"]) == 2
    assert "x.bmp: must end in one of .png, .pdf, .svg" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
