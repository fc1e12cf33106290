"""Pictures that compare runs: what is pooled, named, drawn and refused."""

import json
import re

import numpy as np
import pytest
from synthetic import make_run, write

from experiments import aggregate, plot
from experiments.published import COLORED
from experiments.published import FOLDER as PUBLISHED
from pomcp_jax import presets
from pomcp_jax.errors import ConfigError
from pomcp_jax.reporting import (
    canvas,
    columns,
    comparison,
    comparison_figures,
    palette,
    published,
    runs,
)
from pomcp_jax.reporting.columns import Series

BEGINS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


def labels(paths, **kwargs):
    return [run.label for run in runs.find(paths, **kwargs)]


def panels(*paths, metrics=(comparison.RETURN,), x="decisions", band="ci95"):
    return comparison.panels(comparison.load(runs.find(paths)), metrics, x, band)


def test_methods_are_named_by_run_json_else_by_their_folder(tmp_path):
    named = make_run(tmp_path / "a", "tdmpc2", [[1]])
    preset = make_run(tmp_path / "b", None, [[1]], about={"preset": "bmpc"})
    bare = make_run(tmp_path / "mine", None, [[1]])
    (bare / "run.json").unlink()  # a run that still trains for the first time
    assert labels([named, preset, bare]) == ["tdmpc2", "bmpc", "mine"]
    assert labels([named, preset, bare], labels=["x", "y", "x"]) == ["x", "y", "x"]
    assert labels([named, preset, bare], labels=["x,y, z"]) == ["x", "y", "z"]
    with pytest.raises(ConfigError, match="one of them is empty"):
        labels([named, preset, bare], labels=["x,,z"])


def test_runs_of_a_method_are_pooled_unless_their_settings_differ(tmp_path):
    make_run(tmp_path / "a", "po_mpc", [[100, 200]])
    make_run(tmp_path / "b", "po_mpc", [[300, 400]], seeds=[1])
    ((panel,), notes) = panels(tmp_path)
    (line,) = panel.lines
    assert line.label == "po_mpc" and line.seeds == 2 and line.mean.tolist() == [200, 300]
    assert line.band is None and "no 95 % interval: 2 seeds, needs 3" in notes[0]
    make_run(tmp_path / "c", "po_mpc", [[500, 600]], kl=9.0)
    ((panel,), _) = panels(tmp_path)
    assert [line.label for line in panel.lines] == ["po_mpc, kl_coef=1.0", "po_mpc, kl_coef=9.0"]


def test_a_run_named_twice_counts_once_and_equal_seeds_are_told_apart(tmp_path):
    a, b = (make_run(tmp_path / name, "x", [[1, 2]]) for name in "ab")
    ((panel,), notes) = panels(a, a)
    assert panel.lines[0].seeds == 1 and not notes
    assert labels([a, b]) == ["x (a)", "x (b)"]
    # Asked for by name they are pooled, with a note.
    loaded = comparison.load(runs.find([a, b], ["y", "y"]))
    _, notes = comparison.panels(loaded, [comparison.RETURN], "decisions", "ci95")
    assert "seed 0 is in several folders" in notes[0]


def test_every_task_has_a_panel_of_its_own(tmp_path):
    make_run(tmp_path / "a", "x", [[100, 200]])
    make_run(tmp_path / "b", "x", [[700, 800]], task="walker-walk", repeat=1)
    found, _ = panels(tmp_path, x="frames")
    assert [(p.task, p.lines[0].x.tolist(), p.lines[0].mean.tolist()) for p in found] == [
        ("reacher-easy", [2000, 4000], [100, 200]),
        ("walker-walk", [1000, 2000], [700, 800]),
    ]


@pytest.mark.parametrize(("x", "end"), [("frames", 4000), ("decisions", 2000), ("hours", 2.0)])
def test_axes(tmp_path, x, end):
    make_run(tmp_path / "a", "x", [[100, 200]])
    assert panels(tmp_path, x=x)[0][0].lines[0].x[-1] == end


