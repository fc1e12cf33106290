"""Comparison of two settings by alternating runs."""

import itertools
import pathlib

import pytest

from experiments.benchmarks import ab

SEEDED = "seed,updates,decisions_per_second\n"


def table(tmp_path, lines):
    (tmp_path / "metrics.csv").write_text(SEEDED + "".join(f"{line}\n" for line in lines))
    return tmp_path


def test_speed_is_the_median_of_chunks_that_train(tmp_path):
    lines = ["0,0,9000", "1,0,9000", "0,10,3", "1,10,3", "0,20,50", "1,20,1", "0,30,70", "0,40,60"]
    assert ab.decisions_per_second(table(tmp_path, lines)) == 60.0


@pytest.mark.parametrize("lines", [[], ["0,0,9000"], ["0,10,3"]])
def test_without_a_chunk_that_trains_there_is_no_speed(lines, tmp_path):
    with pytest.raises(ValueError, match="no chunk was trained; must have more --minutes"):
        ab.decisions_per_second(table(tmp_path, lines))


def test_rounds_alternate_and_ratios_are_per_round(monkeypatch):
    calls, speeds = [], itertools.count(1)

    def measure(side, minutes, place):
        calls.append((side.name, minutes))
        return float(next(speeds))

    monkeypatch.setattr(ab, "measure", measure)
    sides = [ab.Side(name, ("--config=x",), pathlib.Path(".")) for name in "ab"]
    found = list(ab.compare(*sides, minutes=1.0, rounds=2, first=3.0))
    # The first of each is not counted.
    assert calls == [("a", 3.0), ("b", 3.0), ("a", 1.0), ("b", 1.0), ("b", 1.0), ("a", 1.0)]
    assert [row["round"] for row in found] == ["1", "2", "median", "lowest", "highest"]
    assert [row["B / A"] for row in found] == pytest.approx([4 / 3, 5 / 6, 13 / 12, 5 / 6, 4 / 3])
    assert found[2]["A, decisions/s"] == 4.5 and found[3]["B, decisions/s"] == 4.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--a=x"], "--a = 'x': must have --config=FILE"),
        (["--a=--config=x", "--b_tree=/nowhere"], "--b_tree = '/nowhere': is no clone"),
        (["--a=--config=x"], "--b: is the same as --a"),
        (["--a=--config=x", "--b=--config=y", "--rounds=0"], "--rounds = 0: must be at least 1"),
    ],
)
def test_bad_input_is_one_line(arguments, words, capsys):
    assert ab.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {words}") and error.count("\n") == 1
