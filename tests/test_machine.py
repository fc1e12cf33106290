"""The benchmark of a whole machine: its parts, their time, and what is compared."""

import json
import math
import re

import pytest

from experiments.benchmarks import all as machine
from experiments.benchmarks import rows

ROWS = """
import json, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(json.dumps({"rows": [{"what": "plan", "ms": 2.0}]}))
time.sleep(float(sys.argv[2])); sys.exit(int(sys.argv[3]))
"""


@pytest.fixture
def part(tmp_path, monkeypatch):
    """A part whose process writes a row, sleeps and exits with a code."""
    (tmp_path / "pretended.py").write_text(ROWS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(sleep=0.0, code=0, name="agent"):
        command = ("pretended", "{json}", str(sleep), str(code))
        return machine.Part(name, "pretended", command, 1.0)

    return make


@pytest.mark.parametrize(
    ("sleep", "code", "seconds", "problem"),
    [
        (0.0, 0, math.inf, ""),
        (0.0, 75, 60.0, ""),
        (0.0, 3, 60.0, "exit code 3; see "),
        (60.0, 0, 3.0, "cut, the time was up"),
    ],
)
def test_a_part_keeps_what_it_measured(part, tmp_path, sleep, code, seconds, problem):
    ended = machine.run(part(sleep, code), tmp_path, seconds, 0.9)
    assert ended.problem.startswith(problem) and bool(ended.problem) == bool(problem)
    assert ended.rows == [{"what": "plan", "ms": 2.0}] and ended.seconds < 30.0


def test_without_time_nothing_is_started(part, tmp_path):
    ended = machine.run(part(), tmp_path, 0.5, 0.9)
    assert ended == machine.Ended([], "left out, the time is up", 0.0)
    assert not list(tmp_path.glob("*.log"))


def test_parts_are_compared_with_an_earlier_run(part, tmp_path, monkeypatch, capsys):
    before = tmp_path / "before.json"
    before.write_text(json.dumps({"parts": {"agent": [{"what": "plan", "ms": 4.0, "new": 0}]}}))
    monkeypatch.setattr(machine, "parts", lambda platform, out: [part(), part(code=1, name="b")])
    out = tmp_path / "out"
    assert machine.main([f"--out={out}", f"--against={before}"]) == 3
    stored = json.loads((out / "machine.json").read_text())
    assert stored["parts"]["agent"] == [{"what": "plan", "ms": 2.0}]
    assert list(stored["problems"]) == ["b"] and stored["versions"]["jax"]
    assert "| plan: ms | 2.00 | 4.00 | 0.50 |" in (out / "machine.md").read_text()
    assert (out / "machine.png").stat().st_size > 1000
    assert "b: exit code 1" in capsys.readouterr().out


def test_every_part_is_a_program_of_this_project(tmp_path):
    for platform in ("cpu", "gpu"):
        found = machine.parts(platform, tmp_path)
        assert len({part.name for part in found}) == len(found) and found[-1].alone
        for part in found:
            assert part.command[0].startswith("experiments.")
            assert any("{" in word for word in part.command)  # a file of rows, or the time


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--minutes=0"], "--minutes = 0: must be above 0"),
        (["--only", "agnt"], "--only = 'agnt': must be of agent, .* did you mean agent?"),
        (["--out=/dev/null/x"], "--out = '/dev/null/x': '/dev/null' is no folder"),
        (["--against=/nowhere/x.json"], "--against = '/nowhere/x.json': must be a machine.json"),
    ],
)
def test_bad_input_is_one_line(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert machine.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(words, error)
    assert not list(tmp_path.iterdir())


def test_an_unknown_flag_is_one_line(capsys):
    with pytest.raises(SystemExit) as error:
        machine.main(["--onli=agent"])
    assert error.value.code == 2
    assert capsys.readouterr().err == "error: --onli: unknown argument; did you mean --only?\n"


def test_rows_are_complete_after_each(tmp_path, capsys):
    path, seen = tmp_path / "new" / "rows.json", []

    def measured():
        for size in (1, 2_000):
            yield {"size": size, "ms": size / 3}
            seen.append(json.loads(path.read_text())["rows"])

    rows.show(measured(), path, "a command")
    assert [len(found) for found in seen] == [1, 2]
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["| size | ms |", "|---|---|", "| 1 | 0.33 |", "| 2,000 | 666.7 |"]