def test_bands_of_known_numbers():
    values = np.array([[1.0], [2.0], [6.0]])
    assert np.ravel(comparison.band(values, "range")).tolist() == [1, 6]
    std = np.sqrt(7.0)
    np.testing.assert_allclose(np.ravel(comparison.band(values, "std")), [3 - std, 3 + std])
    half = 4.302653 * std / np.sqrt(3)  # t at 97.5 %, two degrees of freedom
    np.testing.assert_allclose(
        np.ravel(comparison.band(values, "ci95")), [3 - half, 3 + half], rtol=1e-6
    )
    assert comparison.band(values, "none") is None
    assert (
        comparison.band(values[:2], "ci95") is None and comparison.band(values[:1], "std") is None
    )


def test_training_is_thin_beside_evaluations_and_main_without(tmp_path):
    run = make_run(tmp_path / "a", "x", [[100, 200]])
    line = panels(run)[0][0].lines[0]
    assert line.label == "x" and line.training.y.tolist() == [90, 190]
    (run / "evaluations.csv").unlink()
    line = panels(run)[0][0].lines[0]
    assert line.label == "x (training)" and line.mean.tolist() == [90, 190] and not line.training


def test_any_column_of_either_table(tmp_path):
    run = make_run(tmp_path / "a", "x", [[100, 200]])
    found, _ = panels(run, metrics=("loss/value", "eval/policy_return", "std"))
    means = {panel.metric: panel.lines[0].mean.tolist() for panel in found}
    # The spread of episodes is the planner's, not the bare policy's.
    assert means == {"loss/value": [1, 0.5], "eval/policy_return": [100], "std": [3, 3]}


def test_a_sweeps_cells_are_methods_without_their_diverged_seeds(tmp_path):
    sweep = tmp_path / "sweep"
    names = ["policy.kl_coef=0.1", "policy.kl_coef=9"]
    make_run(sweep / names[0], None, [[1, 2], [3, 4]], kl=0.1)
    lost = {"diverged": {"1": {"term": "loss"}}}
    make_run(sweep / names[1], None, [[5, 6], [7, 8]], kl=9.0, about=lost)
    (sweep / "config.json").write_text((sweep / names[0] / "config.json").read_text())
    (sweep / "sweep.json").write_text(json.dumps({"cells": names}))
    for path in (sweep, tmp_path):  # by itself, or among other runs
        ((panel,), notes) = panels(path)
        assert [line.label for line in panel.lines] == names
        assert [line.mean.tolist() for line in panel.lines] == [[2, 3], [5, 6]]
        assert any("1 diverged seeds are left out" in note for note in notes)


def test_seeds_of_unequal_length_share_a_grid_and_a_note(tmp_path):
    make_run(tmp_path / "a", "x", [[0, 10, 20], [10, 20, 30]])
    make_run(tmp_path / "b", "x", [[50, 60]], seeds=[2])
    ((panel,), notes) = panels(tmp_path)
    assert panel.lines[0].x.tolist() == [1000, 2000] and panel.lines[0].seeds == 3
    assert "drawn up to 2,000 decisions" in notes[0]


def test_a_common_grid_interpolates():
    grid, values = columns.common(
        [Series(np.array([0.0, 10.0]), np.array([0.0, 10.0])),
         Series(np.array([2.0, 4.0, 8.0]), np.array([1.0, 2.0, 3.0]))]
    )  # fmt: skip
    assert grid.tolist() == [2, 4, 8] and values.tolist() == [[2, 4, 8], [1, 2, 3]]


def test_twelve_methods_differ_by_colour_or_dashes():
    styles = {str(palette.style(i)) for i in range(28)}
    assert len(styles) == 28


def test_a_method_has_its_colour_in_every_picture():
    known = ("a", "b", "c")
    assert palette.places(["c", "new", "a", "other", "c"], known) == {
        "c": 2, "new": 1, "a": 0, "other": 3,
    }  # fmt: skip
    assert palette.places(["c", "b"], known) == {"c": 2, "b": 1}
    assert [palette.style(i)["color"] for i in range(7)] == [palette.color(i) for i in range(7)]
    assert len({palette.color(i) for i in range(19)}) == 19
    assert sorted(COLORED) == sorted(presets.PRESETS)


def test_legends_have_few_rows_that_fit():
    names = ["po_mpc"] * 12
    assert comparison_figures.legend_columns(names, 3.3 * 72 / 7) == 4
    assert comparison_figures.legend_columns(names, 7 * 72 / 8) == 6  # two full rows, not 8 + 4
    assert comparison_figures.legend_columns(["x" * 99], 10) == 1


def drawn(path, *flags):
    return plot.main([str(path), *flags])


