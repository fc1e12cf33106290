"""Reports: the page's content, what it escapes, what is refused, and its script in a browser."""

import base64
import html.parser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_run, write

from experiments import report, report_inputs
from pomcp_jax.reporting import aggregates, page_text, plots
from pomcp_jax.reporting.plots import Mark, Plot, Scale

ROOT = Path(__file__).parent.parent
VOID = set("meta img br input link path".split())
"""Tags without an end: HTML's own, and those that the page closes with a slash."""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)


class Page(html.parser.HTMLParser):
    """Text, attributes and tables of a page; refuses tags that are not closed."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.tables, self.sections = [], {}
        self.feed(source)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in VOID:
            self.open.append((tag, attrs.get("id")))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop()[0] == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.text.append(data)
        names = [tag for tag, _ in self.open]
        if "td" in names or "th" in names:
            self.tables[-1][-1][-1] += data
        section = next((name for tag, name in self.open if tag == "section"), None)
        self.sections[section] = self.sections.get(section, "") + data

    def all(self, tag, **wanted):
        return [
            a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in wanted.items())
        ]

    def table(self, first):
        """Rows by the words of their first two columns, of the table whose head begins so."""
        (found,) = [t for t in self.tables if [word for word in t[0]][: len(first)] == first]
        return found[0], {tuple(row[:2]): row for row in found[1:]}


def make(folders, tmp_path, *flags):
    out = tmp_path / "x.html"
    given = [str(folder) for folder in np.atleast_1d(folders)]
    assert report.main([*given, f"--out={out}", *flags]) == 0
    return Page(out.read_text()), out


@pytest.fixture
def suite(tmp_path):
    """Two tasks, two methods, three seeds, four evaluations; one method is 100 better."""
    for task in ("reacher-easy", "walker-walk"):
        for better, method in enumerate(("tdmpc2", "po_mpc")):
            returns = 100 * better + np.arange(12).reshape(3, 4) * 50.0
            about = {
                "seconds": 7200, "commit": f"abc{better}", "device": "cpu: cpu", "python": "3.11.7",
                "versions": {"jax": "0.10.2"}, "started": f"2026-11-2{better + 4}T10:00:00+00:00",
            }  # fmt: skip
            folder = tmp_path / "suite" / task / method
            make_run(folder, method, returns.tolist(), task=task, kl=1.0 + better, about=about)
    return tmp_path / "suite"


def test_the_page_says_what_when_where_and_how_long(suite, tmp_path):
    page, _ = make(suite, tmp_path)
    text = " ".join(page.text)
    for words in (
        "2 tasks · 2 methods · 12 seeds", "2026-11-24 to 11-25", "8.0 h in all", "abc1, abc0",
        "cpu: cpu", "3.11.7", "jax 0.10.2", "4 of 4", "python -m experiments.report",
    ):  # fmt: skip
        assert words in re.sub(r"\s+", " ", text.replace(" \u00b7", " ·")), words
    assert page.all("title") and page.text.count("suite") >= 2


def test_the_table_of_cells_has_the_numbers_of_aggregate(suite, tmp_path):
    page, _ = make(suite, tmp_path)
    head, rows = page.table(["task", "method"])
    assert head[2:] == [
        "planner’s return", "interval", "IQM", "bare / planner", "published", "seeds", "frames",
        "time", "diverged", "resets",
    ]  # fmt: skip
    assert len(rows) == 4
    finals = np.array([250.0, 450.0, 650.0])  # of po_mpc
    found = aggregates.bootstrap([finals], aggregates.mean)
    row = rows["reacher-easy", "po_mpc"]
    assert row[2] == f"450.0 {found.low:.1f} to {found.high:.1f}" and row[4] == "450.0"
    assert row[5:] == ["0.50", "–", "3", "8,000", "2.0 h", "0", "0"]


def test_aggregates_and_pairs_over_tasks(suite, tmp_path):
    page, _ = make(suite, tmp_path)
    head, rows = page.table(["method", "IQM"])
    assert [key[0] for key in rows] == ["po_mpc", "tdmpc2"]  # the best first
    assert [row[1][:5] for row in rows.values()] == ["0.450", "0.350"] and head[
        4
    ] == "optimality gap"
    (matrix,) = [t for t in page.tables if t[0] == ["", "po_mpc", "tdmpc2"]]
    # Of nine pairs on each task po_mpc wins five, 250 to 150, 450 and 650 to 150 and 350, ...
    wins = np.mean([a > b for a in (250, 450, 650) for b in (150, 350, 550)])
    assert matrix[1:] == [
        ["po_mpc", "–", f"{wins:.2f}"], ["tdmpc2", f"{1 - wins:.2f}", "–"],
    ]  # fmt: skip


def test_methods_with_fewer_tasks_are_left_out_with_a_note(suite, tmp_path):
    make_run(suite / "reacher-easy" / "bmpc", "bmpc", [[1, 2], [3, 4]])
    page, _ = make(suite, tmp_path)
    _, rows = page.table(["method", "IQM"])
    assert {key[0] for key in rows} == {"po_mpc", "tdmpc2"}
    assert "bmpc: runs of 1 of 2 tasks, left out of aggregates" in " ".join(page.text)


def test_nothing_comes_from_the_network_and_everything_has_words(suite, tmp_path):
    page, out = make(suite, tmp_path)
    for name in ("src", "href", "action", "srcset"):
        assert not [a for _, a in page.tags if not a.get(name, "data:").startswith("data:")]
    assert "url(" not in out.read_text() and "@import" not in out.read_text()
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none';")
    pictures = page.all("svg", role="img")
    assert len(pictures) == 5 and all(len(svg["aria-label"]) > 20 for svg in pictures)
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert [svg["aria-label"].startswith("loss/value, ") for svg in pictures].count(True) == 2
    assert all(svg.get("aria-hidden") for svg in page.all("svg") if "role" not in svg)
    names = [a["id"] for _, a in page.tags if "id" in a]
    assert len(names) == len(set(names))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels[:-1], levels[1:], strict=True))
    assert len(page.all("script")) == 1 and "table.sort" in out.read_text()


def decode(page, source, kind):
    """Values of the paths of a kind in the first panel, by the axes that it declares."""
    area = page.all("div", **{"class": "area"})[0]
    (_, x0, x1, _), (_, y0, y1, _) = (area[f"data-{n}"].split(",") for n in "xy")
    out = []
    first = source[source.index('class="area"') :].partition("</figure>")[0]
    for data in re.findall(rf'class="line m\d+ k-{kind}" d="([^"]*)"', first):
        steps = np.array(re.findall(r"-?\d+", data), float).reshape(-1, 2)
        places = np.cumsum(steps, axis=0) / [plots.WIDTH, plots.HEIGHT]
        low, high = (np.array(end, float) for end in ([x0, y1], [x1, y0]))
        out.append(low + places * (high - low))
    return out


def test_curves_are_those_of_the_tables(tmp_path):
    run = make_run(tmp_path / "a", "x", [[100, 230, 470], [120, 250, 410]])
    page, out = make(run, tmp_path)
    (mean,) = decode(page, out.read_text(), "planner")
    np.testing.assert_allclose(mean[:, 0], [2000, 4000, 6000], atol=4)
    np.testing.assert_allclose(mean[:, 1], [110, 240, 440], atol=0.5)
    (training,) = decode(page, out.read_text(), "training")
    np.testing.assert_allclose(training[:, 1], [100, 230, 430], atol=0.5)
    seeds = decode(page, out.read_text(), "seed")
    assert [round(float(curve[-1, 1])) for curve in seeds] == [470, 410]
    assert "dot m0 k-policy" in out.read_text()
    alt = page.all("svg", role="img")[0]["aria-label"]
    assert "x 110 to 440" in alt and "x bare policy 220" in alt


def test_published_curves_stand_beside_ours(tmp_path):
    near = make_run(tmp_path / "a", "tdmpc2", [[1] * 60])
    page, out = make(near, tmp_path)
    assert "k-published" in out.read_text() and "Rings are published" in page.sections["returns"]
    # 2,000 frames: the first published evaluation is 50 times as far.
    far = make_run(tmp_path / "b", "tdmpc2", [[1]])
    page, out = make(far, tmp_path)
    assert 'data-hide="k-published"' not in out.read_text()


def test_diverged_seeds_are_counted_and_left_out(tmp_path):
    about = {"diverged": {"1": {"term": "loss/model"}}, "resets": 2, "status": "diverged: seed 1"}
    run = make_run(tmp_path / "a", "x", [[10, 100], [10, 900]], about=about)
    page, _ = make(run, tmp_path)
    head, rows = page.table(["task", "method"])
    (row,) = rows.values()
    cells = dict(zip(head, row, strict=True))
    assert cells["planner’s return"] == "100.0" and cells["seeds"] == "1"
    assert cells["diverged"] == "1" and cells["resets"] == "2"
    assert cells["state"] == "diverged: seed 1"
    assert "seeds 1 (loss/model)" in [a.get("title") for a in page.all("span")]
    assert "1 seed, 1 more diverged" in " ".join("".join(page.text).split())


def test_metrics_are_grouped_and_constants_are_one_line(tmp_path):
    run = make_run(tmp_path / "a", "x", [[1, 2, 3]])
    first = ["seconds", "decisions", "frames", "seed", "train/return"]
    names = [
        "loss/value", "plan/std", "policy/kl", "prior/kl", "diag/snr", "env/invalid",
        "plan/nonfinite", "updates",
    ]  # fmt: skip
    write(run / "metrics.csv", [*first, *names])
    for t in (1, 2, 3):
        write(run / "metrics.csv", [t, t, t, 0, t, t, t, t, t, t, t, 0, t], mode="a")
    page, _ = make(run, tmp_path)
    for section, metrics in {
        "losses": ["loss/value"], "planner": ["plan/std"], "policy": ["policy/kl", "prior/kl"],
        "diagnostics": ["diag/snr"], "other": ["env/invalid"],
    }.items():  # fmt: skip
        assert all(name in page.sections[section] for name in metrics)
    assert "The same in every row: plan/nonfinite = 0" in page.sections["planner"]
    assert len(page.all("figure", **{"class": "plot"})) == 1 + 7 - 1
    assert "updates" not in "".join(page.text)


def test_configurations_show_what_differs_only(suite, tmp_path):
    page, _ = make(suite, tmp_path)
    _, rows = page.table(["field", "po_mpc", "tdmpc2"])
    assert list(rows) == [("agent.policy.kl_coef", "2")]
    (row,) = rows.values()
    assert row[1:] == ["2", "1"]
    # Fields that these short configurations lack count as defaults, and are not listed.
    text = " ".join("".join(page.sections["configuration"]).split())
    assert "po_mpc: 2 fields differ from po_mpc, 5M" in text
    assert "agent.policy.kl_coef12" in text and "train.num_seeds" in text


def test_a_sweep_has_its_outcome_over_the_values(tmp_path):
    sweep = tmp_path / "sweep"
    names = {0.0: "policy.kl_coef=0", 0.1: "policy.kl_coef=0.1", 9.0: "policy.kl_coef=9"}
    for kl, name in names.items():
        make_run(
            sweep / name, None, [[1, 10 * kl], [3, 20 * kl]], kl=kl, about={"preset": "po_mpc"}
        )
    shutil.copy(sweep / names[9.0] / "config.json", sweep / "config.json")
    grid = {"agent.policy.kl_coef": list(names)}
    (sweep / "sweep.json").write_text(json.dumps({"cells": list(names.values()), "grid": grid}))
    page, out = make(sweep, tmp_path)
    assert "Final return over policy.kl_coef" in page.sections["sweep"]
    assert "0.19policy.kl_coef" in page.sections["sweep"]
    assert [key[1] for key in page.table(["task", "method"])[1]] == list(names.values())
    # Colours in the order of the values; a grid of an earlier version is no reason to fail.
    assert ".m0{--c:#3b6fb6" in out.read_text() and ".m2{--c:#c8435c" in out.read_text()
    (sweep / "sweep.json").write_text(json.dumps({"cells": list(names.values())}))
    assert "sweep" not in make(sweep, tmp_path)[0].sections


def test_a_run_that_still_trains(tmp_path):
    run = make_run(tmp_path / "a", None, [[1, 2]])
    (run / "run.json").unlink()
    (run / "evaluations.csv").unlink()
    page, out = make(run, tmp_path)
    row = next(iter(page.table(["task", "method"])[1].values()))
    assert row[2] == "–" and row[-1].startswith("no record yet")
    assert "2.0 h" in row and "0 of 1" in page.text  # the clock of its tables
    assert "line m0 k-training" in out.read_text() and "across" not in page.sections


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> & @@BODY@@"


def test_hostile_names_stay_text(tmp_path):
    about = {
        "method": HOSTILE, "command": HOSTILE, "commit": HOSTILE, "device": HOSTILE,
        "status": HOSTILE, "versions": {HOSTILE: HOSTILE}, "started": HOSTILE,
        "diverged": {"5": {"term": HOSTILE}}, "python": HOSTILE,
    }  # fmt: skip
    for i in range(2):
        name = f"<b onclick=alert(1)>{i}"
        run = make_run(
            tmp_path / name, None, [[1, 2]], about=about, task=HOSTILE, seeds=[i], kl=1.0 + i
        )
        table = (run / "metrics.csv").read_text()
        name = '"' + HOSTILE.replace('"', '""') + '"'
        (run / "metrics.csv").write_text(table.replace("loss/value", name))
    (film := tmp_path / "<i>.gif").write_bytes(b"GIF89a")
    page, out = make(tmp_path, tmp_path, f"--video={film}")
    assert (
        len(page.all("script")) == 1 and len(page.all("img")) == 1 and not page.all("i", onclick="")
    )
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert {tag for tag, _ in page.tags} <= set(
        "html head meta title style body main header p h1 h2 h3 dl div dt dd aside ul li section"
        " table caption thead tbody tr th td button span svg path nav figure figcaption b i code"
        " details summary footer script img".split()
    )
    assert sum(HOSTILE in text for text in page.text) >= 8


def test_a_name_that_is_no_text(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path / "bad") + b"\xff"))
    try:
        make_run(folder, None, [[1, 2]])
    except OSError:
        pytest.skip("this file system takes text as names only")
    page, _ = make(folder, tmp_path)
    assert "bad?" in page.text


FILMS = {
    ".mp4": b"\0\0\0\x18ftypmp42", ".gif": b"GIF89a",
    ".png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR...tEXtSoftware\0pomcp_jax",
}  # fmt: skip


def test_films_of_the_folder_are_embedded_and_curves_are_not(tmp_path):
    run = make_run(tmp_path / "a", "x", [[1, 2]])
    for suffix, data in FILMS.items():
        (run / f"film{suffix}").write_bytes(data)
    (run / "learning_curve.png").write_bytes(b"\x89PNG\r\n\x1a\n matplotlib")
    (run / "broken.mp4").write_bytes(b"")
    page, _ = make(run, tmp_path)
    sources = [a["src"] for tag in ("video", "img") for a in page.all(tag)]
    kinds = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}
    assert sources == [
        f"data:{kinds[suffix]};base64,{base64.b64encode(data).decode()}"
        for suffix, data in FILMS.items()
    ]
    # Named ones replace them.
    (tmp_path / "own.gif").write_bytes(FILMS[".gif"])
    page, _ = make(run, tmp_path, f"--video={tmp_path / 'own.gif'}")
    assert len(page.all("img")) == 1 and not page.all("video")


def test_a_film_that_is_too_large_is_a_note_or_an_error(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "a", "x", [[1, 2]])
    (run / "film.gif").write_bytes(FILMS[".gif"] + bytes(100))
    monkeypatch.setattr(report_inputs, "MOST_BYTES", 50)
    page, _ = make(run, tmp_path)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and "film.gif: has 0.0 MiB" in notes[0] and "--size=320x240" in notes[0]
    assert not page.all("img") and "film.gif" in "".join(page.text)
    refused(capsys, tmp_path, [str(run), f"--video={run / 'film.gif'}"], "makes a smaller one")


def odd_record(run):
    odd = {"seconds": "long", "resets": [1], "versions": ["jax"], "started": 5, "status": None}
    (run / "run.json").write_text(json.dumps(odd | {"commit": ["a"], "device": {"a": 1}}))


def no_repeat(run):
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"action_repeat": 2', '"action_repeat": 0'))


def one_point_at_zero(run):
    first = ["seconds", "decisions", "frames", "seed"]
    write(run / "evaluations.csv", [*first, "eval/return"], [0, 0, 0, 0, 5])
    write(run / "metrics.csv", [*first, "loss/value"], [0, 0, 0, 0, 3], [0, 0, 0, 0, 4])


def enormous(run):
    first = ["seconds", "decisions", "frames", "seed"]
    rows = [[1, 1, 2, 0, 1e300], [2, 2, 4, 0, -1e300], [2, 2, 4, 1, "inf"], [2, 2, 4, 1, 1e308]]
    write(run / "evaluations.csv", [*first, "eval/return"], *rows)


@pytest.mark.parametrize("change", [odd_record, no_repeat, one_point_at_zero, enormous])
def test_odd_values_are_shown(tmp_path, change):
    run = make_run(tmp_path / "a", "x", [[1, 2]])
    change(run)
    page, out = make(run, tmp_path)
    assert len(page.table(["task", "method"])[1]) == 1
    assert not re.search(r"\b(nan|inf|None)\b", " ".join(page.sections["results"].split()))
    assert page.all("svg", role="img")


def refused(capsys, folder, argv, words):
    """One line after the first, exit code 2, and no new file."""
    capsys.readouterr()
    before = sorted(folder.rglob("*"))
    given = (
        argv if any(arg.startswith("--out") for arg in argv) else [*argv, f"--out={folder}/y.html"]
    )
    assert report.main(given) == 2
    first, *errors = capsys.readouterr().err.splitlines()
    assert first.startswith("reading ") and len(errors) == 1, errors
    assert errors[0].startswith("error: ") and words in errors[0], errors[0]
    assert sorted(folder.rglob("*")) == before


def ragged(run):
    write(run / "metrics.csv", [1, 2, 3], mode="a")


def empty(run):
    (run / "evaluations.csv").write_text("")
    (run / "metrics.csv").write_text("")


def headers_only(run):
    for name in ("evaluations.csv", "metrics.csv"):
        (run / name).write_text((run / name).read_text().splitlines()[0] + "\n")


def words_for_numbers(run):
    write(run / "evaluations.csv", [1, 1, 1, 0, "planner", "x", "", ""], mode="a")


def foreign(run):
    (run / "config.json").write_text('{"model": 1}')


def broken_record(run):
    (run / "run.json").write_text("{")


def nested_too_deeply(run):
    (run / "config.json").write_text('{"a":' * 5000 + "1" + "}" * 5000)


def broken_configuration(run):
    (run / "config.json").write_bytes(b"\xff\0")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (ragged, "metrics.csv: row 4 has 3 cells, the header 7; remove that row"),
        (empty, "missing or empty; `python -m experiments.run --config=x` continues the run"),
        (headers_only, "no returns yet; `python -m experiments.run --config=x` continues the run"),
        (words_for_numbers, "eval/return = 'x' of seed '0': must be numbers"),
        (foreign, "is not of a run of experiments.run"),
        (broken_record, "run.json: is unreadable"),
        (broken_configuration, "config.json: is unreadable"),
        (nested_too_deeply, "config.json: is unreadable"),
    ],
)
def test_a_damaged_run_is_one_line(tmp_path, capsys, break_it, words):
    run = make_run(tmp_path / "a", "x", [[1, 2]])
    break_it(run)
    refused(capsys, tmp_path, [str(run)], words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out={}/gone/x.html"], "gone is no folder; `mkdir -p {}/gone` makes it"),
        (["--out={}/x.pdf"], "x.pdf': must end in .html or .htm"),
        (["--out={}/taken.html"], "taken.html': cannot be written"),
        (["--video={}/gone.mp4"], "no such file; `python -m experiments.render RUN --out="),
        (["--video={}/x.avi"], "x.avi: must end in .mp4, .gif, .png"),
        (["--video={}/text.mp4"], "text.mp4: is no mp4 file"),
        (["--max_return=0"], "--max-return = 0: must be > 0 and finite"),
        (["--labels="], "--labels: names nothing"),
        (["--labels", "a", "b"], "--labels: 2 for 1 runs"),
        (["{}/nothing"], "nothing: holds no config.json"),
        (["{}/gone"], "gone: no such folder; `python -m experiments.run --config=FILE"),
        (["{}/text.mp4"], "text.mp4: is a file"),
    ],
)
def test_flags_that_cannot_work(tmp_path, capsys, flags, words):
    run = make_run(tmp_path / "a", "x", [[1, 2]])
    (tmp_path / "nothing").mkdir()
    (tmp_path / "taken.html").mkdir()
    (tmp_path / "text.mp4").write_text("no film")
    flags = [flag.format(tmp_path) for flag in flags]
    refused(capsys, tmp_path, [str(run), *flags], words.format(tmp_path))


def test_folders_with_equal_labels(tmp_path, capsys):
    a, b = (make_run(tmp_path / name / "run", "x", [[1, 2]]) for name in "ab")
    words = "b/run: seed 0 of same is in"
    refused(capsys, tmp_path, [str(a), str(b), "--labels", "same", "same"], words)
    # Without labels their folders tell them apart, and a folder named twice counts once.
    page, _ = make([a, b], tmp_path)
    labels = [key[1] for key in page.table(["task", "method"])[1]]
    assert labels == ["x (a/run)", "x (b/run)"]
    page, _ = make([a, a], tmp_path)
    assert [key[1] for key in page.table(["task", "method"])[1]] == ["x"]


def test_settings_of_another_version_are_a_note(tmp_path, capsys):
    run = make_run(tmp_path / "a", "x", [[1, 2]])
    config = json.loads((run / "config.json").read_text())
    config["agent"]["policy"]["telepathy"] = 3
    (run / "config.json").write_text(json.dumps(config))
    make(run, tmp_path)
    assert "does not know: agent.policy.telepathy" in capsys.readouterr().err
    # Values that it cannot read: there is no preset to compare with.
    config["agent"]["policy"]["prior"] = "telepathic"
    config["agent"]["policy"]["kl_coef"] = "much"
    (run / "config.json").write_text(json.dumps(config))
    page, _ = make(run, tmp_path)
    assert "no preset" in page.sections["configuration"]


def test_an_earlier_page_survives_a_full_disk(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path / "a", "x", [[1, 2]])
    _, out = make(run, tmp_path)
    before = out.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(capsys, tmp_path, [str(run), f"--out={out}"], "x.html: No space left on device")
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, 3], "linear"), ([0, 0, 0], "linear"), ([1e-6, 1e-3, 10], "log"),
        ([-5000, -1, -1.1, -0.9, -1.2], "asinh"), ([-1, 0, 1], "linear"), ([7], "linear"),
        ([1e-140, 1e140], "log"), ([-1e9, 1e9, 1e-9, 0, 0], "asinh"), ([1e38, -1e38], "linear"),
    ],
)  # fmt: skip
def test_axes_fit_and_have_ticks(values, kind):
    scale = plots.fitting(np.array(values, float))
    assert scale.kind == kind
    places = scale.place(np.array(values, float))
    assert np.all((places > -1e-9) & (places < 1 + 1e-9))
    ticks = plots.ticks(scale)
    assert 1 <= len(ticks) <= plots.TICKS + 2 and ticks == sorted(set(ticks))
    assert all(scale.low - 1e-9 <= tick <= scale.high * (1 + 1e-9) + 1e-9 for tick in ticks)


def test_long_tables_are_thinned_within_their_extremes(tmp_path):
    count = 5000
    values = np.sin(np.arange(count) / 100)
    values[2500] = 50
    run = make_run(tmp_path / "a", "x", [values.tolist()])
    _, out = make(run, tmp_path)
    assert out.stat().st_size < 200_000
    mark = Mark(0, "mean", np.array([0.0, 1.0]), np.zeros(2), (np.zeros(2), np.array([0.0, 9.0])))
    scale = Scale("linear", 0.0, 1.0)
    drawn = plots.draw(Plot("t", "", [mark], scale, scale, ""), "alt")
    assert 'class="band m0 k-mean k-bands"' in drawn and " -1000" not in drawn  # cut at the edge


def test_numbers_are_set_as_in_print():
    assert page_text.number(-1234.5, 1) == "\u22121,234.5" and page_text.number(np.nan, 1) == "–"
    assert [page_text.hours(x) for x in (30, 600, 7200, 1e6, np.nan)] == [
        "30 s", "10 min", "2.0 h", "11.6 days", "–",
    ]  # fmt: skip


def test_help_and_the_first_line_come_without_jax(tmp_path):
    """-S hides all installed packages."""
    command = [sys.executable, "-S", "-m", "experiments.report"]
    done = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--video" in done.stdout and not done.stderr
    done = subprocess.run([*command, "x"], cwd=ROOT, capture_output=True, text=True)
    first, error = done.stderr.splitlines()
    assert done.returncode == 2 and first == "reading x"
    assert error.startswith("error: jax is not installed in ")


SCRIPT = """<script>{
const rows = () => [...document.querySelectorAll("table.sort")][0].tBodies[0].rows;
const first = column => [...rows()].map(row => row.cells[column].textContent.trim());
const out = {}, head = [...document.querySelectorAll("table.sort th button")];
const column = head.findIndex(b => b.textContent.startsWith("planner"));
head[column].focus(); head[column].click();
out.down = first(column).map(parseFloat);
head[column].click();
out.up = first(column).map(parseFloat);
out.sorted = head[column].parentElement.getAttribute("aria-sort");
head[1].click();
out.names = first(1);
const area = document.querySelector(".area"), tip = document.getElementById("tip");
area.focus();
area.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
area.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
out.tip = [...tip.querySelectorAll("tr")].map(row => [...row.cells].map(cell => cell.textContent));
out.head = tip.querySelector(".head").textContent;
const box = area.querySelector("svg").getBoundingClientRect();
const near = { clientX: box.right - 2, clientY: box.top + 5, bubbles: true };
area.dispatchEvent(new PointerEvent("pointermove", near));
out.pointer = tip.querySelector(".head").textContent;
area.dispatchEvent(new PointerEvent("pointerleave"));
out.left = tip.hidden;
document.querySelector("[data-hide=m0]").click();
const line = area.querySelector(".line.m0");
out.line = getComputedStyle(line).display;
document.querySelector("[data-hide=m0]").click();
out.back = getComputedStyle(line).display;
document.querySelector("[data-hide=task]").click();
out.panels = [...document.querySelectorAll("#returns .plot")].map(plot => plot.hidden);
out.wide = document.documentElement.scrollWidth <= innerWidth;
document.body.dataset.outcome = JSON.stringify(out);
}</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser: `apt install chromium` installs one")
def test_the_page_works_in_a_browser_without_any_error(suite, tmp_path):
    _, out = make(suite, tmp_path)
    text = out.read_text()
    (tmp_path / "tried.html").write_text(SCRIPT.join(text.rsplit("</body>", 1)))
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'browser'}", "--enable-logging=stderr", "--dump-dom",
        "--window-size=420,900", (tmp_path / "tried.html").as_uri(),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        dom, log = process.communicate(timeout=120)
    finally:
        try:  # its helpers are in its group, and end with it
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    assert "CONSOLE" not in log, log
    (body,) = Page(dom).all("body")
    found = json.loads(body["data-outcome"])
    returns = [450.0, 450.0, 350.0, 350.0]
    assert found["down"] == returns and found["up"] == returns[::-1]
    assert found["sorted"] == "ascending"
    assert found["names"] == ["po_mpc", "po_mpc", "tdmpc2", "tdmpc2"]
    assert found["head"] == "4,000 environment frames"
    planner = [row for row in found["tip"] if row[0] in ("po_mpc", "tdmpc2")]
    assert [row[:2] for row in planner] == [["po_mpc", "350"], ["tdmpc2", "250"]]
    assert found["pointer"] == "8,000 environment frames" and found["left"]
    assert found["line"] == "none" and found["back"] != "none"
    assert found["panels"] == [True, False] and found["wide"]