@pytest.fixture
def two_tasks(tmp_path):
    for task in ("reacher-easy", "cartpole-swingup"):
        for i, method in enumerate(("tdmpc2", "_po$mpc")):
            returns = 100 * i + np.arange(12).reshape(4, 3) * 50
            make_run(tmp_path / "runs" / task / method, method, returns.tolist(), task=task)
    return tmp_path


@pytest.mark.parametrize("suffix", BEGINS)
def test_a_column_wide_picture_in_every_format(two_tasks, suffix, capsys):
    out = two_tasks / "new" / f"x.{suffix}"
    flags = ("--size=3.3x4.5", "--published", "--x=frames", f"--out={out}")
    assert drawn(two_tasks / "runs", *flags) == 0, capsys.readouterr().err
    assert capsys.readouterr().out == f"written: {out}\n"
    data = out.read_bytes()
    assert data.startswith(BEGINS[suffix]) and [p.name for p in out.parent.iterdir()] == [out.name]
    if suffix == "pdf":
        assert b"/MediaBox [ 0 0 237.6 324 ]" in data and b"/Subtype /Image" not in data
        assert b"/Type3" not in data  # fonts that journals refuse
    if suffix == "svg":
        assert b"<image" not in data
        text = re.findall(rb"<!-- (.*?) -->", data)
        for word in (b"_po$mpc", b"tdmpc2", b"tdmpc2, published", b"reacher-easy"):
            assert any(word in line.replace(b"\\$", b"$") for line in text), word
        assert any(b"points: published, every 100k frames" in line for line in text)


def test_published_points_are_those_up_to_our_end(tmp_path):
    (curve,) = [
        c for c in published.of_task(published.load(PUBLISHED), "reacher-easy")
        if c.label == "tdmpc2"
    ]  # fmt: skip
    for count, end in ((1, 100_000), (200, 400_000)):
        run = make_run(tmp_path / f"{count}", "x", [[1] * count])
        ((panel,), _) = panels(run, x="decisions")
        ax = canvas.figure(2, 2).subplots()
        (shown,) = comparison_figures._shown(panel, [curve], "decisions")
        comparison_figures._points(ax, shown, {"color": "k", "marker": "o"}, 2)
        (points,) = ax.get_lines()
        # Ours are short: their first evaluation in training is shown all the same.
        assert points.get_xdata()[-1] == end / 2 and points.get_linestyle() == "None"
        np.testing.assert_allclose(np.diff(points.get_xdata()), 50_000)


def test_intervals_of_few_seeds_do_not_set_the_scale(tmp_path):
    run = make_run(tmp_path / "a", "x", [[0, 400], [10, 500], [900, 900]])
    ((panel,), _) = panels(run)
    low, _ = panel.lines[0].band
    assert low.min() < -900
    ax = canvas.figure(2, 2).subplots()
    look = comparison_figures.Look("decisions", "ci95")
    comparison_figures._panel(ax, panel, {"x": palette.style(0)}, look)
    comparison_figures._finish(ax, panel, "decisions", 7)
    bottom, top = ax.get_ylim()
    assert -50 < bottom <= -10 and 900 < top < 1000


def ragged(run):
    write(run / "metrics.csv", [1, 2, 3], mode="a")


def foreign(run):
    write(run / "metrics.csv", ["a", "b"], [1, 2])


def words_for_numbers(run):
    write(run / "evaluations.csv", [1, 1, 1, 0, "planner", "x", "", ""], mode="a")


def empty(run):
    (run / "evaluations.csv").write_text("")
    (run / "metrics.csv").write_text("")


def binary(run):
    (run / "metrics.csv").write_bytes(b"\xff\xfe\x00")


def a_list(run):
    (run / "config.json").write_text("[]")


def broken_record(run):
    (run / "run.json").write_text("{")


def no_environment(run):
    (run / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (ragged, "metrics.csv: row 4 has 3 cells, the header 7; remove that row"),
        (foreign, "metrics.csv: has no column seed"),
        (words_for_numbers, "eval/return = 'x' of seed '0': must be numbers"),
        (empty, "missing or empty; `python -m experiments.run --config=x` continues the run"),
        (binary, "metrics.csv: is unreadable"),
        (a_list, "config.json: is unreadable"),
        (broken_record, "run.json: is unreadable"),
        (no_environment, "is not of a run"),
    ],
)
def test_a_damaged_run_is_one_line(tmp_path, capsys, break_it, words):
    run = make_run(tmp_path / "a", "x", [[1, 2]])
    break_it(run)
    refused(capsys, tmp_path, [str(run)], words)


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    run = make_run(tmp_path / "a", "x", [[1, 2]])
    with (run / "evaluations.csv").open("a") as file:
        file.write("10800,3000,60")
    assert panels(run)[0][0].lines[0].mean.tolist() == [1, 2]


def refused(capsys, folder, argv, words):
    """One line, exit code 2 and no file."""
    out = folder / "pictures" / "x.png"
    given = argv if any(arg.startswith("--out") for arg in argv) else [*argv, f"--out={out}"]
    assert plot.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error, error
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--metric=loss/valu"], "did you mean loss/value?"),
        (["--metric=zzz"], "lists them"),
        (["--metric=,,"], "--metric: names nothing"),
        (["--metric="], "--metric: names nothing"),
        (["--labels="], "--labels: names nothing"),
        (["--labels"], "--labels: names nothing"),
        (["--metric=loss/none"], "has no value of a healthy seed yet"),
        (["--size=3.3"], "--size = 3.3: must be WIDTHxHEIGHT"),
        (["--size=0x3"], "must be WIDTHxHEIGHT"),
        (["--size=3.3x0.9"], "leaves no room"),
        (["--published", "--x=hours"], "must be --x=frames or decisions"),
        (["--published", "--metric=loss/value"], "--metric must have eval/return"),
        (["--returns=training", "--metric=loss/value"], "--returns: has no effect with --metric"),
        (["--labels", " "], "--labels: names nothing"),
        (["--labels", "a", "b"], "--labels: 2 for 1 runs"),
        (["--diagnostics", "--metric=loss/value"], "--metric: has no effect with --diagnostics"),
        (["--out=x.bmp"], "x.bmp: must end in one of .png, .pdf, .svg"),
    ],
)
def test_flags_that_cannot_work(tmp_path, capsys, flags, words):
    run = make_run(tmp_path / "a", "x", [[1, 2]])
    refused(capsys, tmp_path, [str(run), *flags], words)


def test_folders_that_are_no_runs(tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "sweep.json").write_text("[]")
    gone = (
        f"no such folder; `python -m experiments.run --config=FILE --workdir={tmp_path / 'gone'}`"
    )
    for name, words in {
        "gone": gone, "file": "is a file", "nothing": "holds no config.json",
        "bad": "sweep.json is unreadable",
    }.items():  # fmt: skip
        refused(capsys, tmp_path, [str(tmp_path / name)], words)


@pytest.mark.parametrize("text", ["", '{"parts": ["seeds-0-0"], "con', '{"parts": ["../x"]}'])
def test_a_damaged_record_of_several_processes_is_one_line(tmp_path, capsys, text):
    """Given by name, or found below a folder of runs."""
    workdir = tmp_path / "runs" / "big"
    for seed in (0, 1):
        make_run(workdir / f"seeds-{seed}-{seed}", "x", [[1, 2]], seeds=[seed])
    (workdir / "parts.json").write_text(text)
    words = f"{workdir / 'parts.json'}: is unreadable; must be the record of a run over several"
    for folder in (workdir, workdir.parent):
        for flags in ([], ["--diagnostics"]):
            refused(capsys, tmp_path, [str(folder), *flags], words)
        assert aggregate.main([str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and words in error
    (workdir / "parts.json").unlink()
    assert aggregate.main([str(workdir)]) == 0


def test_a_place_that_cannot_be_written(tmp_path, capsys):
    run = make_run(tmp_path / "a", "x", [[1, 2]])
    (tmp_path / "x.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    refused(capsys, tmp_path, [str(run), f"--out={tmp_path / 'x.png'}"], "cannot be written: Is a")
    assert sorted(tmp_path.rglob("*")) == before  # no partial file either


def test_published_curves_of_other_tasks(tmp_path, capsys):
    run = make_run(tmp_path / "a", "x", [[1, 2]], task="probe/lqr")
    refused(capsys, tmp_path, [str(run), "--published"], "none for probe/lqr; there are acrobot")


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path / "a", "x", [[1, 2]])
    monkeypatch.setattr(canvas, "available", lambda: False)
    refused(capsys, tmp_path, [str(run)], "matplotlib: is not installed; `pip install matplotlib`")
